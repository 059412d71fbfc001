"""Packages that only some functions need, imported when they are called."""

import importlib
from types import ModuleType


def needed(package: str, purpose: str) -> ModuleType:
    """An optional package.

    Raises:
        ImportError: it is not installed; the message says what needs it and how to install it.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(f"{purpose} needs the package {package}; run `pip install {package}`") from error
