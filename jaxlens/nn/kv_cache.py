"""The keys and values of earlier tokens, so that new tokens can be run without running the earlier ones again.

A cache has a fixed number of slots. A run writes the keys and values of its tokens to the next free slots, and its
queries attend to all slots that hold a token.

    slot       0    1    2    3    4    5    6    7
    row 0      The  cat  sat  on   ·    ·    ·    ·        sources  0  1  2  3  -  -  -  -       length 4
    row 1      ·    ·    Two  dogs ·    ·    ·    ·        sources  -  -  0  1  -  -  -  -

Axes: b batch, p position of a new token, s slot, l layer, k key/value head, h d_head, t d_v_head.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from jaxlens._jax import is_traced
from jaxlens._jax.explicit_axes import F, Layout, explicit_mesh
from jaxlens.config import Config
from jaxlens.nn.packing import PADDING


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Slots:
    """What the slots of a cache hold, which is the same in all layers.

    `sources` are the indices of tokens in their sequence, `PADDING` in a slot without a token. `tokens` are their ids,
    -1 where they are not known. `n_tokens` counts the tokens of each row, `length` the slots in use, and `step` the
    runs. `steps` are the runs that filled the slots; the next run will fill the empty ones. `n_rotated` is the length
    of each row whose rotary frequencies the keys have, which is above `n_tokens` after a cut. Nothing is in use if
    `is_new`.
    """

    sources: Int[Array, "b s"]
    tokens: Int[Array, "b s"]
    n_tokens: Int[Array, "b"]
    n_rotated: Int[Array, "b"]
    length: Int[Array, ""]
    step: Int[Array, ""]
    steps: Int[Array, "s"]
    is_new: bool = dataclasses.field(metadata={"static": True})

    @classmethod
    def new(cls, batch_size: int, n_slots: int) -> "Slots":
        """Slots without tokens."""
        zero, shape = jnp.int32(0), (batch_size, n_slots)
        sources, tokens = jnp.full(shape, PADDING, jnp.int32), jnp.zeros(shape, jnp.int32)
        n_tokens, n_rotated, steps = (jnp.zeros(n, jnp.int32) for n in (batch_size, batch_size, n_slots))
        return cls(sources, tokens, n_tokens, n_rotated, zero, zero, steps, True)

    @property
    def known(self) -> Bool[Array, "b s"]:
        """Whether a slot holds a token whose id is known."""
        return (self.sources != PADDING) & (self.tokens >= 0)

    @property
    def all_known(self) -> bool:
        """Whether the ids of all tokens are known."""
        return bool(jnp.all(self.known | (self.sources == PADDING)))

    def steps_of_next(self, n: int) -> Int[Array, "n"]:
        """The steps of the next n slots."""
        return jax.lax.dynamic_slice_in_dim(self.steps, self.length, n)

    @jax.jit
    def at_step(self, step: Int[ArrayLike, ""]) -> "Slots":
        """The same slots, with another number for the next run."""
        steps = jnp.where(jnp.arange(len(self.steps)) < self.length, self.steps, step)
        return dataclasses.replace(self, step=jnp.asarray(step, jnp.int32), steps=steps)

    def extended(self, mask: Bool[ArrayLike, "b p"], tokens: Int[ArrayLike, "b p"] | None, n_new: Any) -> "Slots":
        """The slots after a run of new tokens. Only the first `n_new` columns stay in use; the others are padding."""
        indices = self.n_tokens[:, None] + jnp.cumsum(mask, axis=-1, dtype=jnp.int32) - 1
        tokens = jnp.full(mask.shape, -1, jnp.int32) if tokens is None else jnp.asarray(tokens, jnp.int32)
        write = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=self.length, axis=1)
        n_tokens = self.n_tokens + jnp.sum(mask, axis=-1, dtype=jnp.int32)
        longer = Slots(
            write(self.sources, jnp.where(mask, indices, PADDING)), write(self.tokens, tokens),
            n_tokens, n_tokens, self.length + n_new, self.step, self.steps, False,
        )  # fmt: skip
        return longer.at_step(self.step + 1)


def _makes_a_cache(method: F) -> F:
    """A decorator of methods that make a cache from one that is not used up: they use Auto axes on any mesh."""

    @functools.wraps(method)
    def run(cache: "KVCache", *arguments: Any) -> "KVCache":
        cache.check_unused()
        mesh = explicit_mesh(cache)
        if mesh is None:
            return method(cache, *arguments)
        layout = Layout.of(mesh, zip(jax.tree.leaves(cache.axes), jax.tree.leaves(cache), strict=True))
        with layout.automatic():
            result = method(*layout.to_automatic((cache, *arguments)))
        return result.with_explicit_axes(layout)

    return run


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class KVCache:
    """The keys and values of the tokens that a model has read, of a fixed size: `model.init_kv_cache` makes one.

    `keys` (after rotation) and `values` have heads before slots, as attention multiplies them. `model.decode` writes
    new tokens to a cache and uses it up: its memory becomes that of the cache that is returned. `copy`, `repeat`,
    `take` and `cache[:length]` make caches with memory of their own, so that one prefix can be continued in many ways.

    Example:
        >>> import jaxlens
        >>> model = jaxlens.HookedTransformer(
        ...     jaxlens.Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_vocab=10, n_ctx=8, attn_only=True))
        >>> logits, prefix = model.decode([[1, 2, 3]], model.init_kv_cache(1, max_length=8))
        >>> logits, both = model.decode([[4], [5]], prefix.repeat(2))
        >>> both
        KVCache(2 rows, 4 of 8 slots in use, 2 layers)
    """

    keys: Float[Array, "l b k s h"]
    values: Float[Array, "l b k s t"]
    slots: Slots

    @classmethod
    def new(cls, cfg: Config, batch_size: int, max_length: int, sharding: Any = None) -> "KVCache":
        """A cache of this many rows and slots, without tokens. `sharding` is that of keys and values [l b k s ...]."""
        shape, sizes = (cfg.n_layers, batch_size, cfg.n_key_value_heads, max_length), (cfg.d_head, cfg.d_v_head)
        keys, values = (jnp.zeros((*shape, size or cfg.d_head), cfg.dtype, device=sharding) for size in sizes)
        return cls(keys, values, Slots.new(batch_size, max_length))

    batch_size = property(lambda self: self.keys.shape[1], doc="The number of rows.")
    max_length = property(lambda self: self.keys.shape[3], doc="The number of slots.")
    length = property(lambda self: _number(self.slots.length), doc="The number of slots in use, padding included.")
    n_tokens = property(lambda self: self.slots.n_tokens, doc="The number of tokens of each row, [b].")

    @property
    def axes(self) -> "KVCache":
        """The axis letters of each array, in its place."""
        slots = Slots("b s", "b s", "b", "b", "", "", "s", is_new=self.slots.is_new)
        return KVCache("l b k s h", "l b k s t", slots)

    def with_explicit_axes(self, layout: Layout) -> "KVCache":
        """The cache with Explicit axes in each array."""
        return jax.tree.map(layout.to_explicit, self, self.axes)

    @_makes_a_cache
    def copy(self) -> "KVCache":
        """The same cache with memory of its own."""
        return jax.tree.map(jnp.copy, self)

    @_makes_a_cache
    def take(self, rows: Any) -> "KVCache":
        """A cache of these rows, in this order: integers or a mask over rows.

        Raises:
            IndexError: There is no such row.
        """
        rows = np.atleast_1d(np.asarray(rows))
        if not (rows.size and (np.issubdtype(rows.dtype, np.integer) or rows.dtype == bool)):
            raise IndexError(f"rows is {rows.tolist()}; expected at least one number of a row, or a mask over rows")
        return self._rows(np.arange(self.batch_size)[rows])

    @_makes_a_cache
    def repeat(self, n: int) -> "KVCache":
        """A cache in which every row is n rows.

        Raises:
            ValueError: n is not a positive integer.
        """
        if not isinstance(n, int | np.integer) or n < 1:
            raise ValueError(f"n is {n!r}; expected a positive integer")
        return self._rows(np.repeat(np.arange(self.batch_size), n))

    @_makes_a_cache
    def __getitem__(self, which: slice) -> "KVCache":
        """`cache[:length]`: the cache after its first `length` slots, as it was before later tokens were read.

        The length may be traced.
        """
        if not isinstance(which, slice) or which.start not in (None, 0) or which.step not in (None, 1):
            raise TypeError(f"a cache is cut as cache[:length], with its beginning; got {which!r}")
        if is_traced(which.stop, self.slots.length):
            stop = self.slots.length if which.stop is None else which.stop
            length = jnp.clip(jnp.where(stop < 0, self.slots.length + stop, stop), 0, self.slots.length)
        else:
            length = len(range(self.length)[which])
        sources = jnp.where(jnp.arange(self.max_length) < length, self.slots.sources, PADDING)
        n_tokens = jnp.sum(sources != PADDING, axis=-1, dtype=jnp.int32)
        slots = dataclasses.replace(self.slots, sources=sources, n_tokens=n_tokens, length=jnp.int32(length))
        is_new = not is_traced(length) and length == 0
        slots = dataclasses.replace(slots.at_step(slots.step), is_new=is_new)
        return KVCache(self.keys, self.values, slots).copy()

    @_makes_a_cache
    def with_room(self, n_slots: int) -> "KVCache":
        """A cache with at least this many slots: itself, or a copy with more."""
        more = n_slots - self.max_length
        if more <= 0:
            return self
        keys, values = (jnp.pad(x, [(0, 0)] * 3 + [(0, more), (0, 0)]) for x in (self.keys, self.values))
        sources = jnp.pad(self.slots.sources, [(0, 0), (0, more)], constant_values=PADDING)
        tokens = jnp.pad(self.slots.tokens, [(0, 0), (0, more)])
        steps = jnp.pad(self.slots.steps, (0, more))
        slots = dataclasses.replace(self.slots, sources=sources, tokens=tokens, steps=steps)
        return KVCache(keys, values, slots.at_step(slots.step))

    def _rows(self, rows: np.ndarray) -> "KVCache":
        keys, values = (jnp.take(x, rows, axis=1) for x in (self.keys, self.values))
        per_row = {name: getattr(self.slots, name)[rows] for name in ("sources", "tokens", "n_tokens", "n_rotated")}
        shared = {name: jnp.copy(getattr(self.slots, name)) for name in ("length", "step", "steps")}
        return KVCache(keys, values, dataclasses.replace(self.slots, **per_row, **shared))

    def __repr__(self) -> str:
        if is_traced(self):
            return f"KVCache({self.batch_size} rows, {self.max_length} slots, {len(self.keys)} layers)"
        if self.keys.is_deleted():
            return f"KVCache({self.batch_size} rows, used up)"
        used = f"{self.length} of {self.max_length} slots in use"
        return f"KVCache({self.batch_size} rows, {used}, {len(self.keys)} layers)"

    def check_unused(self) -> None:
        """Raises ValueError if `model.decode` has used this cache up."""
        if not is_traced(self.keys) and self.keys.is_deleted():
            used = "this cache was used up by a call of decode, which returned its continuation"
            raise ValueError(f"{used}; go on with that one, or pass cache.copy() to decode to keep a cache")

    def use_up(self) -> None:
        """Frees the memory of the keys and values, as a run that writes to them does."""
        for array in (self.keys, self.values):
            if not is_traced(array) and not array.is_deleted():
                array.delete()

    def check(self, cfg: Config, batch_size: int, n_new: int) -> None:
        """Raises ValueError unless a model with this config can continue the cache with `n_new` columns of tokens."""
        self.check_unused()
        expected = (cfg.n_layers, batch_size, cfg.n_key_value_heads, self.max_length)
        problems = []
        for name, array, size in (("keys", self.keys, cfg.d_head), ("values", self.values, cfg.d_v_head or cfg.d_head)):
            if array.shape != (*expected, size) or array.dtype != cfg.dtype:
                axes = "[layer, batch, key/value head, slot, d_head]"
                problems.append(f"{name} {axes} are {array.shape}, {array.dtype}; this run needs {(*expected, size)}")
        if problems:
            raise ValueError(f"the cache belongs to another model or batch: {problems[0]}, {cfg.dtype}")
        if is_traced(self.slots.length):
            return
        if self.length + n_new > cfg.n_ctx:
            raise ValueError(f"{self.length} and {n_new} more tokens are more than the model's n_ctx = {cfg.n_ctx}")
        if self.length + n_new > self.max_length:
            free = f"{self.length} of its {self.max_length} slots are in use"
            more = "make it longer with init_kv_cache(..., max_length=...) or cache.with_room(n)"
            raise ValueError(f"the cache has no room for {n_new} more tokens: {free}; {more}")


def _number(x: Any) -> Any:
    return x if is_traced(x) else int(x)


class LayerMemory:
    """The keys and values of all layers while one layer runs. Attention adds those of its new tokens.

    It is mutable, like the tap that holds it: after the layer, `rows` are the keys and values with the new ones.
    """

    def __init__(self, rows: tuple[Array, Array], layer: Any, start: Any, is_new: bool, in_place: bool = False):
        self.rows, self._layer, self._start, self.is_new = rows, layer, start, is_new
        self._write = _written_in_place if in_place else _written

    def extended(self, k: Float[Array, "b k p h"], v: Float[Array, "b k p t"]) -> tuple[Array, Array]:
        """All keys and values of the layer: those of new tokens, and those in other slots unless the cache is new."""
        self.rows = self._write(self.rows, (k, v), self._layer, self._start)
        return (k, v) if self.is_new else _of_layer(self.rows, self._layer)


def _write(rows, new, layer, start):
    at = tuple(jnp.asarray(index, jnp.int32) for index in (layer, 0, 0, start, 0))
    return tuple(jax.lax.dynamic_update_slice(row, x[None], at) for row, x in zip(rows, new, strict=True))


_written, _written_in_place = jax.jit(_write), jax.jit(_write, donate_argnums=0)


@jax.jit
def _of_layer(rows, layer):
    return tuple(jax.lax.dynamic_index_in_dim(row, layer, keepdims=False) for row in rows)
