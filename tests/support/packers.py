"""Quantizes weights in the layouts of the libraries that publish them, and computes the values that they compute.

Written after the code of each library, value by value, without jaxlens: `pack` of AutoGPTQ's `qlinear_cuda.py`,
`from_linear` of AutoAWQ's `gemm.py`, `quantize_4bit` and `int8_vectorwise_quant` in bitsandbytes'
`backends/default/ops.py`, `pack_to_int32` of compressed-tensors, `Fp8Quantize` of transformers. What the libraries
themselves packed is in `quantized_by_libraries.safetensors`.

Every packer takes a weight [out, in] and returns the stored tensors, by the suffix that follows the name of the layer,
and the dequantized weight.
"""

import json

import numpy as np
import torch

NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


def groups_of(weight: torch.Tensor, size: int) -> torch.Tensor:
    return weight.reshape(len(weight), -1, size)


def affine(weight: torch.Tensor, bits: int, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Integers [out, in], float16 scales and zero points [out, group], as GPTQ and AWQ choose them without symmetry."""
    groups = groups_of(weight, size)
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    scales = ((high - low) / (2**bits - 1)).clamp(min=1e-4).half()
    zeros = torch.round(-low / scales.float()).clamp(1, 2**bits - 1)
    integers = torch.round(groups / scales.float()[..., None] + zeros[..., None]).clamp(0, 2**bits - 1)
    return integers.reshape(weight.shape).to(torch.int64), scales, zeros.to(torch.int64)


def words(integers: torch.Tensor, bits: int) -> torch.Tensor:
    """Integers packed along the last axis into int32, one after the other, each from its lowest bit on."""
    columns = integers.T.contiguous().numpy().astype(np.uint64)
    result = np.zeros((-(-len(columns) * bits // 32), len(integers)), np.uint64)
    for i, column in enumerate(columns):
        word, shift = divmod(i * bits, 32)
        value = column << np.uint64(shift)
        result[word] |= value & np.uint64(0xFFFFFFFF)
        if shift + bits > 32:
            result[word + 1] |= value >> np.uint64(32)
    return torch.tensor(result.T.astype(np.uint32).view(np.int32)).contiguous()


def gptq(
    weight: torch.Tensor, bits: int = 4, size: int = 32, *, v2: bool = False, index: bool = True,
    seed: int | None = None,
):  # fmt: skip
    """With a `seed`, inputs belong to groups in a random order (act-order)."""
    n_in = weight.shape[1]
    order = torch.arange(n_in) if seed is None else torch.randperm(n_in, generator=torch.Generator().manual_seed(seed))
    integers, scales, zeros = affine(weight[:, order], bits, size)
    groups = torch.empty(n_in, dtype=torch.int32)
    groups[order] = torch.arange(n_in, dtype=torch.int32) // size
    integers = integers[:, order.argsort()]
    stored = {
        "qweight": words(integers, bits).T.contiguous(), "scales": scales.T.contiguous(),
        "qzeros": words(zeros.T - (0 if v2 else 1), bits),
    }  # fmt: skip
    values = scales[:, groups.long()] * (integers - zeros[:, groups.long()])
    return {**stored, "g_idx": groups} if index else stored, values.float()


def awq(weight: torch.Tensor, size: int = 32):
    integers, scales, zeros = affine(weight, 4, size)

    def interleaved(values: torch.Tensor) -> torch.Tensor:
        eights = values.reshape(len(values), -1, 8)[..., [0, 2, 4, 6, 1, 3, 5, 7]]
        return words(eights.reshape(len(values), -1), 4)

    stored = {"qweight": interleaved(integers.T), "qzeros": interleaved(zeros.T), "scales": scales.T.contiguous()}
    spread = (value.repeat_interleave(size, dim=1) for value in (zeros, scales))
    zeros, scales = spread
    return stored, ((integers - zeros) * scales).float()


def llm_int8(weight: torch.Tensor):
    largest = weight.abs().amax(1).float()
    integers = torch.round(weight * (127.0 / largest[:, None])).to(torch.int8)
    stored = {"weight": integers, "SCB": largest, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    return stored, integers * largest[:, None] * 7.874015718698502e-3


def nf4(weight: torch.Tensor, size: int = 64, dtype: torch.dtype = torch.float16):
    code, flat = torch.tensor(NF4), weight.reshape(-1).float()
    flat = torch.nn.functional.pad(flat, (0, -len(flat) % size))
    largest = flat.reshape(-1, size).abs().amax(1)
    scaled = (flat.reshape(-1, size) / largest.clamp(min=1e-38)[:, None]).reshape(-1)[: weight.numel()]
    index = (scaled[:, None] - code).abs().argmin(1).to(torch.uint8)
    even = torch.nn.functional.pad(index, (0, len(index) % 2))
    state = {"quant_type": "nf4", "blocksize": size, "dtype": str(dtype)[6:], "shape": [*weight.shape]}
    stored = {
        "weight": (even[::2] << 4 | even[1::2])[:, None].contiguous(), "weight.absmax": largest,
        "weight.quant_map": code,
        "weight.quant_state.bitsandbytes__nf4": torch.tensor([*json.dumps(state).encode()], dtype=torch.uint8),
    }  # fmt: skip
    values = code[index.long()] * largest.repeat_interleave(size)[: weight.numel()]
    return stored, values.reshape(weight.shape).to(dtype).float()


def int4_words(weight: torch.Tensor, size: int = 18, dtype: torch.dtype = torch.bfloat16):
    """compressed-tensors' pack-quantized, symmetric, in groups."""
    groups = groups_of(weight, size)
    scales = (groups.abs().amax(-1) / 7.5).to(dtype)
    integers = torch.round(groups / scales.float()[..., None]).clamp(-8, 7)
    stored = {
        "weight_packed": words(integers.reshape(weight.shape).to(torch.int64) + 8, 4), "weight_scale": scales,
        "weight_shape": torch.tensor(weight.shape),
    }  # fmt: skip
    return stored, (integers.to(dtype) * scales[..., None]).reshape(weight.shape).float()


def int8_rows(weight: torch.Tensor, dtype: torch.dtype = torch.float32):
    """compressed-tensors' int-quantized, with a scale per row."""
    scales = (weight.abs().amax(1, keepdim=True) / 127).to(dtype)
    integers = torch.round(weight / scales.float()).clamp(-128, 127).to(torch.int8)
    return {"weight": integers, "weight_scale": scales}, (integers.to(dtype) * scales).float()


def float8(weight: torch.Tensor, height: int | None = 16, width: int | None = 16, scale: str = "_scale_inv"):
    """Float8 with a scale per block of the last two axes, of which the last may be smaller, or with one scale."""
    *_, rows, columns = weight.shape
    height, width = height or rows, width or columns
    scales = torch.ones(*weight.shape[:-2], -(-rows // height), -(-columns // width))
    stored, values = torch.empty(weight.shape, dtype=torch.float8_e4m3fn), torch.empty(weight.shape)
    for i in range(scales.shape[-2]):
        for j in range(scales.shape[-1]):
            block = (..., slice(i * height, (i + 1) * height), slice(j * width, (j + 1) * width))
            scales[..., i, j] = weight[block].abs().amax((-1, -2)) / 448
            stored[block] = (weight[block] / scales[..., i, j, None, None]).to(torch.float8_e4m3fn)
            values[block] = stored[block].float() * scales[..., i, j, None, None]
    return {"weight": stored, f"weight{scale}": scales}, values
