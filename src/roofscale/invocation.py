"""The way the user called this process, ``mlflow run`` or the command line, so that messages spell commands alike."""

import os

PHASES = (1, 2, 3, 4, 5)  # numbers of the phases, as commands take them
SEARCHING = 3  # the phase with the search, which ``roofscale search`` runs alone

through_mlflow: list[bool] = []  # not empty if `mlflow run` has started this process


def take_mlflow_run() -> str:
    """Remove the run that ``mlflow run`` has opened from the environment, so that nothing logs into it by accident.

    Returns:
        The id of the run; empty if the environment names none.
    """
    os.environ.pop("MLFLOW_EXPERIMENT_ID", None)
    return os.environ.pop("MLFLOW_RUN_ID", "")


def command(name: str, number: int | None = None, **options: str | bool) -> str:
    """Spell a command that is also an entry point of MLproject, such as ``phase`` 2, with its options."""
    words = [option(key, value) for key, value in options.items()]
    if through_mlflow:
        return " ".join([f"mlflow run . -e {name}{number or ''}", *words])
    return " ".join(["roofscale", name, *([str(number)] if number else []), *words])


def option(name: str, value: str | bool = True) -> str:
    """Spell an option of such a command; without a value it is a switch that is on."""
    text = value if isinstance(value, str) else str(value).lower()
    text = f'"{text}"' if " " in text else text
    if through_mlflow:
        return f"-P {name}={text}"
    return f"--{name.replace('_', '-')}" + ("" if value is True else f" {text}")
