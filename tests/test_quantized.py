"""Quantized checkpoints: weights equal those that the libraries compute, and the models compute the same logits."""

import functools
import json
import pathlib
import re
import shutil
import sys
import tempfile

import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support import packers
from support.memory import peak_memory
from support.mistakes import Case, unreached
from support.regenerate_quantized import FILE
from support.tiny import hf_logits, random_tokens, write_checkpoint
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

from jaxlens import CheckpointError, HookedTransformer
from jaxlens.checkpoints import arrays, export, load, open_checkpoint
from jaxlens.checkpoints.quantized import tensors as tensors_module
from jaxlens.checkpoints.quantized.methods import METHODS, read_quantization
from jaxlens.checkpoints.quantized.packed import round_to
from jaxlens.checkpoints.quantized.tensors import DequantizedTensors
from jaxlens.checkpoints.readable import QUANTIZED
from jaxlens.checkpoints.rules.hf_config import Reader
from jaxlens.checkpoints.rules.rule import FLOATS
from jaxlens.checkpoints.safetensors_reader import SafetensorsFile
from jaxlens.checkpoints.torch_files.dtypes import DTYPES
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
    assert tensors.dtype("x.weight") == stored.dtype("values")
    assert np.array_equal(values.astype(expected.dtype), expected)
    assert np.array_equal(values, expected.astype(np.float32))


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
GROUPS = {"rows": ROWS["config_groups"]["group_0"], "words": WORDS["config_groups"]["group_0"]}
MIXED = {**WORDS, "format": "mixed-precision", "config_groups": GROUPS}
EVEN = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
GPT2 = {"n_embd": 96, "tie_word_embeddings": True}
FOUR = functools.partial(packers.int4_words, size=4)
ONE_FLOAT8 = functools.partial(packers.float8, height=None, width=None)
ONE_SCALE = {**FP8, "weight_block_size": None, "activation_scheme": "static"}
MODELS = {
    "FP8, a mixture of experts in shards": ("qwen3_moe", packers.float8, FP8, {"shard": "30KB"}),
    "FP8, all experts in one tensor": ("granitemoe", packers.float8, FP8, {"tie_word_embeddings": True}),
    "FP8, latent attention": ("deepseek_v3", packers.float8, FP8, {}),
    "FP8, a scale per tensor": ("ministral3", ONE_FLOAT8, ONE_SCALE, {}),
    "FP8, multimodal": ("gemma3", packers.float8, FP8, {}),
    "compressed-tensors, four bits": ("llama", FOUR, WORDS, {"tie_word_embeddings": True}),
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
    assert loaded.cfg == dense.cfg
    compare(loaded, dense)
    assert "quantization_config" not in loaded.source


@pytest.mark.parametrize("case", MODELS)
def test_loading_a_model_in_many_parts(models, case, monkeypatch):
    """Values do not depend on how many are computed at a time."""
    expected, packed = models(case)
    dense = load(expected)
    monkeypatch.setattr(arrays, "AT_ONCE", 100)
    compare(load(packed), dense)


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_rounding_equals_a_conversion(dtype):
    """Of ties, and of values that are too large or too small for the dtype."""
    random = np.random.default_rng(0)
    halves = np.arange(2**12, 2**13, dtype=np.float32) * np.float32(2**-12)
    for values in (halves, random.standard_normal(1000) * 1e-6, random.standard_normal(1000) * 1e5, [0, np.inf, -1e38]):
        values = np.array(values, np.float32)
        with np.errstate(over="ignore"):
            expected = values.astype(FLOATS[dtype]).astype(np.float32)
            round_to(values, dtype)
        assert np.array_equal(values, expected)


@pytest.mark.parametrize("case", MODELS)
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



@pytest.mark.parametrize("case", ["FP8, a mixture of experts in shards", "AWQ"])
def test_experts_that_transformers_has_stacked(models, tmp_path, case):
    """`save_pretrained(save_original_format=False)` writes all experts of a layer in one tensor, here also in FP8."""
    expected, _ = models(case)
    model = transformers.AutoModelForCausalLM.from_pretrained(expected, dtype=torch.float32)
    model.save_pretrained(tmp_path / "dense", save_original_format=False)
    packed = shutil.copytree(tmp_path / "dense", tmp_path / "packed")
    dense = load_file(packed / "model.safetensors")
    assert not [name for name in dense if "experts.0" in name]
    compare(load(packed), load(expected))
    stored = dict(dense)
    for name in [name for name in dense if "experts." in name]:
        parts, values = packers.float8(dense[name])
        dense[name] = values.contiguous()
        stored |= {name: parts["weight"], f"{name}_scale_inv": parts["weight_scale_inv"]}
    save_file(dense, tmp_path / "dense" / "model.safetensors", {"format": "pt"})
    save_file(stored, packed / "model.safetensors", {"format": "pt"})
    edit_config(packed, quantization_config=FP8)
    compare(load(packed), load(tmp_path / "dense"))


def compare(loaded, expected):
    assert loaded.params.keys() == expected.params.keys()
    for name, value in expected.params.items():
        assert np.array_equal(loaded.params[name], value), name


# ---- variants of files ----------------------------------------------------------------------------------------------


@pytest.fixture
def copied(models, tmp_path):
    """A function that returns a copy of the quantized folder of a case, which tests may modify."""
    return lambda case: shutil.copytree(models(case)[1], tmp_path / "copied")


def edit_tensors(folder, remove=(), **changes):
    tensors = load_file(folder / "model.safetensors") | changes
    kept = {name: value for name, value in tensors.items() if name not in remove}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})


