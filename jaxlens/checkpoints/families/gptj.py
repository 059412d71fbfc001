"""GPT-J: parallel attention and MLP behind one norm, adjacent rotary pairs, and a bias in the unembedding."""

from collections.abc import Iterator

from jaxlens.checkpoints.rules import Family, Reader, Rule
from jaxlens.checkpoints.rules.config_helpers import gptj_config
from jaxlens.checkpoints.rules.tensor_rules import GPT_LAYER, attention_rules, gpt_rules, mlp_rules
from jaxlens.config import Config


def config(hf: Reader) -> Config:
    hf.expect("rotary", True, because="transformers' GPT-J supports no other value")
    return gptj_config(hf)


def rules(cfg: Config) -> Iterator[Rule]:
    yield from gpt_rules(cfg)
    yield from attention_rules(cfg, GPT_LAYER + "attn.", out="out_proj")
    yield from mlp_rules(cfg, GPT_LAYER + "mlp.fc_in", GPT_LAYER + "mlp.fc_out")


FAMILY = Family(
    model_types=("gptj",),
    config=config,
    rules=rules,
    ignored=("*.attn.bias", "*.attn.masked_bias"),  # causal masks
    copies=(("lm_head.weight", "transformer.wte.weight"),),
    prefixes=("transformer.", ""),
)
