"""OLMo (1): Llama with LayerNorms that have no weights, and queries, keys and values held within bounds."""

from jaxlens.config import Config
from jaxlens.convert.common import attention_biases, llama_config
from jaxlens.convert.layouts import llama_rules
from jaxlens.convert.reader import Reader
from jaxlens.convert.rules import Family


def config(hf: Reader) -> Config:
    return llama_config(
        hf,
        eps=1e-5,
        normalization_type="LNPre",
        clip_qkv=hf.positive("clip_qkv", None),
        biases=attention_biases(hf),
    )


FAMILY = Family(
    model_types=("olmo",),
    config=config,
    rules=llama_rules,
)
