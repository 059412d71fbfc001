"""Progress bars of long calls."""

import warnings
from collections.abc import Iterable
from typing import Any


def bar(iterable: Iterable[Any] | None = None, **options: Any) -> Any:
    """A bar of tqdm with these options: a widget in a notebook if ipywidgets is installed, else text."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "IProgress not found")  # tqdm's advice to install ipywidgets
        from tqdm.auto import tqdm  # not at the top: a model that generates nothing needs no progress bar
    return tqdm(iterable, **options)
