"""The prompts of a subcommand, each with the expected next token and a wrong next token.

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

from jaxlens.analysis.interventions.cells import site_of
from jaxlens.model.transformer import HookedTransformer

FIELDS = ("clean", "corrupted", "answer", "wrong")


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A clean prompt, and optionally a corrupted prompt, the expected next token and a wrong next token."""

    clean: str
    corrupted: str | None = None
    answer: str | None = None
    wrong: str | None = None

    @property
    def metric_name(self) -> str:
        """The name of the logit, or of the logit difference if there is a wrong token."""
        return f"logit of {self.answer!r}" if self.wrong is None else f"logit of {self.answer!r} − {self.wrong!r}"


@dataclasses.dataclass(frozen=True, eq=False)
class PromptSet:
    """Prompts with equal numbers of tokens, and the ids of their answer tokens. All prompts have the same fields."""

    prompts: list[Prompt]
    answers: Int[np.ndarray, " b"]
    wrong_answers: Int[np.ndarray, " b"] | None

    @classmethod
    def of(cls, model: HookedTransformer, prompts: list[Prompt]) -> "PromptSet":
        """Checks the prompts with the tokenizer of a model, and looks up the ids of their answer tokens."""
        check_lengths(model, prompts)
        answers = np.array([single_token(model, prompt.answer) for prompt in prompts])
        has_wrong = prompts[0].wrong is not None
        wrong = np.array([single_token(model, prompt.wrong) for prompt in prompts]) if has_wrong else None
        return cls(prompts, answers, wrong)

    @property
    def clean(self) -> list[str]:
        """The clean prompts."""
        return [prompt.clean for prompt in self.prompts]

    @property
    def corrupted(self) -> list[str]:
        """The corrupted prompts."""
        return [prompt.corrupted for prompt in self.prompts]

    @property
    def metric_name(self) -> str:
        """The name of `metric`."""
        if len(self.prompts) == 1:
            return self.prompts[0].metric_name
        return f"mean logit difference of {len(self.prompts)} prompts"

    def metric_per_prompt(self, logits: Float[Array, "b p v"]) -> Float[Array, " b"]:
        """The logit of each answer at the last position, minus that of the wrong token if there is one."""
        last, rows = logits[:, -1], np.arange(len(self.answers))
        return last[rows, self.answers] - (0 if self.wrong_answers is None else last[rows, self.wrong_answers])

    def metric(self, logits: Float[Array, "b p v"]) -> Float[Array, ""]:
        """The mean of `metric_per_prompt`."""
        return jnp.mean(self.metric_per_prompt(logits))

    def as_json(self) -> dict[str, Any]:
        """The prompts in the form of `--json`."""
        return {"questions": [dataclasses.asdict(prompt) for prompt in self.prompts]}


def single_token(model: HookedTransformer, text: str) -> int:
    """The id of an answer that is a single token. An error suggests a leading space if that makes it a single token."""
    try:
        return model.to_single_token(text)
    except ValueError as error:
        if model.tokenizer is None or text.startswith(" ") or len(model.to_str_tokens(f" {text}", False)) != 1:
            raise
        raise ValueError(f"{error}; {f' {text}'!r}, with a leading space, is a single token") from error


def check_lengths(model: HookedTransformer, prompts: list[Prompt]) -> None:
    """Raises ValueError if the prompts differ in their number of tokens. The message shows two prompts that differ."""
    texts = {
        f"the {name} prompt{f' of pair {number}' if len(prompts) > 1 else ''}": text
        for number, prompt in enumerate(prompts, 1)
        for name, text in (("clean", prompt.clean), ("corrupted", prompt.corrupted)) if text is not None
    }  # fmt: skip
    tokens = {name: model.to_str_tokens(text) for name, text in texts.items()}
    first, *others = tokens
    if different := next((name for name in others if len(tokens[name]) != len(tokens[first])), None):
        lengths = "; ".join(f"{name} has {len(tokens[name])}: {tokens[name]}" for name in (first, different))
        raise ValueError(f"expected prompts with equal numbers of tokens, to compare them by position; {lengths}")


# --- options


def add_answer_options(parser: argparse.ArgumentParser) -> None:
    """Adds --answer and --wrong."""
    parser.add_argument(
        "--answer", metavar="TOKEN", help='the expected next token, usually with a leading space: " Mary"'
    )
    parser.add_argument("--wrong", metavar="TOKEN", help="a wrong next token, whose logit is subtracted")


def add_pairs_option(parser: argparse.ArgumentParser) -> None:
    """Adds --pairs."""
    parser.add_argument(
        "--pairs", type=Path, metavar="FILE",
        help="a file of many prompts of equal length, instead of a prompt and its answer: .tsv with the columns "
        f"{', '.join(FIELDS)}, named in the first line, or .jsonl with these fields in every line",
    )  # fmt: skip


def read_prompts(arguments: argparse.Namespace, clean: str | None, corrupted: str | None) -> list[Prompt]:
    """The prompt of the command line, or the prompts in the file of --pairs."""
    fields = clean, corrupted, arguments.answer, arguments.wrong
    if arguments.pairs is not None:
        if fields != (None,) * 4:
            raise ValueError("--pairs replaces the prompts, --answer and --wrong; remove --pairs, or remove these")
        return read_pairs(arguments.pairs)
    if clean is None:
        raise ValueError("the prompt is missing; pass it as an argument, or pass a file of prompts with --pairs FILE")
    if arguments.answer is None:
        raise ValueError('--answer is missing; pass the expected next token, as in --answer " Mary"')
    return [Prompt(*fields)]


def read_pairs(path: Path) -> list[Prompt]:
    """The prompts in a .tsv or .jsonl file."""
    lines = path.read_text(encoding="utf-8").split("\n")
    if path.suffix == ".tsv":
        rows = list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    elif path.suffix == ".jsonl":
        rows = [_parse_line(line, number, path) for number, line in enumerate(lines, 1) if line.strip()]
    else:
        raise ValueError(f"--pairs is {str(path)!r}; expected a .tsv or .jsonl file")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or set(row) != set(FIELDS) or not all(isinstance(row[key], str) for key in FIELDS):
            raise ValueError(f"{path}, pair {number}: expected strings for {', '.join(FIELDS)}; got {row}")
    if not rows:
        raise ValueError(f"{path} contains no pairs; add at least one")
    return [Prompt(**row) for row in rows]


def _parse_line(line: str, number: int, path: Path) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise ValueError(f"{path}, line {number} is not JSON: {error}") from error


def default_axes(model: HookedTransformer, activation: str) -> tuple[str, str]:
    """The default axes of patching: layer and head for an activation with heads, otherwise layer and position."""
    has_heads = {"n", "k"} & set(site_of(model.cfg, activation)[1].split())
    return ("layer", "head") if has_heads else ("layer", "pos")
