"""TransformerLens's `tools` and `tools.analysis`: direct logit attribution and direct path patching.

They are packages there. The table in `names.py` maps `tools.analysis` and its modules to this module.
"""

import sys
from typing import Any

from jaxlens.analysis.logit_attribution import DirectLogitAttribution, Unit, direct_logit_attribution
from jaxlens.transformer_lens.absent import no_attribute
from jaxlens.transformer_lens.names import Package
from jaxlens.transformer_lens.patching import get_act_patch_direct_path, get_act_patch_direct_path_all_sources

__all__ = [
    "DirectLogitAttribution", "Unit", "direct_logit_attribution", "get_act_patch_direct_path",
    "get_act_patch_direct_path_all_sources",
]  # fmt: skip

__path__: list[str] = []  # makes it a package, whose submodules the finder of `names.py` finds
TokenInput = Any
"""A token: its text, its id, or an array of ids."""

analysis = sys.modules[__name__]
analysis.__class__ = Package


def __getattr__(name: str) -> Any:
    raise no_attribute(f"tools.{name}")
