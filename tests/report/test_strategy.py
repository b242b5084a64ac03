"""The strategy document: what it says of a climb, and what it never loses."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
from tests.report.synthetic_results import (
    BATCHES,
    GPU,
    SAMPLES,
    climb,
    measured,
    passed_samples,
    phase,
    rolled_back,
    run,
)

from roofscale.errors import ConfigError
from roofscale.measurement import Outcome
from roofscale.phases.gate import Condition, GateReport
from roofscale.phases.results import Cause, PhaseResult
from roofscale.report.phase_section import DESCRIPTION_LENGTH, phase_section, truncate_description
from roofscale.report.strategy import strategy_document
from roofscale.report.user_blocks import read_regions, user_block

PLANS = [phase(text) for text in (SAMPLES, BATCHES, GPU)]


def document(climbs: Mapping[int, PhaseResult], old: str = "", gate: GateReport | None = None) -> str:
    return strategy_document(PLANS, climbs, gate, old)


def part(text: str, heading: str) -> str:
    """What stands under the first heading that begins so, up to the next one of any level."""
    lines = text.split(heading, 1)[1].splitlines()[1:]
    end = next((place for place, line in enumerate(lines) if line.startswith("#")), len(lines))
    return "\n".join(lines[:end])


def rows(text: str, heading: str) -> list[list[str]]:
    """The cells of the table under a heading, without its head."""
    table = [line for line in part(text, heading).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]


def test_the_document_opens_with_the_state_and_the_next_command_before_any_table() -> None:
    climbs = {1: passed_samples(), 2: rolled_back()}
    lacking = Condition("the best batch is known", False, "no run shows it", remedy="roofscale phase 3")
    opening = document(climbs, gate=GateReport((lacking,))).split("\n|")[0].splitlines()
    assert opening[:4] == ["<!-- written by roofscale report -->", "# Scaling strategy", "", "## Where it stands"]
    assert opening[5:11] == [
        "- Phase 1, more-samples: passed, 2 of 2 steps, run `parent1`.",
        "- Phase 2, larger-batches: failed, 3 of 3 steps (batch-8 failed), run `parent2`.",
        "- Phase 5, gpu: not climbed yet.",
        "- Last good config: `max_samples=100 batch_size=12` (phase 2, batch-16 at batch_size=12, run "
        f"`{climbs[2].results[-1].run_id}`).",
        "- Gate before the GPU: closed. Missing: the best batch is known (`roofscale phase 3`).",
        "- Next: `roofscale phase 3`, as the gate requires: the best batch is known. Once it is open: "
        "`roofscale phase 5`.",
    ]
    assert len(opening) < 25, "more than half a page"


def test_the_next_command_follows_the_phases_and_the_gate() -> None:
    def next_line(climbs: Mapping[int, PhaseResult], gate: GateReport | None = None) -> str:
        return next(line for line in document(climbs, gate=gate).splitlines() if line.startswith("- Next: "))

    both = {1: passed_samples(), 2: rolled_back()}
    met = Condition("at least 100 samples", True, "100 of them", run_id="abc")
    assert next_line({}) == "- Next: `roofscale phase 1`. Does it stay healthy with more samples?"
    assert next_line(both, GateReport((met,))) == "- Next: `roofscale phase 5`. Does it run on the GPU?"
    stopped = {1: replace(passed_samples(), interrupted=True)}
    assert next_line(stopped) == "- Next: Run `roofscale phase 1` again; it goes on where it stopped."
    gpu = climb(PLANS[2], run(PLANS[2], 0, measured(2000)))
    assert next_line({**both, 5: gpu}) == "- Next: nothing is left to climb."


def test_the_configuration_to_go_on_with_stands_beside_default_and_target() -> None:
    found = document({1: passed_samples(), 2: rolled_back()})
    assert "`max_samples=100 batch_size=12` (phase 2, batch-16 at batch_size=12, run" in found
    knobs = {row[0]: row[1:5] for row in rows(found, "## Configuration and target")}
    assert knobs == {
        "max_samples": ["10", "100", "0", "no"],
        "image_size": ["512", "512", "1024", "no"],
        "batch_size": ["2", "12", "16", "no"],
        "compute": ["local", "local", "ml.g5.xlarge", "no"],
    }


def test_a_phase_that_stopped_is_the_next_and_leaves_the_base_of_the_one_before() -> None:
    four = run(PLANS[1], 0, outcome=Outcome.HOST_OOM, detail="no memory", cause=Cause.HOST_OOM)
    found = document({1: passed_samples(), 2: climb(PLANS[1], four)})
    assert "`max_samples=100` (phase 1, many, run" in found
    assert "Next: Do not go on: mend what the issues name, then run `roofscale phase 2`." in found
    assert "failed, 1 of 3 steps" in found


def test_each_criterion_is_shown_with_its_limits_and_where_they_hold() -> None:
    found = rows(document({}), "## Going up")
    assert [(row[2], row[3]) for row in found[1:3]] == [("max_share=0.8", "1, 2"), ("max_share=0.65", "2")]


def test_every_cause_of_a_failure_has_its_answer() -> None:
    assert {row[0] for row in rows(document({}), "## Coming down")} == {cause.replace("_", " ") for cause in Cause}


def test_the_plan_says_what_each_step_changes_and_expects() -> None:
    found = document({})
    (_, second, _) = rows(found, "### Plan of phase 2")
    assert second[1:4] == [
        "`batch_size=8`",
        "memory/peak_mib 1.8 x previous +-20%",
        "completes, memory_margin",
    ]
    assert "Stands on the last good configuration of phase 1, with `max_samples=100`." in found
    assert "requires: gate, gpu" in found


def test_what_was_expected_is_held_against_what_was_measured() -> None:
    found = phase_section(rolled_back(), None)
    assert rows(found, "### Expected and measured") == [
        ["batch-8", "memory/peak_mib (MiB)", "1.8 x previous +-20%", "2.33 x previous", "no, above", ""]
    ]
    burst = run(PLANS[1], 1, outcome=Outcome.HOST_OOM, detail="no memory", cause=Cause.HOST_OOM)
    assert rows(phase_section(climb(PLANS[1], burst), None), "### Expected and measured")[0][3:] == [
        "-",
        "not measured",
        "",
    ]


def test_every_run_is_listed_and_the_failed_ones_are_issues_with_their_cause() -> None:
    found = phase_section(rolled_back(), None)
    runs = rows(found, "### Runs")
    assert [(row[0], row[2], row[3]) for row in runs] == [
        ("**batch-4**", "ok", "passed"),
        ("**batch-8**", "ok", "failed"),
        ("batch-16", "host_oom", "failed"),
        ("batch-16", "host_oom", "failed"),
        ("**batch-16**", "ok", "passed"),
    ]
    issues = rows(found, "### Issues met")
    assert issues[1] == ["batch-16", "`batch_size=16`", "host oom", "killed by the kernel, out of memory"]
    assert issues[2][1] == "`batch_size=14`"


def test_what_was_done_about_a_failure_is_told() -> None:
    found = part(phase_section(rolled_back(), None), "### Solutions applied").strip().splitlines()
    assert found == [
        "- batch-8: rolled back to step batch-4.",
        "- batch-16: for host oom, `batch_size=14` was tried: failed.",
        "- batch-16: for host oom, `batch_size=12` was tried: passed.",
        "- batch-16: kept `batch_size=12`, and the phase went on from it.",
    ]


def test_repeats_are_shown_from_the_smallest_to_the_largest() -> None:
    plan = PLANS[0]
    few = run(plan, 0, measured(2000), repeats=[measured(1900), measured(2200)])
    found = phase_section(climb(plan, few), None)
    assert rows(found, "### Measured")[0] == ["memory/peak_mib (MiB)", "1,900 to 2,200"]
    assert "run under 3 seeds" in found


def test_what_was_not_reached_is_said() -> None:
    found = phase_section(climb(PLANS[0], run(PLANS[0], 0, measured(2000)), interrupted=True), None)
    assert rows(found, "### Issues met") == [["many", "", "not run", "the climb was interrupted"]]
    assert "## Phase 1, more-samples: interrupted" in found


def test_notes_commit_data_and_run_ids_are_there() -> None:
    found = phase_section(replace(passed_samples(), notes=("the plan was changed: lr",)), None)
    for text in (
        "> the plan was changed: lr",
        "`c0ffee`",
        "data: rid from GENERATED images.",
        "`parent1`",
        "precision",
    ):
        assert text in found


def test_a_changed_plan_is_a_diff_that_passes_for_no_marker() -> None:
    note = "the plan was changed:\n steps:\n-  a: <!-- yours: begin x -->\n+  a: 1"
    changed = replace(passed_samples(), notes=(note, "by hand"))
    quoted = "> the plan was changed:\n>\n> ```diff\n>  steps:\n> -  a: &lt;!-- yours: begin x -->\n> +  a: 1\n> ```"
    assert f"\n\n{quoted}\n\n> by hand\n\n" in phase_section(changed, None)
    assert document({1: changed}, document({1: changed})) == document({1: changed})


def test_an_overlay_is_said() -> None:
    plan = replace(PLANS[0], source={**PLANS[0].source, "overlay": {"hold": {"image_size": 64}}})
    found = phase_section(climb(plan, run(plan, 0, measured(2000))), None)
    assert '> the phase file was climbed with an overlay: {"hold": {"image_size": 64}}' in found


def test_text_from_elsewhere_neither_breaks_a_table_nor_passes_for_a_marker() -> None:
    said = "a|b\nc <!-- yours: begin x -->"
    burst = run(PLANS[0], 0, outcome=Outcome.CRASHED, detail=said, cause=Cause.CRASHED)
    found = document({1: climb(PLANS[0], burst)})
    assert "a\\|b c &lt;!-- yours: begin x -->" in found
    assert document({1: climb(PLANS[0], burst)}, found) == found


def test_the_gate_names_proof_and_remedy() -> None:
    met = Condition("at least 100 samples", True, "100 of them", run_id="abc")
    lacking = Condition("the best batch is known", False, "no run shows it", remedy="roofscale phase 2")
    found = document({}, gate=GateReport((met, lacking)))
    assert "Closed" in part(found, "## Gate")
    assert [row[3] for row in rows(found, "## Gate")] == ["`abc`", "`roofscale phase 2`"]
    assert "Open" in part(document({}, gate=GateReport((met,))), "## Gate")
    assert "roofscale gate" in part(document({}), "## Gate")


def test_writing_it_again_changes_nothing() -> None:
    climbs = {1: passed_samples(), 2: rolled_back()}
    first = document(climbs)
    assert document(climbs, first) == first


def test_what_a_person_wrote_survives_in_its_place() -> None:
    first = document({1: passed_samples()})
    mine = "\r\nMy own | words \t\n\n"
    edited = first.replace(user_block("phase-2"), user_block("phase-2", mine)).replace(
        user_block("notes"), user_block("notes", "top")
    )
    assert edited != first
    again = document({1: passed_samples(), 2: rolled_back()}, edited)
    assert read_regions(again).yours["phase-2"] == mine
    assert again.index("## Where it stands") < again.index(user_block("notes", "top")) < again.index("## Configuration")
    assert again.index("<!-- phase 2: end -->") < again.index(mine) < again.index("## Phase 5")


def test_a_block_of_ones_own_goes_to_the_end_and_stays_there() -> None:
    edited = document({1: passed_samples()}).replace("### Issues met", user_block("mine", "kept") + "\n### Issues met")
    again = document({1: passed_samples()}, edited)
    assert again.rstrip().endswith(user_block("mine", "kept"))
    assert document({1: passed_samples()}, again) == again


def test_a_phase_that_the_server_does_not_know_keeps_its_section() -> None:
    first = document({1: passed_samples(), 2: rolled_back()})
    again = document({1: passed_samples()}, first)
    assert read_regions(again).phases[2] == read_regions(first).phases[2]
    assert "not on this server; its section is kept" in again
    without_file = strategy_document(PLANS[:1], {1: passed_samples()}, None, first)
    assert read_regions(without_file).phases[2] == read_regions(first).phases[2]


def test_a_page_of_another_make_is_kept_among_the_notes() -> None:
    again = document({1: passed_samples()}, "# My plan\n\nbuy a GPU\n" + user_block("notes", "\nmore\n"))
    assert read_regions(again).yours["notes"] == "\n# My plan\n\nbuy a GPU\n\nmore\n"
    assert document({1: passed_samples()}, again) == again


def test_a_torn_page_is_refused() -> None:
    torn = document({1: passed_samples()}).replace("<!-- yours: end notes -->", "")
    with pytest.raises(ConfigError, match="stands inside"):
        document({1: passed_samples()}, torn)


def test_a_long_description_is_cut_at_a_line_and_says_where_the_rest_is() -> None:
    section = phase_section(passed_samples(), None)
    assert truncate_description(section, "STRATEGY.md") == section
    long = section + "| a row |\n" * 2000
    found = truncate_description(long, "STRATEGY.md")
    assert len(found) <= DESCRIPTION_LENGTH
    assert found.endswith("this run's artifact `STRATEGY.md`.\n")
    assert long.startswith(found.split("\n\n...")[0] + "\n")
