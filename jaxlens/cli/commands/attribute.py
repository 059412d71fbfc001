"""`jaxlens attribute`: attributes a logit to components of the model, or to tokens of the prompt."""

import argparse
import dataclasses
from typing import get_args

import numpy as np
from jaxtyping import Array, Float

from jaxlens import plot
from jaxlens.analysis.attribution.compare import compare_with_patching
from jaxlens.analysis.attribution.edges import edge_attribution_patch
from jaxlens.analysis.attribution.integrated_gradients import integrated_gradients
from jaxlens.analysis.attribution.nodes import attribution_patch
from jaxlens.analysis.labelled_array import Labelled
from jaxlens.analysis.logit_attribution import Unit, direct_logit_attribution
from jaxlens.cli.commands.command import Report, analysis_command, load_model, positive, print_progress, strongest_bars
from jaxlens.cli.commands.prompts import PromptSet, add_answer_options, add_pairs_option, default_axes, read_prompts
from jaxlens.cli.demo.experiment import LAST
from jaxlens.hooks.table import sites
from jaxlens.model.transformer import HookedTransformer

DIRECT_UNITS = tuple(unit for unit in get_args(Unit) if unit != "layer")
TOKEN_STEPS = 32
"""The default of `--steps` with `--by token`."""


def make_report(arguments: argparse.Namespace) -> Report:
    """Attributes the logit of an answer, or a logit difference, to components of the model or tokens of the prompt.

    With one prompt, shows the direct contribution of every component, head or neuron to the logit. With --corrupted,
    estimates the effect of patching each clean activation into the corrupted run (attribution patching); --by path
    estimates it for every edge between two components. --by token shows integrated gradients from the corrupted prompt,
    or from the mean embedding without --corrupted.
    """
    prompts = read_prompts(arguments, arguments.prompt, arguments.corrupted)
    by, has_corrupted = arguments.by, prompts[0].corrupted is not None
    if not has_corrupted and by not in (*DIRECT_UNITS, "token"):
        units = ", ".join((*DIRECT_UNITS, "token"))
        raise ValueError(f"--by {by} needs a second prompt; pass it with --corrupted, or pass --by with one of {units}")
    if arguments.compare and (not has_corrupted or by in ("token", "path")):
        raise ValueError("--compare applies to attribution patching of activations; pass --corrupted, and a --by other "
                         "than token and path")  # fmt: skip
    if arguments.steps and not (has_corrupted or by == "token"):
        raise ValueError("--steps applies to integrated gradients; pass --corrupted or --by token, or remove --steps")
    model = load_model(arguments)
    prompts = PromptSet.of(model, prompts)
    print_progress("computing attributions")
    if by == "token":
        report = report_tokens(model, prompts, arguments)
    elif not has_corrupted:
        report = report_direct(model, prompts, arguments)
    elif by == "path":
        report = report_edges(model, prompts, arguments)
    else:
        report = report_nodes(model, prompts, arguments)
    return Report(report.pictures, {**prompts.as_json(), "metric": prompts.metric_name, "by": by, **report.numbers})


def report_direct(model: HookedTransformer, prompts: PromptSet, arguments: argparse.Namespace) -> Report:
    """Direct logit attribution, averaged over prompts."""
    answers = prompts.answers, prompts.wrong_answers
    result = direct_logit_attribution(model, prompts.clean, *answers, arguments.by, LAST)
    values = Labelled(np.asarray(result.values).mean((1, 2)), ("component",), {"component": list(result.labels)})
    total = values.values.sum()
    title = f"Largest contributions to the {prompts.metric_name}; all {len(result.labels):,} terms sum to {total:+.3f}"
    pictures: list[plot.Picture] = [strongest_bars(values, arguments.top, title)]
    if arguments.by in ("head", "all"):
        heads = np.asarray(result.heads()).mean((-2, -1))
        title = f"Contribution of each head to the {prompts.metric_name}"
        pictures.insert(0, plot.heatmap(heads, xname="head", yname="layer", unit="logits", title=title))
    return Report(pictures, {"total": total, "attribution": values})


def report_tokens(model: HookedTransformer, prompts: PromptSet, arguments: argparse.Namespace) -> Report:
    """Integrated gradients of the tokens of each prompt."""
    has_corrupted = prompts.prompts[0].corrupted is not None
    baseline = prompts.corrupted if has_corrupted else mean_embedding(model)
    baseline_name = "the corrupted prompt" if has_corrupted else "the mean embedding"
    steps = arguments.steps or TOKEN_STEPS
    result = integrated_gradients(model, prompts.clean, prompts.metric_per_prompt, baseline, steps)
    pictures = []
    for prompt, values, difference in zip(prompts.prompts, result.values, result.difference, strict=True):
        title = f"Contribution of each token to the {prompt.metric_name}, relative to {baseline_name}; "
        title += f"the difference is {difference:+.3f}, and integrated gradients sum to {values.sum():+.3f}"
        tokens = model.to_str_tokens(prompt.clean)
        names = [f"{token} {position}" for position, token in enumerate(tokens)]
        contributions = Labelled(values, ("token",), {"token": names})
        pictures.append(plot.colored_tokens(tokens, values, unit="logits", title=title))
        pictures.append(strongest_bars(contributions, arguments.top, "Largest contributions of tokens"))
    tokens = [model.to_str_tokens(text) for text in prompts.clean]
    return Report(pictures, {"tokens": tokens, "attribution": result.values, "difference": result.difference})


