"""The HTML report of a climb: one page with nothing beside it, that says what happened and escapes what it quotes."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from tests.report.synthetic_results import BATCHES, climb, measured, passed_samples, phase, rolled_back, run

from roofscale.measurement import Outcome, StepRecord
from roofscale.phases.attempt import plan_changes
from roofscale.phases.results import PhaseResult
from roofscale.report.artifacts import publish_phase
from roofscale.report.phase_html import phase_html
from roofscale.tracking import Tracker

VOID = {"meta", "img", "br"}
LARGEST = 2**20  # bytes of a page


class Page(HTMLParser):
    """What a browser would see: the words, the links and the pictures; every tag must be closed in its order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words, self.open = "", []
        self.links: list[str] = []
        self.pictures: list[dict[str, str | None]] = []
        self.tags: set[str] = set()
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "img":
            self.pictures.append(found)
        self.links += [str(found[name]) for name in ("href", "src") if name in found]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words += " " + data

    @property
    def text(self) -> str:
        """All words, single-spaced."""
        return " ".join(self.words.split())


@pytest.mark.parametrize("found", [passed_samples(), rolled_back(), climb(phase(BATCHES))], ids=["1", "2", "nothing"])
def test_a_page_needs_nothing_beside_it(found: PhaseResult) -> None:
    page = Page(phase_html(found))
    assert not page.tags & {"script", "link", "iframe"}
    assert all(link.startswith(("data:image/", "http://127.0.0.1:5000/#/runs/")) for link in page.links)
    assert all(picture["alt"] for picture in page.pictures)


def test_a_page_says_what_was_planned_what_came_of_it_and_why() -> None:
    found = rolled_back()
    text = Page(phase_html(found)).text
    assert "Phase 2, larger-batches failed" in text
    assert "Which batch is fastest?" in text
    assert "2 of 3 steps passed, 1 of them with a remedy. It took 5 runs and 3.0 min." in text
    assert "batch_size=16 failed host_oom" in text
    assert "batch_size=12 instead, for host oom passed" in text
    assert "killed by the kernel, out of memory" in text
    assert "batch-8 memory/peak_mib 1.8 x previous +-20% 2.33 not borne out" in text
    for judged in (criterion for each in found.all_runs() for criterion in each.verdict.criteria):
        assert judged.evidence in text


def test_a_page_says_where_it_comes_from_and_links_to_every_run() -> None:
    found = rolled_back()
    page = Page(phase_html(found, ui="https://mlflow.example/"))
    ids = {each.run_id for each in found.all_runs()} | {found.run_id}
    assert {link.rpartition("/")[2] for link in page.links if "/runs/" in link} == ids
    assert "https://mlflow.example/#/runs/parent2" in page.links
    for known in ("roofscale-phase2", "c0ffee", "2026-01-02", "rid from GENERATED images.", "local, 4 GiB"):
        assert known in page.text


def test_a_page_tells_the_steps_that_were_not_reached_and_that_it_was_interrupted() -> None:
    stopped = replace(rolled_back(), results=rolled_back().results[:1], interrupted=True, notes=("the plan changed",))
    text = Page(phase_html(stopped)).text
    assert "Phase 2, larger-batches interrupted" in text
    assert "batch-8 not reached batch-16 not reached" in text
    assert "the plan changed" in text


def test_what_a_page_quotes_is_never_html() -> None:
    plan = phase(BATCHES)
    hostile = "<script>alert('`rm`')</script> & <b>"
    found = climb(plan, run(plan, 0, outcome=Outcome.CRASHED, detail=hostile), notes=(hostile,))
    page = Page(phase_html(found))
    assert not page.tags & {"script", "b"}
    assert page.text.count(hostile) >= 2


def narrowest(page: str, kind: str, name: str, content: str) -> float:
    """The px below which no browser can squeeze a cell: its CSS, else its longest piece without a place to break."""
    if name in ("words", "run"):
        return 16 * float(re.search(rf"\ntd\.{name} {{[^}}]* min-width: (\d+)rem", page)[1])
    badges = re.sub(r'<span class="badge[^>]*>(.*?)</span>', lambda found: "xx" + found[1].replace(" ", "_"), content)
    text = re.sub("<[^>]*>", "", badges).strip()
    return 8 * max(map(len, [text] if (kind, name) == ("d", "number") else re.split(r"[\s-]+", text)))


