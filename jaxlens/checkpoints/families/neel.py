"""TransformerLens's toy models: attn-only-1l to 4l, gelu-1l to 4l, solu-1l to 12l, redwood_attn_2l.

Their repositories contain a config.json without `model_type`, and one `.pth` file for each training checkpoint. They
cannot be exported, because transformers has no class for them.
"""

from jaxlens.checkpoints.native import rules
from jaxlens.checkpoints.rules import Family
from jaxlens.checkpoints.rules.toy_config import toy_config

FAMILY = Family(
    model_types=("neel",),
    config=toy_config,
    rules=rules,
    ignored=("*.attn.mask", "*.attn.IGNORE"),  # causal masks
    copies=(),
    prefixes=("",),
    source=lambda fields: None,
)
