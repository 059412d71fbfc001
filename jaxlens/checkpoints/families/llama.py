"""Llama 1 to 3.3, and models of the same architecture: SmolLM 1 and 2, Yi, TinyLlama, …"""

from jaxlens.checkpoints.rules import Family, Reader
from jaxlens.checkpoints.rules.config_helpers import attention_biases, llama_config, mlp_biases
from jaxlens.checkpoints.rules.tensor_rules import llama_rules
from jaxlens.config import Config


def config(hf: Reader) -> Config:
    hf.expect("rope_interleaved", False, because="a Llama pairs the halves of a head, not adjacent dimensions")
    return llama_config(hf, biases=attention_biases(hf) + mlp_biases(hf))


FAMILY = Family(model_types=("llama",), config=config, rules=llama_rules, unused=("is_llama_config",))
