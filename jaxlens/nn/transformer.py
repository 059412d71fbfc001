"""All modules of a model, and its computation before and after the blocks.

Axes: b batch, p position, d d_model, v vocabulary.

    tokens ─ embed ─(hook_embed)─ + ─(hook_pos_embed)
                │
                ├─ blocks.0 … blocks.{l} …  (drawn in nn/block.py, run by model/engine.py)
                │
             ln_final ─ unembed ─ logits
"""

import dataclasses

import jax
from jaxtyping import Array, Bool, Float, Int

from jaxlens.nn.block import Block, add
from jaxlens.nn.embed import Embed, PosEmbed, Unembed
from jaxlens.nn.norm import Norm
from jaxlens.nn.sequence import SequenceInfo, sequence_info


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Modules:
    """The modules of a model. `stacks` are Blocks whose weights have a leading layer axis, ordered as `cfg.stacks`."""

    embed: Embed
    pos_embed: PosEmbed | None
    stacks: tuple[Block, ...]
    ln_final: Norm | None
    unembed: Unembed

    def sequence_info(self, mask: Bool[Array, "b p"]) -> SequenceInfo:
        """The inputs of all layers besides the residual stream. `mask` is False on padding."""
        info = sequence_info(self.embed.cfg, mask)
        if self.embed.cfg.positional_embedding_type != "shortformer":
            return info
        return dataclasses.replace(info, qk_input=self.pos_embed(info.positions, mask))

    def embed_tokens(
        self, tokens: Int[Array, "b p"], info: SequenceInfo, tap
    ) -> tuple[Float[Array, "b p d"], SequenceInfo]:
        """The residual stream before the first layer, and `info` with the position embedding after its hooks."""
        x = tap("hook_embed", self.embed(tokens, tap.at("embed")))
        if info.qk_input is not None:
            return x, dataclasses.replace(info, qk_input=tap("hook_pos_embed", info.qk_input))
        if self.pos_embed is None:
            return x, info
        return add(x, tap("hook_pos_embed", self.pos_embed(info.positions, info.mask))), info

    def logits(self, x: Float[Array, "b p d"], tap) -> Float[Array, "b p v"]:
        """The logits of a residual stream after the last layer."""
        x = x if self.ln_final is None else self.ln_final(x, tap.at("ln_final"))
        return self.unembed(x, self.embed.W_E, tap.at("unembed"))