@pytest.mark.parametrize("heading", ["Plan and outcome", "Failures and remedies"])
def test_the_tables_of_runs_fit_a_window_of_1200_px(heading: str) -> None:
    text = BATCHES.replace("batch-16", "rid-roofline-airs-mixed")
    plan = phase(text.replace("{batch_size: 16}", '{batch_size: 16, datasets: "rid,roofline,airs", augment: heavy}'))
    large = {"memory/peak_mib": 123456.0, "speed/samples_per_s": 1234.5}  # without a share of memory: no verdict
    unclear = run(plan, 2, large, repeats=[{**large, "speed/samples_per_s": 2345.6}])
    burst = run(plan, 1, outcome=Outcome.HOST_OOM, detail="/a" * 200)
    page = phase_html(climb(plan, run(plan, 0, measured(3000)), burst, unclear))
    assert "\ncode { overflow-wrap: anywhere;" in page
    assert not re.search(r"\n[^{]*\bth\b[^{]*{[^}]*nowrap", page)
    table = page.split(f"<h2>{heading}</h2>\n")[1].split("</table>")[0]
    assert table.startswith('<div class="wide">')
    rows = [
        [narrowest(page, *cell) for cell in re.findall(r'(?s)<t([hd])(?: class="(\w+)")?[^>]*>(.*?)</t[hd]>', row)]
        for row in re.findall(r"(?s)<tr[^>]*>(.*?)</tr>", table)
    ]
    assert len(rows) >= 3
    padding = 11.2 * len(rows[0])
    width = min(1200, 16 * int(re.search(r"\nmain { max-width: (\d+)rem", page)[1])) - 2 * 16
    assert sum(map(max, zip(*rows, strict=True))) + padding <= width


def test_a_changed_plan_is_shown_as_a_diff_and_not_as_json() -> None:
    before, after = BATCHES, BATCHES.replace("value: 1.8", "value: 2").replace("Which batch", "Which <b>")
    lines = plan_changes(phase(before).as_json(), phase(after).as_json())
    text = phase_html(climb(phase(after), notes=("\n".join(["the plan was changed:", *lines]), "by hand")))
    notes = text[text.index('<div class="note">') : text.index("</header>")]
    assert re.findall(r"<(del|ins|span)>(.*?)</\1>", notes) == [
        ("del", "-question: Which batch is fastest?"),
        ("ins", "+question: Which &lt;b&gt; is fastest?"),
        ("span", " steps:"),
        ("span", "   batch-8:"),
        ("span", "     expect:"),
        ("del", "-      memory/peak_mib: {value: 1.8, of: previous, tolerance: 0.2}"),
        ("ins", "+      memory/peak_mib: {value: 2, of: previous, tolerance: 0.2}"),
    ]
    assert Page(notes).text.startswith("the plan was changed: -question")
    assert '<div class="note">by hand\n</div>' in notes
    for tag in ("ins", "del"):
        assert re.search(rf"\n{tag} {{ background: [^}}]*var\(--", text), f"{tag} has no colour"


def test_commands_in_a_recommendation_are_set_as_code() -> None:
    assert "<code>roofscale phase 5</code>" in phase_html(passed_samples(), replace(phase(BATCHES), number=5))


def test_a_page_stays_small_however_long_the_runs_were() -> None:
    plan = phase(BATCHES.replace("{batch_size: 4}", '{batch_size: 4, datasets: "rid,airs"}'))
    steps = tuple(
        StepRecord(i, 0, "rid" if i < 5000 else "airs", i, 1 / i, 1.0, 1e-3, 1.0, 0.0, float(i))
        for i in range(1, 10001)
    )
    four = run(plan, 0, {})
    long = replace(four, measurement=replace(four.measurement, steps=steps))
    text = phase_html(climb(plan, long))
    assert any(str(picture["src"]).startswith("data:image/png") for picture in Page(text).pictures)
    assert len(text.encode()) < LARGEST


def test_the_same_climb_gives_the_same_page() -> None:
    assert phase_html(rolled_back()) == phase_html(rolled_back())


def test_the_report_and_the_figures_are_artifacts_of_the_climb(tracking_store: None) -> None:
    tracker = Tracker("roofscale-phase2")
    parent = tracker.start("attempt", {})
    publish_phase(parent, rolled_back())
    tracker.close()
    assert Page(tracker.read_text(parent.run_id, "report.html") or "").text.startswith("Phase 2, larger-batches")
    names = {entry.path for entry in tracker.client.list_artifacts(parent.run_id, "figures")}
    assert names == {f"figures/{name}.png" for name in ("ladder", "expected", "memory_by_batch")}
