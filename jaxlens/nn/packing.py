"""Rows of many sequences packed into one sequence, for sweeps in which most of every sequence is already computed.

If two runs differ from position p on, their residual streams before p are equal, and so are the keys and values that
later positions attend to. So only the rows (positions) that differ are computed, concatenated to blocks [b r d].
Only attention mixes rows. It takes the other keys and values from the baseline run, in one of two layouts:

    PackedRows         a row attends to slots of the baseline and to other rows, as far as they are of its sequence
    PackedSequences    rows are unpacked into whole sequences [g t], and the output is packed again: for hooks on
                       scores and patterns, which receive those of whole sequences, and for attention in blocks

    x [b r d] ─ ln1, W_Q, W_K, W_V ─ unpack ─ attend ─ pack ─ W_O, + , ln2, mlp, + ─ x [b r d]
                                       └ keys and values of the baseline run

Axes: b block, r row, g sequence ("group"), t slot in a sequence, o slot of any sequence of the baseline run, u those
that are sources of the rows, s = u r source, k key/value head, n query head, h d_head, h2 d_v_head, l layer.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

PADDING = np.iinfo(np.int32).min
"""The index of a source that is padding: below that of every token, and below every `low`."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class PackedRows:
    """Rows whose sources are the baseline's slots `slots`, and then the rows of their block.

    `indices` number the tokens of a row's sequence. Sources are numbered by the index of their token plus an offset
    that no other sequence has, so that the sources of a row are two intervals: those of the baseline, of which it sees
    the tokens with an index below `before` (those before the first row of its sequence), and those of its own sequence.
    """

    indices: Int[Array, "b r"]
    before: Int[Array, "b r"]
    offsets: Int[Array, "2 b r"]
    slots: Int[Array, "b u"]
    sources: Int[Array, "b s"]
    source_indices: Int[Array, "b s"]
    keys: Float[Array, "l o k h"] | None = None
    values: Float[Array, "l o k h2"] | None = None

    def bounds(self, low: Int[Array, "b r"], high: Int[Array, "b r"]) -> tuple[Array, Array]:
        """The bounds of both intervals [2 b r], from those of the token indices that a row attends to."""
        of_baseline = jnp.minimum(high, self.before - 1)
        return jnp.maximum(low, -1) + self.offsets, jnp.stack((of_baseline, high)) + self.offsets

    def at_layer(self, layer: Int[Array, ""]) -> "LayerPacking":
        """The packing with the baseline's keys and values of one layer."""
        keys, values = (of[layer, self.slots] for of in (self.keys, self.values))
        return LayerPacking(keys, values, indices=(self.indices, self.source_indices))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class PackedSequences:
    """Row r is slot `slots[r]` of sequence `groups[r]`, and `rows` is the reverse map. There is one block.

    `rows` is -1 in slots without a row, which take their key and value from slot `baseline[g, t]` of the baseline run.
    """

    groups: Int[Array, "b r"]
    slots: Int[Array, "b r"]
    rows: Int[Array, "g t"]
    baseline: Int[Array, "g t"]
    keys: Float[Array, "l o k h"] | None = None
    values: Float[Array, "l o k h2"] | None = None

    def at_layer(self, layer: Int[Array, ""]) -> "LayerPacking":
        """The packing with the baseline's keys and values of one layer."""
        keys, values = (of[layer, self.baseline] for of in (self.keys, self.values))
        return LayerPacking(keys, values, maps=(self.groups, self.slots, self.rows))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class LayerPacking:
    """A packing in one layer, with keys and values of the baseline. One of the other fields is None.

    `indices` are the token indices of packed rows and of their sources. `maps` are the `groups`, `slots` and `rows` of
    packed sequences.
    """

    keys: Float[Array, "*g s k h"]
    values: Float[Array, "*g s k h2"]
    indices: tuple[Array, Array] | None = None
    maps: tuple[Array, Array, Array] | None = None

    def unpack(self, q: Array, k: Array, v: Array) -> tuple[Array, Array, Array]:
        """q, k and v as attention uses them. Queries in slots without a row are arbitrary: `pack` drops them."""
        if self.maps is None:
            return q, jnp.concatenate((self.keys, k), axis=1), jnp.concatenate((self.values, v), axis=1)
        *_, rows = self.maps
        packed = (rows >= 0)[..., None, None]
        q, k, v = (x[0][rows] for x in (q, k, v))
        return q, jnp.where(packed, k, self.keys), jnp.where(packed, v, self.values)

    def pack(self, z: Float[Array, "*g t n h2"]) -> Float[Array, "b r n h2"]:
        """The output of attention at the rows."""
        if self.maps is None:
            return z
        groups, slots, _ = self.maps
        return z[groups, slots]
