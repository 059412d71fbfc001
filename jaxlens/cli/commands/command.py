"""Definitions that subcommands share: `Command` and `Report`, loading the model, and writing and printing a report."""

import argparse
import dataclasses
import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxlens import plot
from jaxlens.analysis.labelled_array import Labelled
from jaxlens.model.transformer import HookedTransformer
from jaxlens.plot import Picture

DEFAULT_MODEL = "smollm2-135m-instruct"
STDOUT = Path("-")


@dataclasses.dataclass(frozen=True)
class Command:
    """A subcommand.

    `help` is its entry in `jaxlens --help`. `jaxlens COMMAND --help` prints `description` and `example`. `run` returns
    the exit status, where None is success. With `takes_model`, it has the options `--model` and `--adapter`.
    """

    help: str
    run: Callable[[argparse.Namespace], int | None]
    description: str = ""
    example: str = ""
    add_arguments: Callable[[argparse.ArgumentParser], None] = lambda parser: None
    takes_model: bool = True


@dataclasses.dataclass(frozen=True)
class Report:
    """The result of an analysis: pictures, and the values of `--json`."""

    pictures: list[Picture]
    numbers: dict[str, Any]


def analysis_command(
    make_report: Callable[[argparse.Namespace], Report], add_arguments: Callable[[argparse.ArgumentParser], None],
    help: str, example: str, top: int = 10,
) -> Command:  # fmt: skip
    """A subcommand that outputs the report of `make_report`, whose docstring is the description. `top` is for --top."""

    def add_all_arguments(parser: argparse.ArgumentParser) -> None:
        add_arguments(parser)
        output = parser.add_argument_group("output")
        top_help = "number of entries in lists (default: %(default)s)"
        output.add_argument("--top", type=positive, default=top, metavar="N", help=top_help)
        output.add_argument("--html", type=Path, metavar="FILE", help="write a page of pictures that works offline")
        output.add_argument(
            "--json", type=Path, nargs="?", const=STDOUT, metavar="FILE",
            help="write the numbers to FILE; without FILE, print only the numbers",
        )  # fmt: skip

    def run(arguments: argparse.Namespace) -> None:
        for path, suffix in ((arguments.html, ".html"), (arguments.json, ".json")):
            check_writable(path, suffix)
        output_report(make_report(arguments), arguments)

    return Command(help, run, make_report.__doc__, example, add_all_arguments)


# --- before the analysis


def check_writable(path: Path | None, suffix: str) -> None:
    """Raises ValueError if the file has another suffix, and OSError if it cannot be written."""
    if path in (None, STDOUT):
        return
    if path.suffix.lower() != suffix:
        raise ValueError(f"--{suffix[1:]} is {str(path)!r}; expected a file name that ends in {suffix}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be written: there is no folder {path.parent}; create it first")
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise PermissionError(f"{path} is a folder or is write-protected; choose another path")


def positive(text: str) -> int:
    """Parses a positive integer, as a `type` of argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer; got {text!r}")
    return int(text)


def load_model(arguments: argparse.Namespace) -> HookedTransformer:
    """The model of `--model`, with unprocessed weights."""
    print_progress(f"loading {arguments.model}")
    return HookedTransformer.from_pretrained_no_processing(arguments.model, adapter=arguments.adapter)


def add_adapter(parser: argparse.ArgumentParser) -> None:
    help = "a LoRA adapter to merge: a local folder or a Hugging Face id"
    parser.add_argument("--adapter", metavar="FOLDER", help=help)


def print_progress(step: str) -> None:
    """Prints the current step to stderr, if that is a terminal."""
    if sys.stderr.isatty():
        print(f"{step} …", file=sys.stderr, flush=True)


# --- after the analysis


def output_report(report: Report, arguments: argparse.Namespace) -> None:
    """Writes the files of --html and --json. Prints the pictures as text, or with --json without FILE only numbers."""
    if arguments.html:
        first, *others = report.pictures
        page = plot.together(first, *others, title=f"jaxlens {arguments.command}")
        arguments.html.write_text(page.html + "\n", encoding="utf-8")
    if arguments.json:
        adapter = {"adapter": arguments.adapter} if arguments.adapter else {}
        numbers = to_json({"command": arguments.command, "model": arguments.model} | adapter | report.numbers)
        text = json.dumps(numbers, allow_nan=False)
        if arguments.json == STDOUT:
            print(text)
            return
        arguments.json.write_text(text + "\n", encoding="utf-8")
    print("\n\n".join(map(str, report.pictures)))


def to_json(value: Any) -> Any:
    """A value that `json.dumps` accepts. Arrays become nested lists, and numbers that are not finite become None.

    Example:
        >>> to_json({"scores": Labelled(np.array([0.5, np.nan]), ("head",), {"head": ["0", "1"]})})
        {'scores': {'axes': ['head'], 'labels': {'head': ['0', '1']}, 'values': [0.5, None]}}
    """
    if isinstance(value, Labelled):
        return {"axes": list(value.axes), "labels": value.labels, "values": to_json(value.values)}
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if hasattr(value, "tolist"):
        return to_json(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


# --- pictures of several subcommands


def strongest_bars(values: Labelled, count: int, title: str, unit: str = "logits") -> Picture:
    """A bar chart of the `count` entries of largest absolute value."""
    entries = values.strongest(count)
    names = [entry_name(labels) for labels, _ in entries]
    return plot.bars(np.array([value for _, value in entries]), names, count=count, unit=unit, title=title)


def entry_name(labels: dict[str, str]) -> str:
    """The name of the entry with these labels. Layer and head (or neuron) are joined, as in "head 23.3".

    Example:
        >>> entry_name({"layer": "23", "head": "3"}), entry_name({"layer": "4", "pos": " to 14"})
        ('head 23.3', 'layer 4 pos  to 14')
    """
    if "layer" in labels and (unit := next((axis for axis in ("head", "neuron") if axis in labels), None)):
        others = [f"{axis} {label}" for axis, label in labels.items() if axis not in ("layer", unit)]
        return " ".join([f"{unit} {labels['layer']}.{labels[unit]}", *others])
    return " ".join(label if axis == "component" else f"{axis} {label}" for axis, label in labels.items())
