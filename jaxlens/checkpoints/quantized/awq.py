"""Weights that AWQ has quantized to four bits, in the layouts of AutoAWQ and llm-awq.

Method: "AWQ" (arXiv 2306.00978). Layouts: `awq/modules/linear/` and `awq/utils/packing_utils.py` in AutoAWQ 0.2.9. The
version "gemm" packs `qweight [in, out / 8]` and `qzeros [group, out / 8]` along the outputs, eight at a time in the
order 0, 2, 4, 6, 1, 3, 5, 7, with `scales [group, out]`. The version "gemv" packs `qweight [out, in / 8]` and
`qzeros [out, group / 8]` in order, with `scales [out, group]`; groups are padded. The versions "gemv_fast" and
"llm-awq" interleave four rows in `qweight [out / 4, in]`, and store `scales [group, out]` and, as a float, minus the
zero point times the scale. A weight is (integer - zero point) * scale, in the dtype of the scales.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from jaxlens.checkpoints.arrays import Rows
from jaxlens.checkpoints.quantized.gptq import COMPANIONS, UNUSED, expect_integers, group_size
from jaxlens.checkpoints.quantized.packed import (
    Grid,
    Method,
    Packed,
    Parts,
    products_are_normal,
    rounded,
    stems,
    unpack,
)
from jaxlens.checkpoints.rules.hf_config import Reader
from jaxlens.checkpoints.rules.rule import FLOATS, Tensors
from jaxlens.errors import CheckpointError

ACTIVATIONS = ("act.scales", "gelu_impl.scales")
AFTER = ("dense_4h_to_h", "c_proj", "down_proj", "fc_out")
"""In some families (`AWQ_SCALES_MAPPINGS` in transformers' `integrations/awq.py`), an activation function divides its
result by scales. These are their names, and those of the layers that read the result."""

VERSIONS = {"gemm": "gemm", "gemv": "gemv", "gemv_fast": "fast", "llm-awq": "fast"}
"""The versions, and their layouts."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """The fields of quantization_config that matter. `group_size` is None if all inputs share a scale."""

    version: str
    group_size: int | None


def settings(hf: Reader) -> Settings:
    """The settings of AutoAWQ, in the spelling of config.json or of its quant_config.json."""
    version = str(hf("version", None) or hf("format", None) or hf("checkpoint_format", None) or "gemm").lower()
    if hf("backend", None) == "llm-awq":
        version = "llm-awq"
    if version not in VERSIONS:
        name = next(name for name in ("version", "format", "checkpoint_format") if hf(name, None))
        raise hf.refused(name, f"expected {' or '.join(VERSIONS)}")
    for name in ("bits", "w_bit"):
        hf.expect(name, 4, because="AWQ stores four bits")
    expect_integers(hf)
    return Settings(version, group_size(hf, "group_size" if hf("group_size", None) else "q_group_size"))


def round_settings(hf: Reader) -> Settings:
    """The settings of AutoRound in the format of AutoAWQ."""
    hf("packing_format")
    hf.expect("bits", 4, because="AWQ stores four bits")
    expect_integers(hf)
    return Settings("gemm", group_size(hf))


def packed(tensors: Tensors, chosen: Settings) -> Mapping[str, Packed]:
    """Every weight with a `qweight`."""
    names = set(tensors.names())
    layout = {"gemm": _gemm, "gemv": _gemv, "fast": _fast}[VERSIONS[chosen.version]]
    found = {f"{stem}weight": layout(tensors, names, stem, chosen) for stem in stems(tensors, "qweight")}
    for suffix in ACTIVATIONS:
        for mlp in stems(tensors, suffix):
            weight = next((name for layer in AFTER if (name := f"{mlp}{layer}.weight") in found), None)
            if weight is not None:
                found[weight] = _scaled(tensors, mlp + suffix, weight, found[weight])
    return found


def _scaled(tensors: Tensors, scales: str, name: str, weight: Packed) -> Packed:
    """A weight whose input an activation function has divided by `scales`: the weight is divided instead."""
    if tuple(tensors.shape(scales)) != weight.shape[1:]:
        has = f"{scales} has shape {tuple(tensors.shape(scales))}"
        raise CheckpointError(f"{has}; expected {weight.shape[1:]}, a scale for each input of {name}")

    def read() -> np.ndarray:
        return weight.read().astype(np.float32) / tensors.read(scales).astype(np.float32)

    return dataclasses.replace(weight, parts=(*weight.parts, scales), open=read)


def _gemm(tensors: Tensors, names: set[str], stem: str, chosen: Settings) -> Packed:
    parts = Parts(tensors, names, stem, ("qweight", "qzeros", "scales"))
    n_in, n_words = _matrix(parts, stem, "I32")
    n_out = 8 * n_words
    n_groups = _count(n_in, chosen)
    parts.expect("scales", FLOATS, (n_groups, n_out))
    parts.expect("qzeros", ["I32"], (n_groups, n_words))

    def read() -> Rows:
        stored = parts.read("qweight")
        layout = (n_in, n_out), n_in // n_groups, 1
        zeros, scales = in_order(parts.read("qzeros")), parts.read("scales")
        normal = products_are_normal(parts.dtype("scales"), scales, 1, 15)
        zeros, scales = Grid(zeros, *layout), Grid(scales, *layout)

        def rows(rows: slice, out: np.ndarray) -> None:
            out[...] = in_order(stored[rows])
            zeros.apply(np.subtract, out, rows)
            scales.apply(np.multiply, out, rows)

        return Rows((n_in, n_out), rounded(parts.dtype("scales"), rows, normal=normal), transposed=True)

    return _result(parts, n_out, n_in, n_groups, read)


def in_order(words: np.ndarray) -> np.ndarray:
    """The integers in words of the version "gemm". Two exchanges of neighbours put them in order.

    Example:
        >>> in_order(np.array([[0x75316420]], np.uint32).view(np.int32)).tolist()
        [[0, 1, 2, 3, 4, 5, 6, 7]]
    """
    words = words.view(np.uint32)
    for shift, mask in ((8, 0x0000FF00), (4, 0x00F000F0)):
        differences = (words ^ words >> shift) & np.uint32(mask)
        words = words ^ differences ^ differences << shift
    return unpack(words, 4)


def _gemv(tensors: Tensors, names: set[str], stem: str, chosen: Settings) -> Packed:
    parts = Parts(tensors, names, stem, ("qweight", "qzeros", "scales"))
    n_out, n_words = _matrix(parts, stem, "I32")
    n_in = 8 * n_words
    n_groups = _count(n_in, chosen)
    _padded(parts, "scales", FLOATS, n_groups, n_out, axis=1)
    _padded(parts, "qzeros", ["I32"], -(-n_groups // 8), n_out, axis=1)

    def read() -> Rows:
        stored = parts.read("qweight")
        zeros, scales = unpack(parts.read("qzeros"), 4)[:, :n_groups], parts.read("scales")[:, :n_groups]
        zeros, scales = (Grid(values, (n_out, n_in), 1, n_in // n_groups) for values in (zeros, scales))

        def rows(rows: slice, out: np.ndarray) -> None:
            out[...] = unpack(stored[rows], 4)
            zeros.apply(np.subtract, out, rows)
            scales.apply(np.multiply, out, rows)

        return Rows((n_out, n_in), rounded(parts.dtype("scales"), rows))

    return _result(parts, n_out, n_in, n_groups, read)


def _fast(tensors: Tensors, names: set[str], stem: str, chosen: Settings) -> Packed:
    added = "scaled_zeros" if f"{stem}scaled_zeros" in names else "qzeros"
    parts = Parts(tensors, names, stem, ("qweight", added, "scales"))
    n_quarter, n_in = _matrix(parts, stem, "I16")
    n_out, n_groups = 4 * n_quarter, _count(n_in, chosen)
    _padded(parts, "scales", FLOATS, n_groups, n_out, axis=0)
    _padded(parts, added, FLOATS, n_groups, n_out, axis=0)

    def read() -> Rows:
        stored = parts.read("qweight")
        both = (parts.read(part)[:n_groups].T for part in ("scales", added))
        scales, zeros = (Grid(values, (n_out, n_in), 1, n_in // n_groups) for values in both)

        def rows(rows: slice, out: np.ndarray) -> None:
            out[...] = rows_apart(stored[rows.start // 4 : rows.stop // 4])
            scales.apply(np.multiply, out, rows)
            zeros.apply(np.add, out, rows)

        return Rows((n_out, n_in), rounded(parts.dtype("scales"), rows), multiple=4)

    return _result(parts, n_out, n_in, n_groups, read)


def rows_apart(words: np.ndarray) -> np.ndarray:
    """The integers [4 row, column] in words [row, column] of the version "gemv_fast".

    `pack_intweight` in `gemv_fast.py` of AutoAWQ: a word has four integers of one row, 64 words have four rows, and
    within 32 columns the integers are in an order that is fast to convert.
    """
    rows, n_in = words.shape
    integers = unpack(words, 4).reshape(rows, n_in // 64, 4, 64).transpose(0, 2, 1, 3)  # four rows, 64 columns of each
    integers = integers.reshape(4 * rows, n_in // 32, 4, 2, 4).swapaxes(-1, -2)  # 0, 2, 4, 6, 1, 3, 5, 7
    return integers.reshape(4 * rows, n_in // 32, 4, 4, 2).swapaxes(2, 3).reshape(4 * rows, n_in)


def _matrix(parts: Parts, stem: str, dtype: str) -> tuple[int, int]:
    """The shape of `qweight`, which has two axes."""
    parts.expect("qweight", [dtype])
    if len(parts.shape("qweight")) != 2 or (dtype == "I16" and parts.shape("qweight")[1] % 64):
        expected = "two axes" if dtype == "I32" else "two axes, of which the second is a multiple of 64"
        raise CheckpointError(f"{stem}qweight has shape {parts.shape('qweight')}; expected {expected}")
    return parts.shape("qweight")


def _count(n_in: int, chosen: Settings) -> int:
    return 1 if chosen.group_size is None else max(1, n_in // chosen.group_size)


def _padded(parts: Parts, part: str, dtypes: Mapping | list, count: int, n_out: int, axis: int) -> None:
    """Raises a CheckpointError unless a part has `n_out` entries on one axis and at least `count` on `axis`."""
    shape = parts.shape(part)
    longer = max(count, shape[axis]) if len(shape) == 2 else count
    parts.expect(part, dtypes, (n_out, longer) if axis else (longer, n_out))


def _result(parts: Parts, n_out: int, n_in: int, n_groups: int, read) -> Packed:
    kind = "4-bit integers " + ("with a scale per row" if n_groups == 1 else f"in groups of {n_in // n_groups}")
    return Packed(parts.names, (n_out, n_in), parts.dtype("scales"), kind, read)


ALL_UNUSED = (*UNUSED, "zero_point", "do_fuse", "fuse_max_seq_len", "modules_to_fuse", "group_size", "q_group_size")
AWQ = Method("AWQ", settings, packed, (*COMPANIONS, ".scaled_zeros"), unused=ALL_UNUSED)
AUTOROUND_AWQ = Method("AutoRound", round_settings, packed, COMPANIONS, unused=ALL_UNUSED)
