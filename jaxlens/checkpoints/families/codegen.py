"""CodeGen: GPT-J with fused queries, values and keys, in four groups of heads (for the four cores of a TPU)."""

from collections.abc import Iterator

from jaxlens.checkpoints.rules import Family, Reader, Rule
from jaxlens.checkpoints.rules.config_helpers import gptj_config
from jaxlens.checkpoints.rules.tensor_rules import GPT_LAYER, attn_out_rules, fused_qkv_rules, gpt_rules, mlp_rules
from jaxlens.config import Config

CORES = 4


def config(hf: Reader) -> Config:
    if hf.size("n_head") % CORES:
        raise hf.refused("n_head", f"expected a multiple of {CORES}, the number of groups of heads")
    return gptj_config(hf)


def rules(cfg: Config) -> Iterator[Rule]:
    yield from gpt_rules(cfg)
    fused, pattern = GPT_LAYER + "attn.qkv_proj", "(core three head h) d -> three (core head) d h"
    yield from fused_qkv_rules(cfg, fused, pattern, "QVK", core=CORES, head=cfg.n_heads // CORES)
    yield from attn_out_rules(cfg, GPT_LAYER + "attn.out_proj")
    yield from mlp_rules(cfg, GPT_LAYER + "mlp.fc_in", GPT_LAYER + "mlp.fc_out")


FAMILY = Family(
    model_types=("codegen",),
    config=config,
    rules=rules,
    unused=("n_ctx",),  # transformers uses n_positions
    ignored=("*.attn.causal_mask",),
    copies=(("lm_head.weight", "transformer.wte.weight"),),
    prefixes=("transformer.", ""),
)
