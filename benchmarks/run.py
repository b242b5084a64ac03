"""``make bench``: every benchmark in a process of its own; a JSON file and a table in ``benchmarks/results/<date>``."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.measure import ROOT, machine, scratch_folder, todays_file
from roofscale.report.format import markdown

ALL = (
    "loader_speed",
    "lightning_trainer",
    "phase1_from_nothing",
    "monitoring_cost",
    "airs_windows",
    "recipe",
    "sagemaker_overhead",
)


def main(names: Sequence[str]) -> int:
    """Run the named benchmarks, or all; 1 if one of them broke (a missed target is a result, not a failure)."""
    unknown = set(names) - set(ALL)
    if unknown:
        print(f"{', '.join(sorted(unknown))}: no benchmark; known: {', '.join(ALL)}", file=sys.stderr)
        return 2
    found: dict[str, Any] = {"machine": machine(), "results": [], "broken": []}
    for name in names or ALL:
        print(f"{name} ...", file=sys.stderr)
        with scratch_folder() as folder:
            out = folder / "results.json"
            done = subprocess.run([sys.executable, "-m", f"benchmarks.{name}", str(out)], cwd=ROOT, check=False)
            if done.returncode:
                found["broken"].append(name)
            else:
                found["results"] += json.loads(out.read_text(encoding="utf-8"))["results"]
    _write(found, "-".join(["", *names]))
    return 1 if found["broken"] else 0


def _write(found: Mapping[str, Any], suffix: str) -> None:
    file = todays_file(f"bench{suffix}.json")
    file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    text = table(found)
    file.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


def table(found: Mapping[str, Any]) -> str:
    """The results as markdown, with the machine that they are true of."""
    rows = [_row(one) for one in found["results"]]
    on = found["machine"]
    where = f"{on['cpu']}, {on['cores']} cores, {'native bf16' if on['native_bf16'] else 'no native bf16'}"
    head = f"Measured on {where}, torch {on['torch']}, commit {on['commit']}, load before {on['load_before']:.1f}.\n\n"
    broken = "".join(f"\n\nBroken: {name}" for name in found["broken"])
    return head + markdown(("measure", "value", "target", "verdict", "rounds", "how"), rows) + broken + "\n"


def _row(one: Mapping[str, Any]) -> tuple[str, ...]:
    unit = "" if one["unit"] == "ratio" else one["unit"]
    value = "" if one["value"] is None else f"{one['value']:.3g} {unit}".strip()
    target = "" if one["target"] is None else f"at {'most' if one['at_most'] else 'least'} {one['target']:g}"
    spread = f"{one['spread'][0]:.3g} to {one['spread'][1]:.3g}" if one["spread"] else ""
    return one["measure"], value, target, one["verdict"], spread, one["note"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
