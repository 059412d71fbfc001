"""Quantized checkpoints: weights equal those that the libraries compute, and the models compute the same logits."""

import functools
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support import packers
from support.mistakes import Case, unreached
from support.regenerate_quantized import FILE
from support.tiny import hf_logits, random_tokens, write_checkpoint

from jaxlens import CheckpointError, HookedTransformer
from jaxlens.checkpoints import load, open_checkpoint
from jaxlens.checkpoints.converter import convert, convert_back
from jaxlens.checkpoints.quantized.methods import METHODS, read_quantization
from jaxlens.checkpoints.quantized.tensors import DequantizedTensors
from jaxlens.checkpoints.rules.hf_config import Reader
from jaxlens.checkpoints.safetensors_reader import SafetensorsFile
from jaxlens.cli import main

# ---- weights as the libraries compute them --------------------------------------------------------------------------

with safe_open(FILE, "np") as opened:
    CONFIGS = json.loads(opened.metadata()["configs"])


class Stored:
    """The tensors of one case in the file that `regenerate_quantized.py` writes."""

    def __init__(self, case):
        self.file, self.prefix = SafetensorsFile(FILE), f"{case}/"

    def names(self):
        names = (name.removeprefix(self.prefix) for name in self.file.names() if name.startswith(self.prefix))
        return [name for name in names if name != "values"]

    def __getattr__(self, method):
        return lambda name: getattr(self.file, method)(self.prefix + name)


@pytest.mark.parametrize("case", CONFIGS)
def test_weights_equal_those_of_the_library(case):
    hf, stored = Reader({"quantization_config": CONFIGS[case]}), Stored(case)
    tensors = DequantizedTensors(stored, read_quantization(hf, {}))
    hf.check_all_read()
    values, expected = tensors.read("x.weight"), stored.read("values")
    assert tensors.names() == ["x.weight"]
    assert tensors.shape("x.weight") == values.shape == expected.shape
    assert values.dtype == expected.dtype
    assert np.array_equal(values.view(np.uint8), expected.view(np.uint8)) or np.array_equal(values, expected)


# ---- models ---------------------------------------------------------------------------------------------------------

LAYERS = re.compile(r"(_proj(_with_mqa)?|\.w[123]|c_attn|c_fc|_linear|_h|dense|query_key_value)\.weight$")
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [16, 16]}
GPTQ = {
    "quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": False, "damp_percent": 0.1,
    "dataset": "c4", "true_sequential": True, "modules_in_block_to_quantize": None, "checkpoint_format": "gptq",
}  # fmt: skip
AWQ = {
    "quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True, "backend": "autoawq",
    "modules_to_not_convert": None, "do_fuse": False,
}  # fmt: skip
NF4 = {
    "quant_method": "bitsandbytes", "_load_in_4bit": True, "_load_in_8bit": False, "load_in_4bit": True,
    "load_in_8bit": False, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "float16", "llm_int8_threshold": 6.0,
}  # fmt: skip
INT8 = {"load_in_8bit": True, "llm_int8_skip_modules": None}  # as before `quant_method` was written


def compressed(format, **weights):
    group = {"targets": ["Linear"], "weights": {"symmetric": True, "type": "int", **weights}, "input_activations": None}
    return {
        "quant_method": "compressed-tensors", "format": format, "ignore": ["lm_head", "re:.*router.*"],
        "config_groups": {"group_0": group}, "quantization_status": "compressed", "kv_cache_scheme": None,
    }  # fmt: skip


