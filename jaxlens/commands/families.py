"""`jaxlens families`: which architectures can be read."""

import argparse
import re
import textwrap
from pathlib import Path

from jaxlens.commands.command import Command
from jaxlens.convert.families import described
from jaxlens.convert.gguf import ARCHITECTURES

BEGIN, END = "<!-- jaxlens families -->\n", "<!-- end -->"


def run(arguments: argparse.Namespace) -> None:
    """Lists the architectures that can be read, by the model_type of their config.json."""
    if arguments.update:
        text = arguments.update.read_text("utf-8")
        arguments.update.write_text(updated(text), "utf-8")
    elif arguments.markdown:
        print(table(), end="")
    else:
        for kind in described():
            print(", ".join(kind.family.model_types))
            print(textwrap.indent(textwrap.fill(f"{kind.summary} {kind.notes}", 100), "    "))


def table() -> str:
    """All families as a table in Markdown."""
    gguf = {architecture.model_type for architecture in ARCHITECTURES.values()}
    rows = ["| model_type | what it is | notes |", "|---|---|---|"]
    for kind in described():
        also = "Also from GGUF files." if gguf & set(kind.family.model_types) else ""
        names = ", ".join(f"`{name}`" for name in kind.family.model_types)
        rows.append(f"| {names} | {kind.summary} | {' '.join(filter(None, (kind.notes, also)))} |")
    return "\n".join(rows) + "\n"


def updated(text: str) -> str:
    """A text with the table between its two comments made anew."""
    if not re.search(f"{BEGIN}.*?{END}", text, re.DOTALL):
        raise ValueError(f"there is no place for the table; put the lines {BEGIN.strip()} and {END} where it is to be")
    return re.sub(f"(?<={BEGIN}).*?(?={END})", lambda _: table(), text, flags=re.DOTALL)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--markdown", action="store_true", help="print a table in Markdown")
    parser.add_argument(
        "--update", type=Path, metavar="FILE",
        help=f"put the table in a Markdown file, between the lines {BEGIN.strip()} and {END}",
    )  # fmt: skip


COMMAND = Command(
    "the architectures that can be read", run, run.__doc__, "jaxlens families", add_arguments, takes_model=False
)
