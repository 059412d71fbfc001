"""`jaxlens convert`: writes a checkpoint of any format in jaxlens's native format."""

import argparse
from pathlib import Path

from jaxlens.checkpoints import converter
from jaxlens.checkpoints.inspector import look
from jaxlens.checkpoints.open import open_checkpoint
from jaxlens.cli.commands.command import Command, add_adapter, print_progress
from jaxlens.config import DTYPES


def run(arguments: argparse.Namespace) -> None:
    """Writes a checkpoint in jaxlens's native format: safetensors, config.json and the tokenizer.

    At most one tensor is in memory. Quantized weights are dequantized. The folder appears when it is complete. If the
    command is interrupted, it can be run again.
    """
    print_progress(f"converting {arguments.source}")
    report = converter.convert(
        arguments.source, arguments.folder, dtype=arguments.dtype, process=arguments.process, adapter=arguments.adapter
    )
    print_quantization(arguments.source)
    written = look(arguments.folder)
    print(f"{arguments.folder}: {written.parameters:,} parameters in {written.checkpoint.cfg.dtype}")
    for processing in report:
        print(f"  {processing}")


def print_quantization(source: str) -> None:
    """Says that the weights of a quantized checkpoint have been dequantized."""
    if quantization := open_checkpoint(source).quantization:
        print(f"dequantized from {quantization}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help="a Hugging Face id, a local folder, or a .gguf file")
    parser.add_argument("folder", metavar="DST", type=Path, help="the folder to write")
    add_adapter(parser)
    add_dtype(parser)
    parser.add_argument(
        "--process", action="store_true", help="process the weights like from_pretrained (holds all weights in memory)"
    )


def add_dtype(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dtype", choices=DTYPES, help="the dtype to write (default: that of the largest tensor)")


COMMAND = Command(
    "write a checkpoint in jaxlens's native format", run, run.__doc__,
    "jaxlens convert path/to/folder path/to/new_folder --dtype bfloat16", add_arguments, takes_model=False,
)  # fmt: skip
