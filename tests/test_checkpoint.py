"""Folders of safetensors, native and of Hugging Face: saving, exporting, and errors for damaged files."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_torch
from support.tiny import write_checkpoint
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import models

from jaxlens import CheckpointError, Config, Tokenizer
from jaxlens.checkpoints import converter, export, load
from jaxlens.checkpoints.folder_reader import TensorFolder
from jaxlens.checkpoints.folder_writer import atomic_folder, write_json, write_tensors
from jaxlens.checkpoints.open import read_config
from jaxlens.checkpoints.safetensors_reader import read_json
from jaxlens.nn.parameters import parameter_shapes

SIZES = {"n_layers": 4, "d_model": 10, "n_heads": 6, "n_key_value_heads": 2, "d_head": 4, "d_vocab": 37, "n_ctx": 16}
CONFIGS = {
    "layer norms": Config(**SIZES, act_fn="gelu_new", windows=(None, 3, None, 3)),
    "folded": Config(**SIZES, normalization_type="LNPre", attn_only=True, default_prepend_bos=False),
    "rotary": Config(
        **SIZES,
        normalization_type="RMS",
        norm_placement="both",
        qk_norm="full",
        biases=("b_V", "b_U"),
        positional_embedding_type="rotary",
        tie_word_embeddings=True,
        gated_mlp=True,
        act_fn="silu",
    ),
    "experts": Config(
        **{**SIZES, "num_experts": 3, "experts_per_token": 2, "moe_layers": (False, True, True, False)},
        gated_mlp=True,
        act_fn="silu",
        normalization_type="RMS",
        biases=(),
    ),
}


def refused(text):
    return pytest.raises(CheckpointError, match=re.escape(text))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("llama") / "llama", "llama")


@pytest.fixture
def folder(llama, tmp_path):
    """A copy of a tiny Llama, which tests may modify."""
    return shutil.copytree(llama, tmp_path / "llama")


def random_parameters(cfg):
    """Random values for every parameter, including norms and biases."""
    rng = np.random.default_rng(0)
    shapes = parameter_shapes(cfg).items()
    return {name: jax.device_put(rng.normal(size=shape.shape).astype(shape.dtype)) for name, shape in shapes}


def assert_same_parameters(ours, theirs):
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        assert ours[name].dtype == value.dtype, name
        assert np.asarray(ours[name]).tobytes() == np.asarray(value).tobytes(), name


# ---- the native format ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_load_returns_what_save_wrote(tmp_path, kind, dtype):
    cfg = CONFIGS[kind].replace(dtype=dtype)
    params = random_parameters(cfg)
    folder = converter.save(tmp_path / "model", cfg, params, shard_bytes=2000)
    loaded = converter.load(folder)
    assert (loaded.cfg, loaded.tokenizer, loaded.source) == (cfg, None, None)
    assert_same_parameters(loaded.params, params)


def test_the_files_have_transformerlens_names(tmp_path):
    cfg = CONFIGS["experts"]
    params = random_parameters(cfg)
    converter.save(tmp_path / "model", cfg, params)
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    assert tensors["blocks.3.attn.W_Q"].shape == (6, 10, 4)
    assert np.array_equal(tensors["blocks.3.mlp.W_in"], params["blocks.0,3.mlp.W_in"][1])
    assert np.array_equal(tensors["blocks.2.mlp.W_in"], params["blocks.1-2.mlp.W_in"][1])
    assert read_json(tmp_path / "model" / "config.json")["model_type"] == "jaxlens"


def test_a_saved_model_keeps_its_tokenizer_and_source(folder, tmp_path):
    """Hugging Face -> native -> Hugging Face, bit for bit."""
    words = FastTokenizer(models.WordLevel({"a": 0, "b": 1, "<s>": 2}, unk_token="a"))
    Tokenizer(words, bos_token="<s>").save(folder)
    loaded = load(folder)
    converter.save(tmp_path / "ours", loaded.cfg, loaded.params, loaded.tokenizer, loaded.source)
    again = load(tmp_path / "ours", first_n_layers=2)
    assert again.cfg == loaded.cfg.first_layers(2)
    assert again.tokenizer.bos_token == "<s>"
    again = converter.load(tmp_path / "ours")
    assert again.source == loaded.source
    assert_same_parameters(again.params, loaded.params)
    export(tmp_path / "theirs", again.cfg, again.params, again.source, tokenizer=again.tokenizer)
    theirs, ours = load_file(folder / "model.safetensors"), load_file(tmp_path / "theirs" / "model.safetensors")
    assert {name: value.tobytes() for name, value in ours.items()} == {n: v.tobytes() for n, v in theirs.items()}
    assert load(tmp_path / "theirs").tokenizer.bos_token == "<s>"


def test_saving_replaces_only_folders_that_save_wrote(tmp_path):
    cfg = CONFIGS["folded"]
    params = random_parameters(cfg)
    for scale in (1, 2):
        scaled = {name: value * scale for name, value in params.items()}
        converter.save(tmp_path / "model", cfg, scaled)
        assert_same_parameters(converter.load(tmp_path / "model").params, scaled)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    with pytest.raises(FileExistsError, match="other exists and contains other files; remove it, or choose another"):
        converter.save(tmp_path / "other", cfg, params)


def test_invalid_native_folders(tmp_path, folder):
    cfg = CONFIGS["folded"]
    params = random_parameters(cfg)
    with refused("the rules of this family do not match the model: embed.W_E[] is filled 1 times, expected 0"):
        converter.save(tmp_path / "model", cfg, {name: w for name, w in params.items() if name != "embed.W_E"})
    assert not (tmp_path / "model").exists()
    with refused(f"{folder} is not in jaxlens's native format; use jaxlens.checkpoints.load"):
        converter.load(folder)
    config = read_json(converter.save(tmp_path / "model", cfg, params) / "config.json")
    for changes, text in (
        ({"version": 2}, "version is 2; expected 1: another version of jaxlens wrote this folder"),
        ({"config": {**config["config"], "d_modle": 3}}, "Config has no field ['d_modle']"),
        ({"config": {**config["config"], "rotary": [3]}}, "config.json: config is not a valid Config"),
        ({"config": {**config["config"], "embed_scale": "x"}}, "config.embed_scale is 'x'; expected float"),
        ({"config": {**config["config"], "attn_only": 1}}, "config.json: config.attn_only is 1; expected bool"),
        ({"source": [3]}, "config.json: source is [3]; expected an object or null"),
        ({"note": "hello"}, "config.json has fields that jaxlens does not read"),
        ({"config": {**config["config"], "d_head": 5}}, "attn.W_Q is (6, 10, 4), expected (6, 10, 5) = [n d h]"),
    ):
        write_json(tmp_path / "model" / "config.json", {**config, **changes})
        with refused(text):
            converter.load(tmp_path / "model")


def test_a_new_model_is_exported_with_a_given_config(tmp_path, folder):
    """`source` may come from another model with the same config."""
    source = read_json(folder / "config.json")
    cfg = dataclasses.replace(load(folder).cfg, init_mode="xavier_normal", default_prepend_bos=False)
    params = random_parameters(cfg)
    assert_same_parameters(load(export(tmp_path / "theirs", cfg, params, source)).params, params)


MEMORY = """
import gc, sys
from transformers import LlamaConfig  # which a new config.json needs
from jaxlens.checkpoints import load

