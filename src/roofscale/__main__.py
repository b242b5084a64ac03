"""Entry point of ``python -m roofscale``, the command line without an installed script."""

from roofscale.cli import main

if __name__ == "__main__":
    main()
