"""OLMo (1): Llama with LayerNorms without weights, and clipped queries, keys and values."""

from jaxlens.checkpoints.rules import Family, Reader
from jaxlens.checkpoints.rules.config_helpers import attention_biases, llama_config
from jaxlens.checkpoints.rules.tensor_rules import llama_rules
from jaxlens.config import Config


def config(hf: Reader) -> Config:
    return llama_config(
        hf, eps=1e-5, normalization_type="LNPre", clip_qkv=hf.positive("clip_qkv", None), biases=attention_biases(hf)
    )


FAMILY = Family(model_types=("olmo",), config=config, rules=llama_rules)
