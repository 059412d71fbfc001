"""Quantizes small weights with each library and stores the tensors and the values that the library computes from them,
for tests/test_quantized.py.

pip install --no-deps --target LIBRARIES bitsandbytes==0.50.2 compressed-tensors==0.20.1 loguru
pip download --no-deps auto-gptq==0.7.1 autoawq==0.2.9, and unpack both to SOURCES (their packages need CUDA to import)
PYTHONPATH=tests:LIBRARIES python -m support.regenerate_quantized SOURCES/auto_gptq SOURCES/awq
"""

import importlib
import importlib.util
import json
import pathlib
import sys
import types
import warnings

import torch
from safetensors.torch import save_file

FILE = pathlib.Path(__file__).parents[1] / "quantized_by_libraries.safetensors"


def weight(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


# ---- bitsandbytes


def bitsandbytes():
    import bitsandbytes.functional as bnb

    common = {"quant_method": "bitsandbytes"}
    for kind in ("nf4", "fp4"):
        for nested in (False, True):
            for dtype, size in (("float16", 64), ("bfloat16", 128), ("float32", 64)):
                storage = torch.bfloat16 if dtype == "bfloat16" else torch.uint8
                shape = (130, 130) if nested and dtype == "float32" else (36, 70)  # more than 256 blocks
                value = weight(1, *shape, dtype=getattr(torch, dtype))
                packed, state = bnb.quantize_4bit(value, None, None, size, nested, kind, storage)
                stored = {f"x.weight.{name}": part for name, part in state.as_dict(packed=True).items()}
                config = {**common, "load_in_4bit": True, "bnb_4bit_quant_type": kind, "_load_in_4bit": True}
                values = bnb.dequantize_4bit(packed, state)
                yield f"{kind} {nested} {dtype}", config, {"x.weight": packed, **stored}, values
    value = weight(3, 36, 70, dtype=torch.float16)
    integers, largest, _ = bnb.int8_vectorwise_quant(value)
    stored = {"x.weight": integers, "x.SCB": largest, "x.weight_format": torch.tensor(0, dtype=torch.uint8)}
    yield "int8", {**common, "load_in_8bit": True}, stored, bnb.int8_vectorwise_dequant(integers, largest)


# ---- compressed-tensors


def compressed_tensors():
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    def case(name: str, format: str, shape, scale, zeros=None, dtype=torch.bfloat16, extra=None, **args):
        args = QuantizationArgs(symmetric=zeros is None, **args)
        scheme = QuantizationScheme(targets=["Linear"], weights=args, format=format)
        compressor = BaseCompressor.get_value_from_registry(format)
        state = {"weight": weight(4, *shape, dtype=dtype), "weight_scale": scale.to(dtype), **(extra or {})}
        if zeros is not None:
            state["weight_zero_point"] = zeros
        stored = compressor.compress(state, scheme)
        values = compressor.decompress(stored, scheme)["weight"]
        config = {
            "quant_method": "compressed-tensors", "format": format, "ignore": ["lm_head"], "kv_cache_scheme": None,
            "quantization_status": "compressed", "global_compression_ratio": None, "version": "0.20.1",
            "sparsity_config": {}, "transform_config": {},
            "config_groups": {"group_0": json.loads(scheme.model_dump_json())},
        }  # fmt: skip
        return name, config, {f"x.{part}": value for part, value in stored.items()}, values

    def scales(*shape: int) -> torch.Tensor:
        return 0.05 + 0.2 * torch.rand(shape, generator=torch.Generator().manual_seed(5))

    def zero_points(*shape: int, bits: int) -> torch.Tensor:
        half = 2 ** (bits - 1)
        return torch.randint(-half, half, shape, generator=torch.Generator().manual_seed(6), dtype=torch.int8)

    groups = {"strategy": "group", "group_size": 32}
    for bits in (4, 8, 3):
        args = ("pack-quantized", (36, 96), scales(36, 3))
        yield case(f"int{bits} packed in groups", *args, num_bits=bits, **groups)
        zeros = zero_points(36, 3, bits=bits)
        yield case(f"int{bits} packed in groups with zero points", *args, zeros, torch.float16, num_bits=bits, **groups)
    args, by_rows = ("pack-quantized", (30, 100), scales(30, 1)), {"num_bits": 4, "strategy": "channel"}
    yield case("int4 packed by rows", *args, **by_rows)
    yield case("int4 packed by rows with zero points", *args, zero_points(30, 1, bits=4), **by_rows)
    for strategy, shape in (("tensor", (1,)), ("channel", (36, 1)), ("group", (36, 3))):
        args = {"num_bits": 8, **(groups if strategy == "group" else {"strategy": strategy})}
        layout, zeros = ((36, 96), scales(*shape)), zero_points(*shape, bits=8)
        yield case(f"int8 by {strategy}", "int-quantized", *layout, **args)
        yield case(f"int8 by {strategy} with zero points", "naive-quantized", *layout, zeros, torch.float16, **args)
        yield case(f"float8 by {strategy}", "float-quantized", *layout, type="float", **args)
    block = {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [16, 32]}
    args = ("float-quantized", (40, 90), scales(3, 3))
    yield case("float8 in ragged blocks", *args, dtype=torch.float32, **block)
    powers = 2.0 ** torch.randint(-4, 3, (36, 3), generator=torch.Generator().manual_seed(7))
    yield case("mxfp4", "mxfp4-pack-quantized", (36, 96), powers, num_bits=4, type="float", **groups)
    exponents = {"num_bits": 8, "type": "float", "scale_dtype": "torch.uint8", **groups}
    yield case("mxfp8", "mxfp8-quantized", (36, 96), powers, **exponents)
    args = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}
    extra = {"weight_global_scale": torch.tensor([37.5])}
    yield case("nvfp4", "nvfp4-pack-quantized", (36, 96), 30 * scales(36, 6), extra=extra, **args)