def kilobytes(field):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field))

load(sys.argv[1])  # imports and first allocations
for large in sys.argv[2:]:
    gc.collect()
    before = kilobytes("VmRSS")
    open("/proc/self/clear_refs", "w").write("5")
    loaded = load(large)
    print((kilobytes("VmHWM") - before) * 1024 / sum(value.nbytes for value in loaded.params.values()))
    del loaded
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_loading_needs_little_more_memory_than_the_weights(tmp_path, llama):
    """At most 1.3 times the parameters in float32, for every stored dtype, in safetensors and PyTorch files."""
    wide = {"hidden_size": 768, "intermediate_size": 2048, "head_dim": 128, "vocab_size": 3001}
    large = [write_checkpoint(tmp_path / dtype, "llama", dtype=dtype, **wide) for dtype in ("float32", "bfloat16")]
    for folder in tuple(large):
        large.append(shutil.copytree(folder, folder.with_suffix(".pickled")))
        torch.save(load_torch(large[-1] / "model.safetensors"), large[-1] / "pytorch_model.bin")
        (large[-1] / "model.safetensors").unlink()
    program = [sys.executable, "-c", MEMORY, str(llama), *map(str, large)]
    ratios = subprocess.run(program, check=True, capture_output=True, text=True).stdout.split()
    assert all(float(ratio) < 1.3 for ratio in ratios), ratios


