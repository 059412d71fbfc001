"""`jaxlens score`: log-probabilities and perplexities of the documents of a file."""

import argparse
import json
from pathlib import Path

import numpy as np

from jaxlens.batch.scores import score
from jaxlens.batch.stream import BATCH_TOKENS
from jaxlens.cli.commands.command import Command, load_model, positive, print_progress, to_json


def score_documents(arguments: argparse.Namespace) -> None:
    """Prints the number of scored tokens, the mean log-probability (in nats) and the perplexity of each document.

    DATA is a .txt file with a document per line, a .jsonl file or a .parquet file. Every token is scored but the first,
    which is BOS in most models. The file may be larger than memory. Longer documents are cut to --max-length tokens.
    """
    model = load_model(arguments)
    print_progress(f"scoring {arguments.data}")
    options = {"column": arguments.column, "max_length": arguments.max_length, "batch_tokens": arguments.batch_tokens}
    scores, n_tokens, total = score(model, arguments.data, **options), 0, 0.0
    for number, log_probs in enumerate(scores):
        if number == 0 and not arguments.json:
            print(row("document", "tokens", "log-prob", "perplexity"))
        n_of_document, of_document = len(log_probs), float(log_probs.sum(dtype=np.float64))
        print(line(number, n_of_document, of_document, arguments.json), flush=True)
        n_tokens, total = n_tokens + n_of_document, total + of_document
    if not arguments.json:
        print(line("total", n_tokens, total))


def line(document: int | str, n_tokens: int, total: float, as_json: bool = False) -> str:
    """The line of a document whose log-probabilities sum to `total`. Without scored tokens it has no mean.

    Example:
        >>> line(3, 2, -5.0, as_json=True)
        '{"document": 3, "tokens": 2, "log_prob": -2.5, "perplexity": 12.182493960703473}'
    """
    mean = total / n_tokens if n_tokens else float("nan")
    perplexity = float(np.exp(-mean))
    if as_json:
        numbers = {"document": document, "tokens": n_tokens, "log_prob": mean, "perplexity": perplexity}
        return json.dumps(to_json(numbers))
    return row(document, n_tokens, *(("–", "–") if not n_tokens else (f"{mean:.4f}", f"{perplexity:.4g}")))


def row(*cells: object) -> str:
    """A line of the table.

    Example:
        >>> row("total", 12, "-2.5000", "12.18")
        '   total        12    -2.5000       12.18'
    """
    return "".join(f"{cell!s:>{width}}" for cell, width in zip(cells, (8, 10, 11, 12), strict=True))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", type=Path, metavar="DATA", help="a .txt, .jsonl or .parquet file of documents")
    parser.add_argument(
        "--column", metavar="NAME", help='the field with the documents (default: "text", "tokens" or "input_ids")'
    )
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each document")
    parser.add_argument("--max-length", type=positive, metavar="N", help="cut documents to N tokens (default: n_ctx)")
    parser.add_argument(
        "--batch-tokens", type=positive, default=BATCH_TOKENS, metavar="N",
        help="run at most N tokens at a time (default: %(default)s)",
    )  # fmt: skip


COMMAND = Command(
    "print the log-probability and the perplexity of the documents of a file", score_documents,
    score_documents.__doc__, "jaxlens score documents.jsonl --column text --json", add_arguments,
)  # fmt: skip
