"""`jaxlens heads`: heads known by where they look.

Axes: l layer, n head, k kind of head.
"""

import argparse

import numpy as np

from jaxlens import plot
from jaxlens.analysis.heads import (
    detect_head,
    duplicate_token_scores,
    induction_scores,
    previous_token_scores,
    repeated_random_tokens,
)
from jaxlens.analysis.labelled import Labelled
from jaxlens.commands.command import Found, analysis, load, positive, say, strongest
from jaxlens.demo import losses_of_halves

SCORES = {
    "induction": induction_scores,
    "previous token": previous_token_scores,
    "duplicate token": duplicate_token_scores,
}


def find(arguments: argparse.Namespace) -> Found:
    """Finds induction heads, previous-token heads and duplicate-token heads.

    Without a prompt: how much each head attends, on random tokens said twice, to the token after the first occurrence,
    to the token before, and to the first occurrence. With a prompt: the share of each head's attention that goes to
    such tokens of it.
    """
    given = {"batch_size": arguments.prompts, "length": arguments.length, "seed": arguments.seed}
    how = {name: value for name, value in given.items() if value is not None}
    if arguments.prompt is not None and how:
        raise ValueError("--length, --prompts and --seed are of random tokens; there is a prompt instead of them")
    model = load(arguments)
    if arguments.prompt is None:
        say("running random tokens, said twice")
        found = [np.asarray(score(model, **how)) for score in SCORES.values()]
        tokens = repeated_random_tokens(model, **how)
        losses = losses_of_halves(model, tokens)
        on = "random tokens, said twice (loss {:.2f}, then {:.2f})".format(*losses.values())
        numbers = {"tokens": tokens, "losses": losses}
    else:
        say("looking where heads look")
        kinds = [f"{kind.replace(' ', '_')}_head" for kind in SCORES]
        found = [np.asarray(detect_head(model, arguments.prompt, kind)) for kind in kinds]
        on, numbers = "the prompt", {"prompt": arguments.prompt, "tokens": model.to_str_tokens(arguments.prompt)}
    places = {"layer": range(model.cfg.n_layers), "head": range(model.cfg.n_heads)}
    labels = {"score": list(SCORES), **{axis: [str(place) for place in of] for axis, of in places.items()}}
    scores = Labelled(np.stack(found), tuple(labels), labels)
    pictures = [
        plot.heatmap(scores, unit="attention", title=f"Where heads look, on {on}"),
        *(strongest(scores.at(score=kind), arguments.top, f"Heads by {kind}", "attention") for kind in SCORES),
    ]
    return Found(pictures, numbers | {"scores": scores})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help="a text to look at, instead of random tokens")
    random = parser.add_argument_group("random tokens")
    random.add_argument("--length", type=positive, metavar="N", help="how many are repeated (default: 50)")
    random.add_argument("--prompts", type=positive, metavar="N", help="in how many prompts (default: 4)")
    random.add_argument("--seed", type=int, metavar="N", help="which ones (default: 0)")


COMMAND = analysis(
    find, add_arguments, "heads that look at previous tokens, at duplicates, and at what came after them (induction)",
    "jaxlens heads --top 5 --html heads.html",
)  # fmt: skip
