"""Gemma 2: Gemma 1 with four norms per block, soft caps on scores and logits, and a window in every second layer."""

import functools

from jaxlens.checkpoints.rules import Family, Reader
from jaxlens.checkpoints.rules.config_helpers import gemma_config
from jaxlens.checkpoints.rules.tensor_rules import FOUR_NORMS, llama_rules
from jaxlens.config import Config


def config(hf: Reader) -> Config:
    hf.expect("sliding_window_size", hf("sliding_window", None), because="it must equal sliding_window")
    return gemma_config(hf, attn_scores_soft_cap=hf.positive("attn_logit_softcapping", None))


FAMILY = Family(
    model_types=("gemma2",),
    config=config,
    rules=functools.partial(llama_rules, norms=FOUR_NORMS),
    unused=("hidden_act",),  # transformers uses hidden_activation
)