def test_biases_that_older_versions_of_autogptq_added(models, copied):
    """Of zeros, to every quantized layer; those of a model without such biases are left out."""
    case = "GPTQ, fused projections"
    folder = copied(case)
    layers = [name.removesuffix("qweight") for name in tensors_of(folder) if name.endswith("qweight")]
    edit_tensors(folder, **{f"{layer}bias": torch.zeros(96) for layer in layers})
    compare(load(folder), load(models(case)[0]))
    edit_tensors(folder, **{f"{layers[0]}bias": torch.ones(96)})
    with pytest.raises(CheckpointError, match=re.escape(f"{layers[0]}bias is not zero; expected no bias")):
        load(folder)


@pytest.mark.parametrize(
    ("case", "file", "fields"),
    [
        ("GPTQ", "quantize_config.json", {"bits": 4, "group_size": 32, "desc_act": True, "model_name_or_path": "a"}),
        ("AWQ", "quant_config.json", {"w_bit": 4, "q_group_size": 32, "zero_point": True, "version": "GEMM"}),
    ],
)
def test_a_quantization_in_a_file_of_its_own(models, copied, case, file, fields):
    folder = copied(case)
    edit_config(folder, quantization_config=None)
    (folder / file).write_text(json.dumps(fields))
    compare(load(folder), load(models(case)[0]))


def test_a_quantization_inside_text_config(models, copied):
    folder = copied("FP8, multimodal")
    text = json.loads((folder / "config.json").read_text())["text_config"]
    edit_config(folder, quantization_config=None, text_config={**text, "quantization_config": FP8})
    compare(load(folder), load(models("FP8, multimodal")[0]))


def test_pytorch_files(models, copied):
    folder = copied("GPTQ")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    compare(load(folder), load(models("GPTQ")[0]))


