"""GPT-Neo (and TinyStories): GPT-2 with separate projections, unscaled attention, and every second layer local."""

from collections.abc import Iterator

from jaxlens.checkpoints.rules import Family, Reader, Rule
from jaxlens.checkpoints.rules.config_helpers import activation, common_config, layer_values
from jaxlens.checkpoints.rules.tensor_rules import GPT_LAYER, attention_rules, gpt_rules, mlp_rules
from jaxlens.config import Config


def config(hf: Reader) -> Config:
    return common_config(
        hf, n_layers="num_layers", n_heads="num_heads", d_mlp=hf.size("intermediate_size", 4 * hf.size("hidden_size")),
        n_ctx=hf.size("max_position_embeddings"), act_fn=activation(hf, "activation_function"),
        eps=hf.number("layer_norm_epsilon"), biases=("b_O", "b_in", "b_out", "norm"), attn_scale=1.0,
        windows=layer_values(hf, "attention_layers", {"global": None, "local": hf.size("window_size")}),
    )  # fmt: skip


def rules(cfg: Config) -> Iterator[Rule]:
    yield from gpt_rules(cfg)
    yield from attention_rules(cfg, GPT_LAYER + "attn.attention.", out="out_proj")
    yield from mlp_rules(cfg, GPT_LAYER + "mlp.c_fc", GPT_LAYER + "mlp.c_proj")


FAMILY = Family(
    model_types=("gpt_neo",),
    config=config,
    rules=rules,
    unused=("attention_types",),  # transformers expands it to attention_layers
    ignored=("*.attn.attention.bias", "*.attn.attention.masked_bias"),  # causal masks
    copies=(("lm_head.weight", "transformer.wte.weight"),),
    prefixes=("transformer.", ""),
)
