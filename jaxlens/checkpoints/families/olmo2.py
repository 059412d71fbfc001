"""OLMo 2: Llama with norms after attention and MLP, and QK-norm over all heads together."""

import functools

from jaxlens.checkpoints.rules import Family, Reader
from jaxlens.checkpoints.rules.config_helpers import attention_biases, llama_config
from jaxlens.checkpoints.rules.tensor_rules import POST_NORMS, llama_rules
from jaxlens.config import Config


def config(hf: Reader) -> Config:
    return llama_config(hf, norm_placement="post", qk_norm="full", biases=attention_biases(hf))


FAMILY = Family(model_types=("olmo2",), config=config, rules=functools.partial(llama_rules, norms=POST_NORMS))
