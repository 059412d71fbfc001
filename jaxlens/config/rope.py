"""The settings of rotary position embeddings and of their scalings for longer contexts; nn/rope.py computes them."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Linear:
    """Position interpolation: divides every frequency by `factor` (Chen et al. 2023, arXiv 2306.15595)."""

    factor: float


@dataclasses.dataclass(frozen=True)
class Dynamic:
    """NTK-aware scaling: increases the base for sequences longer than `original_n_ctx` (bloc97, 2023).

    It is made for sequences of up to `factor` times `original_n_ctx`.
    """

    factor: float
    original_n_ctx: int


@dataclasses.dataclass(frozen=True)
class Llama3:
    """The scaling of Llama 3.1 (arXiv 2407.21783): divides low frequencies by `factor` and keeps high ones."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_n_ctx: int


@dataclasses.dataclass(frozen=True)
class Yarn:
    """YaRN (Peng et al. 2023, arXiv 2309.00071): interpolates between unchanged and divided frequencies.

    `attention_factor` multiplies rotated queries and keys.
    """

    factor: float
    original_n_ctx: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True


@dataclasses.dataclass(frozen=True)
class LongRope:
    """LongRoPE (Ding et al. 2024, arXiv 2402.13753): one divisor per frequency.

    Sequences longer than `original_n_ctx` use the divisors `long_factor`, others `short_factor`. `attention_factor`
    multiplies rotated queries and keys; sequences up to `original_n_ctx` use `short_attention_factor` if it is set.
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
    """The rotary position embedding of one layer (Su et al. 2021, arXiv 2104.09864).

    The first `dim` dimensions of a head are rotated (None: all of them). With `adjacent_pairs` the pairs are (0, 1),
    (2, 3), …; otherwise dimension i is paired with i + dim / 2.
    """

    base: float = 10000.0
    dim: int | None = None
    adjacent_pairs: bool = False
    scaling: Scaling | None = None


def rotary_to_dict(rotary: Rotary | None) -> dict[str, Any] | None:
    """A Rotary as JSON values."""
    if rotary is None:
        return None
    scaling = rotary.scaling and {"kind": type(rotary.scaling).__name__, **dataclasses.asdict(rotary.scaling)}
    return {"base": rotary.base, "dim": rotary.dim, "adjacent_pairs": rotary.adjacent_pairs, "scaling": scaling}


def rotary_from_dict(entry: Mapping[str, Any] | None) -> Rotary | None:
    """The Rotary of a dict that `rotary_to_dict` returned. A Rotary is returned unchanged."""
    if entry is None or isinstance(entry, Rotary):
        return entry
    scaling = entry["scaling"]
    if scaling is not None:
        values = {name: tuple(v) if isinstance(v, list) else v for name, v in scaling.items() if name != "kind"}
        if scaling["kind"] not in _SCALINGS:
            raise ValueError(f"rotary scaling is {scaling['kind']!r}; expected one of {sorted(_SCALINGS)}")
        scaling = _SCALINGS[scaling["kind"]](**values)
    return Rotary(**{**entry, "scaling": scaling})
