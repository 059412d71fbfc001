"""GPT-J: attention and MLP side by side behind one norm, neighbouring dimensions turn, the unembedding has a bias."""

from collections.abc import Iterator

from jaxlens.config import Config
from jaxlens.convert.common import gptj_config
from jaxlens.convert.layouts import GPT_LAYER, attention_rules, gpt_rules, mlp_rules
from jaxlens.convert.reader import Reader
from jaxlens.convert.rules import Family, Rule


def config(hf: Reader) -> Config:
    hf.expect("rotary", True, because="transformers' GPT-J always does so")
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
