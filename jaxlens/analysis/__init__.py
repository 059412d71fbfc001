"""Analyses: what is done with a model and its activations.

Each is one import away, `from jaxlens.analysis import activation_patch`, and imported when it is asked for: the model
itself needs none of them.
"""

import importlib
from typing import Any

_FILES = {
    "activation_cache": ("ActivationCache",),
    "agreement": ("Agreement", "compare_with_patching", "correlation"),
    "attribution": ("Attributions", "attribution_patch"),
    "edges": ("EdgeScores", "edge_attribution_patch"),
    "heads": (
        "compute_head_attention_similarity_score", "detect_head", "duplicate_token_scores", "induction_scores",
        "previous_token_scores",
    ),
    "path_integrals": ("integrated_gradients",),
    "interventions": ("Patched", "ablate", "activation_patch"),
    "jacobian": ("ResidualJacobian", "residual_jacobian"),
    "labelled": ("Labelled",),
    "logit_attribution": ("DirectLogitAttribution", "direct_logit_attribution"),
    "path_patching": ("path_patch",),
    "patching": ("generic_activation_patch",),
    "prompts": ("test_prompt",),
    "svd": ("SVDInterpreter",),
}  # fmt: skip
_WHERE = {name: file for file, names in _FILES.items() for name in names}
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"jaxlens.analysis has no {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"jaxlens.analysis.{_WHERE[name]}"), name)
