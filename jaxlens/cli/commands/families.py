"""`jaxlens families`: the supported architectures."""

import argparse
import re
import textwrap
from pathlib import Path

from jaxlens.checkpoints.families import described
from jaxlens.checkpoints.gguf.file import ARCHITECTURES
from jaxlens.cli.commands.command import Command

BEGIN, END = "<!-- jaxlens families -->\n", "<!-- end -->"


def run(arguments: argparse.Namespace) -> None:
    """Lists the supported architectures by the model_type in config.json."""
    if arguments.update:
        text = arguments.update.read_text("utf-8")
        arguments.update.write_text(updated(text), "utf-8")
    elif arguments.markdown:
        print(table(), end="")
    else:
        for entry in described():
            print(", ".join(entry.family.model_types))
            print(textwrap.indent(textwrap.fill(f"{entry.summary} {entry.notes}", 100), "    "))


def table() -> str:
    """All families as a Markdown table."""
    in_gguf = {kind for architecture in ARCHITECTURES.values() for kind in architecture.model_types}
    rows = ["| model_type | architecture | notes |", "|---|---|---|"]
    for entry in described():
        gguf_note = "Also from GGUF files." if in_gguf & set(entry.family.model_types) else ""
        names = ", ".join(f"`{name}`" for name in entry.family.model_types)
        rows.append(f"| {names} | {entry.summary} | {' '.join(filter(None, (entry.notes, gguf_note)))} |")
    return "\n".join(rows) + "\n"


def updated(text: str) -> str:
    """A Markdown text with the current table between the lines BEGIN and END."""
    if not re.search(f"{BEGIN}.*?{END}", text, re.DOTALL):
        raise ValueError(f"the file has no lines for the table; add the lines {BEGIN.strip()} and {END}")
    return re.sub(f"(?<={BEGIN}).*?(?={END})", lambda _: table(), text, flags=re.DOTALL)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    parser.add_argument(
        "--update", type=Path, metavar="FILE",
        help=f"replace the table in a Markdown file, between the lines {BEGIN.strip()} and {END}",
    )  # fmt: skip


COMMAND = Command(
    "list the supported architectures", run, run.__doc__, "jaxlens families", add_arguments, takes_model=False
)
