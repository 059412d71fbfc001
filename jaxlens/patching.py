"""TransformerLens's module of this name: `jaxlens.analysis.patching`."""

from jaxlens.analysis.patching import *  # noqa: F403
from jaxlens.analysis.path_patching import get_act_patch_direct_path as get_act_patch_direct_path
from jaxlens.analysis.path_patching import (
    get_act_patch_direct_path_all_sources as get_act_patch_direct_path_all_sources,
)
