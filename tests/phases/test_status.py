"""``roofscale status``: what it says of a step, from the folders that the phase runner and the search leave."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from roofscale.cli import main
from roofscale.config import RunConfig
from roofscale.phases.attempt import Attempt, Attempts
from roofscale.phases.judge import CriterionResult, Role, StepVerdict, Verdict

PASSED, FAILED, INSUFFICIENT = Verdict.PASSED, Verdict.FAILED, Verdict.INSUFFICIENT_EVIDENCE


@pytest.fixture
def attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Attempt:
    monkeypatch.chdir(tmp_path)
    return Attempts(Path("runs"), "roofscale-phase3").new("plan", "0" * 32, "2026-01-03", ["auto", "next"], {})


def judged(attempt: Attempt, verdict: Verdict | None, fallback: int = 0, repeat: int = 0) -> None:
    """A run of the first step, with its verdict unless it is under way."""
    folder = attempt.step(1, "auto", fallback, repeat)
    folder.set_run("1" * 32, RunConfig())
    if verdict:
        folder.set_verdict(StepVerdict(verdict, ()))


def status() -> str:
    (row,) = json.loads(CliRunner().invoke(main, ["status", "--json"]).stdout)["phases"]
    assert row["steps"]["next"] == "not begun"
    return str(row["steps"]["auto"])


@pytest.mark.parametrize("verdict", [PASSED, FAILED, INSUFFICIENT])
def test_a_searched_step_that_was_judged_has_its_verdict(attempt: Attempt, verdict: Verdict) -> None:
    attempt.search(1, "auto").mkdir()
    judged(attempt, verdict)
    assert status() == verdict.label


def test_a_search_is_under_way_until_it_has_chosen(attempt: Attempt) -> None:
    assert status() == "not begun"
    trial = attempt.search(1, "auto") / "trial-000"
    trial.mkdir(parents=True)
    assert status() == "under way or stopped; the same command goes on with it"
    (trial / "events.jsonl").touch()
    assert "last sign of life" in status()


def test_a_run_without_a_verdict_is_under_way_whichever_came_before(attempt: Attempt) -> None:
    judged(attempt, INSUFFICIENT)
    judged(attempt, INSUFFICIENT, repeat=1)
    judged(attempt, None, fallback=1)
    assert status().startswith("under way or stopped")


def test_the_last_run_that_passed_decides_else_the_planned_one_over_its_seeds(attempt: Attempt) -> None:
    judged(attempt, INSUFFICIENT)
    judged(attempt, FAILED, repeat=1)
    judged(attempt, INSUFFICIENT, fallback=1)
    assert status() == "failed"
    judged(attempt, PASSED, fallback=1, repeat=1)
    assert status() == "passed with a fallback"


def test_a_fallback_that_only_findings_are_against_decides_where_none_passed(attempt: Attempt) -> None:
    judged(attempt, FAILED)
    sound = [CriterionResult("stable", PASSED, ""), CriterionResult("faster", FAILED, "", role=Role.FINDING)]
    folder = attempt.step(1, "auto", 1)
    folder.set_run("1" * 32, RunConfig())
    folder.set_verdict(StepVerdict(FAILED, (*sound,)))
    assert status() == "failed with a fallback"
