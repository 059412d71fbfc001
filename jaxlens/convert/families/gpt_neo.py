"""GPT-Neo (and TinyStories): GPT-2 with separate projections, unscaled attention, every second layer local."""

from collections.abc import Iterator

from jaxlens.config import Config
from jaxlens.convert.common import GPT_LAYER, activation, gpt_rules, per_layer
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
    yield from gpt_rules(cfg)
    theirs, ours = GPT_LAYER + "attn.attention.", "blocks.{l}.attn."
    for letter in "qkv":
        yield Rule(f"{theirs}{letter}_proj.weight", f"{ours}W_{letter.upper()}", "(n h) d -> n d h")
    yield Rule(theirs + "out_proj.weight", ours + "W_O", "d (n h) -> n h d")
    yield Rule(theirs + "out_proj.bias", ours + "b_O", "d")
    yield Rule(GPT_LAYER + "mlp.c_fc.weight", "blocks.{l}.mlp.W_in", "m d -> d m")
    yield Rule(GPT_LAYER + "mlp.c_proj.weight", "blocks.{l}.mlp.W_out", "d m -> m d")


FAMILY = Family(
    model_types=("gpt_neo",),
    config=config,
    rules=rules,
    unused=("attention_types",),  # attention_layers is the same, layer by layer
    ignored=("*.attn.attention.bias", "*.attn.attention.masked_bias"),  # causal masks
    copies=(("lm_head.weight", "transformer.wte.weight"),),
    prefixes=("transformer.", ""),
)
