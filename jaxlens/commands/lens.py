"""`jaxlens lens`: what the model would say if it stopped after each layer.

Axes: c entry of the accumulated residual stream, l layer, p position, k rank.
"""

import argparse
import dataclasses
from typing import Any

import numpy as np

from jaxlens import plot
from jaxlens.analysis.activation_cache import ActivationCache
from jaxlens.analysis.labelled import Labelled
from jaxlens.analysis.logit_attribution import READS, direct_logit_attribution
from jaxlens.commands.command import Found, analysis, load, say
from jaxlens.commands.question import Asked, Question, add_answers
from jaxlens.demo import LAST
from jaxlens.plot import Picture
from jaxlens.plot.logits import LogitLens
from jaxlens.plot.terminal import Axis

READ = (*READS["layer"], *READS["component"], "hook_pos_embed", "ln_final.hook_scale")


def find(arguments: argparse.Namespace) -> Found:
    """Reads the residual stream after every layer with the model's own last norm and unembedding (the logit lens).

    The table has the likeliest next token after each layer at each position, and its probability. With an answer
    follow its logit after each layer, and what every component adds to it.
    """
    if arguments.answer is None and arguments.wrong is not None:
        raise ValueError("--wrong is compared with --answer; give that too")
    model, prompt = load(arguments), arguments.prompt
    asked = [Asked(prompt, None, arguments.answer, arguments.wrong)]
    question = None if arguments.answer is None else Question.of(model, asked)
    say("reading the residual stream")
    last = arguments.positions == "last"
    _, cache = model.run_with_cache(
        prompt, names_filter=lambda name: name.endswith(READ), pos_slice=LAST if last else None
    )
    tokens = model.to_str_tokens(prompt)
    grid = plot.logit_lens(cache, tokens[-1:] if last else tokens, top_k=arguments.top)
    pictures: list[Picture] = [by_rank(grid, tokens[-1]) if last else grid]
    numbers: dict[str, Any] = {"prompt": prompt, "tokens": tokens, "lens": grid.data}
    if question is not None:
        more, answer = follow(question, cache)
        pictures += more
        numbers["answer"] = answer
    return Found(pictures, numbers)


def by_rank(grid: LogitLens, token: str) -> LogitLens:
    """The lens at one token, with a column for each of the likeliest tokens instead of one for the position."""
    ranks = Axis("rank", [str(rank + 1) for rank in range(grid.ids.shape[2])])
    turned = {"probabilities": grid.probabilities.swapaxes(1, 2), "ids": grid.ids.swapaxes(1, 2)}
    return dataclasses.replace(grid, columns=ranks, title=f"Logit lens: what comes after {token!r}", **turned)


def follow(question: Question, cache: ActivationCache) -> tuple[list[Picture], dict[str, Any]]:
    """The logit (difference) of an answer after each layer, and what each component adds to it."""
    (asked,) = question.asked
    names = [asked.answer] if asked.wrong is None else [asked.answer, asked.wrong]
    tokens = question.right if asked.wrong is None else np.concatenate([question.right, question.wrong])
    lens = cache.logit_lens(targets=tokens.tolist(), positions=LAST)
    logits, ranks = (np.asarray(found)[:, 0, 0].T for found in (lens.values, lens.ranks))
    shown = logits if asked.wrong is None else np.concatenate([logits, logits[:1] - logits[1:]])
    attribution = direct_logit_attribution(
        cache.model, None, question.right, question.wrong, pos=LAST, cache=cache
    )  # fmt: skip
    values = np.asarray(attribution.values)[:, 0, 0]
    pictures = [
        plot.lines(
            shown, lens.labels, names=[*map(repr, names), "difference"][: len(shown)], xname="stream", unit="logits",
            title=f"The {question.name} after each layer",
        ),
        plot.bars(values, attribution.labels, unit="logits", title=f"What each component adds to the {question.name}"),
    ]  # fmt: skip
    after = {"labels": lens.labels, "tokens": names, "logits": logits, "ranks": ranks, "metric": shown[-1]}
    components = Labelled(values, ("component",), {"component": list(attribution.labels)})
    return pictures, {"metric": question.name, "layers": after, "components": components}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", metavar="PROMPT", help="a text")
    add_answers(parser)
    parser.add_argument(
        "--positions", choices=("all", "last"), default="all",
        help="all: the likeliest token at each position; last: the N likeliest at the last one (default: %(default)s)",
    )  # fmt: skip


COMMAND = analysis(
    find, add_arguments, "what the model would say if it stopped after each layer",
    'jaxlens lens "The Eiffel Tower is in the city of" --answer " Paris" --wrong " Rome" --html lens.html',
    top=5,
)  # fmt: skip
