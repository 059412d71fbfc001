"""Analyses of a model and its activations.

Import them from this package, as in `from jaxlens.analysis import activation_patch`. Modules are loaded on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxlens.analysis.attribution.compare import Agreement, compare_with_patching, correlation
    from jaxlens.analysis.attribution.edges import EdgeScores, edge_attribution_patch
    from jaxlens.analysis.attribution.integrated_gradients import integrated_gradients
    from jaxlens.analysis.attribution.jacobian import ResidualJacobian, residual_jacobian
    from jaxlens.analysis.attribution.nodes import Attributions, attribution_patch
    from jaxlens.analysis.heads import (
        compute_head_attention_similarity_score,
        detect_head,
        duplicate_token_scores,
        induction_scores,
        previous_token_scores,
    )
    from jaxlens.analysis.interventions.activation_patching import Patched, ablate, activation_patch
    from jaxlens.analysis.interventions.generic import generic_activation_patch
    from jaxlens.analysis.interventions.path_patching import path_patch
    from jaxlens.analysis.labelled_array import Labelled
    from jaxlens.analysis.logit_attribution import ActivationCache, DirectLogitAttribution, direct_logit_attribution
    from jaxlens.analysis.prompt_test import test_prompt
    from jaxlens.analysis.svd import SVDInterpreter

_MODULES = {
    "attribution.compare": ("Agreement", "compare_with_patching", "correlation"),
    "attribution.edges": ("EdgeScores", "edge_attribution_patch"),
    "attribution.integrated_gradients": ("integrated_gradients",),
    "attribution.jacobian": ("ResidualJacobian", "residual_jacobian"),
    "attribution.nodes": ("Attributions", "attribution_patch"),
    "heads": ("compute_head_attention_similarity_score", "detect_head", "duplicate_token_scores", "induction_scores",
              "previous_token_scores"),
    "interventions.activation_patching": ("Patched", "ablate", "activation_patch"),
    "interventions.generic": ("generic_activation_patch",),
    "interventions.path_patching": ("path_patch",),
    "labelled_array": ("Labelled",),
    "logit_attribution": ("ActivationCache", "DirectLogitAttribution", "direct_logit_attribution"),
    "prompt_test": ("test_prompt",),
    "svd": ("SVDInterpreter",),
}  # fmt: skip
_HOME = {name: module for module, names in _MODULES.items() for name in names}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"jaxlens.analysis has no {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"jaxlens.analysis.{_HOME[name]}"), name)
