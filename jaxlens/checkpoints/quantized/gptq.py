"""Weights that GPTQ has quantized, in the layout of AutoGPTQ, GPTQModel and AutoRound.

Method: "GPTQ" (arXiv 2210.17323). Layout: `pack` and `forward` of `qlinear_cuda_old.py` in AutoGPTQ 0.7.1, and
`dequantize_weight` of `nn_modules/qlinear/__init__.py` in GPTQModel 7.7. A linear layer with `n` inputs and `m` outputs
has `qweight [n * bits / 32, m]`, integers packed along the inputs; `qzeros [group, m * bits / 32]`, zero points packed
along the outputs; `scales [group, m]`; and `g_idx [n]`, the group of each input, without which groups are consecutive.
A weight is (integer - zero point) * scale, in the dtype of the scales. The format "gptq" stores zero points less one,
"gptq_v2" stores them as they are.
"""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from jaxlens.checkpoints.arrays import Rows
from jaxlens.checkpoints.quantized.packed import (
    Grid,
    Method,
    Packed,
    Parts,
    described,
    products_are_normal,
    rounded,
    stems,
    unpack,
    unpack_rows,
)
from jaxlens.checkpoints.rules.hf_config import Reader
from jaxlens.checkpoints.rules.rule import FLOATS, Tensors
from jaxlens.errors import CheckpointError

WORDS = {"I8": 8, "I16": 16, "I32": 32, "I64": 64}
"""The dtypes in which packed integers are stored, and their sizes in bits."""

OFFSETS = {"gptq": 1, "gptq_v2": 0}
"""The formats, and what is added to a stored zero point."""

ROUND_FORMATS = {"auto_round": "gptq_v2", "auto_round:gptqmodel": "gptq_v2", "auto_round:auto_gptq": "gptq",
                 "auto_round:gptq": "gptq"}  # fmt: skip
