"""`HookedRootModule`: hooks and caches for any Flax model whose activations pass through `HookPoint`s.

It is for models that users write. `HookedTransformer` has the same methods, and runs its layers in compiled loops.
"""

import contextlib
import difflib
import fnmatch
import functools
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import jax
from flax import nnx

from jaxlens._jax import OF_FLAX, as_device, concrete, is_traced
from jaxlens.errors import HookError
from jaxlens.hooks.plan import Direction, HookSpec, RegisteredHook, hook_specs
from jaxlens.hooks.point import STALE, HookPoint, LensHandle, check_direction, hook_of_point
from jaxlens.hooks.recording import OldCachingNames, run_with_gradients, run_with_values
from jaxlens.hooks.slice import Slice

Names = str | Callable[[str], bool]
NamesFilter = Names | Collection[str] | None

BY_HEAD = ("hook_q", "hook_k", "hook_v", "hook_z", "hook_result")
"""The ends of the names of activations whose last axes are position, head and width of a head."""


class HookedRootModule(OldCachingNames, nnx.Module):
    """Base class of a user's own `nnx.Module` whose activations pass through `HookPoint`s.

    Define `__call__` or `forward`, and put a `HookPoint` at each activation. Its name is the path of attributes and
    indices that leads to it. Keep modules of a sequence in an `nnx.List`. Call `self.setup()` at the end of `__init__`
    to name the hook points; they are named in any case before a method of this class uses their names.

    Hooks run in every call: eagerly, and under `jax.jit` or `nnx.jit` of a function that takes the model as an
    argument, in which a program is compiled for each set of hooks. A compiled function that only refers to the model
    keeps the hooks that it was compiled with. Adding a hook later warns about this.

    Example:
        >>> import jax.numpy as jnp
        >>> class Doubles(HookedRootModule):
        ...     def __init__(self):
        ...         self.hook_in, self.hook_out = HookPoint(), HookPoint()
        ...         self.setup()
        ...     def __call__(self, x):
        ...         return self.hook_out(2 * self.hook_in(x))
        >>> model = Doubles()
        >>> out, cache = model.run_with_cache(jnp.ones(2))
        >>> list(cache), cache["hook_out"].tolist()
        (['hook_in', 'hook_out'], [2.0, 2.0])
        >>> model.run_with_hooks(jnp.ones(2), fwd_hooks=[("hook_in", lambda value, hook: value + 1)]).tolist()
        [4.0, 4.0]
    """

    def __init__(self, *args: Any):
        """Does nothing. A subclass need not call it."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs `forward`, unless a subclass defines `__call__`."""
        if (forward := getattr(self, "forward", None)) is None:
            raise TypeError(f"{type(self).__name__} cannot be called; define __call__ or forward")
        return forward(*args, **kwargs)

    # --- names

    def setup(self) -> None:
        """Gives each HookPoint its name."""
        for name, module in self.mod_dict.items():
            if isinstance(module, HookPoint):
                module.name = name

    @property
    def mod_dict(self) -> dict[str, Any]:
        """Every module inside this one by name. A module with several names has the first of them."""
        return dict(_modules(self))

    @property
    def hook_dict(self) -> dict[str, HookPoint]:
        """Every HookPoint by name."""
        points = {name: module for name, module in self.mod_dict.items() if isinstance(module, HookPoint)}
        for name, point in points.items():
            if point.name != name:
                point.name = name
        return points

    def hook_points(self) -> list[HookPoint]:
        """Every HookPoint."""
        return list(self.hook_dict.values())

    def _select(self, names: NamesFilter) -> dict[str, HookPoint]:
        """The hook points that `names` selects: a name, a wildcard, a filter function, a list of them, or None (all).

        Raises:
            HookError: One of the names selects nothing.
        """
        points = self.hook_dict
        if names is None:
            return points
        each = list(names) if isinstance(names, list | tuple | set | frozenset) else [names]
        if not each:
            raise HookError("names_filter is an empty list; give at least one name, or None for everything")
        return {name: points[name] for pattern in each for name in _matching(pattern, points)}

    # --- hooks that stay

    def add_hook(
        self, name: Names, hook: Callable, dir: Direction = "fwd", is_permanent: bool = False,
        level: int | None = None, prepend: bool = False,
    ) -> None:  # fmt: skip
        """Adds a hook at every hook point that `name` selects: a name, a wildcard like "blocks.*.hook_out", a filter.

        Raises:
            HookError: `name` selects no hook point.
        """
        selected = self._select(name)
        for full_name, point in selected.items():
            self.check_and_add_hook(
                point, full_name, hook, dir=dir, is_permanent=is_permanent, level=level, prepend=prepend
            )
        if any(point._may_be_stale() for point in selected.values()):
            warnings.warn(STALE, UserWarning, stacklevel=2)

    def add_perma_hook(self, name: Names, hook: Callable, dir: Direction = "fwd") -> None:
        """Adds a hook that `reset_hooks` leaves in place."""
        self.add_hook(name, hook, dir, is_permanent=True)

    def check_and_add_hook(
        self, hook_point: HookPoint, hook_point_name: str, hook: Callable, dir: Direction = "fwd",
        is_permanent: bool = False, level: int | None = None, prepend: bool = False,
    ) -> None:  # fmt: skip
        """Calls `check_hooks_to_add`, then adds the hook to one hook point."""
        self.check_hooks_to_add(hook_point, hook_point_name, hook, dir=dir, is_permanent=is_permanent, prepend=prepend)
        hook_point._add(hook_of_point(hook, dir, hook_point_name, is_permanent, level), prepend)

    def check_hooks_to_add(
        self, hook_point: HookPoint, hook_point_name: str, hook: Callable, dir: Direction = "fwd",
        is_permanent: bool = False, prepend: bool = False,
    ) -> None:  # fmt: skip
        """Does nothing. A subclass may raise an error for a hook that it does not allow."""

    def reset_hooks(
        self, clear_contexts: bool = True, direction: str = "both", including_permanent: bool = False,
        level: int | None = None,
    ) -> None:  # fmt: skip
        """Removes hooks: all, those of one direction, or those of one level of nested `hooks(...)` blocks."""
        self.remove_all_hook_fns(direction, including_permanent, level)
        if clear_contexts:
            self.clear_contexts()

    def remove_all_hook_fns(
        self, direction: str = "both", including_permanent: bool = False, level: int | None = None
    ) -> None:
        """`reset_hooks` that keeps the contexts."""
        check_direction(direction)
        for point in self.hook_points():
            point.remove_hooks(direction, including_permanent, level)

    def clear_contexts(self) -> None:
        """Empties the `ctx` of every hook point."""
        for point in self.hook_points():
            point.clear_context()

    def list_hooks(
        self, name_filter: NamesFilter = None, dir: str = "both", including_permanent: bool = True
    ) -> dict[str, list[LensHandle]]:
        """The hooks on each hook point that has any, or on those that `name_filter` selects."""
        check_direction(dir)
        handles = {name: point._handles(dir, including_permanent) for name, point in self._select(name_filter).items()}
        return {name: of_point for name, of_point in handles.items() if of_point}

    # --- hooks for one run

    @contextlib.contextmanager
    def hooks(
        self, fwd_hooks: Sequence[HookSpec] | None = None, bwd_hooks: Sequence[HookSpec] | None = None,
        reset_hooks_end: bool = True, clear_contexts: bool = False,
    ) -> Iterator["HookedRootModule"]:  # fmt: skip
        """Adds hooks for the duration of a `with` block. Blocks may be nested; each removes only the hooks it added.

        Hooks on gradients act in the backward pass of a forward pass inside the block.
        """
        with self._hooks_added(fwd_hooks, bwd_hooks, reset_hooks_end, clear_contexts) as added:
            runs = [point._runs for point, _ in added]
            yield self
            for (point, _), before in zip(added, runs, strict=True):
                if point._may_be_stale() and point._runs == before:
                    warnings.warn(STALE, UserWarning, stacklevel=3)
                    break

    @contextlib.contextmanager
    def _hooks_added(self, fwd_hooks, bwd_hooks, reset_hooks_end, clear_contexts):
        levels = [hook.level or 0 for point in self.hook_points() for hook in point._hooks]
        level = max(levels, default=0) + 1
        added: list[tuple[HookPoint, RegisteredHook]] = []
        try:
            for direction, specs in (("fwd", fwd_hooks), ("bwd", bwd_hooks)):
                for names, fn in hook_specs(specs):
                    hook = hook_of_point(fn, direction, names, level=level)
                    for point in self._select(names).values():
                        point._add(hook)
                        added.append((point, hook))
            yield added
        finally:
            if reset_hooks_end:
                for point, hook in added:
                    point._discard([hook])
                if clear_contexts:
                    self.clear_contexts()

    def run_with_hooks(
        self, *args: Any, fwd_hooks: Sequence[HookSpec] | None = None, bwd_hooks: Sequence[HookSpec] | None = None,
        reset_hooks_end: bool = True, clear_contexts: bool = False, **kwargs: Any,
    ) -> Any:  # fmt: skip
        """Calls the model with hooks: `(name or filter function, fn)` pairs. The other arguments are the model's.

        Hooks on gradients act if the call is differentiated, as in `jax.grad(lambda x: model.run_with_hooks(x, ...))`.
        """
        with self._hooks_added(fwd_hooks, bwd_hooks, reset_hooks_end, clear_contexts):
            return self(*args, **kwargs)

    # --- caches

    def run_with_cache(
        self, *args: Any, names_filter: NamesFilter = None, device: Any = None, remove_batch_dim: bool = False,
        incl_bwd: bool = False, reset_hooks_end: bool = True, clear_contexts: bool = False, pos_slice: Any = None,
        **kwargs: Any,
    ) -> tuple[Any, dict[str, jax.Array]]:  # fmt: skip
        """Calls the model. Returns its output, and a dict of the activations that `names_filter` selects.

        `incl_bwd` adds the gradient of the output (a scalar) at each activation, as `name + "_grad"`. `pos_slice` cuts
        the axis of positions: the third axis from the end for names like `hook_q` or `hook_z`, else the second.

        Raises:
            HookError: `names_filter` selects no hook point, or none of them was reached.
            ValueError: `incl_bwd` is set and the output is not a scalar.
        """
        if not reset_hooks_end:
            raise ValueError("run_with_cache adds no hooks, so reset_hooks_end must be True; use add_caching_hooks")
        names = list(self._select(names_filter))
        run = run_with_gradients if incl_bwd else run_with_values
        out, values = run(self, names, args, kwargs)
        given = names_filter is not None and not callable(names_filter)
        if (missing := [name for name in names if name not in values]) and (given or not values):
            raise HookError(
                f'the call of {type(self).__name__} did not reach the hook point "{missing[0]}" from here. If it is '
                "compiled by itself (@nnx.jit on __call__), compile a function that returns the result of "
                "run_with_cache instead"
            )
        shortened = _shortening(Slice.unwrap(pos_slice), remove_batch_dim, device)
        cache = {name: shortened(name, value) for name, value in values.items()}
        if clear_contexts:
            self.clear_contexts()
        return out, cache

    def get_caching_hooks(
        self, names_filter: NamesFilter = None, incl_bwd: bool = False, device: Any = None,
        remove_batch_dim: bool = False, cache: dict[str, jax.Array] | None = None, pos_slice: Any = None,
    ) -> tuple[dict[str, jax.Array], list[HookSpec], list[HookSpec]]:  # fmt: skip
        """A dict, and the hooks on activations and (with `incl_bwd`) on gradients that fill it. They are not added.

        The hooks store concrete values only: in a compiled program they raise a HookError. `jax.grad` outside of jit is
        allowed.
        """
        cache = {} if cache is None else cache
        shortened = _shortening(Slice.unwrap(pos_slice), remove_batch_dim, device)

        def store(value, hook, suffix=""):
            value = concrete(value)
            if is_traced(value):
                where = f"the value at {hook.name!r} is traced (jit or vmap)"
                raise HookError(f"caching hooks store concrete values, but {where}; return the cache of run_with_cache")
            cache[hook.name + suffix] = shortened(hook.name, value)

        names = list(self._select(names_filter))
        backward = functools.partial(store, suffix="_grad")
        return cache, [(name, store) for name in names], [(name, backward) for name in names if incl_bwd]

    def add_caching_hooks(
        self, names_filter: NamesFilter = None, incl_bwd: bool = False, device: Any = None,
        remove_batch_dim: bool = False, cache: dict[str, jax.Array] | None = None,
    ) -> dict[str, jax.Array]:  # fmt: skip
        """Adds the hooks of `get_caching_hooks` to the model, and returns the dict that later runs fill."""
        cache, forward, backward = self.get_caching_hooks(names_filter, incl_bwd, device, remove_batch_dim, cache)
        for direction, specs in (("fwd", forward), ("bwd", backward)):
            for name, store in specs:
                self.add_hook(name, store, direction)
        return cache


