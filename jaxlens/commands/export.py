"""`jaxlens export`: back to what Hugging Face's transformers reads."""

import argparse
from pathlib import Path

from jaxlens import checkpoint
from jaxlens.commands.command import Command, say
from jaxlens.commands.convert import add_dtype
from jaxlens.convert.files import read_json
from jaxlens.convert.looking import look


def run(arguments: argparse.Namespace) -> None:
    """Writes a folder of jaxlens's own, or any other checkpoint, as one that transformers reads.

    Tensors are bit for bit those that were converted, if the number type is. A model whose weights were processed is
    refused where its architecture cannot express what was folded.
    """
    say(f"exporting {arguments.source}")
    source = None if arguments.config is None else read_json(arguments.config)
    checkpoint.convert_back(arguments.source, arguments.folder, dtype=arguments.dtype, source=source)
    written = look(arguments.folder)
    print(f"{arguments.folder}: {written.parameters:,} parameters ({written.checkpoint.model_type})")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help="a folder that jaxlens wrote, or any other checkpoint")
    parser.add_argument("folder", metavar="DST", type=Path, help="the folder to write")
    add_dtype(parser)
    parser.add_argument(
        "--config", type=Path, metavar="FILE",
        help="the config.json of the architecture, for a model that never had one (default: the one it came with)",
    )  # fmt: skip


COMMAND = Command(
    "back to what transformers reads", run, run.__doc__, "jaxlens export path/to/folder path/to/new_folder",
    add_arguments, takes_model=False,
)  # fmt: skip
