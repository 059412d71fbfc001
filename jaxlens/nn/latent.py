"""Multi-head latent attention: keys and values are computed from a small vector per token, the latent.

DeepSeek-V2 (arXiv 2405.04434). Axes: b batch, p position, d d_model, n head, h d_head (of queries and keys), y the
unrotated dimensions of h, j the rotated ones, t d_v_head, r q_lora_rank, z kv_lora_rank.

    x ─ W_Q_down ─(hook_q_latent)─ q_latent_norm ─ W_Q ─(hook_q)                     (x ─ W_Q, without a q_lora_rank)
    x ─ W_KV_down ─(hook_kv_latent)─ kv_latent_norm ─┬─ W_K ─┬─(hook_k)
                                         x ─ W_K_rot ┼───────┘  (shared by all heads)
                                                     └─ W_V ─(hook_v)

The rest is as in Attention, except that only the last dimensions of each query and key are rotated.
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxlens._jax import inlined
from jaxlens.config import Config
from jaxlens.nn.attention import Attention, by_each_head
from jaxlens.nn.mlp import linear
from jaxlens.nn.module import prefixed, within
from jaxlens.nn.norm import Norm

EPS = 1e-6
"""The epsilon of the norms of the latents. `cfg.eps` does not apply to them."""


@inlined
def up(latent, W):
    return by_each_head(latent, W)


@inlined
def whole_keys(still, rotating):
    """Keys [b p n h] from the unrotated dimensions [b p n y] and the rotated ones [b p j], which all heads share."""
    rotating = jnp.broadcast_to(rotating[:, :, None], (*still.shape[:3], rotating.shape[-1]))
    return jnp.concatenate((still, rotating), axis=-1)


class LatentAttention(Attention):
    """Attention whose keys and values are computed from a latent; with a `q_lora_rank`, queries too."""

    products = ("W_Q", "W_K", "W_V", "W_O", "W_Q_down", "W_KV_down", "W_K_rot")

    W_Q: Float[Array, "n r h"] | Float[Array, "n d h"] = nnx.data()
    W_K: Float[Array, "n z y"] = nnx.data()
    W_V: Float[Array, "n z t"] = nnx.data()
    W_O: Float[Array, "n t d"] = nnx.data()
    W_Q_down: Float[Array, "d r"] | None = nnx.data()
    W_KV_down: Float[Array, "d z"] = nnx.data()
    W_K_rot: Float[Array, "d j"] = nnx.data()
    q_latent_norm: Norm | None = nnx.data()
    kv_latent_norm: Norm = nnx.data()

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
        x = inputs[0]  # all three inputs are equal: heads that share a latent have no separate inputs
        q = x
        if self.W_Q_down is not None:
            q = self.q_latent_norm(tap("hook_q_latent", linear(x, self.W_Q_down, None)), tap.at("q_latent_norm"))
        q = tap("hook_q", up(q, self.W_Q))
        latent = tap("hook_kv_latent", linear(x, self.W_KV_down, None))
        latent = self.kv_latent_norm(latent, tap.at("kv_latent_norm"))
        k = tap("hook_k", whole_keys(up(latent, self.W_K), linear(x, self.W_K_rot, None)))
        return q, k, tap("hook_v", up(latent, self.W_V))

    def rotated(self, x, info):
        still, rotating = jnp.split(x, [x.shape[-1] - 2 * info.cos.shape[-1]], axis=-1)
        return jnp.concatenate((still, super().rotated(rotating, info)), axis=-1)
