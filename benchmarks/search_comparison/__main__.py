"""``python -m benchmarks.search_comparison [--overlay FILE] [--set "KEY=VALUE ..."] [--json]``; see ``comparison``.

The search is phase 3's, from the defaults, in the space of the overlay; ``compute=local:1.5`` sets the limit. What was
run is kept in ``runs/compare``.
"""

import argparse
import shlex
import sys
from pathlib import Path

from benchmarks.measure import ROOT
from benchmarks.search_comparison.comparison import compare_searches
from roofscale.phases.phase_file import load_phase


def main() -> int:
    """Compare; 0 where the search met its targets, 1 where it did not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--overlay", type=Path, default=Path(__file__).with_name("overlay.yaml"))
    parser.add_argument("--set", default="", help="KEY=VALUE words for every trial")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    phase = load_phase(ROOT / "experiments" / "phase3.yaml", asked.overlay).searching()
    step, config = phase.resolve(overrides=shlex.split(asked.set))[-1]
    assert step.search, "the last of the searching steps"
    return compare_searches(step.search, config, Path("runs/compare"), Path("data/generated"), asked.json)


if __name__ == "__main__":
    sys.exit(main())
