"""`jaxlens attribute`: which parts of the model, or which tokens, an answer is due to.

Axes: b prompt, p position, l layer, n head, c component.
"""

import argparse
import dataclasses
from typing import get_args

import numpy as np

from jaxlens import plot
from jaxlens.analysis.agreement import compare_with_patching
from jaxlens.analysis.attribution import attribution_patch
from jaxlens.analysis.edges import edge_attribution_patch
from jaxlens.analysis.labelled import Labelled
from jaxlens.analysis.logit_attribution import Unit, direct_logit_attribution
from jaxlens.analysis.path_integrals import integrated_gradients
from jaxlens.commands.command import Found, analysis, load, positive, say, strongest
from jaxlens.commands.question import Question, add_answers, add_pairs, asked_for, default_axes
from jaxlens.demo import LAST
from jaxlens.hook_table import sites
from jaxlens.transformer import HookedTransformer

DIRECT = tuple(unit for unit in get_args(Unit) if unit != "layer")
STEPS = 32
"""How many points integrated gradients take, unless other numbers are asked for."""


def find(arguments: argparse.Namespace) -> Found:
    """Attributes the logit (difference) of an answer to the parts of the model, or to the tokens of the prompt.

    With one prompt: what every component, head or neuron adds to the logits directly; or, by token, integrated
    gradients from the mean embedding. With --corrupted: what patching each activation of the corrupted run with that of
    the prompt's run would do, to first order (attribution patching); by path, the same for every edge between two
    components; by token, integrated gradients from the corrupted prompt.
    """
    asked = asked_for(arguments, arguments.prompt, arguments.corrupted)
    by, compares = arguments.by, asked[0].corrupted is not None
    if not compares and by not in (*DIRECT, "token"):
        raise ValueError(f"--by {by} compares two prompts; give the other one with --corrupted, or {', '.join(DIRECT)}")
    if arguments.compare and (not compares or by in ("token", "path")):
        raise ValueError("--compare is about attribution patching of activations: it needs --corrupted, and not --by "
                         "token or path")  # fmt: skip
    if arguments.steps and not (compares or by == "token"):
        raise ValueError("--steps counts the points of integrated gradients; nothing is integrated here")
    model = load(arguments)
    question = Question.of(model, asked)
    say("attributing")
    if by == "token":
        found = by_token(model, question, arguments, compares)
    elif not compares:
        found = directly(model, question, arguments)
    elif by == "path":
        found = by_path(model, question, arguments)
    else:
        found = by_node(model, question, arguments)
    return Found(found.pictures, {**question.numbers(), "metric": question.name, "by": by, **found.numbers})


def directly(model: HookedTransformer, question: Question, arguments: argparse.Namespace) -> Found:
    """Direct logit attribution, the mean over prompts."""
    result = direct_logit_attribution(model, question.clean, question.right, question.wrong, arguments.by, LAST)
    values = Labelled(np.asarray(result.values).mean((1, 2)), ("component",), {"component": list(result.labels)})
    total = values.values.sum()
    title = f"What adds most to the {question.name}; all {len(result.labels):,} terms sum to {total:+.3f}"
    pictures: list[plot.Picture] = [strongest(values, arguments.top, title)]
    if arguments.by in ("head", "all"):
        heads = np.asarray(result.heads()).mean((-2, -1))
        title = f"What each head adds to the {question.name}"
        pictures.insert(0, plot.heatmap(heads, xname="head", yname="layer", unit="logits", title=title))
    return Found(pictures, {"total": total, "attribution": values})


def by_token(model: HookedTransformer, question: Question, arguments: argparse.Namespace, compares: bool) -> Found:
    """Integrated gradients of every prompt."""
    baseline = question.corrupted if compares else model.W_E.mean(0)
    name = "the corrupted prompt" if compares else "the mean embedding"
    result = integrated_gradients(model, question.clean, question.by_prompt, baseline, arguments.steps or STEPS)
    pictures = []
    for asked, values, difference in zip(question.asked, result.values, result.difference, strict=True):
        title = f"What each token adds to the {asked.name}, which is {difference:+.3f} above that of {name}; "
        title += f"integrated gradients sum to {values.sum():+.3f}"
        tokens = model.to_str_tokens(asked.clean)
        names = [f"{token} {position}" for position, token in enumerate(tokens)]
        contributions = Labelled(values, ("token",), {"token": names})
        pictures += [plot.colored_tokens(tokens, values, unit="logits", title=title)]
        pictures += [strongest(contributions, arguments.top, "The tokens that contribute most")]
    tokens = [model.to_str_tokens(prompt) for prompt in question.clean]
    return Found(pictures, {"tokens": tokens, "attribution": result.values, "difference": result.difference})