@pytest.mark.parametrize(
    ("config", "packer"),
    [
        ({**GPTQ, "checkpoint_format": "gptq_v2"}, functools.partial(packers.gptq, v2=True)),
        ({**GPTQ, "format": "gptq_v2", "checkpoint_format": None}, functools.partial(packers.gptq, v2=True)),
        ({"quant_method": "auto-round", "bits": 4, "group_size": 32, "sym": True, "data_type": "int",
          "packing_format": "auto_round:auto_gptq", "iters": 200}, functools.partial(packers.gptq, index=False)),
        ({"quant_method": "intel/auto-round", "bits": 4, "group_size": 32, "packing_format": "auto_round"},
         functools.partial(packers.gptq, v2=True, index=False)),
        ({"quant_method": "auto-round", "bits": 4, "group_size": 32, "packing_format": "auto_round:auto_awq"},
         packers.awq),
        ({**GPTQ, "dynamic": {"+:.*x": {"bits": 8}}}, functools.partial(packers.gptq, bits=8)),
        ({**GPTQ, "bits": 5}, functools.partial(packers.gptq, bits=5, index=False)),
        ({"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0, "modules_to_not_convert": ["lm_head"]},
         functools.partial(packers.float8, height=1, width=None, scale="_scale")),
        ({"quant_method": "compressed-tensors", "sparsity_config": {"format": "dense"}, "quantization_config": WORDS},
         FOUR),
        (MIXED, FOUR),
        (MIXED, packers.int8_rows),
        ({"quant_method": "mxfp8", "scale_fmt": "ue8m0"}, None),
    ],
)  # fmt: skip
def test_other_formats(config, packer):
    weight = torch.randn(64, 96, generator=torch.Generator().manual_seed(0))
    if packer is None:
        exponents = torch.randint(120, 130, (64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
        stored = {"weight": weight.to(torch.float8_e4m3fn), "weight_scale_inv": exponents}
        values = stored["weight"].float() * (2.0 ** (exponents.float() - 127)).repeat_interleave(32, dim=1)
    else:
        stored, values = packer(weight)
    assert np.array_equal(dequantized(config, stored), values)


def test_the_names_of_llm_awq():
    """The layout of AutoAWQ's gemv_fast, whose zero points have another name."""
    case = "awq gemv_fast 64"
    stored = Stored(case)
    renamed = {"qzeros": "scaled_zeros"}
    tensors = {name[2:]: torch.tensor(stored.read(name)) for name in stored.names()}
    config = {**CONFIGS[case], "version": "llm-awq", "backend": "llm-awq"}
    values = dequantized(config, {renamed.get(name, name): value for name, value in tensors.items()})
    assert np.array_equal(values, stored.read("values").astype(np.float32))


class Memory:
    """Tensors from a dict, as a checkpoint has them."""

    def __init__(self, tensors):
        self.file = pathlib.Path(tempfile.mkdtemp()) / "model.safetensors"
        save_file({f"x.{name}": value.contiguous() for name, value in tensors.items()}, self.file)
        file = SafetensorsFile(self.file)
        self.names, self.dtype, self.shape, self.read = file.names, file.dtype, file.shape, file.read


def dequantized(config, stored):
    """The weight of a layer that is stored as `stored`."""
    hf = Reader({"quantization_config": config})
    tensors = DequantizedTensors(Memory(stored), read_quantization(hf, {}))
    hf.check_all_read()
    return tensors.read("x.weight").astype(np.float32)


def test_scales_of_activation_functions(models, tmp_path):
    """AWQ divides the result of some activation functions by scales, here those of GPT-NeoX."""
    fields = {"hidden_size": 96, "intermediate_size": 64}
    expected, packed = quantize(tmp_path, "gpt_neox", packers.awq, AWQ, fields)
    dense, scales = load_file(expected / "model.safetensors"), {}
    for layer in range(3):
        name, scale = f"gpt_neox.layers.{layer}.mlp", (1 + torch.rand(64)).half()
        scales[f"{name}.act.scales"] = scale
        dense[f"{name}.dense_4h_to_h.weight"] /= scale.float()
    edit_tensors(packed, **scales)
    save_file(dense, expected / "model.safetensors", {"format": "pt"})
    compare(load(packed), load(expected))
    edit_tensors(packed, **{"gpt_neox.layers.0.mlp.act.scales": torch.ones(3)})
    with pytest.raises(CheckpointError, match=r"act.scales has shape \(3,\); expected \(64,\), a scale for each input"):
        load(packed)


def test_activations_are_not_quantized(models, copied):
    """Scales of activations and of cached keys and values are left out."""
    folder = copied("compressed-tensors, eight bits")
    scales = {
        f"gpt_neox.layers.0.attention.{name}": torch.ones(1)
        for name in ("dense.input_scale", "dense.input_zero_point", "k_scale", "v_scale", "dense.output_scale")
    }
    edit_tensors(folder, **scales)
    compare(load(folder), load(models("compressed-tensors, eight bits")[0]))


# ---- commands -------------------------------------------------------------------------------------------------------


def test_commands(models, tmp_path, capsys):
    expected, packed = models("bitsandbytes, four bits")
    assert run("inspect", packed) == 0
    stored = "bitsandbytes: 12 as 4-bit NF4 in blocks of 64"
    assert f"quantized   {stored}; dequantized when it is read" in capsys.readouterr().out
    assert run("convert", packed, tmp_path / "native", "--dtype", "float32") == 0
    assert f"dequantized from {stored}" in capsys.readouterr().out
    assert run("export", packed, tmp_path / "exported", "--dtype", "float32") == 0
    assert f"dequantized from {stored}" in capsys.readouterr().out
    fields = json.loads((tmp_path / "exported" / "config.json").read_text())
    assert "quantization_config" not in fields
    dense, exported = tensors_of(expected), tensors_of(tmp_path / "exported")
    assert all(torch.equal(exported[name], dense[name]) for name in exported)
    compare(load(tmp_path / "native"), load(expected))
    assert run("verify", packed, "--length", "8") == 0
    assert "passed" in capsys.readouterr().out


def run(*arguments):
    return main([*map(str, arguments)]) or 0


def test_values_are_rounded_to_the_dtype_of_the_model_once(models, copied):
    """FP8 has the dtype that config.json states, and is loaded in float32 without rounding."""
    folder, name = copied("FP8, a scale per tensor"), "model.layers.0.mlp.up_proj.weight"
    edit_config(folder, dtype="bfloat16")
    expected = load(models("FP8, a scale per tensor")[0])
    assert open_checkpoint(folder).tensors.dtype(name) == "BF16"
    compare(load(folder), expected)
    for name, value in load(folder, dtype="bfloat16").params.items():
        assert np.array_equal(value, expected.params[name].astype("bfloat16")), name


def test_exporting_with_the_config_of_a_quantized_checkpoint(models, tmp_path):
    expected, packed = models("FP8, multimodal")
    loaded, source = load(expected), json.loads((packed / "config.json").read_text())
    folder = export(tmp_path / "exported", loaded.cfg, loaded.params, source)
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())


# ---- damages --------------------------------------------------------------------------------------------------------


class Damaged:
    """The tensors of a case, of which one is damaged at random."""

    def __init__(self, case, random):
        stored = Stored(case)
        self.tensors = {name: stored.read(name) for name in stored.names()}
        name = random.choice(sorted(self.tensors))
        value = self.tensors.pop(name)
        damages = [
            dict,
            lambda: {name: value.reshape(-1)[: random.integers(value.size + 1)]},
            lambda: {name: value[None]},
            lambda: {name: np.zeros(value.shape, random.choice([np.float32, np.int32, np.int8, np.uint8]))},
            lambda: {name: value.reshape(-1)[:1].reshape(())},
            lambda: {name: np.frombuffer(random.bytes(value.nbytes), value.dtype).reshape(value.shape)},
            lambda: {name: value, f"y.{name}": value},
        ]
        self.tensors |= damages[random.integers(len(damages))]()

    def names(self):
        return list(self.tensors)

    def dtype(self, name):
        names = {np.dtype(dtype): safetensors for safetensors, dtype in DTYPES.items()}
        return names[self.tensors[name].dtype]

    def shape(self, name):
        return self.tensors[name].shape

    def read(self, name):
        return self.tensors[name]


def test_damaged_weights_are_read_or_refused():
    random, refused, quantizations = np.random.default_rng(0), 0, {}
    for case in random.choice(list(CONFIGS), 400):
        if case not in quantizations:
            quantizations[case] = read_quantization(Reader({"quantization_config": CONFIGS[case]}), {})
        try:
            tensors = DequantizedTensors(Damaged(case, random), quantizations[case])
            assert all(tensors.read(name).shape == tensors.shape(name) for name in tensors.names())
        except CheckpointError:
            refused += 1
    assert 200 < refused < 400


# ---- memory ---------------------------------------------------------------------------------------------------------

@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_loading_needs_little_more_memory_than_the_weights(models, tmp_path):
    """At most 1.3 times the parameters in float32."""
    wide = {"hidden_size": 768, "intermediate_size": 1024, "head_dim": 64, "vocab_size": 301}
    fp8 = functools.partial(packers.float8, height=128, width=128)
    cases = {
        "fp8": (fp8, {**FP8, "weight_block_size": [128, 128]}), "nf4": (packers.nf4, NF4),
        "gptq": (packers.gptq, GPTQ), "awq": (packers.awq, AWQ),
    }  # fmt: skip
    folders = [quantize(tmp_path / name, "llama", *case, wide)[1] for name, case in cases.items()]
    for folder in folders:
        open_checkpoint(folder)  # completes its config with transformers, which takes memory only once
    ratios = peak_memory(models("AWQ")[1], folders)
    assert len(ratios) == len(cases) and max(ratios) < 1.3, ratios


# ---- errors ---------------------------------------------------------------------------------------------------------

UNSUPPORTED = (
    "aqlm", "bitnet", "eetq", "exl2", "fouroversix", "fp_quant", "gemma", "gguf", "higgs", "hqq", "metal", "modelopt",
    "nvfp4", "quanto", "quark", "sinq", "spqr", "torchao", "vptq",
)  # fmt: skip


@pytest.mark.parametrize("method", UNSUPPORTED)
def test_other_methods_are_refused_by_name(method):
    with pytest.raises(CheckpointError, match=f"quant_method is '{method}'; expected one of .* save model.dequantize"):
        dequantized({"quant_method": method}, {})


def test_every_method_of_transformers_is_supported_or_refused():
    theirs = {name.removesuffix("_4bit").removesuffix("_8bit") for name in AUTO_QUANTIZER_MAPPING}
    assert theirs <= METHODS.keys() | set(UNSUPPORTED)


def test_fields_that_are_not_known():
    with pytest.raises(CheckpointError, match=r"quantization_config\.outliers = 3"):
        dequantized({**GPTQ, "outliers": 3}, packers.gptq(WEIGHT)[0])


WEIGHT = torch.randn(64, 96, generator=torch.Generator().manual_seed(0))
E4M3 = packers.float8(WEIGHT)[0]


def mistake(text, config, packer, remove=(), **changes):
    """Reads a weight whose stored tensors have been changed."""
    stored = {**(packer(WEIGHT)[0] if callable(packer) else packer), **changes}
    kept = {name: value for name, value in stored.items() if name not in remove}
    return Case(lambda: dequantized(config, kept), CheckpointError, text)


def ints(*shape, dtype=torch.int32):
    return torch.zeros(shape, dtype=dtype)


def state(**changes):
    """The JSON of an NF4 weight with other fields."""
    fields = {"quant_type": "nf4", "blocksize": 64, "dtype": "float16", "shape": [64, 96], **changes}
    return {"weight.quant_state.bitsandbytes__nf4": torch.tensor([*json.dumps(fields).encode()], dtype=torch.uint8)}


SPARSE = {"format": "sparse-24-bitmask"}
OTHER_ROUND = {"quant_method": "auto-round", "packing_format": "auto_round:llm_compressor"}
INDEX = {"weight_g_idx": torch.arange(96, dtype=torch.int32)}
def not_described():
    """Tensors of GPTQ, and a config.json that describes no quantization."""
    tensors_module.dequantized(Memory(packers.gptq(WEIGHT)[0]), None)


CASES = {
    "no description": Case(not_described, CheckpointError, "x.qweight is part of a quantized weight, but config"),
    "a missing part": mistake("x.scales missing beside x.qweight, x.qzeros", GPTQ, packers.gptq, ["scales"]),
    "a leftover part": mistake(
        "x.y.weight_scale_inv belongs to no weight", FP8, E4M3, **{"y.weight_scale_inv": torch.ones(1)}
    ),
    "a weight stored twice": mistake("is stored twice, quantized with AWQ and not", AWQ, packers.awq, weight=WEIGHT),
    "nothing quantized": mistake("describes GPTQ, but no weight is stored so; remove", GPTQ, {"weight": WEIGHT}),
    "a wrong dtype": mistake("x.scales is I32 of shape (3, 64); expected F64", AWQ, packers.awq, scales=ints(3, 64)),
    "another method": mistake("is 'hqq'; expected one of auto-round, awq, bits", {"quant_method": "hqq"}, {}),
    "another format of AutoRound": mistake("llm_compressor'; expected one of auto_round, ", OTHER_ROUND, {}),
    # FP8
    "FP8 without scales": mistake("x.weight_scale_inv missing beside x.weight", FP8, E4M3, ["weight_scale_inv"]),
    "FP8 with two scales": mistake("two scales, x.weight_scale_inv and x.w", FP8, E4M3, weight_scale=torch.ones(1)),
    "FP8 with other scales": mistake(
        "one scale, or a scale for each row or each block of 16 x 16", FP8, E4M3, weight_scale_inv=torch.ones(5, 6)
    ),
    "FP8 in no blocks": mistake("is [16]; expected two positive", {**FP8, "weight_block_size": [16]}, E4M3),
    "FP4 experts": mistake("expert_dtype is 'fp4'; expected 'fp8'", {**FP8, "expert_dtype": "fp4"}, E4M3),
    # compressed-tensors
    "sparse weights": mistake("sparsity_config is", {**WORDS, "sparsity_config": SPARSE}, FOUR),
    "rotated weights": mistake("neither sparse nor rotated", {**WORDS, "transform_config": {"R1": {}}}, FOUR),
    "an unknown format": mistake("is 'marlin-24'; expected 'dense' or", {**WORDS, "format": "marlin-24"}, FOUR),
    "a scheme by its name": mistake(
        "W4A16 is ['Linear']; expected an object", {**WORDS, "config_groups": {"W4A16": ["Linear"]}}, FOUR
    ),
    "words of another size": mistake(
        "expected 8 bits per integer (config_groups)", compressed("pack-quantized", num_bits=8, group_size=4), FOUR
    ),
    "groups of another size": mistake("a scale per tensor, row, group", WORDS, FOUR, weight_scale=torch.ones(64, 7)),
    "a group that is not there": mistake("contains 95; expected indices of 24 groups", WORDS, FOUR, **INDEX),
    # bitsandbytes
    "no bits": mistake("expected load_in_4bit or load_in_8bit to be true", {"quant_method": "bitsandbytes"}, {}),
    "three axes": mistake(
        "expected two axes, as bitsandbytes", INT8, packers.llm_int8, weight=ints(64, 2, 3, dtype=torch.int8)
    ),
    "the layout of a GPU": mistake(
        "expected 0 (by rows)", INT8, packers.llm_int8, weight_format=torch.tensor(2, dtype=torch.uint8)
    ),
    "no state": mistake(
        "is not a state of bitsandbytes", NF4, packers.nf4,
        **{"weight.quant_state.bitsandbytes__nf4": ints(3, dtype=torch.uint8)},
    ),
    "no shape": mistake("ValueError('sizes are [64, -96, 64]')", NF4, packers.nf4, **state(shape=[64, -96])),
    "no dtype": mistake("dtype is 'int8'", NF4, packers.nf4, **state(dtype="int8")),
    "another type": mistake("quant_type is 'fp4'", NF4, packers.nf4, **state(quant_type="fp4")),
    "bytes missing": mistake("has 7 bytes; expected two", NF4, packers.nf4, weight=ints(7, 1, dtype=torch.uint8)),
    # GPTQ
    "Marlin": mistake("is 'marlin'; expected gptq or", {**GPTQ, "checkpoint_format": "marlin"}, packers.gptq),
    "too many bits": mistake("bits is 16; expected 2 to 8", {**GPTQ, "bits": 16}, packers.gptq),
    "one axis": mistake("x.scales (64,); expected two axes each", GPTQ, packers.gptq, scales=torch.ones(64)),
    "a number of words": mistake("expected 4 bits for each (quantiz", GPTQ, packers.gptq, qweight=ints(13, 64)),
    "no such group": mistake("has groups from 3 to 3, and x.scales has 3", GPTQ, packers.gptq, g_idx=ints(96) + 3),
    "no groups": mistake(
        "x.g_idx is missing, the group of each input, but quantization_config has desc_act = true",
        {**GPTQ, "desc_act": True}, packers.gptq, remove=["g_idx"],
    ),
    # AWQ
    "scales of another activation": mistake(
        "x.act.scales has shape (5,); expected (96,)", AWQ,
        {f"fc_out.{name}": value for name, value in packers.awq(WEIGHT)[0].items()},
        **{"act.scales": torch.ones(5)},
    ),
    "another version": mistake("expected gemm or gemv or gemv_fast", {**AWQ, "version": "marlin"}, packers.awq),
    "eight bits": mistake("bits is 8; expected 4: AWQ stores four bits", {**AWQ, "bits": 8}, packers.awq),
    "one axis of words": mistake("x.qweight has shape (8,); expected two axes", AWQ, packers.awq, qweight=ints(8)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_a_mistake_is_answered_with(name):
    CASES[name].check()


def test_every_error_message_is_produced_by_a_mistake():
    assert unreached(__file__, CASES.values()) == []


def test_every_method_is_in_the_table_of_files():
    listed = {name for row in QUANTIZED for name in re.findall("`([^`]+)`", row[0])}
    assert listed == METHODS.keys()
