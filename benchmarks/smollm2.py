"""The model of the benchmarks: SmolLM2-135M, or random weights of the same shape."""

import argparse
from typing import Any

import jax

from benchmarks.report import environment, print_environment
from jaxlens import Config, HookedTransformer
from jaxlens.config import Rotary
from jaxlens.errors import CheckpointError

PRETRAINED = "smollm2-135m-instruct"
SMOLLM2: dict[str, Any] = {
    "n_layers": 30,
    "d_model": 576,
    "n_heads": 9,
    "n_key_value_heads": 3,
    "d_head": 64,
    "d_mlp": 1536,
    "d_vocab": 49152,
    "n_ctx": 8192,
    "act_fn": "silu",
    "gated_mlp": True,
    "normalization_type": "RMS",
    "biases": (),
    "tie_word_embeddings": True,
    "positional_embedding_type": "rotary",
    "rotary": Rotary(base=100000.0),
}
SMALL = {**SMOLLM2, "n_layers": 4, "d_model": 96, "n_heads": 3, "n_key_value_heads": 1, "d_mlp": 256, "d_vocab": 512}


def load(quick: bool = False) -> tuple[HookedTransformer, str]:
    """The model and the origin of its weights. Weights are random if the checkpoint cannot be loaded."""
    if quick:
        return HookedTransformer(Config(**SMALL)), "random, small"
    try:
        return HookedTransformer.from_pretrained_no_processing(PRETRAINED), PRETRAINED
    except CheckpointError as error:
        print(f"{PRETRAINED} cannot be loaded; using random weights of the same shape: {error}")
    return HookedTransformer(Config(**SMOLLM2)), "random"


def begin(doc: str, quick_help: str) -> tuple[bool, dict[str, Any], HookedTransformer, str]:
    """Reads the command line of a benchmark without other options, and prints the machine and the model.

    Returns whether `--quick` was given, the machine, the model, and the origin of its weights.
    """
    parser = argparse.ArgumentParser(description=doc.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help=quick_help)
    quick = parser.parse_args().quick
    jax.config.update("jax_enable_compilation_cache", False)
    machine = environment()
    print_environment(machine)
    model, weights = load(quick)
    print(f"{model!r}\n  weights: {weights}")
    return quick, machine, model, weights
