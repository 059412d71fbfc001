"""Runs of new tokens after those in a KV cache.

Axes: b batch, p position of a new token, s slot of the cache, v vocabulary.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxlens._jax import is_traced
from jaxlens.config import Config, Dynamic, LongRope
from jaxlens.hooks.names import split_name
from jaxlens.hooks.plan import RegisteredHook
from jaxlens.hooks.positions import Positions
from jaxlens.hooks.steer import Steering, at_positions
from jaxlens.hooks.table import POSITION_AXES
from jaxlens.model.engine import Captured
from jaxlens.model.lengths import at_last_token, cut, padded, placed
from jaxlens.model.request import ModelInput, RunRequest
from jaxlens.nn.kv_cache import PADDING, KVCache, Slots

NEEDS_TOKENS = (
    "the rotary frequencies of this model depend on the length of the text, so earlier tokens are run again; "
    "give tokens instead, or keep the text shorter"
)
Hooks = tuple[RegisteredHook, ...]
Run = tuple[Any, list[Captured], KVCache]
"""The output, the captured activations, and the longer cache."""


def decode(
    model: Any, cache: KVCache, model_input: ModelInput, request: RunRequest, hooks: Hooks, chunk: int | None = None
) -> tuple[Any, list[tuple[list[Captured], int | None]], KVCache]:
    """Runs new tokens after those in the cache, in pieces of `chunk` columns if it is not None.

    Returns the output, the captured activations of each piece with the length to which they remain to be cut (None:
    they have it), and the longer cache. The given cache is used up, unless it is traced.
    """
    n_columns = model_input.mask.shape[1]
    chunk = None if depends_on_length(model.cfg) else chunk  # there, pieces would run with frequencies of other lengths
    cache.check(model.cfg, len(model_input.mask), n_columns)
    if chunk is not None and chunk < n_columns:
        hooks = _last_of_all_pieces(hooks, cache.slots.n_tokens + jnp.sum(model_input.mask, axis=-1) - 1)
    outputs, captured, step = [], [], cache.slots.step
    for first in range(0, n_columns, chunk or n_columns):
        piece = columns(model_input, first, first + (chunk or n_columns))
        if first > 0:  # all pieces are one step
            cache = dataclasses.replace(cache, slots=cache.slots.at_step(step))
        piece = placed(model, at_program_length(model, cache, piece, hooks))
        output, values, cache = continued(model, cache, piece, request, hooks)
        outputs.append(output if request.last_only else cut(output, piece))
        captured.append((values, piece.length))
    if len(outputs) == 1 or request.last_only or outputs[0] is None:
        return outputs[-1], captured, cache
    return jnp.concatenate(outputs, axis=1), captured, cache


def _last_of_all_pieces(hooks: Hooks, last: Int[Array, "b"]) -> Hooks:
    """The hooks of a run in pieces. Those that steer the last token find it by its position, not in every piece."""
    return tuple(
        dataclasses.replace(each, hook=at_positions(each.hook, last[:, None]))
        if not each.is_plain and isinstance(each.hook.func, Steering) and each.hook.func.which == "last" else each
        for each in hooks
    )  # fmt: skip


def columns(model_input: ModelInput, first: int, stop: int) -> ModelInput:
    """Columns first..stop-1 of an input."""
    if first == 0 and stop >= model_input.mask.shape[1]:
        return model_input
    fields = (model_input.tokens, model_input.residual, model_input.mask, model_input.loss_mask)
    return ModelInput(*(None if field is None else field[:, first:stop] for field in fields))


def at_program_length(model: Any, cache: KVCache, model_input: ModelInput, hooks: Hooks) -> ModelInput:
    """The input at the length of its program."""
    if is_traced(cache):
        return model_input
    return padded(model, model_input, hooks, cache.max_length - cache.length)


def continued(model: Any, cache: KVCache, model_input: ModelInput, request: RunRequest, hooks: Hooks) -> Run:
    """`model.run_on`; the tokens in the cache are run again if the new ones change their rotary frequencies.

    Dynamic and LongRoPE scalings depend on the length of a row. Then all keys and values differ, not only their
    rotation.
    """
    if cache.slots.is_new or not depends_on_length(model.cfg):
        return _with_room(model.cfg, cache, model_input, model.run_on(cache, model_input, request, hooks))
    changes = _frequencies_change(model.cfg, cache.slots, jnp.asarray(model_input.mask))
    if not is_traced(changes):
        return (run_again if changes else type(model).run_on)(model, cache, model_input, request, hooks)
    run = jax.lax.cond(
        changes, lambda model, cache: run_again(model, cache, model_input, request, hooks),
        lambda model, cache: model.run_on(cache, model_input, request, hooks), model, cache,
    )  # fmt: skip
    return _with_room(model.cfg, cache, model_input, run)


def scalings_by_length(cfg: Config) -> set[Dynamic | LongRope]:
    """The scalings with which the rotary frequencies of a token depend on the length of its row."""
    return {rotary.scaling for rotary in cfg.rotary if rotary and isinstance(rotary.scaling, Dynamic | LongRope)}


def depends_on_length(cfg: Config) -> bool:
    """Whether the rotary frequencies of a token depend on the length of its row."""
    return bool(scalings_by_length(cfg))


@functools.partial(jax.jit, static_argnums=0)
def _frequencies_change(cfg: Config, slots: Slots, mask: Bool[Array, "b p"]) -> Bool[Array, ""]:
    """Whether the frequencies of a row with the new tokens differ from those that its keys have."""
    after, changes = slots.n_tokens + jnp.sum(mask, axis=-1), jnp.bool_(False)
    for scaling in scalings_by_length(cfg):
        is_long, was_long = (n > scaling.original_n_ctx for n in (after, slots.n_rotated))
        changes |= jnp.any(is_long != was_long if isinstance(scaling, LongRope) else is_long | was_long)
    return changes


def run_again(model: Any, cache: KVCache, model_input: ModelInput, request: RunRequest, hooks: Hooks) -> Run:
    """Runs all tokens, those in the cache too. The results are those at the new tokens.

    Raises:
        ValueError: The cache holds embeddings, whose tokens are not known. (If it is traced, the results are NaN.)
    """
    n_new, width = model_input.n_positions, model_input.mask.shape[1]
    slots, first = cache.slots.extended(model_input.mask, model_input.tokens, n_new), cache.slots.length
    new = dataclasses.replace(Slots.new(*slots.sources.shape), step=cache.slots.step, steps=slots.steps)
    mask = (slots.sources != PADDING) & (jnp.arange(cache.max_length) < slots.length)
    length = None if is_traced(first) else int(slots.length)
    if length is not None and not bool(jnp.all(slots.known == mask)):
        raise ValueError(f"the cache holds embeddings, but {NEEDS_TOKENS}")
    whole = ModelInput(slots.tokens, None, mask, None, length)
    everywhere = dataclasses.replace(request, last_only=False, positions=None)
    output, captured, cache = model.run_on(KVCache(cache.keys, cache.values, new), whole, everywhere, hooks)
    cache = dataclasses.replace(cache, slots=slots)
    if output is not None:
        output = jax.lax.dynamic_slice_in_dim(output, first, width, axis=1)
        output = at_last_token(output, model_input.mask) if request.last_only else output
    captured = [from_column(entry, first, width) for entry in captured]
    if request.positions is not None:
        captured = [dataclasses.replace(entry, value=_at(request.positions, entry)) for entry in captured]
    return output, captured, cache


def _at(positions: Positions, entry: Captured) -> Any:
    """The value of a captured activation at these positions."""
    return positions.cut(split_name(entry.name)[0], entry.value, n_leading=int(entry.layers is not None))


def from_column(entry: Captured, first: Any, n: int) -> Captured:
    """A captured activation at columns first..first+n-1."""
    axis = POSITION_AXES[split_name(entry.name)[0]] + (entry.layers is not None)
    return dataclasses.replace(entry, value=jax.lax.dynamic_slice_in_dim(entry.value, first, n, axis=axis))


def _with_room(cfg: Config, cache: KVCache, model_input: ModelInput, run: Run) -> Run:
    """The results of a run, NaN if the tokens do not fit into a cache whose length is traced."""
    output, captured, longer = run
    if not is_traced(cache.slots.length) or output is None:
        return run
    fits = cache.slots.length + model_input.mask.shape[1] <= min(cache.max_length, cfg.n_ctx)
    return jnp.where(fits, output, jnp.nan), captured, longer
