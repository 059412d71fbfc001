"""Arrays on a mesh with Explicit axes, the default of `jax.make_mesh`.

With Explicit axes, JAX raises an error at each operation whose result could be sharded in several ways. A run of the
model therefore uses Auto axes, with which XLA chooses the sharding of every value. Arrays get Auto axes when a run
begins. Results, and the values that Python hooks receive, get Explicit axes again. Neither moves data.

Under a transformation the sharding of a result must be known before XLA chooses it. It follows from the axis letters
of the result: a letter is divided over the mesh axes over which the weights and the input divide it.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, Self, TypeVar

import jax
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec, use_abstract_mesh

from jaxlens._jax import is_traced

F = TypeVar("F", bound=Callable)


def explicit_mesh(*trees: Any) -> AbstractMesh | None:
    """The mesh with Explicit axes that is active or, if no mesh is active, that an array in `trees` has."""
    active = jax.sharding.get_abstract_mesh()
    if not active.empty:
        return active if active.explicit_axes else None
    for leaf in jax.tree.leaves(trees):
        if isinstance(leaf, jax.Array) and (mesh := jax.typeof(leaf).sharding.mesh).explicit_axes:
            return mesh
    return None


def on_any_mesh(function: F) -> F:
    """A decorator of functions that compute with arrays: they use Auto axes, also if the mesh has Explicit axes.

    The first argument determines the mesh, if none is active. Results are divided as XLA chooses, and have Explicit
    axes. If an array is traced, nothing changes: JAX then requires the sharding of each result to be known.
    """

    @functools.wraps(function)
    def run(*arguments: Any, **keywords: Any) -> Any:
        mesh = explicit_mesh([*arguments, *keywords.values()][:1])
        if mesh is None or is_traced(arguments, keywords):
            return function(*arguments, **keywords)
        layout = Layout(mesh, ())
        arguments, keywords = layout.to_automatic((arguments, keywords))
        with layout.automatic():
            result = function(*arguments, **keywords)
        return jax.tree.map(lambda leaf: layout.to_explicit(leaf) if isinstance(leaf, jax.Array) else leaf, result)

    return run


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh with Explicit axes, and the names of the mesh axes that divide each axis letter of a model."""

    mesh: AbstractMesh
    mesh_axes: tuple[tuple[str, tuple[str, ...]], ...]

    @classmethod
    def of(cls, mesh: AbstractMesh, arrays: Iterable[tuple[str, jax.Array]], *others: Any) -> Self:
        """The layout of arrays with these axis letters. If arrays differ, the first that divides a letter counts.

        `others` are the fields of a subclass.
        """
        mesh_axes: dict[str, tuple[str, ...]] = {}
        for letters, array in arrays:
            for letter, axes in zip(letters.split(), jax.typeof(array).sharding.spec, strict=False):
                if axes is not None:
                    mesh_axes.setdefault(letter, axes if isinstance(axes, tuple) else (axes,))
        return cls(mesh, tuple(mesh_axes.items()), *others)

    def automatic(self) -> use_abstract_mesh:
        """A context in which the axes of the mesh are Auto."""
        return use_abstract_mesh(self._automatic_mesh)

    def explicit(self, value: jax.Array) -> use_abstract_mesh:
        """The context of the caller, for functions of this value.

        Without `jax.set_mesh` there is no mesh in it, unless the value is traced. JAX creates no array, as in
        `jnp.arange`, in the context of an abstract mesh alone.
        """
        has_mesh = is_traced(value) or not jax.sharding.get_mesh().empty
        return use_abstract_mesh(self.mesh if has_mesh else AbstractMesh((), ()))

    def to_automatic(self, tree: Any) -> Any:
        """`tree` with Auto axes in every array."""

        def converted(leaf):
            explicit = isinstance(leaf, jax.Array) and jax.typeof(leaf).sharding.mesh.explicit_axes
            return _on_mesh(leaf, self._automatic_mesh, PartitionSpec()) if explicit else leaf

        return jax.tree.map(converted, tree)

    def to_explicit(self, array: jax.Array, letters: str = "") -> jax.Array:
        """The array with Explicit axes. Its axis letters choose the sharding of a traced array; others keep theirs."""
        if isinstance(array, jax.core.Tracer):
            return _on_mesh(array, self.mesh, self._spec(letters.split(), array.shape))
        return _on_mesh(array, self.mesh, PartitionSpec()) if isinstance(array.sharding, NamedSharding) else array

    @property
    def _automatic_mesh(self) -> AbstractMesh:
        return self.mesh.update_axis_types(dict.fromkeys(self.mesh.explicit_axes, AxisType.Auto))

    def _spec(self, letters: list[str], shape: tuple[int, ...]) -> PartitionSpec:
        """How an array is divided. A mesh axis is used once, and only if it divides the length."""
        names, entries, used = dict(self.mesh_axes), [], set()
        for letter, length in zip(letters, shape, strict=True):
            axes = names.get(letter, ())
            divides = length % math.prod(self.mesh.shape[axis] for axis in axes) == 0
            entries.append(axes if divides and used.isdisjoint(axes) else None)
            used.update(entries[-1] or ())
        return PartitionSpec(*entries)


def _on_mesh(array: jax.Array, mesh: AbstractMesh, spec: PartitionSpec) -> jax.Array:
    """The array with the axis types of `mesh`: a traced array divided by `spec`, others as they are."""
    if isinstance(array, jax.core.Tracer):
        return jax.sharding.reshard(array, NamedSharding(mesh, spec))
    devices = array.sharding.mesh.update(axis_types=mesh.axis_types)
    return jax.device_put(array, NamedSharding(devices, array.sharding.spec))
