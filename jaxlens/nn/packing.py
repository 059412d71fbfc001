"""Rows of many sequences packed into one sequence, for sweeps in which most of every sequence is already computed.

If two runs differ from position p on, their residual streams before p are equal, and so are the keys and values that
later positions attend to. So only the rows (positions) that differ are computed, concatenated to one sequence [1 r d].
Only attention mixes rows. It unpacks them into their sequences, takes the other keys and values from the baseline run,
and packs its output again.

    x [1 r d] ─ ln1, W_Q, W_K, W_V ─ unpack ─ attend [g t] ─ pack ─ W_O, + , ln2, mlp, + ─ x [1 r d]
                                       └ keys and values of the baseline run

Axes: r row, g sequence ("group"), t slot in a sequence, b sequence of the baseline run, k key/value head, n query head,
h d_head, h2 d_v_head, l layer.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Packing:
    """Row r is slot `slots[r]` of sequence `groups[r]`, and `rows` is the reverse map, with -1 in slots without a row.

    A slot without a row takes its `keys` (rotated) and `values` from sequence `baseline[g]` of the baseline run.
    """

    groups: Int[Array, "r"]
    slots: Int[Array, "r"]
    rows: Int[Array, "g t"]
    baseline: Int[Array, "g"]
    keys: Float[Array, "l b t k h"]
    values: Float[Array, "l b t k h2"]

    def at_layer(self, layer: Int[Array, ""]) -> "LayerPacking":
        """The packing with the baseline keys and values of one layer."""
        keys, values = self.keys[layer][self.baseline], self.values[layer][self.baseline]
        return LayerPacking(self.groups, self.slots, self.rows, keys, values)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class LayerPacking:
    """A Packing in one layer, with the baseline `keys` and `values` of every sequence."""

    groups: Int[Array, "r"]
    slots: Int[Array, "r"]
    rows: Int[Array, "g t"]
    keys: Float[Array, "g t k h"]
    values: Float[Array, "g t k h2"]

    def unpack(
        self, q: Float[Array, "1 r n h"], k: Float[Array, "1 r k h"], v: Float[Array, "1 r k h2"]
    ) -> tuple[Float[Array, "g t n h"], Float[Array, "g t k h"], Float[Array, "g t k h2"]]:
        """q, k and v of whole sequences. Queries in slots without a row are arbitrary: `pack` drops them."""
        packed = (self.rows >= 0)[..., None, None]
        q, k, v = (x[0][self.rows] for x in (q, k, v))
        return q, jnp.where(packed, k, self.keys), jnp.where(packed, v, self.values)

    def pack(self, z: Float[Array, "g t n h2"]) -> Float[Array, "1 r n h2"]:
        """The output of attention at the rows."""
        return z[self.groups, self.slots][None]
