"""TransformerLens's `utilities`: the names of `utils`.

It is a package there. The table in `names.py` maps its modules to `utils`.
"""

from jaxlens.transformer_lens.utils import *  # noqa: F403
from jaxlens.transformer_lens.utils import __getattr__ as __getattr__

__path__: list[str] = []  # makes it a package, whose submodules the finder of `names.py` finds
