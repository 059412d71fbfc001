"""Runs the `jaxlens` command that has the name of a script."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def run(command: str, *defaults: str) -> None:
    """Runs a command with `defaults` and the arguments of the script, and exits with its status.

    Removes this folder from the path, because inspect.py would replace Python's module `inspect`.
    """
    sys.path = [str(HERE.parent), *(entry for entry in sys.path if Path(entry).resolve() != HERE)]
    from jaxlens.cli import main

    sys.exit(main([command, *defaults, *sys.argv[1:]]))
