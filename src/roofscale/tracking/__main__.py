"""``python -m roofscale.tracking RUN``: the process that outlives a project's run and removes it."""

import sys

from roofscale.tracking.project import remove_when_closed

if __name__ == "__main__":
    remove_when_closed(sys.argv[1])
