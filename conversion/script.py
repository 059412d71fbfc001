"""What the scripts here share: each runs the command of `jaxlens` that has its name."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def run(command: str, *defaults: str) -> None:
    """Runs a command with the arguments of the script, after `defaults`, and ends with its exit status.

    This folder leaves the path first, where inspect.py would be taken for Python's own module of that name.
    """
    sys.path = [str(HERE.parent), *(entry for entry in sys.path if Path(entry).resolve() != HERE)]
    from jaxlens.cli import main

    sys.exit(main([command, *defaults, *sys.argv[1:]]))
