"""`jaxlens lens`: the logit lens, which shows next-token predictions after each layer."""

import argparse
import dataclasses
from typing import Any

import numpy as np

from jaxlens import plot
from jaxlens.analysis.labelled_array import Labelled
from jaxlens.analysis.logit_attribution import READS, direct_logit_attribution
from jaxlens.cli.commands.command import Report, analysis_command, load_model, print_progress
from jaxlens.cli.commands.prompts import Prompt, PromptSet, add_answer_options
from jaxlens.cli.demo.experiment import LAST
from jaxlens.model.cache.activation_cache import ActivationCache
from jaxlens.plot import Picture
from jaxlens.plot.logits import LogitLens
from jaxlens.plot.terminal import Axis

CACHED = (*READS["layer"], *READS["component"], "hook_pos_embed", "ln_final.hook_scale")


def make_report(arguments: argparse.Namespace) -> Report:
    """Applies the final norm and the unembedding to the residual stream after each layer (the logit lens).

    Shows the likeliest next token after each layer at each position, and its probability. With --answer, also shows the
    logit of the answer after each layer, and the contribution of each component to it.
    """
    if arguments.answer is None and arguments.wrong is not None:
        raise ValueError("--wrong needs --answer, whose logit it is compared with; pass --answer too")
    model, prompt = load_model(arguments), arguments.prompt
    has_answer = arguments.answer is not None
    prompts = PromptSet.of(model, [Prompt(prompt, None, arguments.answer, arguments.wrong)]) if has_answer else None
    print_progress("running the model")
    last_only = arguments.positions == "last"
    _, cache = model.run_with_cache(
        prompt, names_filter=lambda name: name.endswith(CACHED), pos_slice=LAST if last_only else None
    )
    tokens = model.to_str_tokens(prompt)
    lens = plot.logit_lens(cache, tokens[-1:] if last_only else tokens, top_k=arguments.top)
    pictures: list[Picture] = [columns_by_rank(lens, tokens[-1]) if last_only else lens]
    numbers: dict[str, Any] = {"prompt": prompt, "tokens": tokens, "lens": lens.data}
    if prompts is not None:
        answer = report_answer(prompts, cache)
        pictures += answer.pictures
        numbers["answer"] = answer.numbers
    return Report(pictures, numbers)


def columns_by_rank(lens: LogitLens, token: str) -> LogitLens:
    """The lens of a single position, with a column for each of the likeliest tokens."""
    ranks = Axis("rank", [str(rank + 1) for rank in range(lens.ids.shape[2])])
    swapped = {"probabilities": lens.probabilities.swapaxes(1, 2), "ids": lens.ids.swapaxes(1, 2)}
    return dataclasses.replace(lens, columns=ranks, title=f"Logit lens: next tokens after {token!r}", **swapped)


def report_answer(prompts: PromptSet, cache: ActivationCache) -> Report:
    """The logit, or the logit difference, of an answer after each layer, and the contribution of each component."""
    (prompt,) = prompts.prompts
    if prompt.wrong is None:
        names, tokens = [prompt.answer], prompts.answers
    else:
        names, tokens = [prompt.answer, prompt.wrong], np.concatenate([prompts.answers, prompts.wrong_answers])
    lens = cache.logit_lens(targets=tokens.tolist(), positions=LAST)
    logits, ranks = (np.asarray(values)[:, 0, 0].T for values in (lens.values, lens.ranks))
    series = logits if prompt.wrong is None else np.concatenate([logits, logits[:1] - logits[1:]])
    answers = prompts.answers, prompts.wrong_answers
    attribution = direct_logit_attribution(cache.model, None, *answers, pos=LAST, cache=cache)
    contributions = np.asarray(attribution.values)[:, 0, 0]
    pictures = [
        plot.lines(
            series, lens.labels, names=[*map(repr, names), "difference"][: len(series)], xname="stream", unit="logits",
            title=f"The {prompts.metric_name} after each layer",
        ),
        plot.bars(
            contributions, attribution.labels, unit="logits",
            title=f"Contribution of each component to the {prompts.metric_name}",
        ),
    ]  # fmt: skip
    layers = {"labels": lens.labels, "tokens": names, "logits": logits, "ranks": ranks, "metric": series[-1]}
    components = Labelled(contributions, ("component",), {"component": list(attribution.labels)})
    return Report(pictures, {"metric": prompts.metric_name, "layers": layers, "components": components})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", metavar="PROMPT", help="a text")
    add_answer_options(parser)
    parser.add_argument(
        "--positions", choices=("all", "last"), default="all",
        help="all: the likeliest token at each position; last: the --top likeliest tokens at the last position "
        "(default: %(default)s)",
    )  # fmt: skip


COMMAND = analysis_command(
    make_report, add_arguments, "show the next-token predictions after each layer",
    'jaxlens lens "The Eiffel Tower is in the city of" --answer " Paris" --wrong " Rome" --html lens.html',
    top=5,
)  # fmt: skip
