"""BLOOM: ALiBi, and a norm after the token embedding."""

from collections.abc import Iterator

from jaxlens.config import Config
from jaxlens.convert.layouts import bloom_rules, norm_rules
from jaxlens.convert.reader import Reader
from jaxlens.convert.rules import Family, Rule


def config(hf: Reader) -> Config:
    hf.expect("apply_residual_connection_post_layernorm", False, because="blocks add to what they read")
    hf.expect("slow_but_exact", False, because="transformers leaves out two biases with it")
    d_model, n_heads = hf.size("hidden_size"), hf.size("n_head")
    return Config(
        n_layers=hf.size("n_layer"),
        d_model=d_model,
        n_heads=n_heads,
        d_head=d_model // n_heads,
        d_vocab=hf.size("vocab_size"),
        n_ctx=hf.size("seq_length", 2048),  # how long it was trained; ALiBi sets no limit
        eps=hf.number("layer_norm_epsilon"),
        act_fn="gelu_new",
        biases=("b_Q", "b_K", "b_V", "b_O", "b_in", "b_out", "norm"),
        positional_embedding_type="alibi",
        post_embedding_ln=True,
        tie_word_embeddings=hf.flag("tie_word_embeddings"),
    )


def rules(cfg: Config) -> Iterator[Rule]:
    yield from norm_rules(cfg, "transformer.word_embeddings_layernorm", "embed.ln")
    yield from bloom_rules(cfg)


FAMILY = Family(
    model_types=("bloom",),
    config=config,
    rules=rules,
    unused=(
        "n_embed",  # transformers has made hidden_size of it
        *("attention_softmax_in_fp32", "masked_softmax_fusion", "bias_dropout_fusion", "skip_bias_add"),  # Megatron's,
        *("skip_bias_add_qkv", "offset_alibi", "n_inner"),  # which transformers does not look at
    ),
    copies=(("lm_head.weight", "transformer.word_embeddings.weight"),),
    prefixes=("transformer.", ""),
    context="seq_length",
)
