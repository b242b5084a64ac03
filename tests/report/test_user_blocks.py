"""What a person wrote in the strategy document comes back to the byte, or the document is refused."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from roofscale.errors import ConfigError
from roofscale.report.user_blocks import phase_block, read_regions, user_block

PAGE = f"above\n{user_block('notes', ' mine ')}\n{phase_block(1, 'one')}\nbetween\n{phase_block(12, 'twelve')}\nbelow"


def test_a_page_is_taken_apart() -> None:
    found = read_regions(PAGE)
    assert found.yours == {"notes": " mine "}
    assert found.phases == {1: "one", 12: "twelve"}
    assert found.outside == "above\n\n\nbetween\n\nbelow"


@given(st.text(st.characters(exclude_categories=["Cs"])).filter(lambda text: "<!--" not in text))
@example("\r\n\ttabs, trailing blanks \r\n\n\n")
@example("-->\n| a | b |\n```\n# no title\n```\n")
def test_what_was_written_comes_back_to_the_byte(text: str) -> None:
    assert read_regions(f"x{user_block('a', text)}y{user_block('b c', text)}").yours == {"a": text, "b c": text}


def test_a_block_within_a_phase_is_taken_out_of_it() -> None:
    found = read_regions(phase_block(3, f"above {user_block('mine', 'x')} below"))
    assert found.yours == {"mine": "x"}
    assert found.phases == {3: "above  below"}


def test_a_comment_within_a_block_is_the_persons() -> None:
    assert read_regions(user_block("a", "<!-- a thought --> <!-- phase 1: begin -->")).phases == {}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("<!-- yours: begin a -->text", "its end is missing"),
        ("text<!-- yours: end a -->", "no such block begins before it"),
        ("<!-- yours: begin a --><!-- yours: end b -->", "no such block begins before it"),
        ("<!-- yours: begin a --><!-- yours: begin b --><!-- yours: end b --><!-- yours: end a -->", "stands inside"),
        (user_block("a") + user_block("a"), "twice"),
        ("<!-- yours: beginn a -->", "it is none of"),
        ("<!-- yours: begin a --", "it is none of"),
        ("<!-- phase 1: begin -->text", "its end is missing"),
        ("<!-- phase 1: begin --><!-- phase 2: end -->", "no such block begins before it"),
        (phase_block(1, "a") + phase_block(1, "b"), "twice"),
        ("<!-- phase 1: begin", "it is none of"),
    ],
)
def test_markers_that_do_not_pair_are_refused(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        read_regions(f"above\n{text}\nbelow")
