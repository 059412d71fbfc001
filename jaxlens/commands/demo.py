"""`jaxlens demo`: an experiment from the first forward to its pictures."""

import argparse
from pathlib import Path

from jaxlens import demo
from jaxlens.commands.command import Command


def run(arguments: argparse.Namespace) -> None:
    """Runs the demonstration: eight prompts about who gets the bag, and which heads know it."""
    demo.demo(arguments.model, arguments.out)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, default=Path("out"), metavar="FOLDER", help="where files go (default: %(default)s)"
    )


COMMAND = Command(
    "find the heads of a small model that know who gets the bag", run, run.__doc__, "jaxlens demo --out out",
    add_arguments,
)  # fmt: skip
