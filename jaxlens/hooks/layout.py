"""The layout of a model on a mesh with Explicit axes (see jaxlens/_jax/explicit_axes.py)."""

import dataclasses

import jax

from jaxlens._jax.explicit_axes import Layout
from jaxlens.config import Config
from jaxlens.hooks.table import sites


@dataclasses.dataclass(frozen=True)
class ModelLayout(Layout):
    """A layout that knows the axes of hook points."""

    cfg: Config

    def to_explicit_at(self, name: str, value: jax.Array, n_leading: int = 0) -> jax.Array:
        """The value of a hook point, or its gradient, with Explicit axes. `n_leading` axes come before those of the
        hook point, and a value of a single position may have no axis of positions.
        """
        letters = sites(self.cfg)[name.removesuffix("_grad")].axes.split()
        if value.ndim < n_leading + len(letters):
            letters.remove("p")
        return self.to_explicit(value, " ".join(["1"] * n_leading + letters))
