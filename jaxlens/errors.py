"""The package's exceptions, and `require` for optional packages."""

import importlib
from types import ModuleType


class CheckpointError(ValueError):
    """A checkpoint, its config or its tokenizer cannot be read. Nothing was loaded."""


class HookError(ValueError):
    """A hook name matches no hook point, or a hook is invalid or returned an invalid value."""


class ActivationNotFound(KeyError):
    """A cache does not contain the requested activation."""

    def __str__(self) -> str:  # KeyError would print the repr of the message
        return str(self.args[0])


def require(package: str, purpose: str) -> ModuleType:
    """Imports an optional package. The error for a missing package names the purpose and the `pip` command."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(f"{purpose} needs the package {package}; run `pip install {package}`") from error