# ---- AutoGPTQ and AutoAWQ, of which only the files with the packing are imported


def linear(n_in: int, n_out: int, dtype: torch.dtype = torch.float32) -> torch.nn.Linear:
    layer = torch.nn.Linear(n_in, n_out, bias=False, dtype=dtype)
    layer.weight.data = weight(8, n_out, n_in, dtype=dtype)
    return layer


def gptq(folder: pathlib.Path):
    sys.modules |= {"auto_gptq": (root := types.ModuleType("auto_gptq"))}
    root.__path__ = [str(folder)]
    spec = importlib.util.spec_from_file_location("qlinear_cuda", folder / "nn_modules" / "qlinear" / "qlinear_cuda.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    generator = torch.Generator().manual_seed(9)
    for bits in (2, 3, 4, 8):
        for size, act_order in ((32, False), (32, True), (-1, False)):
            layer = linear(96, 64)
            n_groups = 1 if size == -1 else 3
            scales = 0.05 + 4 * torch.rand((64, n_groups), generator=generator) / 2**bits
            zeros = torch.randint(1, 2**bits, (64, n_groups), generator=generator).float()
            groups = torch.arange(96) // (96 if size == -1 else size)
            groups = (groups[torch.randperm(96, generator=generator)] if act_order else groups).int()
            packed = module.QuantLinear(bits, size, 96, 64, False, weight_dtype=torch.float16)
            layer.weight.data = layer.weight.data.half()
            packed.pack(layer, scales.half(), zeros.half(), groups)
            if act_order is False:
                packed.g_idx = groups
            values = packed(torch.eye(96, dtype=torch.float16)).T.contiguous()
            config = {"quant_method": "gptq", "bits": bits, "group_size": size, "desc_act": act_order, "sym": False}
            stored = {f"x.{part}": value for part, value in packed.state_dict().items()}
            yield f"gptq {bits} {size} {act_order}", config, stored, values


def awq(folder: pathlib.Path):
    for name in ("awq", "awq.modules", "awq.modules.linear", "awq.utils"):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(folder / "/".join(name.split(".")[1:]))]
    generator = torch.Generator().manual_seed(10)
    names = {"gemm": "WQLinear_GEMM", "gemv": "WQLinear_GEMV", "gemv_fast": "WQLinear_GEMVFast"}
    for version, name in names.items():
        module = importlib.import_module(f"awq.modules.linear.{version}")
        for size in (64, -1):
            layer, n_groups = linear(192, 64, torch.float16), 3 if size == 64 else 1
            scales = 0.05 + 0.3 * torch.rand((64, n_groups), generator=generator).half()
            zeros = torch.randint(0, 16, (64, n_groups), generator=generator).half()
            given = {"scales": scales, "zeros": zeros}
            if version == "gemm":
                given = {key: value.T.contiguous() for key, value in given.items()}
            group = 192 if size == -1 else size
            integers = torch.randint(0, 16, (64, 192), generator=generator)
            wide, shift = (value.repeat_interleave(group, dim=1) for value in (scales, zeros))
            layer.weight.data = (integers - shift) * wide
            packed = getattr(module, name).from_linear(layer, 4, group, **given)
            if version == "gemm":
                parts = packed.qweight, packed.qzeros, packed.scales
                values = sys.modules["awq.utils.packing_utils"].dequantize_gemm(*parts, 4, group).T
            elif version == "gemv":  # its kernels need CUDA: this is what they compute
                values = (integers - shift) * wide
            else:
                values = integers * wide.float() - (shift * wide).float()
            config = {"quant_method": "awq", "bits": 4, "group_size": size, "version": version, "zero_point": True}
            stored = {f"x.{part}": value for part, value in packed.state_dict().items()}
            yield f"awq {version} {size}", config, stored, values.half()


def main(gptq_folder: str, awq_folder: str) -> None:
    warnings.simplefilter("ignore")
    tensors, configs = {}, {}
    for cases in (bitsandbytes(), compressed_tensors(), gptq(pathlib.Path(gptq_folder)), awq(pathlib.Path(awq_folder))):
        for name, config, stored, values in cases:
            print(name, {part: (str(value.dtype), tuple(value.shape)) for part, value in stored.items()})
            configs[name] = config
            tensors |= {f"{name}/{part}": value.detach().contiguous() for part, value in stored.items()}
            tensors[f"{name}/values"] = values.detach().contiguous()
    save_file(tensors, FILE, {"configs": json.dumps(configs, sort_keys=True)})


if __name__ == "__main__":
    main(*sys.argv[1:])