WORDS = compressed("pack-quantized", num_bits=4, strategy="group", group_size=4)
ROWS = compressed("int-quantized", num_bits=8, strategy="channel", group_size=None)
EVEN = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
GPT2 = {"n_embd": 96, "tie_word_embeddings": True}
ONE_SCALE = {**FP8, "weight_block_size": None, "activation_scheme": "static"}
MODELS = {
    "FP8, a mixture of experts in shards": ("qwen3_moe", packers.float8, FP8, {"shard": "30KB"}),
    "FP8, all experts in one tensor": ("granitemoe", packers.float8, FP8, {"tie_word_embeddings": True}),
    "FP8, latent attention": ("deepseek_v3", packers.float8, FP8, {}),
    "FP8, a scale per tensor": ("ministral3", functools.partial(packers.float8, height=None, width=None), ONE_SCALE, {}),
    "FP8, multimodal": ("gemma3", packers.float8, FP8, {}),
    "compressed-tensors, four bits": ("llama", functools.partial(packers.int4_words, size=4), WORDS, {"tie_word_embeddings": True}),
    "compressed-tensors, eight bits": ("gpt_neox", packers.int8_rows, ROWS, {}),
    "bitsandbytes, four bits": ("gpt2", packers.nf4, NF4, {}),
    "bitsandbytes, eight bits": ("phi3", packers.llm_int8, INT8, {}),
    "GPTQ": ("qwen2", functools.partial(packers.gptq, seed=3), {**GPTQ, "desc_act": True}, EVEN),
    "GPTQ of a Conv1D": ("gpt2", packers.gptq, GPTQ, GPT2),
    "GPTQ, fused projections": ("phi3", functools.partial(packers.gptq, bits=3), {**GPTQ, "bits": 3}, EVEN),
    "AWQ": ("mixtral", packers.awq, AWQ, {**EVEN, "shard": "200KB"}),
}  # fmt: skip


def tensors_of(folder):
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


def edit_config(folder, **fields):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))


def quantize(root, model_type, packer, config, fields):
    """A model with dequantized weights, written by transformers, and the same model quantized: (expected, packed)."""
    expected = write_checkpoint(root / "expected", model_type, **fields)
    packed = shutil.copytree(expected, root / "packed")
    for file in expected.glob("*.safetensors"):
        tensors, stored = load_file(file), {}
        for name, value in tensors.items():
            if "vision" in name or not LAYERS.search(name):
                stored[name] = value
                continue
            transposed = model_type == "gpt2"
            parts, values = packer(value.T if transposed else value)
            tensors[name] = (values.T if transposed else values).contiguous()
            stored |= {name.removesuffix("weight") + part: part_value for part, part_value in parts.items()}
        save_file(tensors, file, {"format": "pt"})
        save_file(stored, packed / file.name, {"format": "pt"})
    if (index := packed / "model.safetensors.index.json").exists():
        shards = {name: file.name for file in packed.glob("*.safetensors") for name in load_file(file)}
        index.write_text(json.dumps({"weight_map": shards}))
    edit_config(packed, quantization_config=config)
    return expected, packed


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A function that returns the two folders of a case of `MODELS`. Tests modify copies of them."""
    return functools.cache(lambda case: quantize(tmp_path_factory.mktemp("quantized"), *MODELS[case]))


@pytest.mark.parametrize("case", MODELS)
def test_loading_a_model(models, case):
    expected, packed = models(case)
    loaded, dense = load(packed), load(expected)
    assert loaded.cfg.replace(tokenizer_name=None) == dense.cfg.replace(tokenizer_name=None)
    for name, value in dense.params.items():
        assert np.array_equal(loaded.params[name], value), name
    assert "quantization_config" not in loaded.source


@pytest.mark.parametrize("case", ["FP8, a mixture of experts in shards", "bitsandbytes, four bits", "AWQ"])
def test_logits_equal_those_of_transformers(models, case):
    expected, packed = models(case)
    loaded, tokens = load(packed), random_tokens(0, length=20)
    ours = np.asarray(HookedTransformer(loaded.cfg, params=loaded.params)(tokens))
    theirs = hf_logits(expected, tokens)
    assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()


def test_transformers_dequantizes_to_the_same_logits(tmp_path):
    """Without a GPU, transformers dequantizes FP8 too, if every block is whole."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
    expected, packed = quantize(tmp_path, "qwen3", packers.float8, FP8, sizes)
    tokens = random_tokens(0, length=9)
    theirs = hf_logits(packed, tokens)
    assert np.array_equal(theirs, hf_logits(expected, tokens))
