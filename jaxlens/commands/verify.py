"""`jaxlens verify`: a checkpoint against transformers."""

import argparse
import importlib.metadata
import math
from pathlib import Path

from jaxlens.commands.command import Command, check_writable, positive
from jaxlens.convert.verifying import TOLERANCE, Verification, verify

HEAD = """\
# Checkpoints against transformers

Rows that `jaxlens verify` appended: the largest difference anywhere in the residual stream (before each layer, and what
the unembedding reads) as a share of the largest value there, and the largest difference of logits. Both are float32,
transformers with eager attention.

| model | architecture | parameters | tokens | residual stream | logits | of the largest logit | versions |
|---|---|---|---|---|---|---|---|
"""


def run(arguments: argparse.Namespace) -> int:
    """Compares logits and the residual stream with those that transformers computes from the same checkpoint.

    Needs torch. The exit status is 1 if a logit differs by more than one part in 100,000 of the largest.
    """
    if arguments.results:
        check_writable(arguments.results, arguments.results.suffix.lower())
    found = verify(
        arguments.source, arguments.text, batch=arguments.batch, length=arguments.length, seed=arguments.seed
    )  # fmt: skip
    print(f"{found.name} ({found.model_type}), {found.parameters:,} parameters, {size(found)} tokens")
    print(f"\n{'':32}{'difference':>12}{'of at most':>12}{'share':>12}")
    for place in (*found.places, found.logits):
        same = f"{place.largest:>12.1e}{place.of:>12.3g}{place.share:>12.1e}"
        print(f"{place.place:32}{same if math.isfinite(place.share) else '  transformers has another thing there'}")
    print(f"\n{'passed' if found.passed else 'FAILED'}: logits are to agree to {TOLERANCE:g} of the largest")
    if arguments.results:
        note(found, arguments.results)
    return 0 if found.passed else 1


def note(found: Verification, file: Path) -> None:
    """Appends a row to a table in a Markdown file, which is made if it is not there."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "torch", "transformers"))
    worst = max((place for place in found.places if math.isfinite(place.share)), key=lambda place: place.share)
    row = (
        Path(found.name).name, f"`{found.model_type}`", f"{found.parameters:,}", size(found),
        f"{worst.share:.1e} (`{worst.place}`)", f"{found.logits.largest:.1e} of {found.logits.of:.3g}",
        f"{found.logits.share:.1e}", versions,
    )  # fmt: skip
    text = file.read_text("utf-8") if file.exists() else HEAD
    file.write_text(f"{text}| {' | '.join(row)} |\n", "utf-8")


def size(found: Verification) -> str:
    return " × ".join(map(str, found.tokens.shape))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help="a Hugging Face id, a local folder, or a .gguf file")
    parser.add_argument("--text", metavar="TEXT", help="what to run both on (default: random tokens)")
    parser.add_argument(
        "--batch", type=positive, default=2, metavar="N", help="rows of random tokens (default: %(default)s)"
    )
    parser.add_argument(
        "--length", type=positive, default=64, metavar="N", help="tokens in a row (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="which random tokens (default: %(default)s)")
    parser.add_argument("--results", type=Path, metavar="FILE", help="append a row to a table in a Markdown file")


COMMAND = Command(
    "a checkpoint against transformers", run, run.__doc__, 'jaxlens verify path/to/folder --text "Hello"',
    add_arguments, takes_model=False,
)  # fmt: skip
