"""Files that torch wrote are read without torch, with the values that torch reads from them."""

import collections
import json
import re
import shutil
import subprocess
import sys
import warnings
import zipfile

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support.tiny import hf_logits, random_tokens, write_checkpoint

from jaxlens import CheckpointError, HookedTransformer
from jaxlens.checkpoints import converter, hub, load, open_checkpoint
from jaxlens.checkpoints.inspector import look
from jaxlens.checkpoints.torch_files.dtypes import DTYPES, TORCH_NAMES
from jaxlens.checkpoints.torch_files.file import TorchFile


def refused(text):
    return pytest.raises(CheckpointError, match=re.escape(text))


def save(path, value, **options):
    torch.save(value, path, **options)
    return path


def bits(tensor):
    """The bytes of a tensor of torch, in the order of its axes."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_equals_torch(file, tensors):
    assert file.names() == list(tensors)
    for name, tensor in tensors.items():
        value = file.read(name)
        assert value.shape == file.shape(name) == tuple(tensor.shape), name
        assert value.dtype == DTYPES[file.dtype(name)], name
        assert value.tobytes() == bits(tensor), name
        assert value.flags.c_contiguous and value.flags.aligned, name


def repacked(path, change=lambda name, data: data, **options):
    """Writes the members of a zip file again, changed. They are no longer aligned."""
    with zipfile.ZipFile(path) as file:
        members = [(name, change(name, file.read(name))) for name in file.namelist()]
    with zipfile.ZipFile(path, "w", **options) as file:
        for name, data in members:
            if data is not None:
                file.writestr(name, data)
    return path


# ---- tensors --------------------------------------------------------------------------------------------------------

FLOATING = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
LAYOUTS = {
    "contiguous": FLOATING,
    "transposed": FLOATING.T,
    "a slice": FLOATING[1:3, 2:5],
    "every second": FLOATING[::2, ::3],
    "one axis": FLOATING[:, 2],
    "expanded": FLOATING[:1].expand(5, 6),
    "a repeated scalar": torch.tensor(3.0).expand(7),
    "scalar": torch.tensor(2.5),
    "scalar inside": FLOATING[2, 3],
    "empty": torch.empty(0),
    "empty rows": torch.empty(0, 5),
    "empty inside": FLOATING[4:],
    "six axes": torch.randn(1, 2, 1, 3, 1, 2).permute(3, 0, 5, 1, 2, 4),
    "channels last": torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    "overlapping": torch.arange(10.0).as_strided((4, 4), (1, 2)),
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_layout(tmp_path, protocol):
    file = TorchFile(save(tmp_path / "model.pt", dict(LAYOUTS), pickle_protocol=protocol))
    assert_equals_torch(file, LAYOUTS)


def every_dtype():
    random = torch.Generator().manual_seed(0)
    for name in TORCH_NAMES:
        dtype, values = getattr(torch, name), torch.randint(0, 256, (2, 64), dtype=torch.uint8, generator=random)
        yield name, (values % 2).bool() if name == "bool" else values.view(dtype)


def test_every_dtype(tmp_path):
    tensors = dict(every_dtype())
    file = TorchFile(save(tmp_path / "model.pth", tensors))
    assert_equals_torch(file, tensors)
    for name, tensor in tensors.items():
        if name in ("float32", "float64", "float16", "int64", "int8", "uint8", "bool", "complex64", "uint16"):
            assert file.read(name).dtype == tensor.numpy().dtype
        elif name != "float8_e8m0fnu" and tensor.is_floating_point():
            assert np.array_equal(file.read(name).astype("f4"), tensor.float().numpy(), equal_nan=True), name


def test_tensors_that_share_a_storage(tmp_path):
    """A storage is written once."""
    large = torch.randn(300, 100)
    tensors = {"a": large, "b": large, "c": large.T, "d": large[7], "e": large.view(-1)[3:9]}
    path = save(tmp_path / "model.bin", tensors)
    assert path.stat().st_size < 1.2 * 4 * large.numel()
    assert_equals_torch(TorchFile(path), tensors)


def test_parameters_buffers_and_tensors_with_attributes(tmp_path):
    plain = torch.nn.Parameter(torch.randn(3))
    frozen = torch.nn.Parameter(torch.randn(2, 2), requires_grad=False)
    marked = torch.nn.Parameter(torch.randn(4))
    marked.note, marked.rows = "tied", [1, 2]
    attributed = torch.randn(5)
    attributed.scale = 0.5
    values = {"plain": plain, "frozen": frozen, "marked": marked, "buffer": torch.nn.Buffer(torch.randn(2)),
              "attributed": attributed}  # fmt: skip
    assert_equals_torch(TorchFile(save(tmp_path / "model.pt", values)), values)
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    assert_equals_torch(TorchFile(save(tmp_path / "module.pt", module.state_dict())), module.state_dict())


def test_names_of_older_releases(tmp_path):
    """Storages of a GPU, and `_rebuild_tensor`, whose arguments end with the strides."""
    def change(name, data):
        if not name.endswith("data.pkl"):
            return data
        data = data.replace(b"ctorch\nHalfStorage\n", b"ctorch.cuda\nHalfStorage\n")
        return data.replace(b"ctorch.storage\nUntypedStorage\n", b"ctorch.storage\n_UntypedStorage\n")

    tensors = {"half": torch.randn(3).half(), "small": torch.zeros(2).to(torch.float8_e5m2)}
    assert_equals_torch(TorchFile(repacked(save(tmp_path / "model.pt", tensors), change)), tensors)
    old = (
        b"\x80\x02}q\x00X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor\n("
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x06tQK\x01K\x02K\x02\x86K\x02K\x01\x86tRs."
    )
    with zipfile.ZipFile(tmp_path / "old.pt", "w") as file:
        file.writestr("archive/data.pkl", old)
        file.writestr("archive/data/0", np.arange(6, dtype="f4").tobytes())
    assert TorchFile(tmp_path / "old.pt").read("w").tolist() == [[1, 2], [3, 4]]


def test_compressed_members(tmp_path):
    tensors = {"a": torch.randn(50, 50), "b": torch.ones(1000, dtype=torch.bool)}
    path = repacked(save(tmp_path / "model.pt", tensors), compression=zipfile.ZIP_DEFLATED)
    info = zipfile.ZipFile(path).getinfo("model/data/1")
    assert info.compress_size < info.file_size
    assert_equals_torch(TorchFile(path), tensors)


def test_files_without_checksums(tmp_path):
    tensors = {"a": torch.randn(5, 5), "b": torch.ones(3)}
    torch.serialization.set_crc32_options(False)
    try:
        path = save(tmp_path / "model.pt", tensors)
    finally:
        torch.serialization.set_crc32_options(True)
    assert not zipfile.ZipFile(path).getinfo("model/data/0").CRC
    assert_equals_torch(TorchFile(path), tensors)


def test_a_member_that_unpacks_to_much_more(tmp_path):
    path = repacked(save(tmp_path / "model.pt", {"a": torch.zeros(10**6)}), compression=zipfile.ZIP_DEFLATED)
    with refused(f"{path} cannot be read as a PyTorch file: data/0 has 3,"):
        TorchFile(path).read("a")


def test_no_tensor_is_read_when_a_file_is_opened(tmp_path):
    path = save(tmp_path / "model.pt", {"a": torch.zeros(3), "b": torch.ones(2)})
    file = TorchFile(path)
    assert (file.names(), file.dtype("b"), file.shape("b")) == (["a", "b"], "F32", (2,))
    assert isinstance(file.read("a").base.base, np.memmap) or isinstance(file.read("a").base, np.memmap)
    save(path, {"a": torch.zeros(4), "c": torch.ones(2)})
    with refused("it was changed after it was opened; open it again"):
        file.read("b")


# ---- containers -----------------------------------------------------------------------------------------------------

TENSORS = {"a": torch.ones(2), "b": torch.zeros(3)}


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "module"])
def test_a_state_dict_beside_other_entries(tmp_path, key):
    optimizer = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1e-3}]}
    value = {key: TENSORS, "epoch": 3, "optimizer": optimizer, "loss": torch.tensor(0.5), "device": torch.device("cpu"),
             "seen": {1, 2}, "counts": collections.Counter("aab"), "raw": b"abc", "shape": torch.Size([3])}  # fmt: skip
    path = save(tmp_path / "model.pt", value)
    listed = "epoch (int), optimizer (dict), loss (tensor), device (torch.device)"
    text = f"{path}: these entries are no weights, and are not loaded: {listed}"
    with pytest.warns(UserWarning, match=re.escape(text)):
        file = TorchFile(path)
    assert_equals_torch(file, TENSORS)
    nested = save(tmp_path / "nested.pt", {"model": {"state_dict": TENSORS, "step": 4}, "epoch": 1})
    with pytest.warns(UserWarning, match=re.escape("not loaded: epoch (int), model.step (int)")):
        assert_equals_torch(TorchFile(nested), TENSORS)


def test_entries_of_a_state_dict_that_are_no_tensors(tmp_path):
    path = save(tmp_path / "model.pt", {**TENSORS, "version": 3, 7: torch.ones(1), "none": None, "sub": {"x": 1}})
    text = "not loaded: version (int), 7 (tensor), none (NoneType), sub (dict)"
    with pytest.warns(UserWarning, match=re.escape(text)):
        assert_equals_torch(TorchFile(path), TENSORS)


def circular():
    value = {}
    value["model"] = value
    return value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([torch.ones(2)], "it contains a list; expected a dict from names to tensors"),
        (torch.ones(2), "it contains a tensor; expected a dict from names to tensors, as in torch.save("),
        ({}, "it contains no tensors by name, only an empty dict"),
        ({"epoch": 3}, "it contains no tensors by name, only epoch (int)"),
        ({"model": TENSORS, "module": TENSORS}, "it contains several state dicts (model, module); save only"),
        (circular(), "it contains several state dicts (model.model.model"),
        ({"x": TENSORS["a"].to_sparse()}, "its pickle names 'torch._utils._rebuild_sparse_tensor'"),
        ({"x": torch.ones(2, device="meta")}, "names 'torch._utils._rebuild_meta_tensor_no_storage'"),
        ({"x": np.ones(3)}, "reconstruct', which is no tensor, and jaxlens runs no code from files; if you trust"),
        (torch.nn.Linear(2, 2), "its pickle names 'torch.nn.modules.linear.Linear'"),
        ({"x": torch.ones(2, dtype=torch.complex64).conj()}, "a tensor is a view with a dict; save a copy of it"),
        ({"x": torch.ones(2, dtype=torch.complex64).conj().imag}, "a tensor is a view with a dict; save a copy"),
        ({"x" * 501: torch.ones(2)}, "expected a short name without control codes"),
        ({"x\n": torch.ones(2)}, r"a tensor is called 'x\n'; expected a short name without control codes"),
        ({(1, 2): 3}, "a dict has the key a tuple; expected a string or a number"),
    ],
)  # fmt: skip
def test_values_that_are_no_state_dict(tmp_path, value, text):
    path = save(tmp_path / "model.pt", value)
    with refused(text) as error:
        TorchFile(path)
    assert str(error.value).startswith(f"{path} cannot be read as a PyTorch file: ")


class Subclass(torch.Tensor):
    pass


def test_a_subclass_of_tensor(tmp_path):
    with refused("its pickle names 'test_torch_files.Subclass', which is no tensor"):
        TorchFile(save(tmp_path / "model.pt", {"x": torch.ones(2).as_subclass(Subclass)}))


# ---- other formats --------------------------------------------------------------------------------------------------


def test_files_of_other_formats(tmp_path):
    path = tmp_path / "model.pt"
    save(path, TENSORS, _use_new_zipfile_serialization=False)
    convert = "convert it: torch.save(torch.load('model.pt', map_location='cpu', weights_only=True), 'model.pt')"
    with refused(f"torch before 1.6 wrote it, or its legacy format was chosen; {convert}"):
        TorchFile(path)
    save(path, torch.load(path, map_location="cpu", weights_only=True))
    assert_equals_torch(TorchFile(path), TENSORS)
    with warnings.catch_warnings(action="ignore"):
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    with refused("it contains a TorchScript program; convert it: torch.save(torch.jit.load("):
        TorchFile(path)
    for content, text in (
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "Git LFS pointer; run `git lfs pull`"),
        (b"", "it starts with b''; expected the zip file that torch.save writes"),
        (b"\x89HDF\r\n\x1a\n" * 9, r"it starts with b'\x89HDF"),
        (b"PK\3\4" + bytes(100), "BadZipFile"),
    ):
        path.write_bytes(content)
        with refused(text):
            TorchFile(path)
    path.unlink()
    path.mkdir()
    with refused("it is no regular file"):
        TorchFile(path)


def test_byte_order(tmp_path):
    def change(name, data):
        return b"big" if name.endswith("byteorder") else data

    with refused("its byte order is b'big'; expected b'little'; convert it: torch.save(torch.load(file), new_file) on"):
        TorchFile(repacked(save(tmp_path / "model.pt", TENSORS), change))
    old = repacked(save(tmp_path / "model.pt", TENSORS), lambda name, data: None if "byteorder" in name else data)
    assert_equals_torch(TorchFile(old), TENSORS)


# ---- checkpoints ----------------------------------------------------------------------------------------------------

OLD_BUFFERS = {  # that older releases of transformers saved
    "gpt2": {
        "transformer.h.{i}.attn.bias": torch.ones(1, 1, 8, 8),
        "transformer.h.{i}.attn.masked_bias": torch.tensor(-1e4),
    },
    "gpt_neo": {
        "transformer.h.{i}.attn.attention.bias": torch.ones(1, 1, 8, 8).bool(),
        "transformer.h.{i}.attn.attention.masked_bias": torch.tensor(-1e9),
    },
    "gpt_neox": {
        "gpt_neox.layers.{i}.attention.bias": torch.ones(1, 1, 8, 8).bool(),
        "gpt_neox.layers.{i}.attention.masked_bias": torch.tensor(-1e9),
        "gpt_neox.layers.{i}.attention.rotary_emb.inv_freq": torch.ones(2),
    },
    "llama": {"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(2)},
    "opt": {}, "bloom": {},
}  # fmt: skip


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A function that returns a folder with safetensors, and the same with pytorch_model.bin."""
    root, written = tmp_path_factory.mktemp("checkpoints"), {}

    def get(kind):
        if kind not in written:
            folder = write_checkpoint(root / kind, kind)
            pickled = shutil.copytree(folder, root / f"{kind}-bin")
            (pickled / "model.safetensors").unlink()
            state = transformers.AutoModelForCausalLM.from_pretrained(folder).state_dict()  # with tied weights twice
            for name, value in OLD_BUFFERS[kind].items():
                state |= {name.format(i=i): value for i in range(3)}
            save(pickled / "pytorch_model.bin", state)
            written[kind] = (folder, pickled)
        return written[kind]

    return get


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_names_of_a_model_inside_a_wrapper(checkpoints, tmp_path, prefix):
    """DistributedDataParallel and torch.compile add a prefix to all names."""
    folder, pickled = (shutil.copytree(source, tmp_path / source.name) for source in checkpoints("gpt2"))
    expected = load(folder).params
    wrapped = {f"{prefix}{name}": value for name, value in load_file(folder / "model.safetensors").items()}
    save(pickled / "pytorch_model.bin", {"model": wrapped})
    save_file(wrapped, folder / "model.safetensors")
    for source in (folder, pickled):
        assert_same_parameters(load(source).params, expected)


