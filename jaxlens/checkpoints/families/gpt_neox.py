"""GPT-NeoX, Pythia, and models of the same architecture: parallel attention and MLP, and partly rotated heads."""

from collections.abc import Iterator

from jaxlens.checkpoints.rules import Family, Reader, Rule
from jaxlens.checkpoints.rules.config_helpers import attention_biases, head_dim, llama_config, rotary_embedding
from jaxlens.checkpoints.rules.tensor_rules import (
    PRE_NORMS,
    attn_out_rules,
    fused_qkv_rules,
    mlp_rules,
    norm_rules,
    unembed_rules,
)
from jaxlens.config import Config

LAYER = "gpt_neox.layers.{l}."


def config(hf: Reader) -> Config:
    base = hf.inside("rope_parameters").positive("rope_theta")
    hf.expect("rope_theta", base, because="it must equal rope_parameters.rope_theta, or rotary_emb_base")
    return llama_config(
        hf, eps="layer_norm_eps", normalization_type="LN", gated_mlp=False,
        parallel_attn_mlp=hf.flag("use_parallel_residual"), rotary=rotary_embedding(hf, d_head=head_dim(hf)),
        biases=(*attention_biases(hf), "b_in", "b_out", "norm"),
    )  # fmt: skip


def rules(cfg: Config) -> Iterator[Rule]:
    yield Rule("gpt_neox.embed_in.weight", "embed.W_E", "v d")
    for theirs, ours in PRE_NORMS.items():
        yield from norm_rules(cfg, LAYER + theirs, f"blocks.{{l}}.{ours}")
    yield from fused_qkv_rules(cfg, LAYER + "attention.query_key_value", "(n three h) d -> three n d h")
    yield from attn_out_rules(cfg, LAYER + "attention.dense")
    yield from mlp_rules(cfg, LAYER + "mlp.dense_h_to_4h", LAYER + "mlp.dense_4h_to_h")
    yield from norm_rules(cfg, "gpt_neox.final_layer_norm", "ln_final")
    yield from unembed_rules(cfg, "embed_out")


FAMILY = Family(
    model_types=("gpt_neox",),
    config=config,
    rules=rules,
    ignored=("*.attention.bias", "*.attention.masked_bias"),  # causal masks
    copies=(("embed_out.weight", "gpt_neox.embed_in.weight"),),
    prefixes=("gpt_neox.", ""),
    renamed=(("embed_out.", "lm_head."),),
)
