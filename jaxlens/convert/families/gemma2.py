"""Gemma 2: four norms a block, soft caps on scores and logits, every second layer local."""

import functools
import math

from jaxlens.config import Config
from jaxlens.convert.common import FOUR_NORMS, attention_biases, llama_config, llama_rules, windows
from jaxlens.convert.reader import Reader
from jaxlens.convert.rules import Family


def config(hf: Reader) -> Config:
    hf.expect("use_bidirectional_attention", False, because="attention here is causal")
    hf.expect("sliding_window_size", hf("sliding_window", None), because="it repeats sliding_window")
    return llama_config(
        hf,
        act_fn="hidden_activation",
        biases=attention_biases(hf),
        norm_placement="both",
        rmsnorm_uses_offset=True,
        windows=windows(hf),
        attn_scale=math.sqrt(hf.size("query_pre_attn_scalar")),
        attn_scores_soft_cap=hf.positive("attn_logit_softcapping", None),
        output_logits_soft_cap=hf.positive("final_logit_softcapping", None),
        embed_scale=math.sqrt(hf.size("hidden_size")),
    )


FAMILY = Family(
    model_types=("gemma2",),
    config=config,
    rules=functools.partial(llama_rules, norms=FOUR_NORMS),
    unused=("hidden_act",),  # hidden_activation decides
    copies=(("lm_head.weight", "model.embed_tokens.weight"),),
    prefixes=("model.", ""),
)