"""The formats of AutoRound with this layout (`GPTQ_FORMAT` and `GPTQ_FORMAT_NO_ZP` in its `inference/backend.py`)."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """The fields of quantization_config that matter.

    `group_size` is None if a column has one group. With `has_order`, groups are those of inputs in another order
    (`desc_act`), which `g_idx` tells.
    """

    bits: int
    group_size: int | None
    offset: int
    has_order: bool


def settings(hf: Reader) -> Settings:
    """The settings of AutoGPTQ and GPTQModel."""
    stored = hf("checkpoint_format", None) or hf("format", None) or "gptq"
    hf("format", None)
    if stored not in OFFSETS:
        name = "format" if hf("checkpoint_format", None) is None else "checkpoint_format"
        raise hf.refused(name, f"expected {' or '.join(OFFSETS)}; save the model in this format with GPTQModel")
    return _settings(hf, OFFSETS[stored])


def round_settings(hf: Reader) -> Settings:
    """The settings of AutoRound."""
    return _settings(hf, OFFSETS[ROUND_FORMATS[hf("packing_format", "auto_round")]])


def _settings(hf: Reader, offset: int) -> Settings:
    hf.expect("is_marlin_format", False, because="jaxlens does not read the layout of Marlin")
    expect_integers(hf)
    bits = hf("bits")
    if bits not in range(2, 9):
        raise hf.refused("bits", "expected 2 to 8")
    return Settings(bits, group_size(hf), offset, has_order=hf("desc_act", False) is True)


def expect_integers(hf: Reader) -> None:
    """Raises a CheckpointError if the stored values are no integers, or the weights are rotated."""
    hf.expect("data_type", "int", "int_sym", because="jaxlens reads only integers in this layout")
    for name in ("rotation", "rotation_config", "rotation_configs"):
        hf.expect(name, because="jaxlens does not rotate activations")


def group_size(hf: Reader, name: str = "group_size") -> int | None:
    """The size of a group of inputs that share a scale. None if all do."""
    return None if hf(name, None) in (None, -1) else hf.size(name)


def packed(tensors: Tensors, chosen: Settings) -> Mapping[str, Packed]:
    """Every weight with a `qweight`."""
    names, found = set(tensors.names()), stems(tensors, "qweight")
    return {f"{stem}weight": _packed(tensors, names, stem, chosen) for stem in found}


def _packed(tensors: Tensors, names: set[str], stem: str, chosen: Settings) -> Packed:
    parts = Parts(tensors, names, stem, ("qweight", "qzeros", "scales"), ("g_idx",))
    parts.expect("scales", FLOATS)
    parts.expect("qweight", WORDS)
    if any(len(parts.shape(part)) != 2 or 0 in parts.shape(part) for part in ("qweight", "scales")):
        shapes = f"{stem}qweight has shape {parts.shape('qweight')} and {stem}scales {parts.shape('scales')}"
        raise CheckpointError(f"{shapes}; expected two axes each, as GPTQ stores them")
    (n_words, n_out), (n_groups, _) = parts.shape("qweight"), parts.shape("scales")
    word = WORDS[parts.dtype("qweight")]
    n_in = _inputs(parts, chosen, n_words * word)
    bits = _bits(chosen.bits, n_in, n_words, word)
    if bits is None:
        sizes = f"{n_words} x {word} bits per column for {n_in} inputs"
        raise CheckpointError(f"{stem}qweight has {sizes}; expected {chosen.bits} bits for each (quantization_config)")
    parts.expect("scales", FLOATS, (n_groups, n_out))
    parts.expect("qzeros", WORDS, (n_groups, -(-n_out * bits // WORDS.get(parts.dtype("qzeros"), word))))
    if "g_idx" in parts:
        parts.expect("g_idx", ["I32", "I64"], (n_in,))
    elif chosen.has_order and n_groups > 1:
        problem = f"{stem}g_idx is missing, the group of each input, but quantization_config has desc_act = true"
        raise CheckpointError(f"{problem}; download the checkpoint again")
    fits = chosen.group_size and n_groups == -(-n_in // chosen.group_size)  # else the layer has groups of its own size
    width = chosen.group_size if fits else -(-n_in // n_groups)

    def read() -> Rows:
        stored, scales = parts.read("qweight"), parts.read("scales")
        zeros = unpack(parts.read("qzeros"), bits)[:, :n_out] + np.uint8(chosen.offset) & np.uint8(2**bits - 1)
        layout = (n_in, n_out), width, 1, None, _groups(parts, stem, n_in, n_groups, width)
        normal = products_are_normal(parts.dtype("scales"), scales, 1, 2**bits)
        zeros, scales = (Grid(values, *layout) for values in (zeros, scales))
        group = math.lcm(word, bits) // bits  # integers that fill whole words

        def rows(rows: slice, out: np.ndarray) -> None:
            words = stored[rows.start * bits // word : -(-rows.stop * bits // word)]
            out[...] = unpack_rows(words, bits)[: len(out)]
            zeros.apply(np.subtract, out, rows)
            scales.apply(np.multiply, out, rows)

        return Rows((n_in, n_out), rounded(parts.dtype("scales"), rows, normal=normal), group, transposed=True)

    kind = f"{bits}-bit integers {described(1, min(width, n_in), (n_out, n_in))}"
    return Packed(parts.names, (n_out, n_in), parts.dtype("scales"), kind, read)


def _inputs(parts: Parts, chosen: Settings, n_bits: int) -> int:
    """The number of inputs of a layer."""
    if "g_idx" in parts:
        return math.prod(parts.shape("g_idx"))
    n_groups, whole = parts.shape("scales")[0], n_bits // chosen.bits
    if chosen.group_size is None or n_groups == -(-whole // chosen.group_size):
        return whole
    return n_groups * chosen.group_size  # the layer has another number of bits


def _bits(expected: int, n_in: int, n_words: int, word: int) -> int | None:
    """The bits of an integer: those of config.json, or others that the size of `qweight` has in a layer of its own."""
    fitting = [bits for bits in range(2, 9) if n_words == -(-n_in * bits // word)]
    return expected if expected in fitting else fitting[0] if len(fitting) == 1 else None


def _groups(parts: Parts, stem: str, n_in: int, n_groups: int, width: int) -> np.ndarray | None:
    """The group of each input. None if groups are consecutive."""
    if "g_idx" not in parts:
        return None
    groups = parts.read("g_idx")
    if groups.min(initial=0) < 0 or groups.max(initial=0) >= n_groups:
        has = f"{stem}g_idx has groups from {groups.min()} to {groups.max()}"
        raise CheckpointError(f"{has}, and {stem}scales has {n_groups}; download the checkpoint again")
    return None if np.array_equal(groups, np.arange(n_in) // width) else groups


UNUSED = tuple(
    " ".join(
        (
            "quant_method method desc_act sym lm_head dynamic pack_dtype meta activation backend tokenizer dataset",
            "damp_percent damp_auto_increment static_groups true_sequential act_group_aware mse model_name_or_path",
            "model_file_base_name quantizer batch_size pad_token_id model_seqlen block_name_to_quantize block_name",
            "module_name_preceding_first_block modules_in_block_to_quantize max_input_length cache_block_outputs",
            "use_cuda_fp16 use_exllama disable_exllama exllama_config modules_to_not_convert modules_to_convert",
            "adapter device gptaq v2 v2_alpha failsafe parallel_packing offload_to_disk quant_type",
            # fields of AutoRound
            "provider autoround_version version data_type iters lr minmax_lr nsamples seqlen amp low_gpu_mem_usage",
            "low_cpu_mem_usage enable_minmax_tuning enable_norm_bias_tuning enable_quanted_input enable_alg_ext",
            "enable_adam momentum gradient_accumulate_steps scale_dtype super_bits super_group_size quant_lm_head",
            "quant_block_list to_quant_block_names layer_config extra_config regex_config supported_types",
            "static_kv_dtype static_kv_granularity static_attention_dtype static_attention_granularity",
            "act_bits act_group_size act_sym act_dynamic act_data_type",
        )
    ).split()
)
"""Fields about the way the integers were found, about activations, and about kernels. The layers that are quantized are
read from the tensors, and so is the number of bits of a layer with its own, in `dynamic` or `extra_config`."""

COMPANIONS = (".qweight", ".qzeros", ".scales", ".g_idx")
GPTQ = Method("GPTQ", settings, packed, COMPANIONS, unused=UNUSED)
AUTOROUND = Method("AutoRound", round_settings, packed, COMPANIONS, unused=UNUSED)
