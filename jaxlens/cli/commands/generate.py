"""`jaxlens generate`: text after a prompt."""

import argparse
import collections
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxlens.cli.commands.command import Command, load_model, positive, print_progress
from jaxlens.cli.commands.steering_file import check_direction, read_steering
from jaxlens.hooks.steer import steer
from jaxlens.model.generation.generate import SEGMENT
from jaxlens.model.generation.options import eos_tokens, new_generation
from jaxlens.model.generation.stream import TextStream
from jaxlens.model.transformer import HookedTransformer

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "seed")
"""The options of random choices, with the names that they have in `model.generate`."""


def generate(arguments: argparse.Namespace) -> None:
    """Continues a prompt, and prints the new text as it comes.

    Every token is sampled from the model's prediction. With --steer, a direction is added to the residual stream at
    every step.
    """
    options = sampling_options(arguments)
    steering = read_steering_options(arguments)
    model = load_model(arguments)
    if steering is not None:
        check_direction(model, arguments.steer, steering["direction"])
        options["fwd_hooks"] = steer(**steering)
    prompt = arguments.prompt
    if arguments.chat:
        prompt = model.to_chat([{"role": "user", "content": prompt}])
    ends = eos_tokens(model)
    options |= {
        "max_new_tokens": arguments.max_new_tokens, "stop_strings": arguments.stop, "stop_at_eos": bool(ends),
        "num_return_sequences": arguments.n,
    }  # fmt: skip
    print_progress("generating")
    if arguments.json or arguments.n > 1:
        generation = new_generation(model, prompt, **options)
        collections.deque(generation.segments(SEGMENT), maxlen=0)  # to its end
        rows = [list(itertools.takewhile(lambda token: token not in ends, row.tolist())) for row in generation.rows()]
        print_texts(arguments, rows, texts_of(model, prompt, rows))
    else:
        print_stream(model.generate_stream(prompt, return_type="str", **options))


def sampling_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The given options of random choices, or those of a greedy choice."""
    options = {name: value for name in SAMPLING if (value := getattr(arguments, name)) is not None}
    if not arguments.greedy:
        return options
    if options or arguments.n > 1:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in (*options, *["n"] * (arguments.n > 1)))
        raise ValueError(f"--greedy always chooses the likeliest token, so {names} would have no effect; remove it")
    return {"do_sample": False}


def read_steering_options(arguments: argparse.Namespace) -> dict[str, Any] | None:
    """The arguments of `steer` from the file of --steer, or None."""
    if arguments.steer is not None:
        return read_steering(arguments.steer, arguments.layers, arguments.strength)
    if arguments.layers is not None or arguments.strength is not None:
        raise ValueError("--layers and --strength apply to a direction; pass its file with --steer")
    return None


def print_stream(texts: Iterator[str]) -> None:
    """Prints the pieces as they come. The last line is ended after an interrupt too."""
    try:
        for text in texts:
            print(text, end="", flush=True)
    finally:
        print(flush=True)


def texts_of(model: HookedTransformer, prompt: Any, rows: list[list[int]]) -> list[str]:
    """The text of the new tokens of each row."""
    before = model.to_tokens(prompt, truncate=False) if isinstance(prompt, str) else prompt
    streams = [TextStream(model.tokenizer, np.asarray(before)[0].tolist()) for _ in rows]
    return [stream.add(np.asarray(row, np.int32), is_last=True) for stream, row in zip(streams, rows, strict=True)]


def print_texts(arguments: argparse.Namespace, rows: list[list[int]], texts: list[str]) -> None:
    """Prints several texts under numbered lines, or the texts and tokens as JSON."""
    if arguments.json:
        numbers = {"command": arguments.command, "model": arguments.model, "prompt": arguments.prompt, "texts": texts}
        print(json.dumps(numbers | {"tokens": rows, "n_tokens": [len(row) for row in rows]}))
        return
    print("\n".join(f"--- {i}\n{text}" for i, text in enumerate(texts, 1)))


def layer_list(text: str) -> list[int]:
    """Parses layers such as "5,6", as a `type` of argparse."""
    try:
        return [int(layer) for layer in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers of layers, such as 5,6; got {text!r}") from None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", metavar="PROMPT", help="a text")
    parser.add_argument("--chat", action="store_true", help="PROMPT is a user's message; print the model's answer")
    parser.add_argument(
        "--max-new-tokens", type=positive, default=50, metavar="N", help="length of the new text (default: %(default)s)"
    )
    parser.add_argument(
        "--stop", action="append", metavar="STRING", help="stop after the token that completes STRING (repeatable)"
    )
    parser.add_argument("--n", type=positive, default=1, metavar="N", help="number of texts (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print texts and tokens as JSON")
    choice = parser.add_argument_group("choice of tokens")
    choice.add_argument("--greedy", action="store_true", help="choose the likeliest token")
    choice.add_argument("--temperature", type=float, metavar="T", help="divide the logits by T (default: 1)")
    choice.add_argument("--top-k", type=positive, metavar="K", help="sample from the K likeliest tokens")
    choice.add_argument("--top-p", type=float, metavar="P", help="sample from the likeliest tokens that sum to P")
    choice.add_argument(
        "--min-p", type=float, metavar="P", help="sample from tokens with at least P times the highest probability"
    )
    choice.add_argument("--seed", type=int, metavar="N", help="makes the text reproducible")
    steering = parser.add_argument_group("steering")
    steering.add_argument(
        "--steer", type=Path, metavar="FILE",
        help="add a direction [d_model] to the residual stream: a .npy or .safetensors file, or a .json file with "
        "direction, layers, strength and positions",
    )  # fmt: skip
    steering.add_argument("--layers", type=layer_list, metavar="L,L", help="the layers after which it is added")
    steering.add_argument("--strength", type=float, metavar="S", help="multiply the direction by S (default: 1)")


COMMAND = Command(
    "continue a prompt, or answer a message", generate, generate.__doc__,
    'jaxlens generate "What is the capital of France?" --chat --greedy', add_arguments,
)  # fmt: skip
