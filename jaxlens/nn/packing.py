"""Rows of many sequences packed into one: what a sweep computes when most of every sequence is known already.

Two runs that differ from position p on share everything before it: their residual streams there, and with them the keys
and values that later positions read. Only the rows (positions) that differ are computed, side by side as one sequence
[1 r d]. Attention alone looks across rows: it spreads them over the sequences they belong to, whose other keys and
values are those of the known run, and packs what it gathers again.

    x [1 r d] ─ ln1, W_Q, W_K, W_V ─ spread ─ attend [g t] ─ pack ─ W_O, + , ln2, mlp, + ─ x [1 r d]
                                       └ the known run's keys and values

Axes: r row, g sequence ("group"), t slot in a sequence, b sequence of the known run, k key/value head, n query head,
h d_head, h2 that of values, l layer.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Packing:
    """Where each row stands: slot `slots[r]` of sequence `groups[r]`; and the reverse, `rows[g, t]`, -1 for slots that
    are as in sequence `known[g]` of the known run, whose `keys` (rotated) and `values` are given for every layer."""

    groups: Int[Array, "r"]
    slots: Int[Array, "r"]
    rows: Int[Array, "g t"]
    known: Int[Array, "g"]
    keys: Float[Array, "l b t k h"]
    values: Float[Array, "l b t k h2"]

    def at_layer(self, layer: Int[Array, ""]) -> "LayerPacking":
        """The same packing with the keys and values that one layer of the known run had."""
        keys, values = self.keys[layer][self.known], self.values[layer][self.known]
        return LayerPacking(self.groups, self.slots, self.rows, keys, values)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerPacking:
    """A Packing in one layer; `keys` and `values` are those of each sequence in the known run."""

    groups: Int[Array, "r"]
    slots: Int[Array, "r"]
    rows: Int[Array, "g t"]
    keys: Float[Array, "g t k h"]
    values: Float[Array, "g t k h2"]

    def spread(
        self, q: Float[Array, "1 r n h"], k: Float[Array, "1 r k h"], v: Float[Array, "1 r k h2"]
    ) -> tuple[Float[Array, "g t n h"], Float[Array, "g t k h"], Float[Array, "g t k h2"]]:
        """Queries, keys and values as whole sequences; what a slot without a row asks is never packed again."""
        packed = (self.rows >= 0)[..., None, None]
        q, k, v = (x[0][self.rows] for x in (q, k, v))
        return q, jnp.where(packed, k, self.keys), jnp.where(packed, v, self.values)

    def pack(self, z: Float[Array, "g t n h2"]) -> Float[Array, "1 r n h2"]:
        """What the rows gathered."""
        return z[self.groups, self.slots][None]
