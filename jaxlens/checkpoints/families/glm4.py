"""GLM-4-0414: GLM-4 with four norms per block."""

import functools

from jaxlens.checkpoints.rules import Family, Reader
from jaxlens.checkpoints.rules.config_helpers import attention_biases, head_dim, llama_config, rotary_embedding
from jaxlens.checkpoints.rules.tensor_rules import fused_mlp_rules, llama_rules
from jaxlens.config import Config

NORMS = {
    "input_layernorm": "ln1", "post_self_attn_layernorm": "ln1_post", "post_attention_layernorm": "ln2",
    "post_mlp_layernorm": "ln2_post",
}  # fmt: skip


def config(hf: Reader) -> Config:
    rotary = rotary_embedding(hf, d_head=head_dim(hf), adjacent_pairs=True)
    return llama_config(hf, rotary=rotary, biases=attention_biases(hf, "QKV"), norm_placement="both")


FAMILY = Family(
    model_types=("glm4",), config=config, rules=functools.partial(llama_rules, norms=NORMS, mlp=fused_mlp_rules)
)
