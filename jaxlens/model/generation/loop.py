"""The loop that generates tokens: one compiled program, or one step after the other if a Python hook acts.

    prompt ─ run ─ choose ─┬─ run ─ choose ─┬─ run ─ choose ─ …       choose: sample from the logits of the last column
              step 0       │     step 1     │     step 2
                        token 0          token 1

Axes: b batch, n new token, s slot of the cache, v vocabulary, e end token.
"""

import contextlib
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from jaxlens.hooks.layout import ModelLayout
from jaxlens.hooks.names import split_name
from jaxlens.hooks.plan import RegisteredHook, SiteHook, site_hooks
from jaxlens.hooks.table import LENGTH_AXES, POSITION_AXES
from jaxlens.model.engine import Captured
from jaxlens.model.finite import MASKED
from jaxlens.model.generation.decode import continued, decode, run_again
from jaxlens.model.generation.sampling import Sampler
from jaxlens.model.request import ModelInput, RunRequest
from jaxlens.nn.kv_cache import KVCache


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Rules:
    """How tokens are chosen, and after which a row is finished. A finished row goes on with `filler`."""

    sampler: Sampler
    key: jax.Array | None
    ends: Int[ArrayLike, "e"]
    filler: ArrayLike


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class State:
    """What the loop carries: the new tokens, of which `count` are chosen and all but the last are in the cache.

    `logits` are those that each token was chosen from, or None. `captured` have a column for each slot.
    """

    tokens: Int[Array, "b n"]
    count: Int[Array, ""]
    finished: Bool[Array, "b"]
    cache: KVCache
    logits: Float[Array, "b n v"] | None
    captured: tuple[Captured, ...]


@dataclasses.dataclass(frozen=True)
class Loop:
    """The loop of one generation: its hooks, the activations to capture, and its rules.

    With `runs_again`, every step runs all tokens, so that hooks receive the whole text. `layout` is that of a mesh with
    Explicit axes.
    """

    model: Any
    hooks: tuple[RegisteredHook, ...]
    request: RunRequest
    rules: Rules
    keeps_logits: bool = False
    runs_again: bool = False
    layout: ModelLayout | None = None

    def axes(self) -> contextlib.AbstractContextManager:
        """A context for runs of the model: with Auto axes, on a mesh with Explicit axes."""
        return contextlib.nullcontext() if self.layout is None else self.layout.automatic()

    def begin(self, cache: KVCache, prompt: ModelInput, n_max: int, chunk: int | None) -> State:
        """The state after the first token, with room for `n_max`."""
        start = cache.length
        logits, pieces, cache = decode(self.model, cache, prompt, self.request, self.hooks, chunk)
        return self._begun(cache, logits[:, -1], pieces, start, n_max)

    def _begun(self, cache: KVCache, logits, pieces, first: int, n_max: int) -> State:
        shape = len(logits), n_max
        finished = jnp.zeros(shape[0], bool)
        kept = jnp.zeros((*shape, logits.shape[-1]), logits.dtype) if self.keeps_logits else None
        captured = tuple(_room(entry, cache.max_length) for entry in pieces[0][0])
        for values, length in pieces:
            captured = _stored(captured, tuple(values), np.int32(first))
            first += (values[0].value.shape[_position_axis(values[0])] if length is None else length) if values else 0
        state = State(jnp.zeros(shape, jnp.int32), jnp.int32(0), finished, cache, kept, captured)
        return _chosen(state, logits, self.rules)

    def until(self, state: State, count: int) -> State:
        """The state when each row has `count` tokens, or all rows are finished."""
        if not any(hook.is_plain for hook in self.hooks):
            run = self._bare_model, state, self._at_sites, self.rules, np.int32(count)
            return _compiled(*run, self.request, again=self.runs_again)
        while int(state.count) < count and not bool(jnp.all(state.finished)):
            logits, state = run_last_token(self.model, state, self.hooks, self.request, self.runs_again)
            state = _chosen(state, logits, self.rules)
        return state

    def last_run(self, state: State) -> State:
        """The state after a run of the last token, of which no token is chosen. Its activations are captured."""
        if any(hook.is_plain for hook in self.hooks):
            return run_last_token(self.model, state, self.hooks, self.request, self.runs_again)[1]
        return _compiled_run(self._bare_model, state, self._at_sites, self.request, again=self.runs_again)[1]

    @property
    def _bare_model(self) -> Any:
        """The model without its hooks, which are among those of the loop."""
        bare = self.model._copy(self.model.modules)
        bare._hooks = ()
        return bare

    @property
    def _at_sites(self) -> tuple[SiteHook, ...]:
        """The hooks in the form in which their layers are data, so that other layers compile nothing."""
        return tuple(at_site for hook in self.hooks for at_site in site_hooks(self.model.cfg, hook))


