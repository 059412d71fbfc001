"""`jaxlens patch`: activation patching."""

import argparse
from typing import Any

from jaxlens import plot
from jaxlens.analysis.interventions import Patched, activation_patch
from jaxlens.analysis.labelled import Labelled
from jaxlens.commands.command import Found, analysis, load, strongest
from jaxlens.commands.question import Question, add_answers, add_pairs, asked_for, default_axes


def find(arguments: argparse.Namespace) -> Found:
    """Puts activations of the clean prompt's run into the corrupted prompt's run, one place after the other.

    What is shown is the share of the logit (difference) that each place restores: 0 where nothing happens, 1 where
    everything does.
    """
    asked = asked_for(arguments, arguments.clean, arguments.corrupted)
    if asked[0].corrupted is None:
        raise ValueError("there is one prompt and no other to patch it with; give a second one")
    model = load(arguments)
    question = Question.of(model, asked)
    axes = arguments.axes or default_axes(model, arguments.what)
    direction = "noising" if arguments.noising else "denoising"
    result = activation_patch(
        model, question.corrupted, question.clean, question.metric, arguments.what, axes, direction=direction
    )
    numbers: dict[str, Any] = {
        **question.numbers(), "metric": question.name, "activation": arguments.what, "direction": direction,
        "start": result.start, "goal": result.goal, "patched": Labelled(result.values, result.axes, result.labels),
    }  # fmt: skip
    if not arguments.raw:
        numbers["normalised"] = result.normalised
    return Found(drawn(result, question, arguments), numbers)


def drawn(result: Patched, question: Question, arguments: argparse.Namespace) -> list[plot.Picture]:
    """The metric at every place, as far as that can be drawn, and the places where it changes most."""
    runs = ("clean", "corrupted") if arguments.noising else ("corrupted", "clean")
    what = f"{arguments.what} of the {runs[1]} run, patched into the {runs[0]} one"
    ends = f"{float(result.start):+.3f} there, {float(result.goal):+.3f} in the {runs[1]} run"
    change, unit = (result.change, "logits") if arguments.raw else (result.normalised, "share of the effect")
    shown = result if arguments.raw else change
    bars = strongest(change, arguments.top, f"Where the {question.name} changes most", unit)
    if len(result.axes) > 3:
        return [bars]
    return [plot.heatmap(shown, unit=unit, title=f"{what}; the {question.name} is {ends}"), bars]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("clean", nargs="?", metavar="CLEAN", help="a prompt")
    parser.add_argument("corrupted", nargs="?", metavar="CORRUPTED", help="another one with as many tokens")
    add_answers(parser)
    add_pairs(parser)
    parser.add_argument(
        "--what", default="resid_pre", metavar="ACTIVATION",
        help="what is patched: resid_pre, resid_mid, attn_out, mlp_out, z, q, k, v, pattern, post, … "
        "(default: %(default)s; `jaxlens hooks` lists all)",
    )  # fmt: skip
    parser.add_argument(
        "--axes", metavar="AXES", type=lambda text: [axis.strip() for axis in text.split(",")],
        help="along which it is taken apart: layer, and any of pos, head, neuron, dest_pos, src_pos, with commas "
        "(default: layer,head if it has heads, otherwise layer,pos)",
    )  # fmt: skip
    parser.add_argument("--noising", action="store_true", help="patch the corrupted run into the clean one instead")
    parser.add_argument("--raw", action="store_true", help="show logits instead of shares")


COMMAND = analysis(
    find, add_arguments, "put activations of one prompt into the run of another, one place after the other",
    'jaxlens patch "When John and Mary went to the shops, John gave the bag to" '
    '"When John and Mary went to the shops, Mary gave the bag to" --answer " Mary" --wrong " John" --what z',
)  # fmt: skip
