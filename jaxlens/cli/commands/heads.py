"""`jaxlens heads`: induction heads, previous-token heads and duplicate-token heads."""

import argparse

import numpy as np

from jaxlens import plot
from jaxlens.analysis.heads import detect_head, repeated_random_tokens
from jaxlens.analysis.labelled_array import Labelled
from jaxlens.cli.commands.command import Report, analysis_command, load_model, positive, print_progress, strongest_bars
from jaxlens.cli.demo.experiment import KINDS, scores_and_losses


def make_report(arguments: argparse.Namespace) -> Report:
    """Scores each head by its attention to three kinds of tokens.

    A previous-token head attends to the token before, a duplicate-token head to earlier occurrences of the same token,
    and an induction head to the token after such an occurrence. Without a prompt, a score is the mean attention to such
    tokens in repeated random tokens. With a prompt, it is the fraction of attention on such tokens in the prompt.
    """
    options = {"batch_size": arguments.prompts, "length": arguments.length, "seed": arguments.seed}
    options = {name: value for name, value in options.items() if value is not None}
    if arguments.prompt is not None and options:
        raise ValueError("--length, --prompts and --seed apply to random tokens; remove them, or remove the prompt")
    model = load_model(arguments)
    print_progress("scoring heads")
    if arguments.prompt is None:
        tokens = repeated_random_tokens(model, **options)
        score_of_kind, losses = scores_and_losses(model, tokens)
        input_name = "repeated random tokens (loss {:.2f}, then {:.2f} when repeated)".format(*losses.values())
        numbers = {"tokens": tokens, "losses": losses}
    else:
        detectors = {kind: f"{kind.replace(' ', '_')}_head" for kind in KINDS}
        score_of_kind = {kind: detect_head(model, arguments.prompt, name) for kind, name in detectors.items()}
        input_name, tokens = "the prompt", model.to_str_tokens(arguments.prompt)
        numbers = {"prompt": arguments.prompt, "tokens": tokens}
    sizes = {"layer": model.cfg.n_layers, "head": model.cfg.n_heads}
    labels = {"score": list(KINDS), **{axis: [str(index) for index in range(size)] for axis, size in sizes.items()}}
    scores = Labelled(np.stack([score_of_kind[kind] for kind in KINDS]), tuple(labels), labels)
    pictures = [plot.heatmap(scores, unit="attention", title=f"Scores of heads on {input_name}")]
    for kind in KINDS:
        pictures.append(strongest_bars(scores.at(score=kind), arguments.top, f"Heads by {kind} score", "attention"))
    return Report(pictures, numbers | {"scores": scores})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help="a text (default: random tokens)")
    random = parser.add_argument_group("random tokens")
    random.add_argument("--length", type=positive, metavar="N", help="number of tokens to repeat (default: 50)")
    random.add_argument("--prompts", type=positive, metavar="N", help="number of prompts (default: 4)")
    random.add_argument("--seed", type=int, metavar="N", help="seed of the tokens (default: 0)")


COMMAND = analysis_command(
    make_report, add_arguments, "find induction heads, previous-token heads and duplicate-token heads",
    "jaxlens heads --top 5 --html heads.html",
)  # fmt: skip
