"""Gemma 2: four norms a block, soft caps on scores and logits, every second layer local."""

import functools

from jaxlens.config import Config
from jaxlens.convert.common import gemma_config
from jaxlens.convert.layouts import FOUR_NORMS, llama_rules
from jaxlens.convert.reader import Reader
from jaxlens.convert.rules import Family


def config(hf: Reader) -> Config:
    hf.expect("sliding_window_size", hf("sliding_window", None), because="it repeats sliding_window")
    return gemma_config(hf, attn_scores_soft_cap=hf.positive("attn_logit_softcapping", None))


FAMILY = Family(
    model_types=("gemma2",),
    config=config,
    rules=functools.partial(llama_rules, norms=FOUR_NORMS),
    unused=("hidden_act",),  # hidden_activation decides
)
