"""All modules of a model, and its computation before and after the blocks.

Axes: b batch, p position, d d_model, v vocabulary.

    tokens ─ embed ─(hook_embed)─ + ─(hook_pos_embed)
                │
                ├─ blocks.0 … blocks.{l} …  (drawn in nn/block.py, run by model/engine.py)
                │
             ln_final ─ unembed ─ logits
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from jaxlens.config import Config
from jaxlens.nn.block import Block, add
from jaxlens.nn.embed import Embed, PosEmbed, Unembed
from jaxlens.nn.module import Module, arrays, within
from jaxlens.nn.norm import Norm
from jaxlens.nn.sequence import Columns, SequenceInfo, sequence_info


class Modules(Module):
    """The modules of a model. `stacks` are Blocks whose weights have a leading layer axis, ordered as `cfg.stacks`."""

    embed: Embed = nnx.data()
    pos_embed: PosEmbed | None = nnx.data()
    stacks: tuple[Block, ...] = nnx.data()
    ln_final: Norm | None = nnx.data()
    unembed: Unembed = nnx.data()

    def __init__(self, cfg: Config, params: Mapping[str, jax.Array]):
        self.cfg = cfg
        stacks = zip(cfg.stacks, cfg.stack_names, strict=True)
        self.embed = Embed(cfg, within("embed", params))
        self.pos_embed = PosEmbed(cfg, within("pos_embed", params)) if PosEmbed.exists(cfg) else None
        self.stacks = tuple(Block(cfg, within(f"blocks.{n}", params), cfg.block_kind(rows[0])) for rows, n in stacks)
        weights = within("ln_final", params)
        self.ln_final = Norm(cfg, weights, cfg.final_norm_type) if cfg.has_final_norm else None
        self.unembed = Unembed(cfg, within("unembed", params))

    def without_blocks(self) -> "Modules":
        """The modules before and after the blocks."""
        modules = object.__new__(Modules)
        vars(modules).update(vars(self), stacks=())
        return modules

    def sequence_info(
        self, mask: Bool[ArrayLike, "b p"], tokens: Int[ArrayLike, "b p"] | None = None, *past: Any
    ) -> SequenceInfo:
        """The inputs of all layers besides the residual stream. `mask` is False on padding.

        `past` are the slots of a KV cache and the number of columns that stay in use there.
        """
        info = sequence_info(self.cfg, mask, tokens, *past)
        if self.cfg.positional_embedding_type != "shortformer":
            return info
        return dataclasses.replace(info, qk_input=arrays(self.pos_embed)(info.positions, mask))

    def embed_tokens(
        self, tokens: Int[ArrayLike, "b p"], mask: Bool[ArrayLike, "b p"], *past: Any, tap
    ) -> tuple[Float[Array, "b p d"], SequenceInfo]:
        """The residual stream before the first layer, and the other inputs of all layers.

        `past` are the slots of a KV cache and the number of columns that stay in use there.
        """
        info = self.sequence_info(mask, tokens, *past)
        tap.columns = info.columns
        tokens = tap("hook_tokens", jnp.asarray(tokens)) if tap.needs("hook_tokens") else tokens
        x = tap("hook_embed", self.embed(tokens, tap.at("embed")))
        if info.qk_input is not None:
            return x, dataclasses.replace(info, qk_input=tap("hook_pos_embed", info.qk_input))
        if self.pos_embed is None:
            return x, info
        return add(x, tap("hook_pos_embed", self.pos_embed(info.positions, mask))), info

    def logits(
        self, x: Float[Array, "b p d"], columns: Columns | None = None, *, tap, tokens: Int[Array, "t"] | None = None
    ) -> Float[Array, "b p o"] | None:
        """The logits of a residual stream after the last layer, of these tokens only unless `tokens` is None.

        None if the model has no unembedding.
        """
        tap.columns = columns
        x = x if self.ln_final is None else self.ln_final(x, tap.at("ln_final"))
        if self.cfg.output_head is None:
            tap.at("unembed")("hook_in", x)
            return None
        return self.unembed(x, self.embed.W_E, tap.at("unembed"), tokens)
