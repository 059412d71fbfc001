"""How a hook function is called, and what it is told when it edits an activation in place."""

import dataclasses
import dis
import functools
import inspect
import itertools
from collections.abc import Callable
from typing import Any

from jaxlens.errors import HookError

IMMUTABLE = (
    "Activations are immutable. Instead of `value[:, 0] = new` write `return value.at[:, 0].set(new)`; there are "
    "`.add`, `.multiply`, `.min` and `.max` too. docs/coming_from_transformerlens.md lists torch's forms beside JAX's."
)

TORCH_HABITS = ("item assignment", "has no attribute", "keyword argument 'dim'", "keyword argument 'keepdim'")
"""What an error says if it is torch's array that was expected."""


@dataclasses.dataclass(frozen=True)
class PythonHook:
    """A function as the user gave it."""

    fn: Callable

    def __call__(self, value: Any, point: Any) -> Any:
        return call(self.fn, value, point)


def call(fn: Callable, value: Any, point: Any) -> Any:
    """`fn(value, hook)`, with the hook point under the name "hook" if `fn` has an argument of that name.

    An error in it is told where it happened and, if it comes of torch's habits, what to write in JAX.

    Raises:
        HookError: `fn` edits its value in place, by `value += ...`, and returns nothing: the edit would be lost.
    """
    try:
        new = fn(value, hook=point) if _names_its_hook(fn) else fn(value, point)
    except HookError:
        raise
    except Exception as error:
        habit = isinstance(error, TypeError | AttributeError) and any(sign in str(error) for sign in TORCH_HABITS)
        note = f'in the hook on "{point.name}"{f". {IMMUTABLE}" if habit else ""}'
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)
        raise
    if new is None and (name := edited_in_place(fn)):
        raise HookError(
            f'the hook on "{point.name}" edits `{name}` in place and returns nothing, so the edit is lost. Return the '
            f"new value: instead of `{name} += new` write `return {name} + new`. {IMMUTABLE}"
        )
    return new


def _names_its_hook(fn: Callable) -> bool:
    """Whether it can be called as TransformerLens calls it, `fn(value, hook=point)`."""
    try:
        return "hook" in inspect.signature(fn).parameters
    except ValueError:  # a function of C has no signature
        return False


def edited_in_place(fn: Callable) -> str | None:
    """The name of a function's first argument, if it assigns to it by `+=` or the like.

    Torch changes the caller's array then; JAX, whose arrays cannot change, makes a new one that only `fn` sees.
    """
    position = 0
    while isinstance(fn, functools.partial):
        position, fn = position + len(fn.args), fn.func
    position += inspect.ismethod(fn)
    code = getattr(fn, "__code__", None)
    if code is None or position >= code.co_argcount:
        return None
    name = code.co_varnames[position]
    for first, then in itertools.pairwise(dis.get_instructions(code)):
        in_place = first.opname == "BINARY_OP" and first.argrepr.endswith("=")
        if in_place and then.opname.startswith(("STORE_FAST", "STORE_DEREF")):
            stored = then.argval if isinstance(then.argval, str) else then.argval[0]
            if stored == name:
                return name
    return None
