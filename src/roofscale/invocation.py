"""The way the user called this process, ``mlflow run`` or the command line, so that messages spell commands alike."""

PHASES = (1, 2, 3, 4, 5)  # numbers of the phases, as commands take them

through_mlflow: list[bool] = []  # not empty if `mlflow run` has started this process


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
