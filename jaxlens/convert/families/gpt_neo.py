"""GPT-Neo (and TinyStories): GPT-2 with separate projections, unscaled attention, every second layer local."""

from collections.abc import Iterator

from jaxlens.config import Config
from jaxlens.convert.common import activation, layer_norm_rules, per_layer, unembed_rules
from jaxlens.convert.reader import Reader
from jaxlens.convert.rules import Family, Rule


def config(hf: Reader) -> Config:
    d_model, n_heads = hf.size("hidden_size"), hf.size("num_heads")
    return Config(
        n_layers=hf.size("num_layers"),
        d_model=d_model,
        n_heads=n_heads,
        d_head=d_model // n_heads,
        d_mlp=hf.size("intermediate_size", 4 * d_model),
        d_vocab=hf.size("vocab_size"),
        n_ctx=hf.size("max_position_embeddings"),
        act_fn=activation(hf, "activation_function"),
        eps=hf.number("layer_norm_epsilon"),
        biases=("b_O", "b_in", "b_out", "norm"),
        attn_scale=1.0,
        windows=per_layer(hf, "attention_layers", {"global": None, "local": hf.size("window_size")}),
        tie_word_embeddings=hf.flag("tie_word_embeddings"),
    )


def rules(cfg: Config) -> Iterator[Rule]:
    theirs, ours = "transformer.h.{l}.", "blocks.{l}."
    yield Rule("transformer.wte.weight", "embed.W_E", "v d")
    yield Rule("transformer.wpe.weight", "pos_embed.W_pos", "c d")
    for letter in "qkv":
        weight = f"{ours}attn.W_{letter.upper()}"
        yield Rule(f"{theirs}attn.attention.{letter}_proj.weight", weight, "(n h) d -> n d h")
    yield Rule(theirs + "attn.attention.out_proj.weight", ours + "attn.W_O", "d (n h) -> n h d")
    yield Rule(theirs + "attn.attention.out_proj.bias", ours + "attn.b_O", "d")
    yield Rule(theirs + "mlp.c_fc.weight", ours + "mlp.W_in", "m d -> d m")
    yield Rule(theirs + "mlp.c_fc.bias", ours + "mlp.b_in", "m")
    yield Rule(theirs + "mlp.c_proj.weight", ours + "mlp.W_out", "d m -> m d")
    yield Rule(theirs + "mlp.c_proj.bias", ours + "mlp.b_out", "d")
    yield from layer_norm_rules("transformer.ln_f", "ln_final")
    for norm in "12":
        yield from layer_norm_rules(f"{theirs}ln_{norm}", f"{ours}ln{norm}")
    yield from unembed_rules(cfg)


FAMILY = Family(
    model_types=("gpt_neo",),
    config=config,
    rules=rules,
    unused=("attention_types",),  # attention_layers is the same, layer by layer
    ignored=("*.attn.attention.bias", "*.attn.attention.masked_bias"),  # causal masks
    copies=(("lm_head.weight", "transformer.wte.weight"),),
    prefixes=("transformer.", ""),
)
