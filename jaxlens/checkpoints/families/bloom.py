"""BLOOM: ALiBi positions, and a norm after the token embedding."""

from collections.abc import Iterator

from jaxlens.checkpoints.rules import Family, Reader, Rule
from jaxlens.checkpoints.rules.config_helpers import common_config
from jaxlens.checkpoints.rules.tensor_rules import bloom_rules, norm_rules
from jaxlens.config import Config


def config(hf: Reader) -> Config:
    hf.expect("apply_residual_connection_post_layernorm", False, because="the residual stream is not normalized")
    hf.expect("slow_but_exact", False, because="with it, transformers omits the output biases of attention and MLP")
    return common_config(
        hf,
        n_layers="n_layer",
        n_heads="n_head",
        n_ctx=hf.size("seq_length", 2048),  # the length in training; ALiBi sets no limit
        eps=hf.number("layer_norm_epsilon"),
        act_fn="gelu_new",
        positional_embedding_type="alibi",
        post_embedding_ln=True,
    )


def rules(cfg: Config) -> Iterator[Rule]:
    yield from norm_rules(cfg, "transformer.word_embeddings_layernorm", "embed.ln")
    yield from bloom_rules(cfg)


FAMILY = Family(
    model_types=("bloom",),
    config=config,
    rules=rules,
    unused=(
        "n_embed",  # transformers stores it as hidden_size
        # fields of Megatron, which transformers does not read
        *("attention_softmax_in_fp32", "masked_softmax_fusion", "bias_dropout_fusion", "skip_bias_add"),
        *("skip_bias_add_qkv", "offset_alibi", "n_inner"),
    ),
    copies=(("lm_head.weight", "transformer.word_embeddings.weight"),),
    prefixes=("transformer.", ""),
    context="seq_length",
)
