"""`jaxlens convert`: any checkpoint into jaxlens's own folder."""

import argparse
from pathlib import Path

from jaxlens import checkpoint
from jaxlens.commands.command import Command, say
from jaxlens.config import DTYPES
from jaxlens.convert.looking import look


def run(arguments: argparse.Namespace) -> None:
    """Writes a checkpoint as a folder of jaxlens's own: safetensors, config.json and the tokenizer.

    It is converted tensor by tensor, with memory for one. The folder appears once it is complete: a run that is killed
    leaves none, and can be run again.
    """
    say(f"converting {arguments.source}")
    report = checkpoint.convert(arguments.source, arguments.folder, dtype=arguments.dtype, process=arguments.process)
    written = look(arguments.folder)
    print(f"{arguments.folder}: {written.parameters:,} parameters in {written.checkpoint.cfg.dtype}")
    for processing in report:
        print(f"  {processing}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help="a Hugging Face id, a local folder, or a .gguf file")
    parser.add_argument("folder", metavar="DST", type=Path, help="the folder to write")
    add_dtype(parser)
    parser.add_argument(
        "--process", action="store_true",
        help="process the weights as from_pretrained does (takes memory for all of them)",
    )  # fmt: skip


def add_dtype(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dtype", choices=DTYPES, help="the number type (default: that of the largest tensor)")


COMMAND = Command(
    "any checkpoint into jaxlens's own folder", run, run.__doc__,
    "jaxlens convert path/to/folder path/to/new_folder --dtype bfloat16", add_arguments, takes_model=False,
)  # fmt: skip
