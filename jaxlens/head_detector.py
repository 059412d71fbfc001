"""TransformerLens's name for what stands in `jaxlens.analysis.heads`."""

from jaxlens.analysis.heads import HEAD_NAMES as HEAD_NAMES
from jaxlens.analysis.heads import ErrorMeasure as ErrorMeasure
from jaxlens.analysis.heads import HeadName as HeadName
from jaxlens.analysis.heads import compute_head_attention_similarity_score as compute_head_attention_similarity_score
from jaxlens.analysis.heads import detect_head as detect_head
from jaxlens.analysis.heads import (
    get_duplicate_token_head_detection_pattern as get_duplicate_token_head_detection_pattern,
)
from jaxlens.analysis.heads import get_induction_head_detection_pattern as get_induction_head_detection_pattern
from jaxlens.analysis.heads import (
    get_previous_token_head_detection_pattern as get_previous_token_head_detection_pattern,
)
from jaxlens.analysis.heads import get_supported_heads as get_supported_heads
