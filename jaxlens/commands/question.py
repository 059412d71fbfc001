"""What a model is asked: prompts, the token that should come next, and the one that it is compared with.

Axes: b prompt, p position, v vocabulary.
"""

import argparse
import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxlens.analysis.patching import site_of
from jaxlens.transformer import HookedTransformer

FIELDS = ("clean", "corrupted", "answer", "wrong")


@dataclasses.dataclass(frozen=True)
class Asked:
    """A question in words: one pair of prompts and what should come next. Only the clean prompt is always there."""

    clean: str
    corrupted: str | None = None
    answer: str | None = None
    wrong: str | None = None

    @property
    def name(self) -> str:
        """What is measured."""
        return f"logit of {self.answer!r}" if self.wrong is None else f"logit of {self.answer!r} − {self.wrong!r}"


@dataclasses.dataclass(frozen=True)
class Question:
    """Questions about prompts of one length, ready to be put to a model; all of them have what the first one has."""

    asked: list[Asked]
    right: Int[np.ndarray, " b"]
    wrong: Int[np.ndarray, " b"] | None

    @classmethod
    def of(cls, model: HookedTransformer, asked: list[Asked]) -> "Question":
        """
        Raises:
            ValueError: an answer is not one token, or the prompts have different numbers of tokens.
        """
        check_lengths(model, asked)
        right = np.array([single_token(model, one.answer) for one in asked])
        wrong = None if asked[0].wrong is None else np.array([single_token(model, one.wrong) for one in asked])
        return cls(asked, right, wrong)

    @property
    def clean(self) -> list[str]:
        """The prompts."""
        return [one.clean for one in self.asked]

    @property
    def corrupted(self) -> list[str]:
        """The prompts that they are compared with."""
        return [one.corrupted for one in self.asked]

    @property
    def name(self) -> str:
        """What the metric is."""
        several = f"mean logit difference of {len(self.asked)} prompts"
        return self.asked[0].name if len(self.asked) == 1 else several

    def by_prompt(self, logits: Float[Array, "b p v"]) -> Float[Array, " b"]:
        """The logit of each answer at the last position, less that of the wrong one if there is one."""
        last, rows = logits[:, -1], np.arange(len(self.right))
        return last[rows, self.right] - (0 if self.wrong is None else last[rows, self.wrong])

    def metric(self, logits: Float[Array, "b p v"]) -> Float[Array, ""]:
        """The mean over prompts of the same."""
        return jnp.mean(self.by_prompt(logits))

    def numbers(self) -> dict[str, Any]:
        """What was asked, as JSON has it."""
        return {"questions": [dataclasses.asdict(one) for one in self.asked]}


def single_token(model: HookedTransformer, text: str) -> int:
    """The one token that an answer is.

    Raises:
        ValueError: it is several; the message offers the answer with a leading space if that is one.
    """
    try:
        return model.to_single_token(text)
    except ValueError as error:
        if model.tokenizer is None or text.startswith(" ") or len(model.to_str_tokens(f" {text}", False)) != 1:
            raise
        raise ValueError(f"{error}; {f' {text}'!r}, with a leading space, is one") from error


def check_lengths(model: HookedTransformer, asked: list[Asked]) -> None:
    """Raises ValueError if prompts differ in their number of tokens; the message shows two that do."""
    prompts = {
        f"the {name} prompt{f' of pair {number}' if len(asked) > 1 else ''}": text
        for number, one in enumerate(asked, 1) for name, text in (("clean", one.clean), ("corrupted", one.corrupted))
        if text is not None
    }  # fmt: skip
    tokens = {name: model.to_str_tokens(text) for name, text in prompts.items()}
    first, *others = tokens
    if odd := next((name for name in others if len(tokens[name]) != len(tokens[first])), None):
        shown = "; ".join(f"{name} has {len(tokens[name])}: {tokens[name]}" for name in (first, odd))
        raise ValueError(f"position is compared with position, so all prompts need the same number of tokens; {shown}")


# --- from the command line


def add_answers(parser: argparse.ArgumentParser) -> None:
    """The arguments that say what should come next."""
    parser.add_argument(
        "--answer", metavar="TOKEN", help='what should come next, one token; most begin with a space: " Mary"'
    )
    parser.add_argument("--wrong", metavar="TOKEN", help="what should not; the answer's logit is compared with its")


def add_pairs(parser: argparse.ArgumentParser) -> None:
    """The argument that gives many questions at once."""
    parser.add_argument(
        "--pairs", type=Path, metavar="FILE",
        help=f"many questions, with equally long prompts, instead of one: a .tsv file whose first line names its "
        f"columns, {', '.join(FIELDS)}, or a .jsonl file with those fields in every line",
    )  # fmt: skip


def asked_for(arguments: argparse.Namespace, clean: str | None, corrupted: str | None) -> list[Asked]:
    """The questions of the command line, or of the file that it names.

    Raises:
        ValueError: there are none, or both; or the file cannot be understood.
    """
    given = clean, corrupted, arguments.answer, arguments.wrong
    if arguments.pairs is not None:
        if given != (None,) * 4:
            raise ValueError("--pairs FILE has prompts and answers of its own; give either it or these")
        return read_pairs(arguments.pairs)
    if clean is None:
        raise ValueError("there is no prompt; give it as an argument, or several with --pairs FILE")
    if arguments.answer is None:
        raise ValueError('there is nothing to measure; give the token that should come next, as in --answer " Mary"')
    return [Asked(*given)]


def read_pairs(path: Path) -> list[Asked]:
    """The questions of a file.

    Raises:
        ValueError: it is empty, of another kind, or a line of it has other fields than `FIELDS`.
    """
    lines = path.read_text(encoding="utf-8").split("\n")
    if path.suffix == ".tsv":
        rows = list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    elif path.suffix == ".jsonl":
        rows = [_json(line, number, path) for number, line in enumerate(lines, 1) if line.strip()]
    else:
        raise ValueError(f"--pairs reads a .tsv or a .jsonl file; got {str(path)!r}")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or set(row) != set(FIELDS) or not all(isinstance(row[at], str) for at in FIELDS):
            raise ValueError(f"{path}, pair {number}: wanted texts called {', '.join(FIELDS)}; got {row}")
    if not rows:
        raise ValueError(f"{path} holds no pairs")
    return [Asked(**row) for row in rows]


def _json(line: str, number: int, path: Path) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise ValueError(f"{path}, line {number} is no JSON: {error}") from error


def default_axes(model: HookedTransformer, activation: str) -> tuple[str, str]:
    """Along which axes an activation is taken apart unless others are asked for: heads, if it has them."""
    heads = {"n", "k"} & set(site_of(model, activation)[1].split())
    return ("layer", "head") if heads else ("layer", "pos")
