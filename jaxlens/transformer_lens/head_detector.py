"""TransformerLens's `head_detector`: its functions, which are defined in `jaxlens.analysis.heads`."""

from typing import Any

from jaxlens.analysis.heads import (
    HEAD_NAMES,
    ErrorMeasure,
    HeadName,
    compute_head_attention_similarity_score,
    detect_head,
    get_duplicate_token_head_detection_pattern,
    get_induction_head_detection_pattern,
    get_previous_token_head_detection_pattern,
    get_supported_heads,
)
from jaxlens.transformer_lens.absent import no_attribute

LayerHeadTuple = tuple[int, int]
"""A head: its layer and its number."""

LayerToHead = dict[int, list[int]]
"""Heads by layer."""

__all__ = [
    "HEAD_NAMES", "ErrorMeasure", "HeadName", "LayerHeadTuple", "LayerToHead",
    "compute_head_attention_similarity_score", "detect_head",
    "get_duplicate_token_head_detection_pattern", "get_induction_head_detection_pattern",
    "get_previous_token_head_detection_pattern", "get_supported_heads",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    raise no_attribute(f"head_detector.{name}")
