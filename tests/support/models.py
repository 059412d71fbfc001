"""Tiny models with every structural feature, built from configs alone. Odd sizes on purpose."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxlens import Config, HookedTransformer
from jaxlens.config import Dynamic, Linear, Llama3, LongRope, Rotary, Yarn
from jaxlens.hooks.table import sites
from jaxlens.nn.parameters import parameter_shapes

SIZES = {"n_layers": 4, "d_model": 14, "n_heads": 6, "d_head": 4, "d_mlp": 22, "d_vocab": 37, "n_ctx": 32}
LLAMA = {
    **SIZES, "n_key_value_heads": 2, "act_fn": "silu", "gated_mlp": True, "normalization_type": "RMS",
    "positional_embedding_type": "rotary", "biases": (),
}  # fmt: skip

CONFIGS = {
    "gpt2": Config(**SIZES, act_fn="gelu_new"),
    "neo": Config(**SIZES, act_fn="gelu_new", windows=(None, 3, None, 3), attn_scale=1.0),
    "attn_only": Config(**SIZES, attn_only=True),
    "shortformer": Config(**SIZES, attn_only=True, positional_embedding_type="shortformer", normalization_type=None),
    "solu_ln": Config(**SIZES, act_fn="solu_ln", normalization_type="LNPre", final_rms=True),
    "parallel": Config(**SIZES, act_fn="gelu", parallel_attn_mlp=True, positional_embedding_type="rotary",
                       rotary=Rotary(dim=2)),
    "shared_norm": Config(**SIZES, act_fn="gelu_new", parallel_attn_mlp=True, shared_norm=True,
                          positional_embedding_type="rotary", rotary=Rotary(dim=2, adjacent_pairs=True)),
    "llama": Config(**LLAMA, tie_word_embeddings=True),
    "mistral": Config(**LLAMA, windows=5),
    "qwen3": Config(**LLAMA, qk_norm="head"),
    "post_norm": Config(**LLAMA, qk_norm="full", norm_placement="post"),
    "gemma": Config(
        **{**LLAMA, "n_layers": 3}, norm_placement="both", rmsnorm_uses_offset=True, qk_norm="head",
        windows=(5, 5, None), embed_scale=14**0.5, attn_scores_soft_cap=4.0, output_logits_soft_cap=3.0,
        tie_word_embeddings=True, rotary=(Rotary(), Rotary(), Rotary(base=1e6, scaling=Linear(8.0))),
    ),
    "moe": Config(**LLAMA, num_experts=5, experts_per_token=2, moe_layers=(False, True, True, False)),
    "bloom": Config(
        **{**SIZES, "n_layers": 3}, n_key_value_heads=2, positional_embedding_type="alibi", post_embedding_ln=True,
        act_fn="gelu", qk_norm="heads", qk_norm_type="LN", clip_qkv=0.6,
        biases=("b_Q", "b_K", "b_V", "b_O", "b_in", "b_out", "norm", "qk_norm", "b_U"),
    ),
    "original": Config(
        **{**SIZES, "n_layers": 3}, norm_placement="sum", d_embed=9, pos_offset=2, act_fn="relu2",
        tie_word_embeddings=True,
    ),
    "deepseek": Config(**{
        **LLAMA, "n_layers": 3, "num_experts": 6, "experts_per_token": 2, "moe_layers": (False, True, True),
        "d_expert": 7, "d_shared_expert": 5, "shared_expert_gate": True, "router": "sigmoid", "router_groups": (3, 2),
        "router_scale": 1.7, "residual_scale": 0.4, "output_logits_scale": 2.5, "attn_sinks": True, "qk_norm": "head",
        "qk_norm_after_rotary": True, "biases": ("b_choice",),
    }),
    "oss": Config(**{
        **LLAMA, "n_layers": 3, "act_fn": "clamped_swiglu", "num_experts": 4, "experts_per_token": 2,
        "windows": (5, None, 5), "attn_sinks": True, "query_growth": (0.3, 4),
        "biases": ("b_V", "b_O", "b_in", "b_gate", "b_out", "b_router"),
    }),
    "apertus": Config(**{
        **SIZES, "n_layers": 3, "act_fn": "xielu", "normalization_type": "RMS", "pos_offset": 2,
        "positional_embedding_type": "sinusoidal", "embed_scale": 3.0, "biases": ("b_in",),
    }),
    "latent": Config(**{
        **LLAMA, "n_layers": 3, "n_key_value_heads": None, "d_head": 10, "d_v_head": 3, "kv_lora_rank": 7,
        "q_lora_rank": 5, "rotary": Rotary(dim=4, adjacent_pairs=True),
    }),
    "adapter": Config(**LLAMA, adapter=("W_Q", "W_K", "W_V", "W_O", "W_in", "W_gate", "W_out"), adapter_rank=3),
    "no_rope_layer": Config(**LLAMA, rotary=(Rotary(scaling=Llama3(8.0, 1.0, 4.0, 16)), None) * 2),
    "long": Config(**LLAMA, rotary=(
        Rotary(scaling=Yarn(4.0, 8, 1.1)), Rotary(scaling=Dynamic(2.0, 8)),
        Rotary(scaling=LongRope((1.0, 2.0), (3.0, 5.0), 8, 1.2)), Rotary(base=500.0),
    )),
}  # fmt: skip


BEYOND_VERSION_3 = ("ln1.hook_out", "ln2.hook_out")
"""The sites that TransformerLens 3.5.1's HookedTransformer does not have, and TransformerLens 4 has."""

ADDITIVE = [name for name, cfg in CONFIGS.items() if cfg.norm_placement != "sum"]
"""Those whose residual stream is the sum of what was written to it."""

LINEAR_HEADS = [name for name, cfg in CONFIGS.items() if cfg.kv_lora_rank is None]
"""Those whose heads read the residual stream by linear maps of their own."""


@functools.cache
def model(name: str, seed: int = 0) -> HookedTransformer:
    """A model of that config with every weight random, norms and biases too, so that nothing hides behind a 0 or 1."""
    return randomised(CONFIGS[name], seed)


def randomised(cfg: Config, seed: int = 0) -> HookedTransformer:
    rng = np.random.default_rng(seed)
    with jax.ensure_compile_time_eval():  # models are kept: one first asked for under jit must not hold its tracers
        params = {
            name: jnp.asarray(rng.normal(size=of.shape) * 0.2 + (name.endswith((".w", ".scale")) * 1.0), of.dtype)
            for name, of in parameter_shapes(cfg).items()
        }
    return HookedTransformer(cfg, params=params)


def tokens(batch: int = 2, length: int = 11, seed: int = 0, d_vocab: int = SIZES["d_vocab"]) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).integers(0, d_vocab, (batch, length)), jnp.int32)


def with_neurons(cfg: Config) -> list[str]:
    """The names of an unfiltered cache, and the neurons of experts, which are cached on request."""
    return [name for name, site in sites(cfg).items() if not site.on_request or name.endswith("mlp.hook_post")]
