"""The inputs of the runs of an experiment, at the lengths of their programs (see jaxlens/model/lengths.py)."""

from typing import Any

import numpy as np

from jaxlens._jax import is_traced, on_host
from jaxlens.model.lengths import padded
from jaxlens.model.request import ModelInput
from jaxlens.model.transformer import HookedTransformer


def read_single(model: HookedTransformer, input: Any, attention_mask: Any = None) -> ModelInput:
    """The input of a run."""
    return _at_program_length(model, model.read_input(input, attention_mask=attention_mask))


def read_pair(model: HookedTransformer, attention_mask: Any = None, **runs: Any) -> list[ModelInput]:
    """The inputs of two runs whose activations are compared position by position.

    Errors call the inputs by the names of the keyword arguments.

    Raises:
        ValueError: A transformation traces the model or an input, or the positions do not correspond: the inputs differ
            in the number of prompts, or the two inputs of a prompt differ in their number of tokens or in padding.
    """
    inputs = [model.read_input(run, attention_mask=attention_mask) for run in runs.values()]
    if is_traced(model, inputs):
        raise ValueError("comparing two runs needs concrete values; call it outside jit, grad and vmap")
    (first, second), masks = runs, [on_host(run.mask) for run in inputs]
    if len(masks[0]) != len(masks[1]):
        counts = f"{first} has {len(masks[0])} prompts, but {second} has {len(masks[1])}"
        raise ValueError(f"{counts}; give pairs of prompts, the same number in both")
    for prompt, rows in enumerate(zip(*masks, strict=True)):
        if not np.array_equal(*rows):
            one, other = (f"{row.sum()} tokens and {(~row).sum()} padding positions" for row in rows)
            lengths = f"prompt {prompt} has {one} in {first}, but {other} in {second}"
            raise ValueError(f"{lengths}; positions must correspond, so give pairs with the same number of tokens")
    return [_at_program_length(model, run) for run in inputs]


def check_source(model: HookedTransformer, input: Any, attention_mask: Any, source: Any) -> None:
    """Raises ValueError if the rows of a run and of the cache whose activations it receives differ in padding.

    Tokens without an attention mask, and caches of such tokens, are not checked.
    """
    of_run, of_source = model.read_input(input, attention_mask=attention_mask).loss_mask, getattr(source, "mask", None)
    if of_run is None or of_source is None or is_traced(of_run) or len(of_run) != len(of_source):
        return
    for row, (one, other) in enumerate(zip(on_host(of_run), of_source, strict=True)):
        if not np.array_equal(one, other):
            lengths = f"row {row} has {one.sum()} tokens in the run, but {other.sum()} in the cache"
            raise ValueError(f"{lengths}; positions must correspond, so give prompts with the same number of tokens")


def _at_program_length(model: HookedTransformer, model_input: ModelInput) -> ModelInput:
    """The input with padding. Hooks on the model may count positions from the end, so they get the exact length."""
    return model_input if model.list_hooks() else padded(model, model_input, hooks=())