def assert_same_parameters(ours, theirs):
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        assert np.asarray(ours[name]).tobytes() == np.asarray(value).tobytes(), name


@pytest.mark.parametrize("kind", OLD_BUFFERS)
def test_families(kind, checkpoints):
    """Parameters and logits equal those of the same checkpoint in safetensors, and logits those of transformers."""
    folder, pickled = checkpoints(kind)
    theirs, ours = load(folder), load(pickled)
    assert ours.cfg == theirs.cfg
    assert_same_parameters(ours.params, theirs.params)
    tokens = random_tokens(0, 9)
    logits = [np.asarray(HookedTransformer(m.cfg, params=m.params)(tokens)) for m in (ours, theirs)]
    assert np.array_equal(*logits)
    expected = hf_logits(folder, tokens)
    assert np.abs(logits[0] - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neo", "bloom", "opt"])
def test_names_without_the_first_prefix(kind, checkpoints, tmp_path):
    """Files of a base model: `h.0.…` instead of `transformer.h.0.…`, as in the published GPT-2, BLOOM and OPT."""
    folder, pickled = checkpoints(kind)
    copied = shutil.copytree(pickled, tmp_path / "base")
    prefix = "model." if kind == "opt" else "transformer."
    state = torch.load(pickled / "pytorch_model.bin")
    state = {name.removeprefix(prefix): value for name, value in state.items() if name != "lm_head.weight"}
    save(copied / "pytorch_model.bin", state)
    assert_same_parameters(load(copied).params, load(folder).params)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(dtype, checkpoints, tmp_path):
    folder, pickled = checkpoints("gpt_neox")
    copied = shutil.copytree(pickled, tmp_path / "half")
    state = {name: value.to(getattr(torch, dtype)) for name, value in load_file(folder / "model.safetensors").items()}
    save(copied / "pytorch_model.bin", state)
    assert load(copied, dtype=None).cfg.dtype == dtype
    assert_same_parameters(load(copied, dtype=None).params, load(folder, dtype=dtype).params)


def shard(folder, count=3):
    """Replaces pytorch_model.bin by shards and their index."""
    state = torch.load(folder / "pytorch_model.bin")
    (folder / "pytorch_model.bin").unlink()
    files = {name: f"pytorch_model-{i % count + 1:05d}-of-{count:05d}.bin" for i, name in enumerate(state)}
    for file in set(files.values()):
        save(folder / file, {name: value for name, value in state.items() if files[name] == file})
    index = {"metadata": {"total_size": 1}, "weight_map": files}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder


def test_shards(checkpoints, tmp_path):
    folder, pickled = checkpoints("gpt_neox")
    sharded = shard(shutil.copytree(pickled, tmp_path / "sharded"))
    assert_same_parameters(load(sharded).params, load(folder).params)
    index = json.loads((sharded / "pytorch_model.bin.index.json").read_text())
    first = next(iter(index["weight_map"]))
    for file, text in (
        ("../pytorch_model.bin", "lists ['../pytorch_model.bin']; expected only .bin or .pth or .pt or .ckpt files"),
        ("model.safetensors", "lists ['model.safetensors']; expected only .bin or"),
        ("missing.bin", "is incomplete: 1 of its 4 shards are missing (missing.bin)"),
        ("pytorch_model-00002-of-00003.bin", "does not match the shards for 1 tensors"),
    ):
        changed = {"weight_map": {**index["weight_map"], first: file}}
        (sharded / "pytorch_model.bin.index.json").write_text(json.dumps(changed))
        with refused(text):
            load(sharded)


def test_other_names_of_files(checkpoints, tmp_path):
    """A single file with another name is read. States of training are no weights."""
    folder, pickled = checkpoints("opt")
    for name in ("model_final.pth", "model.pt", "model.ckpt", "pytorch_model.fp32.bin"):
        copied = shutil.copytree(pickled, tmp_path / name)
        (copied / "pytorch_model.bin").rename(copied / name)
        for other in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "rng_state_0.pth", "training_args.bin"):
            (copied / other).write_bytes(b"no weights")
        assert_same_parameters(load(copied).params, load(folder).params)
    (copied / "second.bin").write_bytes(b"")
    names = "pytorch_model.fp32.bin, second.bin"
    with refused(f"contains {names}, but no pytorch_model.bin.index.json that lists their tensors"):
        load(copied)


