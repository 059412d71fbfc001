"""What subcommands have in common: how one is declared, how its model is loaded, and how its findings are shown."""

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
from jaxlens.analysis.labelled import Labelled
from jaxlens.plot import Picture
from jaxlens.transformer import HookedTransformer

DEFAULT_MODEL = "smollm2-135m-instruct"
STDOUT = Path("-")


@dataclasses.dataclass(frozen=True)
class Command:
    """A subcommand: what it does in a few words and at length, an example, its arguments, and the function it calls.

    That returns the exit status, None for success. `takes_model`: it is about the model that `--model` names.
    """

    help: str
    run: Callable[[argparse.Namespace], int | None]
    description: str = ""
    example: str = ""
    add_arguments: Callable[[argparse.ArgumentParser], None] = lambda parser: None
    takes_model: bool = True


@dataclasses.dataclass(frozen=True)
class Found:
    """What an analysis found: pictures to look at, and the numbers for `--json`."""

    pictures: list[Picture]
    numbers: dict[str, Any]


def analysis(
    find: Callable[[argparse.Namespace], Found], add_arguments: Callable[[argparse.ArgumentParser], None], help: str,
    example: str, top: int = 10,
) -> Command:  # fmt: skip
    """A subcommand that shows what `find` found, and of long lists the first `top`: as tables, a page, or JSON."""

    def add(parser: argparse.ArgumentParser) -> None:
        add_arguments(parser)
        shown = parser.add_argument_group("what is shown")
        shown.add_argument(
            "--top", type=positive, default=top, metavar="N", help="how many of the strongest (default: %(default)s)"
        )
        shown.add_argument("--html", type=Path, metavar="FILE", help="write a page of pictures, which needs no network")
        shown.add_argument(
            "--json", type=Path, nargs="?", const=STDOUT, metavar="FILE",
            help="write the numbers; without a FILE, print them and nothing else",
        )  # fmt: skip

    def run(arguments: argparse.Namespace) -> None:
        for path, ending in ((arguments.html, ".html"), (arguments.json, ".json")):
            check_writable(path, ending)
        show(find(arguments), arguments)

    return Command(help, run, find.__doc__, example, add)


# --- before anything is computed


def check_writable(path: Path | None, ending: str) -> None:
    """Raises ValueError or OSError for a file that cannot be written, or that looks like something else."""
    if path in (None, STDOUT):
        return
    if path.suffix.lower() != ending:
        raise ValueError(f"--{ending[1:]} writes a file that ends in {ending}; got {str(path)!r}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be written: there is no folder {path.parent}; make it first")
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise PermissionError(f"{path} cannot be written; choose another place")


def positive(text: str) -> int:
    """A whole number from 1 on, as argparse reads arguments."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"wanted a whole number from 1 on; got {text!r}")
    return int(text)


def load(arguments: argparse.Namespace) -> HookedTransformer:
    """The model, with the weights of its checkpoint."""
    say(f"loading {arguments.model}")
    return HookedTransformer.from_pretrained_no_processing(arguments.model)


def say(doing: str) -> None:
    """Says what is being done, to whoever sits at a terminal."""
    if sys.stderr.isatty():
        print(f"{doing} …", file=sys.stderr, flush=True)


# --- when it is computed


def show(found: Found, arguments: argparse.Namespace) -> None:
    """Writes the files that were asked for, and prints the tables, or the numbers if they were asked for instead."""
    if arguments.html:
        first, *others = found.pictures
        page = plot.together(first, *others, title=f"jaxlens {arguments.command}")
        arguments.html.write_text(page.html + "\n", encoding="utf-8")
    if arguments.json:
        numbers = plain({"command": arguments.command, "model": arguments.model} | found.numbers)
        text = json.dumps(numbers, allow_nan=False)
        if arguments.json == STDOUT:
            print(text)
            return
        arguments.json.write_text(text + "\n", encoding="utf-8")
    print("\n\n".join(map(str, found.pictures)))


def plain(value: Any) -> Any:
    """Numbers and names as JSON has them: arrays as nested lists, None for what is not finite.

    Example:
        >>> plain({"scores": Labelled(np.array([0.5, np.nan]), ("head",), {"head": ["0", "1"]})})
        {'scores': {'axes': ['head'], 'labels': {'head': ['0', '1']}, 'values': [0.5, None]}}
    """
    if isinstance(value, Labelled):
        return {"axes": list(value.axes), "labels": value.labels, "values": plain(value.values)}
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


# --- pictures that several subcommands draw


def strongest(values: Labelled, count: int, title: str, unit: str = "logits") -> Picture:
    """Bars of the strongest places of a result, of either sign."""
    found = values.strongest(count)
    names = [place_name(place) for place, _ in found]
    return plot.bars(np.array([value for _, value in found]), names, count=count, unit=unit, title=title)


def place_name(place: dict[str, str]) -> str:
    """A place of a result in words; a head is called by its layer and number.

    Example:
        >>> place_name({"layer": "23", "head": "3"}), place_name({"layer": "4", "pos": " to 14"})
        ('head 23.3', 'layer 4 pos  to 14')
    """
    if "layer" in place and (unit := next((axis for axis in ("head", "neuron") if axis in place), None)):
        others = {axis: label for axis, label in place.items() if axis not in ("layer", unit)}
        return " ".join([f"{unit} {place['layer']}.{place[unit]}", *(f"{axis} {one}" for axis, one in others.items())])
    return " ".join(label if axis == "component" else f"{axis} {label}" for axis, label in place.items())
