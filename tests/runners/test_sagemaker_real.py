"""What running the tests in an account may cost, and that nobody pays who has not agreed."""

import pytest
from tests.sagemaker import real_account


def test_the_cost_is_that_of_every_job_for_as_long_as_it_may_run() -> None:
    """31 jobs, a quarter of an hour each, at the on-demand prices of ml.m5.xlarge and ml.m5.large."""
    assert real_account.most_usd() == pytest.approx((30 * 0.23 + 0.115) / 4, rel=0.5)


@pytest.mark.parametrize(("said", "may"), [({}, False), ({"ROOFSCALE_REAL_BUDGET_USD": "0.5"}, False),
                                           ({"ROOFSCALE_REAL_BUDGET_USD": "100"}, True)])  # fmt: skip
def test_nothing_runs_that_was_not_agreed_to(said: dict[str, str], may: bool) -> None:
    assert real_account.agreed(said) is may


def test_who_has_not_agreed_is_told_the_cost(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ROOFSCALE_REAL_BUDGET_USD", raising=False)
    with pytest.raises(pytest.exit.Exception, match=r"up to 31 training jobs .* up to \d\.\d\d USD"):
        real_account.prepared(tmp_path_factory.mktemp("launcher"))
