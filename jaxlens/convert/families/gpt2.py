"""GPT-2 (and DistilGPT-2, DialoGPT, Stanford's Mistral)."""

from collections.abc import Iterator

from jaxlens.config import Config
from jaxlens.convert.common import GPT_LAYER, activation, gpt_rules
from jaxlens.convert.reader import Reader
from jaxlens.convert.rules import Family, Rule


def config(hf: Reader) -> Config:
    d_model, n_heads = hf.size("n_embd"), hf.size("n_head")
    return Config(
        n_layers=hf.size("n_layer"),
        d_model=d_model,
        n_heads=n_heads,
        d_head=d_model // n_heads,
        d_mlp=hf.size("n_inner", 4 * d_model),
        d_vocab=hf.size("vocab_size"),
        n_ctx=hf.size("n_positions"),
        act_fn=activation(hf, "activation_function"),
        eps=hf.number("layer_norm_epsilon"),
        biases=("b_Q", "b_K", "b_V", "b_O", "b_in", "b_out", "norm"),
        attn_scale=None if hf.flag("scale_attn_weights") else 1.0,
        scale_attn_by_inverse_layer_idx=hf.flag("scale_attn_by_inverse_layer_idx"),
        tie_word_embeddings=hf.flag("tie_word_embeddings"),
    )


def rules(cfg: Config) -> Iterator[Rule]:
    yield from gpt_rules(cfg)
    theirs, ours = GPT_LAYER + "attn.", "blocks.{l}.attn."
    weights, biases = (tuple(f"{ours}{kind}_{letter}" for letter in "QKV") for kind in "Wb")
    yield Rule(theirs + "c_attn.weight", weights, "d (three n h) -> three n d h")
    yield Rule(theirs + "c_attn.bias", biases, "(three n h) -> three n h")
    yield Rule(theirs + "c_proj.weight", ours + "W_O", "(n h) d -> n h d")
    yield Rule(theirs + "c_proj.bias", ours + "b_O", "d")
    yield Rule(GPT_LAYER + "mlp.c_fc.weight", "blocks.{l}.mlp.W_in", "d m")
    yield Rule(GPT_LAYER + "mlp.c_proj.weight", "blocks.{l}.mlp.W_out", "m d")


FAMILY = Family(
    model_types=("gpt2",),
    config=config,
    rules=rules,
    unused=("n_ctx", "reorder_and_upcast_attn"),  # n_positions decides; the second only orders the same operations
    ignored=("*.attn.bias", "*.attn.masked_bias"),  # causal masks
    copies=(("lm_head.weight", "transformer.wte.weight"),),
    prefixes=("transformer.", ""),
)
