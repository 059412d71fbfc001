"""OLMo 3: OLMo 2 with three local layers to one global, and rotary scaling in the global ones only."""

import functools

from jaxlens.config import Config
from jaxlens.convert.common import attention_biases, llama_config, rotary_by_layer_type, windows
from jaxlens.convert.layouts import POST_NORMS, llama_rules
from jaxlens.convert.reader import Reader
from jaxlens.convert.rules import Family


def config(hf: Reader) -> Config:
    return llama_config(
        hf,
        norm_placement="post",
        qk_norm="full",
        windows=windows(hf),
        rotary=rotary_by_layer_type(hf),
        biases=attention_biases(hf),
    )


FAMILY = Family(
    model_types=("olmo3",),
    config=config,
    rules=functools.partial(llama_rules, norms=POST_NORMS),
)