def mean_embedding(model: HookedTransformer) -> Float[Array, "d"]:
    """The mean of `hook_embed` over all tokens of the vocabulary."""
    return model.embed(np.arange(model.cfg.d_vocab)[None])[0].mean(0)


def report_edges(model: HookedTransformer, prompts: PromptSet, arguments: argparse.Namespace) -> Report:
    """The report of edge attribution patching: the edges with the largest estimated effects."""
    runs, steps = (model, prompts.clean, prompts.corrupted, prompts.metric), arguments.steps or 1
    scores = edge_attribution_patch(*runs, ig_steps=steps)
    edges = scores.top_edges(arguments.top)
    title = f"Largest estimated effects on the {prompts.metric_name} of patching an edge; {scores.exists.sum():,} edges"
    names = [f"{upstream} → {receiver}" for upstream, receiver, _ in edges]
    bars = plot.bars([score for *_, score in edges], names, count=len(edges), unit="logits", title=title)
    return Report([bars], {"attribution": scores, "clean": scores.clean_metric, "corrupted": scores.corrupted_metric})


def report_nodes(model: HookedTransformer, prompts: PromptSet, arguments: argparse.Namespace) -> Report:
    """Attribution patching of activations. With `--compare`, also activation patching."""
    runs, steps = (model, prompts.clean, prompts.corrupted, prompts.metric), arguments.steps or 1
    axes_of_nodes = nodes_and_axes(model, arguments.by)
    pictures, numbers = [], {}
    if arguments.compare:
        for node, axes in axes_of_nodes.items():
            agreement = compare_with_patching(*runs, node, axes, ig_steps=steps)
            effect = f"effect of patching {node} on the {prompts.metric_name}"
            title = f"Estimated {effect}; Pearson correlation with the true effect {agreement.pearson:.3f}, "
            title += f"over {agreement.patching.values.size:,} entries"
            pictures += heatmap_unless_neurons(agreement.attribution, title)
            pictures += heatmap_unless_neurons(agreement.patching, f"True {effect}")
            numbers[node] = {field.name: getattr(agreement, field.name) for field in dataclasses.fields(agreement)}
    else:
        attributions = attribution_patch(*runs, list(axes_of_nodes), ig_steps=steps)
        for node, axes in axes_of_nodes.items():
            values = attributions[node].sum(*(axis for axis in attributions[node].axes if axis not in axes))
            title = f"Estimated effect of patching {node} on the {prompts.metric_name}"
            pictures += heatmap_unless_neurons(values, title)
            numbers[node] = {"attribution": values}
    bars = [
        strongest_bars(values["attribution"], arguments.top, f"Largest estimated effects of patching {node}")
        for node, values in numbers.items()
    ]
    return Report(pictures + bars, {"nodes": numbers})


def nodes_and_axes(model: HookedTransformer, by: str) -> dict[str, tuple[str, str]]:
    """The activations that `by` selects, each with the axes of its attributions."""
    if by == "component":
        outputs = [name for name in ("attn_out", "mlp_out") if f"blocks.0.hook_{name}" in sites(model.cfg)]
        return dict.fromkeys(outputs, ("layer", "pos"))
    if by == "neuron":
        return {"post": ("layer", "neuron")}
    activation = "z" if by == "head" else by
    return {activation: default_axes(model, activation)}


def heatmap_unless_neurons(values: Labelled, title: str) -> list[plot.Picture]:
    """A heat map, or for neurons no picture, because a model has too many."""
    return [] if "neuron" in values.axes else [plot.heatmap(values, unit="logits", title=title)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help="the clean prompt")
    add_answer_options(parser)
    parser.add_argument("--corrupted", metavar="PROMPT", help="the corrupted prompt, of equal length")
    add_pairs_option(parser)
    parser.add_argument(
        "--by", default="component", metavar="UNIT",
        help=f"{', '.join(DIRECT_UNITS)} or token; with --corrupted component, head, neuron, token, path, or an "
        "activation such as resid_pre, q or pattern (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--compare", action="store_true", help="also patch every activation, and compare the effects")
    parser.add_argument(
        "--steps", type=positive, metavar="N",
        help=f"points of integrated gradients (default: {TOKEN_STEPS} with --by token, otherwise 1: a single gradient)",
    )  # fmt: skip


COMMAND = analysis_command(
    make_report, add_arguments, "attribute a logit to components of the model, or to tokens of the prompt",
    'jaxlens attribute "When John and Mary went to the shops, John gave the bag to" --answer " Mary" --wrong " John" '
    "--by head",
    top=20,
)  # fmt: skip
