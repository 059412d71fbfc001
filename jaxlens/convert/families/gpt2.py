"""GPT-2 (and DistilGPT-2, DialoGPT, Stanford's Mistral)."""

from collections.abc import Iterator

from jaxlens.config import Config
from jaxlens.convert.common import activation, layer_norm_rules, unembed_rules
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
    theirs, ours = "transformer.h.{l}.", "blocks.{l}."
    fused = [tuple(f"{ours}attn.{kind}_{letter}" for letter in "QKV") for kind in "Wb"]
    yield Rule("transformer.wte.weight", "embed.W_E", "v d")
    yield Rule("transformer.wpe.weight", "pos_embed.W_pos", "c d")
    yield Rule(theirs + "attn.c_attn.weight", fused[0], "d (three n h) -> three n d h")
    yield Rule(theirs + "attn.c_attn.bias", fused[1], "(three n h) -> three n h")
    yield Rule(theirs + "attn.c_proj.weight", ours + "attn.W_O", "(n h) d -> n h d")
    yield Rule(theirs + "attn.c_proj.bias", ours + "attn.b_O", "d")
    yield Rule(theirs + "mlp.c_fc.weight", ours + "mlp.W_in", "d m")
    yield Rule(theirs + "mlp.c_fc.bias", ours + "mlp.b_in", "m")
    yield Rule(theirs + "mlp.c_proj.weight", ours + "mlp.W_out", "m d")
    yield Rule(theirs + "mlp.c_proj.bias", ours + "mlp.b_out", "d")
    yield from layer_norm_rules("transformer.ln_f", "ln_final")
    for norm in "12":
        yield from layer_norm_rules(f"{theirs}ln_{norm}", f"{ours}ln{norm}")
    yield from unembed_rules(cfg)


FAMILY = Family(
    model_types=("gpt2",),
    config=config,
    rules=rules,
    unused=("n_ctx", "reorder_and_upcast_attn"),  # n_positions decides; the second only orders the same operations
    ignored=("*.attn.bias", "*.attn.masked_bias"),  # causal masks
    copies=(("lm_head.weight", "transformer.wte.weight"),),
    prefixes=("transformer.", ""),
)
