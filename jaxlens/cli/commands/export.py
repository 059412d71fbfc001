"""`jaxlens export`: writes a checkpoint for Hugging Face's transformers."""

import argparse
from pathlib import Path

from jaxlens.checkpoints import converter
from jaxlens.checkpoints.inspector import look
from jaxlens.checkpoints.safetensors_reader import read_json
from jaxlens.cli.commands.command import Command, add_adapter, print_progress
from jaxlens.cli.commands.convert import add_dtype, print_quantization


def run(arguments: argparse.Namespace) -> None:
    """Writes a folder in jaxlens's native format, or any other checkpoint, for Hugging Face's transformers.

    In the same dtype, tensors equal those of the original checkpoint bit for bit. Quantized weights are dequantized.
    Processed weights cannot be exported if the architecture cannot express the result of a pass.
    """
    print_progress(f"exporting {arguments.source}")
    source = None if arguments.config is None else read_json(arguments.config)
    converter.convert_back(
        arguments.source, arguments.folder, dtype=arguments.dtype, source=source, adapter=arguments.adapter
    )
    print_quantization(arguments.source)
    written = look(arguments.folder)
    print(f"{arguments.folder}: {written.parameters:,} parameters ({written.checkpoint.model_type})")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help="a folder in jaxlens's native format, or any other checkpoint")
    parser.add_argument("folder", metavar="DST", type=Path, help="the folder to write")
    add_adapter(parser)
    add_dtype(parser)
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="a Hugging Face config.json (default: that of the checkpoint)"
    )


COMMAND = Command(
    "write a checkpoint for Hugging Face's transformers", run, run.__doc__,
    "jaxlens export path/to/folder path/to/new_folder", add_arguments, takes_model=False,
)  # fmt: skip
