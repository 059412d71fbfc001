"""OLMo 3: OLMo 2 with three local layers per global layer, and rotary scaling in the global layers only."""

import functools

from jaxlens.checkpoints.rules import Family, Reader
from jaxlens.checkpoints.rules.config_helpers import attention_biases, layer_windows, llama_config, rotary_by_layer_type
from jaxlens.checkpoints.rules.tensor_rules import POST_NORMS, llama_rules
from jaxlens.config import Config


def config(hf: Reader) -> Config:
    return llama_config(
        hf, norm_placement="post", qk_norm="full", windows=layer_windows(hf), rotary=rotary_by_layer_type(hf),
        biases=attention_biases(hf),
    )  # fmt: skip


FAMILY = Family(model_types=("olmo3",), config=config, rules=functools.partial(llama_rules, norms=POST_NORMS))