def test_safetensors_are_preferred(checkpoints, tmp_path):
    folder, _ = checkpoints("opt")
    both = shutil.copytree(folder, tmp_path / "both")
    (both / "pytorch_model.bin").write_bytes(b"not read")
    assert_same_parameters(load(both).params, load(folder).params)


def test_tied_weights_that_differ(checkpoints, tmp_path):
    _, pickled = checkpoints("gpt_neo")
    copied = shutil.copytree(pickled, tmp_path / "untied")
    state = torch.load(pickled / "pytorch_model.bin")
    save(copied / "pytorch_model.bin", {**state, "lm_head.weight": state["lm_head.weight"] + 1})
    with refused("lm_head.weight differs from transformer.wte.weight"):
        load(copied)


def test_a_transposed_tied_weight(checkpoints, tmp_path):
    folder, pickled = checkpoints("gpt_neo")
    copied = shutil.copytree(pickled, tmp_path / "transposed")
    state = torch.load(pickled / "pytorch_model.bin")
    state = {name: value.T.contiguous().T if value.ndim == 2 else value for name, value in state.items()}
    assert not state["lm_head.weight"].is_contiguous()
    save(copied / "pytorch_model.bin", state)
    assert_same_parameters(load(copied).params, load(folder).params)


def test_problems_are_reported_like_those_of_safetensors(checkpoints, tmp_path):
    _, pickled = checkpoints("llama")
    copied = shutil.copytree(pickled, tmp_path / "changed")
    state = torch.load(pickled / "pytorch_model.bin")
    del state["model.norm.weight"]
    state["score"], state["model.layers.0.mlp.up_proj.weight"] = torch.ones(2), torch.ones(3, 3)
    state["model.layers.1.mlp.up_proj.weight"] = state["model.layers.1.mlp.up_proj.weight"].to(torch.float8_e4m3fn)
    save(copied / "pytorch_model.bin", state)
    name = "model.layers.{}.mlp.up_proj.weight"
    problems = look(copied).problems
    assert problems == {
        "missing": ["model.norm.weight"],
        "not part of this architecture": ["score"],
        "of the wrong shape": [f"{name.format(0)} is (3, 3), expected (44, 36) = [m d]"],
        "not floating point": [f"{name.format(1)} is F8_E4M3"],
    }
    with refused(f"{copied}: the tensors do not match config.json. 1 tensor is missing: model.norm.weight"):
        load(copied)


