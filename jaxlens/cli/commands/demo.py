"""`jaxlens demo`: an experiment on the indirect-object task."""

import argparse
from pathlib import Path

from jaxlens.cli.commands.command import Command
from jaxlens.cli.demo import report


def run(arguments: argparse.Namespace) -> None:
    """Finds the heads of a small model that solve the indirect-object task, and saves pictures of the results."""
    report.demo(arguments.model, arguments.out, arguments.numbers, arguments.adapter)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, default=Path("out"), metavar="FOLDER", help="the folder to write (default: %(default)s)"
    )
    parser.add_argument("--numbers", action="store_true", help="also print the tables of numbers")


COMMAND = Command(
    "find the heads that solve the indirect-object task", run, run.__doc__, "jaxlens demo --out out", add_arguments
)