# ---- exports --------------------------------------------------------------------------------------------------------


def test_errors_of_export(folder, tmp_path):
    loaded = load(folder)
    with refused("this model has no Hugging Face config.json; pass the config.json of its architecture"):
        export(tmp_path / "a", loaded.cfg, loaded.params, None)
    folded = loaded.cfg.replace(normalization_type="RMSPre")
    with refused("a llama checkpoint cannot express this model: normalization_type is 'RMSPre', not 'RMS'"):
        export(tmp_path / "b", folded, loaded.params, loaded.source)
    with refused("the rules of this family do not match the model: embed.W_E[] is filled 1 times, expected 0"):
        params = {name: value for name, value in loaded.params.items() if name != "embed.W_E"}
        export(tmp_path / "c", loaded.cfg, params, loaded.source)
    with pytest.raises(FileExistsError, match="exists and contains other files"):
        export(folder, loaded.cfg, loaded.params, loaded.source)
    assert [path.name for path in tmp_path.iterdir()] == ["llama"]


def test_a_context_that_changes_the_frequencies_is_not_exported(folder, tmp_path):
    source = {
        **read_json(folder / "config.json"),
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 9.0, "factor": 2.0},
    }
    cfg = read_config(source)[1].replace(n_ctx=96)
    with refused("a llama checkpoint cannot express this model: n_ctx is 96, not 192, rotary is"):
        export(tmp_path / "a", cfg, {}, source)


# ---- files ----------------------------------------------------------------------------------------------------------


def test_damaged_files(folder):
    file = folder / "model.safetensors"
    intact = file.read_bytes()
    for damaged, text in (
        (intact[:-100], "cannot be read as safetensors"),
        (intact[:100], "cannot be read as safetensors"),
        (b"", "cannot be read as safetensors"),
        (b"\xff" * 8 + intact[8:], "cannot be read as safetensors"),
        (intact[:8] + b"x" + intact[9:], "cannot be read as safetensors"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "it is a Git LFS pointer"),
    ):
        file.write_bytes(damaged)
        with refused(f"{file} {text}" if "LFS" not in text else text):
            load(folder)


def test_config_files(folder):
    config = folder / "config.json"
    for content, text in (
        ("{", f"{config} cannot be read as JSON: Expecting property name"),
        ("[]", f"{config} contains a list; expected a JSON object"),
        ("[" * 100_000, f"{config} cannot be read as JSON"),
        ("\udcff", f"{config} cannot be read as JSON"),
    ):
        config.write_bytes(content.encode("utf-8", "surrogateescape"))
        with refused(text):
            load(folder)
    config.unlink()
    expected = "expected a folder with config.json, and safetensors or PyTorch files"
    with refused(f"{folder} has no config.json; {expected}. It contains"):
        load(folder)