def test_conversion_and_export(checkpoints, tmp_path):
    """pytorch_model.bin -> native -> safetensors, and pytorch_model.bin -> safetensors, bit for bit."""
    folder, pickled = checkpoints("gpt_neo")
    converter.convert(pickled, tmp_path / "ours")
    assert_same_parameters(converter.load(tmp_path / "ours").params, load(folder).params)
    converter.convert_back(pickled, tmp_path / "theirs")
    expected = load_file(folder / "model.safetensors")
    written = load_file(tmp_path / "theirs" / "model.safetensors")
    assert {name: bits(value) for name, value in written.items()} == {name: bits(v) for name, v in expected.items()}
    assert look(pickled).loads


def test_torch_is_not_imported(checkpoints):
    _, pickled = checkpoints("opt")
    program = (
        "from importlib.machinery import PathFinder; find = PathFinder.find_spec\n"
        "PathFinder.find_spec = lambda name, *rest: None if name.split('.')[0] == 'torch' else find(name, *rest)\n"
        f"from jaxlens.checkpoints import load; load({str(pickled)!r})\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_files_of_an_id(monkeypatch, checkpoints):
    """PyTorch files are downloaded from a repository without safetensors."""
    folders, requested = iter(checkpoints("opt")[1:] * 2), []

    def download(name, allow_patterns, ignore_patterns, revision, **options):
        requested.append((allow_patterns, revision))
        assert "training_args*" in ignore_patterns
        return str(next(folders))

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert open_checkpoint("owner/name", "v1").path == checkpoints("opt")[1]
    assert requested == [(hub.FILE_PATTERNS, "v1"), (hub.PYTORCH_PATTERNS, "v1")]
