"""GPT-Neo (and TinyStories): GPT-2 with separate projections, unscaled attention, every second layer local."""

from collections.abc import Iterator

from jaxlens.config import Config
from jaxlens.convert.common import activation, per_layer
from jaxlens.convert.layouts import GPT_LAYER, attention_rules, gpt_rules, mlp_rules
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
    yield from attention_rules(cfg, GPT_LAYER + "attn.attention.", out="out_proj")
    yield from mlp_rules(cfg, GPT_LAYER + "mlp.c_fc", GPT_LAYER + "mlp.c_proj")


FAMILY = Family(
    model_types=("gpt_neo",),
    config=config,
    rules=rules,
    unused=("attention_types",),  # attention_layers is the same, layer by layer
    ignored=("*.attn.attention.bias", "*.attn.attention.masked_bias"),  # causal masks
    copies=(("lm_head.weight", "transformer.wte.weight"),),
    prefixes=("transformer.", ""),
)
