"""Rotary position embeddings as facts: how a layer turns its heads, and ways of stretching that over longer contexts.

Their arithmetic is in `nn/positions.py`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Linear:
    """Position interpolation: every frequency divided by `factor` (Chen et al. 2023, arXiv 2306.15595)."""

    factor: float


@dataclasses.dataclass(frozen=True)
class Dynamic:
    """NTK-aware scaling: the base grows once a sequence is longer than `original_n_ctx` (bloc97, 2023)."""

    factor: float
    original_n_ctx: int


@dataclasses.dataclass(frozen=True)
class Llama3:
    """Frequencies scaled by parts, as Llama 3.1 does (arXiv 2407.21783): long waves divided, short ones kept."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_n_ctx: int


@dataclasses.dataclass(frozen=True)
class Yarn:
    """YaRN (Peng et al. 2023, arXiv 2309.00071): a ramp between kept and divided frequencies, and warmer attention.

    `attention_factor` multiplies the rotated queries and keys.
    """

    factor: float
    original_n_ctx: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True


@dataclasses.dataclass(frozen=True)
class LongRope:
    """LongRoPE (Ding et al. 2024, arXiv 2402.13753): one divisor per frequency, another set past `original_n_ctx`.

    `attention_factor` multiplies the rotated queries and keys; `short_attention_factor` does so in its place, if it is
    given, in sequences that are not past `original_n_ctx`.
    """

    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    original_n_ctx: int
    attention_factor: float
    short_attention_factor: float | None = None


Scaling = Linear | Dynamic | Llama3 | Yarn | LongRope
_SCALINGS = {kind.__name__: kind for kind in (Linear, Dynamic, Llama3, Yarn, LongRope)}


@dataclasses.dataclass(frozen=True)
class Rotary:
    """Rotary position embedding of one layer (Su et al. 2021, arXiv 2104.09864).

    `dim` is how many of a head's dimensions turn (None: all of them). `adjacent_pairs` rotates (0, 1), (2, 3), …;
    otherwise dimension i turns with i + dim / 2.
    """

    base: float = 10000.0
    dim: int | None = None
    adjacent_pairs: bool = False
    scaling: Scaling | None = None


def rotary_to_dict(rotary: Rotary | None) -> dict[str, Any] | None:
    if rotary is None:
        return None
    scaling = rotary.scaling and {"kind": type(rotary.scaling).__name__, **dataclasses.asdict(rotary.scaling)}
    return {"base": rotary.base, "dim": rotary.dim, "adjacent_pairs": rotary.adjacent_pairs, "scaling": scaling}


def rotary_from_dict(entry: Mapping[str, Any] | None) -> Rotary | None:
    if entry is None or isinstance(entry, Rotary):
        return entry
    scaling = entry["scaling"]
    if scaling is not None:
        values = {name: tuple(v) if isinstance(v, list) else v for name, v in scaling.items() if name != "kind"}
        if scaling["kind"] not in _SCALINGS:
            raise ValueError(f"rotary scaling {scaling['kind']!r} is none of {sorted(_SCALINGS)}")
        scaling = _SCALINGS[scaling["kind"]](**values)
    return Rotary(**{**entry, "scaling": scaling})
