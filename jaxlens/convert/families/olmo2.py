"""OLMo 2: Llama with norms of what attention and MLP write, and of all queries and all keys together."""

import functools

from jaxlens.config import Config
from jaxlens.convert.common import attention_biases, llama_config
from jaxlens.convert.layouts import POST_NORMS, llama_rules
from jaxlens.convert.reader import Reader
from jaxlens.convert.rules import Family


def config(hf: Reader) -> Config:
    return llama_config(hf, norm_placement="post", qk_norm="full", biases=attention_biases(hf))


FAMILY = Family(
    model_types=("olmo2",),
    config=config,
    rules=functools.partial(llama_rules, norms=POST_NORMS),
)
