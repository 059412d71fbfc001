"""`jaxlens patch`: activation patching."""

import argparse
from typing import Any

from jaxlens import plot
from jaxlens.analysis.interventions.activation_patching import Patched, activation_patch
from jaxlens.analysis.labelled_array import Labelled
from jaxlens.cli.commands.command import Report, analysis_command, load_model, strongest_bars
from jaxlens.cli.commands.prompts import PromptSet, add_answer_options, add_pairs_option, default_axes, read_prompts


def make_report(arguments: argparse.Namespace) -> Report:
    """Patches activations of the clean run into the corrupted run, one at a time.

    Shows the effect of each patch on the logit difference, or on the logit if there is no --wrong. An effect of 0
    leaves the value of the corrupted run, and an effect of 1 restores that of the clean run.
    """
    prompts = read_prompts(arguments, arguments.clean, arguments.corrupted)
    if prompts[0].corrupted is None:
        raise ValueError("patching needs two prompts; pass the corrupted prompt as the second argument")
    model = load_model(arguments)
    prompts = PromptSet.of(model, prompts)
    axes = arguments.axes or default_axes(model, arguments.what)
    direction = "noising" if arguments.noising else "denoising"
    result = activation_patch(
        model, prompts.corrupted, prompts.clean, prompts.metric, arguments.what, axes, direction=direction
    )
    numbers: dict[str, Any] = {
        **prompts.as_json(), "metric": prompts.metric_name, "activation": arguments.what, "direction": direction,
        "start": result.start, "goal": result.goal, "patched": Labelled(result.values, result.axes, result.labels),
    }  # fmt: skip
    if not arguments.raw:
        numbers["normalised"] = result.normalised
    return Report(make_pictures(result, prompts.metric_name, arguments), numbers)


def make_pictures(result: Patched, metric_name: str, arguments: argparse.Namespace) -> list[plot.Picture]:
    """A heat map of the metric if there are at most three axes, and a bar chart of its largest changes."""
    target, source = ("clean", "corrupted") if arguments.noising else ("corrupted", "clean")
    change, unit = (result.change, "logits") if arguments.raw else (result.normalised, "fraction of the difference")
    bars = strongest_bars(change, arguments.top, f"Largest changes of the {metric_name}", unit)
    if len(result.axes) > 3:
        return [bars]
    title = f"{arguments.what} of the {source} run, patched into the {target} run; the {metric_name} is "
    title += f"{float(result.start):+.3f} in the {target} run and {float(result.goal):+.3f} in the {source} run"
    return [plot.heatmap(result if arguments.raw else change, unit=unit, title=title), bars]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("clean", nargs="?", metavar="CLEAN", help="the clean prompt")
    parser.add_argument("corrupted", nargs="?", metavar="CORRUPTED", help="the corrupted prompt, of equal length")
    add_answer_options(parser)
    add_pairs_option(parser)
    parser.add_argument(
        "--what", default="resid_pre", metavar="ACTIVATION",
        help="the activation to patch: resid_pre, resid_mid, attn_out, mlp_out, z, q, k, v, pattern, post, … "
        "(default: %(default)s; `jaxlens hooks` lists all)",
    )  # fmt: skip
    parser.add_argument(
        "--axes", metavar="AXES", type=lambda text: [axis.strip() for axis in text.split(",")],
        help="the axes to patch along, separated by commas: layer, then any of pos, head, neuron, dest_pos, src_pos "
        "(default: layer,head for an activation with heads, otherwise layer,pos)",
    )  # fmt: skip
    parser.add_argument("--noising", action="store_true", help="patch the corrupted run into the clean run instead")
    parser.add_argument("--raw", action="store_true", help="show logits instead of fractions")


COMMAND = analysis_command(
    make_report, add_arguments, "patch activations of one prompt into the run of another prompt",
    'jaxlens patch "When John and Mary went to the shops, John gave the bag to" '
    '"When John and Mary went to the shops, Mary gave the bag to" --answer " Mary" --wrong " John" --what z',
)  # fmt: skip