def run_last_token(
    model: Any, state: State, hooks, request: RunRequest, again: bool
) -> tuple[Float[Array, "b v"], State]:
    """The logits after the last token, and the state with its keys, values and activations.

    With `again`, all tokens are run again.
    """
    token = jax.lax.dynamic_slice_in_dim(state.tokens, state.count - 1, 1, axis=1)
    model_input = ModelInput(token, None, np.ones(token.shape, bool), None)
    column = state.cache.slots.length
    run = run_again if again else continued
    logits, captured, cache = run(model, state.cache, model_input, request, hooks)
    captured = _stored(state.captured, tuple(captured), column)
    return logits[:, -1], dataclasses.replace(state, cache=cache, captured=captured)


@functools.partial(jax.jit, static_argnames="again", donate_argnums=1)
def _compiled(model, state: State, hooks, rules: Rules, count, request: RunRequest, again: bool) -> State:
    def goes_on(state: State):
        return (state.count < count) & ~jnp.all(state.finished)

    def body(state: State):
        logits, state = run_last_token(model, state, hooks, request, again)
        return _chosen(state, logits, rules)

    return jax.lax.while_loop(goes_on, body, state)


_compiled_run = jax.jit(run_last_token, static_argnames="again", donate_argnums=1)


@jax.jit
def _chosen(state: State, logits: Float[Array, "b v"], rules: Rules) -> State:
    """The state with another token."""
    key = None if rules.key is None else jax.random.fold_in(rules.key, state.count)
    slots = state.cache.slots
    token = rules.sampler(key, logits, slots.tokens, slots.known)
    token = jnp.where(state.finished, rules.filler, token)
    finished = state.finished | jnp.any(token[:, None] == jnp.asarray(rules.ends), axis=-1)
    write = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=state.count, axis=1)
    kept = None if state.logits is None else write(state.logits, logits[:, None])
    return dataclasses.replace(
        state, tokens=write(state.tokens, token[:, None]), count=state.count + 1, finished=finished, logits=kept
    )


# --- captured activations


def _position_axis(entry: Captured) -> int:
    return POSITION_AXES[split_name(entry.name)[0]] + (entry.layers is not None)


def _room(entry: Captured, n_slots: int) -> Captured:
    """Room for an activation of every slot. No query attends to a slot that is empty."""
    fill = -jnp.inf if split_name(entry.name)[0] == MASKED else 0
    axes = {axis + (entry.layers is not None) for axis in LENGTH_AXES[split_name(entry.name)[0]]}
    shape = [n_slots if axis in axes else size for axis, size in enumerate(entry.value.shape)]
    return dataclasses.replace(entry, value=jnp.full(shape, fill, entry.value.dtype))


@functools.partial(jax.jit, donate_argnums=0)
def _stored(stored: tuple[Captured, ...], captured: tuple[Captured, ...], column) -> tuple[Captured, ...]:
    """The activations with those of new tokens from this column on."""
    by_name = {(entry.name, entry.layers): entry for entry in captured}
    result = []
    for entry in stored:
        new, at = by_name[entry.name, entry.layers], [jnp.int32(0)] * entry.value.ndim
        at[_position_axis(entry)] = jnp.asarray(column, jnp.int32)
        result.append(dataclasses.replace(entry, value=jax.lax.dynamic_update_slice(entry.value, new.value, at)))
    return tuple(result)
