"""`Config`, the description of one transformer, and the settings of its rotary embeddings (`rope.py`)."""

from typing import Any

from jaxlens.config.config import WHOLE_PAST, BlockKind, Config
from jaxlens.config.rope import Dynamic, Linear, Llama3, LongRope, Rotary, Scaling, Yarn
from jaxlens.config.validation import ACTIVATIONS, BIASES, DTYPES, INIT_MODES

__all__ = [
    "ACTIVATIONS", "BIASES", "DTYPES", "INIT_MODES", "WHOLE_PAST", "BlockKind", "Config", "Dynamic", "Linear", "Llama3",
    "LongRope", "Rotary", "Scaling", "Yarn",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """TransformerLens's package `config` contains its config classes, so this package has one for them."""
    if name in ("HookedTransformerConfig", "TransformerLensConfig"):
        from jaxlens.transformer_lens.config import HookedTransformerConfig

        return HookedTransformerConfig
    from jaxlens.transformer_lens.absent import no_attribute

    raise no_attribute(f"config.{name}")