def by_path(model: HookedTransformer, question: Question, arguments: argparse.Namespace) -> Found:
    """Edge attribution patching."""
    scores = edge_attribution_patch(
        model, question.clean, question.corrupted, question.metric, ig_steps=arguments.steps or 1
    )  # fmt: skip
    edges = scores.top_edges(arguments.top)
    title = f"The strongest of {scores.exists.sum():,} edges, by what patching them would do to the {question.name}"
    bars = plot.bars(
        [score for _, _, score in edges], [f"{one} → {other}" for one, other, _ in edges], count=len(edges),
        unit="logits", title=title,
    )  # fmt: skip
    return Found([bars], {"attribution": scores, "clean": scores.clean_metric, "corrupted": scores.corrupted_metric})


def by_node(model: HookedTransformer, question: Question, arguments: argparse.Namespace) -> Found:
    """Attribution patching of activations, and with `--compare` true patching beside it."""
    runs, axes = (model, question.clean, question.corrupted, question.metric), nodes(model, arguments.by)
    pictures, numbers = [], {}
    if arguments.compare:
        for node, along in axes.items():
            agreement = compare_with_patching(*runs, node, along, ig_steps=arguments.steps or 1)
            agrees = f"Pearson {agreement.pearson:.3f} with true patching at {agreement.patching.values.size:,} places"
            pictures += drawn(agreement.attribution, f"Attribution of {node} to the {question.name}; {agrees}")
            pictures += drawn(agreement.patching, f"By how much patching {node} raises the {question.name}")
            numbers[node] = {field.name: getattr(agreement, field.name) for field in dataclasses.fields(agreement)}
    else:
        found = attribution_patch(*runs, list(axes), ig_steps=arguments.steps or 1)
        for node, along in axes.items():
            values = found[node].sum(*(axis for axis in found[node].axes if axis not in along))
            pictures += drawn(values, f"Attribution of {node} to the {question.name}")
            numbers[node] = {"attribution": values}
    bars = [
        strongest(one["attribution"], arguments.top, f"The strongest attributions of {node}")
        for node, one in numbers.items()
    ]  # fmt: skip
    return Found(pictures + bars, {"nodes": numbers})


def nodes(model: HookedTransformer, by: str) -> dict[str, tuple[str, str]]:
    """The activations that are attributed, and along which axes."""
    if by == "component":
        outs = [name for name in ("attn_out", "mlp_out") if f"blocks.0.hook_{name}" in sites(model.cfg)]
        return dict.fromkeys(outs, ("layer", "pos"))
    if by == "neuron":
        return {"post": ("layer", "neuron")}
    activation = "z" if by == "head" else by
    return {activation: default_axes(model, activation)}


def drawn(values: Labelled, title: str) -> list[plot.Picture]:
    """A heat map, unless it would be of neurons, of which there are too many to see."""
    return [] if "neuron" in values.axes else [plot.heatmap(values, unit="logits", title=title)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help="a text")
    add_answers(parser)
    parser.add_argument("--corrupted", metavar="PROMPT", help="another text with as many tokens, to compare with")
    add_pairs(parser)
    parser.add_argument(
        "--by", default="component", metavar="UNIT",
        help=f"{', '.join(DIRECT)} or token; with --corrupted component, head, neuron, token, path, or an activation "
        "such as resid_pre, q or pattern (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--compare", action="store_true", help="patch every activation for real too, and tell how well the two agree"
    )
    parser.add_argument(
        "--steps", type=positive, metavar="N",
        help=f"points of integrated gradients (default: {STEPS} by token, otherwise 1, the gradient itself)",
    )  # fmt: skip


COMMAND = analysis(
    find, add_arguments, "which parts of the model, or which tokens, an answer is due to",
    'jaxlens attribute "When John and Mary went to the shops, John gave the bag to" --answer " Mary" --wrong " John" '
    "--by head",
    top=20,
)  # fmt: skip