def _modules(module: Any) -> Iterator[tuple[str, Any]]:
    """The modules inside a module with the paths of attributes and indices that lead to them."""
    seen = {id(module)}

    def walk(node: Any, path: str) -> Iterator[tuple[str, Any]]:
        for key, child in _children(node):
            name = f"{path}.{key}" if path else str(key)
            if isinstance(child, nnx.Pytree | list | tuple | dict) and id(child) not in seen:
                seen.add(id(child))
                if isinstance(child, nnx.Module):
                    yield name, child
                if not isinstance(child, HookPoint):
                    yield from walk(child, name)

    yield from walk(module, "")


def _children(node: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(node, list | tuple | nnx.List):
        return enumerate(node)
    if isinstance(node, dict | nnx.Dict):
        return iter(node.items())
    return ((name, child) for name, child in vars(node).items() if name not in OF_FLAX)


def _matching(pattern: Any, names: Collection[str]) -> list[str]:
    """The names that a name, a wildcard or a filter function selects."""
    if callable(pattern):
        if selected := list(filter(pattern, names)):
            return selected
        label = getattr(pattern, "__name__", pattern)
        raise HookError(f"the filter {label!r} matches none of the model's {len(names)} hook points; see hook_dict")
    if not isinstance(pattern, str):
        raise HookError(f"a hook name is a string or a filter function; got {type(pattern).__name__}")
    if pattern in names:
        return [pattern]
    if "*" in pattern and (selected := fnmatch.filter(names, pattern)):
        return selected
    near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"the model has {list(names)[:8]}"
    raise HookError(f'there is no hook point "{pattern}"; {hint}')


def _shortening(positions: Slice, remove_batch_dim: bool, device: Any) -> Callable[[str, jax.Array], jax.Array]:
    """A function of the name and the value of an activation that gives what a cache stores."""

    def shortened(name: str, value: jax.Array) -> jax.Array:
        axis = -3 if name.removesuffix("_grad").endswith(BY_HEAD) else -2
        value = value[0] if remove_batch_dim else value
        value = positions.apply(value, axis) if value.ndim >= -axis else value
        return value if device is None else jax.device_put(value, as_device(device))

    return shortened
