"""Weight processing, and the matrices that weights make up: factored matrices and the circuits of heads."""

from jaxlens.weights.plans import PASSES
from jaxlens.weights.processing import (
    Processing,
    center_unembed,
    center_writing_weights,
    fold_ln,
    fold_value_biases,
    process_weights,
    refactor_factored_attn_matrices,
)

__all__ = [
    "PASSES", "Processing", "center_unembed", "center_writing_weights", "fold_ln", "fold_value_biases",
    "process_weights", "refactor_factored_attn_matrices",
]  # fmt: skip
