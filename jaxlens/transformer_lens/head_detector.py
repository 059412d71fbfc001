"""TransformerLens's `head_detector`: its functions, which are defined in `jaxlens.analysis.heads`."""

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

__all__ = [
    "HEAD_NAMES", "ErrorMeasure", "HeadName", "compute_head_attention_similarity_score", "detect_head",
    "get_duplicate_token_head_detection_pattern", "get_induction_head_detection_pattern",
    "get_previous_token_head_detection_pattern", "get_supported_heads",
]  # fmt: skip