def test_folders_without_weights(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with refused("It contains nothing"):
        load(tmp_path / "empty")
    (folder / "model.safetensors").unlink()
    with refused("contains no weights; expected model.safetensors, or model.safetensors.index.json and the files"):
        load(folder)
    for name in ("a.safetensors", "b.safetensors"):
        save_file({"x": np.zeros(1)}, folder / name)
    with refused("contains a.safetensors, b.safetensors, but no model.safetensors.index.json"):
        load(folder)


def test_a_single_file_is_not_a_folder(folder):
    with refused("is a single file; pass the folder that contains it and its config.json"):
        load(folder / "model.safetensors")


@pytest.fixture
def sharded(tmp_path):
    return write_checkpoint(tmp_path / "sharded", "llama", shard="20KB")


def edit_index(folder, change):
    index = read_json(folder / "model.safetensors.index.json")
    change(index["weight_map"])
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_a_half_downloaded_folder(sharded):
    files = sorted(sharded.glob("*.safetensors"))
    files[1].unlink()
    text = f"is incomplete: 1 of its {len(files)} shards are missing ({files[1].name}); download the folder again"
    with refused(text):
        load(sharded)


@pytest.mark.parametrize("file", ["../other.safetensors", "/etc/passwd", "a/b.safetensors", "..", "..\\x"])
def test_an_index_that_points_outside(sharded, file):
    edit_index(sharded, lambda names: names.update({"model.norm.weight": file}))
    with refused(f"lists {[file]}; expected only .safetensors files of the same folder"):
        load(sharded)


def test_a_single_file_takes_precedence_over_shards(sharded):
    """As in transformers, for example after a fine-tuned model was saved to the folder of the original."""
    tuned = {name: value + 1 for file in sharded.glob("*.safetensors") for name, value in load_file(file).items()}
    save_file(tuned, sharded / "model.safetensors")
    model = transformers.AutoModelForCausalLM.from_pretrained(sharded)
    assert np.array_equal(load(sharded).params["embed.W_E"], model.get_input_embeddings().weight.detach())
    assert np.array_equal(load(sharded).params["embed.W_E"], tuned["model.embed_tokens.weight"])


def test_an_index_that_does_not_match_its_shards(sharded):
    edit_index(sharded, lambda names: names.update({"model.more": names["model.norm.weight"]}))
    with refused("does not match the shards for 1 tensors; it lists model.more in model-0000"):
        load(sharded)
    edit_index(sharded, lambda names: [names.pop("model.more"), names.pop("model.norm.weight")])
    with refused("it lists model.norm.weight in no file, but the tensor is in model-0000"):
        load(sharded)
    edit_index(sharded, lambda names: names.clear())
    with refused("has no weight_map from tensor names to file names"):
        load(sharded)


def test_a_tensor_in_two_shards(sharded):
    first, second, *_ = sorted(sharded.glob("*.safetensors"))
    name = next(iter(load_file(first)))
    save_file({**load_file(second), name: np.zeros(1)}, second)
    with refused(f"{name} is in both {first.name} and {second.name}"):
        load(sharded)


def test_a_file_that_changes_after_its_header_was_read(folder):
    tensors = TensorFolder(folder)
    save_file({"other": np.zeros(3)}, folder / "model.safetensors")
    with refused("cannot be read as safetensors"):
        tensors.read("model.norm.weight")


KINDS = {"BF16": ml_dtypes.bfloat16, "F16": np.float16, "F64": np.float64, "F32": np.float32}


class Named:
    """Tensors from a dict. The first word of a name is the dtype of the written tensor."""

    def __init__(self, values):
        self.values = values
        self.names, self.read = values.keys, values.get

    def shape(self, name):
        return self.values[name].shape

    def dtype(self, name):
        return name.partition(" ")[0]


@pytest.mark.parametrize("shard_bytes", [10**6, 30])
def test_every_dtype_is_written_and_read(tmp_path, shard_bytes):
    values = {name: np.arange(6, dtype=kind).reshape(2, 3) for name, kind in KINDS.items()}
    values |= {"F32 scalar": np.float32(3), "F32 empty": np.zeros((0, 5), np.float32)}
    write_tensors(tmp_path, Named(values), shard_bytes)
    tensors = TensorFolder(tmp_path)
    for name, value in values.items():
        assert (tensors.dtype(name), tensors.shape(name)) == (name.partition(" ")[0], value.shape)
        assert tensors.read(name).dtype == value.dtype
        assert tensors.read(name).tobytes() == value.tobytes()
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) == (1 if shard_bytes > 1000 else 3)
    assert all(set(load_file(file)) for file in files)


def test_a_tensor_is_cast_and_written_in_chunks(tmp_path):
    large = np.random.default_rng(0).normal(size=(3, 2**20)).astype(np.float32).T  # not contiguous, several chunks
    write_tensors(tmp_path, Named({"F16": large}), 10**9)
    assert np.array_equal(TensorFolder(tmp_path).read("F16"), large.astype(np.float16))
    with pytest.warns(UserWarning, match="weights contain NaN or infinity: F16$"):
        write_tensors(tmp_path, Named({"F16": large * 1e9, "F32": large}), 10**9)


def test_a_folder_appears_only_when_it_is_complete(tmp_path):
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "new") as partial:
        (partial / "file").write_text("half")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="full exists and contains other files; remove it, or choose another"):
        atomic_folder(tmp_path / "full").__enter__()
    with pytest.raises(FileExistsError, match="late exists and contains"), atomic_folder(tmp_path / "late"):
        (tmp_path / "full").rename(tmp_path / "late")  # another process creates the folder in the meantime
    assert [path.name for path in tmp_path.rglob("*")] == ["late", "thesis.txt"]
