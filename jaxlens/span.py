"""Which part of the model a run goes through, and which hook points lie on the way."""

import dataclasses
from collections.abc import Callable, Collection

import numpy as np

from jaxlens.config import Config
from jaxlens.errors import HookError
from jaxlens.hook_table import EMBED_SITES, FINAL_SITES, exists, matching, sites, split_name
from jaxlens.hooks import Added

EMBED_NAMES = tuple(site.name for site in EMBED_SITES)
FINAL_NAMES = tuple(site.name for site in FINAL_SITES)


@dataclasses.dataclass(frozen=True)
class Span:
    """Layers `start` to `stop` - 1; `embeds` if tokens are embedded before them, `unembeds` if logits follow."""

    start: int
    stop: int
    embeds: bool
    unembeds: bool

    @classmethod
    def of(cls, cfg: Config, start_at_layer: int | None, stop_at_layer: int | None) -> "Span":
        """The span that TransformerLens's arguments name; a negative layer counts from the end.

        Raises:
            ValueError: there is no such layer.
        """
        n = cfg.n_layers
        for name, layer in (("start_at_layer", start_at_layer), ("stop_at_layer", stop_at_layer)):
            if layer is not None and not (isinstance(layer, int | np.integer) and -n <= layer <= n):
                raise ValueError(f"{name} is {layer!r}; the model has {n} layers, so wanted an integer, {-n} to {n}")
        start, stop = (
            default if layer is None else int(layer) + n * (layer < 0)
            for layer, default in ((start_at_layer, 0), (stop_at_layer, n))
        )
        return cls(start, max(start, stop), start_at_layer is None, stop_at_layer is None)

    def covers(self, name: str) -> bool:
        """Whether a hook point lies on the way."""
        layer = split_name(name)[1]
        if layer is not None:
            return self.start <= layer < self.stop
        return self.unembeds if name in FINAL_NAMES else self.embeds

    def check_hooks(self, hooks: tuple[Added, ...]) -> None:
        """
        Raises:
            HookError: a hook is on points that this run never reaches.
        """
        for added in hooks:
            if not any(map(self.covers, added.names)):
                raise self._unreached(added.names[0])

    def wanted(self, cfg: Config, names_filter: str | Callable | Collection | None) -> frozenset[str]:
        """The full names a cache is to hold: what the filter chooses, or everything that needs no asking for.

        Raises:
            HookError: the filter, or one name of its list, chooses nothing on the way.
        """
        if names_filter is None:
            return frozenset(name for name in sites(cfg) if exists(cfg, name) and self.covers(name))
        filters = names_filter if isinstance(names_filter, list | tuple | set | frozenset) else [names_filter]
        if not filters:
            raise HookError("names_filter is an empty list; give at least one name, or None for everything")
        wanted: set[str] = set()
        for names in filters:
            found = matching(cfg, names)
            if not any(map(self.covers, found)):
                raise self._unreached(found[0])
            wanted |= set(filter(self.covers, found))
        return frozenset(wanted)

    def _unreached(self, name: str) -> HookError:
        layers = f"layers {self.start} to {self.stop - 1}" if self.start < self.stop else "no layer"
        return HookError(f'"{name}" is never reached: this run covers {layers}')
