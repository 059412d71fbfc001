"""Prompts of any length run in programs of a few lengths, so that a new length compiles no model code.

An input is padded on the right to the next of these lengths, and the results are cut to its own:

    1, 8, 16, 24 … 64 in steps of 8; … 128 in steps of 16; … 256 in steps of 32; and so on

A step is at most an eighth of the length, so padding costs at most an eighth of the time of a long prompt. A single
token has a program of its own, which reads weights faster (nn/in_stack.py).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Shaped

from jaxlens._jax import is_eagerly_differentiated, is_traced, tracers_in
from jaxlens.hooks.plan import RegisteredHook
from jaxlens.hooks.positions import shortened
from jaxlens.hooks.steer import Steering
from jaxlens.model.loss import Output
from jaxlens.model.request import ModelInput


def program_length(length: int, n_ctx: int) -> int:
    """The length that the length of a prompt of several tokens, or a number of slots, is rounded up to.

    Example:
        >>> [program_length(length, 1000) for length in (2, 8, 9, 65, 130, 999)]
        [8, 8, 16, 80, 160, 1000]
    """
    step = max(8, (1 << (length - 1).bit_length()) // 8)
    return max(length, min(-(-length // step) * step, n_ctx))


def padded(
    model: Any, model_input: ModelInput, hooks: tuple[RegisteredHook, ...], limit: int | None = None
) -> ModelInput:
    """The input at the length of its program, at most `limit` (None: n_ctx).

    It is unchanged under a transformation of the caller, which compiles for the exact shapes (except an eager
    gradient), and with data hooks, whose functions may count positions from the end (those of `steer` do not).
    """
    length = model_input.mask.shape[1]
    target = program_length(length, model.cfg.n_ctx if limit is None else limit)
    if length in (1, target) or not all(hook.is_plain or isinstance(hook.hook.func, Steering) for hook in hooks):
        return model_input
    if not all(map(is_eagerly_differentiated, tracers_in(model_input, model.modules, hooks))):
        return model_input
    fields = (model_input.tokens, model_input.residual, model_input.mask)
    tokens, residual, mask = (None if array is None else extended(array, (1,), target) for array in fields)
    return ModelInput(tokens, residual, mask, mask, length)


def on_mesh(model: Any, model_input: ModelInput, hooks: tuple[RegisteredHook, ...]) -> ModelInput:
    """The input on the mesh of the model, if it has one: at the length of its program, because padding an array of many
    devices would compile a program for each length. Arrays that the caller has placed stay where they are.
    """
    return model_input if model.sharding is None else placed(model, padded(model, model_input, hooks))


def placed(model: Any, model_input: ModelInput) -> ModelInput:
    """The input on the mesh of the model, if it has one, with its rows divided if their number allows it."""
    return model_input if model.sharding is None else jax.tree.map(model.sharding.place_batch, model_input)


def cut(output: Any, model_input: ModelInput) -> Any:
    """The output of a run at the length of its input."""
    if model_input.length is None or output is None:
        return output
    if isinstance(output, Output):
        return Output(*(cut(array, model_input) for array in output))
    n_padding = model_input.mask.shape[1] - model_input.length
    return output if output.ndim < 2 else shortened(output, (1,), output.shape[1] - n_padding)


def extended(value: jax.Array, axes: tuple[int, ...], length: int) -> jax.Array:
    """The value with zeros after its last position, up to `length` positions along these axes."""
    widths = [(0, length - size if axis in axes else 0) for axis, size in enumerate(value.shape)]
    if isinstance(value, np.ndarray):
        return np.pad(value, widths)
    if is_traced(value) or value.committed:
        return jnp.pad(value, widths)
    if jnp.issubdtype(value.dtype, jnp.floating) and not value.is_ready():  # tokens are there in a moment
        return jnp.pad(value, widths)
    return jax.device_put(np.pad(np.asarray(value), widths))  # jnp.pad would compile a program per shape


@jax.jit
def at_last_token(value: Shaped[Array, "b p ..."], mask: Bool[ArrayLike, "b p"]) -> Shaped[Array, "b 1 ..."]:
    """The value at each row's last token."""
    last = jnp.max(jnp.where(mask, jnp.arange(mask.shape[1]), 0), axis=-1)
    return jnp.take_along_axis(value, last.reshape(-1, *[1] * (value.ndim - 1)), axis=1)
