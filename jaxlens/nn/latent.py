"""Multi-head latent attention: keys and values are made from a small vector per token (DeepSeek-V2, arXiv 2405.04434).

Axes: b batch, p position, d d_model, n head, h d_head (of queries and keys), y its part that is not rotated, j its part
that is, t d_v_head, r q_lora_rank, z kv_lora_rank.

    x ─ W_Q_down ─(hook_q_latent)─ q_latent_norm ─ W_Q ─(hook_q)                     (x ─ W_Q, without a q_lora_rank)
    x ─ W_KV_down ─(hook_kv_latent)─ kv_latent_norm ─┬─ W_K ─┬─(hook_k)
                                         x ─ W_K_rot ┼───────┘  (one for all heads)
                                                     └─ W_V ─(hook_v)

From there on it is Attention, but that only the last part of each query and key is rotated.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxlens.config import Config
from jaxlens.nn.attention import Attention
from jaxlens.nn.norm import Norm
from jaxlens.nn.part import prefixed, within

piece = functools.partial(jax.jit, inline=True)
EPS = 1e-6
"""Of the norms of latents, whatever that of the others is."""


@piece
def down(x, W):
    return jnp.einsum("bpd,dz->bpz", x, W)


@piece
def up(latent, W):
    return jnp.einsum("bpz,nzy->bpny", latent, W)


@piece
def whole_keys(still, turning):
    """Keys [b p n h]: what each head has of its own [b p n y], and the part that is rotated [b p j], shared by all."""
    turning = jnp.broadcast_to(turning[:, :, None], (*still.shape[:3], turning.shape[-1]))
    return jnp.concatenate((still, turning), axis=-1)


class LatentAttention(Attention):
    """Attention whose keys and values, and with a `q_lora_rank` queries, pass through fewer dimensions than d_model."""

    W_Q: Float[Array, "n r h"] | Float[Array, "n d h"] = nnx.data()
    W_K: Float[Array, "n z y"] = nnx.data()
    W_V: Float[Array, "n z t"] = nnx.data()
    W_O: Float[Array, "n t d"] = nnx.data()
    W_Q_down: Float[Array, "d r"] | None = nnx.data()
    W_KV_down: Float[Array, "d z"] = nnx.data()
    W_K_rot: Float[Array, "d j"] = nnx.data()

    def __init__(self, cfg: Config, weights):
        super().__init__(cfg, weights)
        self.q_latent_norm = Norm(cfg, within("q_latent_norm", weights), "RMS", eps=EPS) if cfg.q_lora_rank else None
        self.kv_latent_norm = Norm(cfg, within("kv_latent_norm", weights), "RMS", eps=EPS)

    @classmethod
    def axes(cls, cfg: Config) -> dict[str, str]:
        axes = {"W_Q": "n r h", "W_Q_down": "d r"} if cfg.q_lora_rank else {"W_Q": "n d h"}
        axes |= {"W_KV_down": "d z", "W_K": "n z y", "W_V": "n z t", "W_K_rot": "d j", "W_O": "n t d"}
        axes |= prefixed("q_latent_norm", Norm.axes(cfg, "r", "RMS")) if cfg.q_lora_rank else {}
        return axes | prefixed("kv_latent_norm", Norm.axes(cfg, "z", "RMS"))

    def queries_keys_values(self, inputs, tap):
        x = inputs[0]  # what all three read: heads that share a latent have no inputs of their own
        q = x
        if self.W_Q_down is not None:
            q = self.q_latent_norm(tap("hook_q_latent", down(x, self.W_Q_down)), tap.at("q_latent_norm"))
        q = tap("hook_q", up(q, self.W_Q))
        latent = tap("hook_kv_latent", down(x, self.W_KV_down))
        latent = self.kv_latent_norm(latent, tap.at("kv_latent_norm"))
        k = tap("hook_k", whole_keys(up(latent, self.W_K), down(x, self.W_K_rot)))
        return q, k, tap("hook_v", up(latent, self.W_V))

    def rotated(self, x, at):
        still, turning = jnp.split(x, [x.shape[-1] - 2 * at.cos.shape[-1]], axis=-1)
        return jnp.concatenate((still, super().rotated(turning, at)), axis=-1)
