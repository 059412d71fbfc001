"""TransformerLens's `utilities`: the names of `utils`.

It is a package there. The table in `names.py` maps its modules to `utils`.
"""

from typing import Any

from jaxlens.transformer_lens import utils
from jaxlens.transformer_lens.absent import no_attribute, reason
from jaxlens.transformer_lens.utils import *  # noqa: F403

__path__: list[str] = []  # makes it a package, whose submodules the finder of `names.py` finds


def __getattr__(name: str) -> Any:
    if reason(f"utilities.{name}") is not None:
        raise no_attribute(f"utilities.{name}")
    return getattr(utils, name)
