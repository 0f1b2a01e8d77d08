"""Owns `python -m jobrunner`: the same program as the `jobrunner` command."""

from jobrunner.cli import main

if __name__ == "__main__":
    main()
