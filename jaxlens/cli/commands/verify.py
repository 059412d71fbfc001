"""`jaxlens verify`: compares a checkpoint in jaxlens with transformers."""

import argparse
import importlib.metadata
import math
from pathlib import Path

from jaxlens.cli.commands.command import Command, add_adapter, check_writable, positive
from jaxlens.model.verify import TOLERANCE, Verification, verify

HEAD = """\
# Checkpoints compared with transformers

`jaxlens verify` appends a row per run. "Residual stream" is the largest difference in the residual stream (before each
layer and at the unembedding), divided by the largest value of that activation. "Logits" is the largest difference of
logits and the largest logit; "relative" is their ratio. Both models run in float32, transformers with eager attention.

| model | architecture | parameters | tokens | residual stream | logits | relative | versions |
|---|---|---|---|---|---|---|---|
"""


def run(arguments: argparse.Namespace) -> int:
    """Compares the logits and the residual stream of a checkpoint with those that transformers computes.

    Requires torch. jaxlens dequantizes the weights of a quantized checkpoint for both. The exit status is 1 if a logit
    differs by more than 1e-5 times the largest logit.
    """
    if arguments.results:
        check_writable(arguments.results, arguments.results.suffix.lower())
    result = verify(
        arguments.source, arguments.text, batch=arguments.batch, length=arguments.length, seed=arguments.seed,
        adapter=arguments.adapter,
    )  # fmt: skip
    print(f"{result.name} ({result.model_type}), {result.parameters:,} parameters, {size(result)} tokens")
    print(f"\n{'':32}{'difference':>12}{'magnitude':>12}{'relative':>12}")
    for entry in (*result.residuals, result.logits):
        numbers = f"{entry.largest:>12.1e}{entry.magnitude:>12.3g}{entry.relative:>12.1e}"
        print(f"{entry.name:32}{numbers if math.isfinite(entry.relative) else '  has another shape in transformers'}")
    print(f"\n{'passed' if result.passed else 'FAILED'}: logits must agree within {TOLERANCE:g} of the largest logit")
    if arguments.results:
        append_row(result, arguments.results)
    return 0 if result.passed else 1


def append_row(result: Verification, file: Path) -> None:
    """Appends a row to the table in a Markdown file. Creates the file if it does not exist."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "torch", "transformers"))
    finite = (entry for entry in result.residuals if math.isfinite(entry.relative))
    worst = max(finite, key=lambda entry: entry.relative)
    row = (
        Path(result.name).name, f"`{result.model_type}`", f"{result.parameters:,}", size(result),
        f"{worst.relative:.1e} (`{worst.name}`)", f"{result.logits.largest:.1e} of {result.logits.magnitude:.3g}",
        f"{result.logits.relative:.1e}", versions,
    )  # fmt: skip
    text = file.read_text("utf-8") if file.exists() else HEAD
    file.write_text(f"{text}| {' | '.join(row)} |\n", "utf-8")


def size(result: Verification) -> str:
    return " × ".join(map(str, result.tokens.shape))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help="a Hugging Face id, a local folder, or a .gguf file")
    add_adapter(parser)
    parser.add_argument("--text", metavar="TEXT", help="the prompt (default: random tokens)")
    parser.add_argument(
        "--batch", type=positive, default=2, metavar="N", help="sequences of random tokens (default: %(default)s)"
    )
    parser.add_argument(
        "--length", type=positive, default=64, metavar="N", help="random tokens per sequence (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the tokens (default: %(default)s)")
    parser.add_argument("--results", type=Path, metavar="FILE", help="append a row to a table in a Markdown file")


COMMAND = Command(
    "compare a checkpoint with transformers", run, run.__doc__, 'jaxlens verify path/to/folder --text "Hello"',
    add_arguments, takes_model=False,
)  # fmt: skip
