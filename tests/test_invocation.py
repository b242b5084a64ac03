"""A remedy is spelled as the user called."""

import pytest

from roofscale import invocation

CASES = [
    (("phase", 2), {}, "roofscale phase 2", "mlflow run . -e phase2"),
    (("phase", 2), {"fresh": True}, "roofscale phase 2 --fresh", "mlflow run . -e phase2 -P fresh=true"),
    (("phase", 3), {"from_defaults": True}, "roofscale phase 3 --from-defaults",
     "mlflow run . -e phase3 -P from_defaults=true"),
    (("phase", 4), {"set": "max_samples=100 batch_size=8"}, 'roofscale phase 4 --set "max_samples=100 batch_size=8"',
     'mlflow run . -e phase4 -P set="max_samples=100 batch_size=8"'),
    (("train",), {"lr": "1e-4"}, "roofscale train --lr 1e-4", "mlflow run . -e train -P lr=1e-4"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "options", "typed", "through_mlflow"), CASES)
def test_a_command_is_spelled_as_the_user_called(
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, int],
    options: dict[str, str | bool],
    typed: str,
    through_mlflow: str,
) -> None:
    monkeypatch.setattr(invocation, "through_mlflow", [])
    assert invocation.command(*words, **options) == typed
    monkeypatch.setattr(invocation, "through_mlflow", [True])
    assert invocation.command(*words, **options) == through_mlflow
