"""Every kind of file is named by `jaxlens inspect`; folders and repositories with GGUF files; the page of files."""

import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support import toys
from support.gguf_writer import export
from support.tiny import write_checkpoint

from jaxlens import CheckpointError
from jaxlens.checkpoints import load, open_checkpoint, readable
from jaxlens.checkpoints.converter import convert, convert_back
from jaxlens.checkpoints.quantized.methods import read_quantization
from jaxlens.checkpoints.quantized.tensors import DequantizedTensors
from jaxlens.checkpoints.rules.hf_config import Reader
from jaxlens.cli import main

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("files") / "llama", "llama")


@pytest.fixture(scope="module")
def gguf_file(theirs):
    return export(theirs.parent / "model.gguf", theirs, "llama")


def test_the_format_of_every_kind_of_file(theirs, gguf_file, tmp_path, capsys):
    sharded = write_checkpoint(tmp_path / "sharded", "llama", shard="60KB", dtype="bfloat16")
    pickled = shutil.copytree(theirs, tmp_path / "pickled")
    (pickled / "model.safetensors").unlink()
    torch.save(load_file(theirs / "model.safetensors"), pickled / "pytorch_model.bin")
    convert(theirs, tmp_path / "ours")
    formats = {
        theirs: "safetensors, F32",
        sharded: f"safetensors in {len(list(sharded.glob('*.safetensors')))} shards, BF16",
        pickled: "PyTorch, F32",
        tmp_path / "ours": "a folder that jaxlens saved: safetensors, F32",
        gguf_file: "GGUF, architecture llama, matrices in F32",
    }
    for path, expected in formats.items():
        assert main(["inspect", str(path)]) == 0
        assert f"format      {expected}\n" in capsys.readouterr().out


def test_the_format_of_a_toy_model(tmp_path):
    toys.write(tmp_path)
    assert open_checkpoint(tmp_path).format == "a toy model of TransformerLens: safetensors"


class Packed:
    """Two tensors in MXFP4, without a format."""

    def names(self):
        return ["x_blocks", "x_scales"]

    def shape(self, name):
        return (1, 1, 16) if name == "x_blocks" else (1, 1)

    def dtype(self, name):
        return "U8"


def test_the_format_of_quantized_tensors():
    from jaxlens.checkpoints.file_format import file_format

    fields = {"model_type": "gpt_oss", "quantization_config": {"quant_method": "mxfp4"}}
    tensors = DequantizedTensors(Packed(), read_quantization(Reader(fields), fields))
    assert file_format(tensors, fields) == "Packed, quantized: mxfp4"


def test_a_folder_with_a_gguf_file(theirs, gguf_file, tmp_path):
    """With or without config.json. A file with a vision model is left out, and safetensors are preferred."""
    folder = tmp_path / "repository"
    folder.mkdir()
    shutil.copy(gguf_file, folder / "model-Q4_K_M.gguf")
    (folder / "mmproj-model.gguf").write_bytes(b"a vision model")
    assert open_checkpoint(folder).path == folder / "model-Q4_K_M.gguf"
    shutil.copy(theirs / "config.json", folder)
    assert open_checkpoint(folder).path == folder / "model-Q4_K_M.gguf"
    shutil.copy(gguf_file, folder / "model-Q8_0.gguf")
    with pytest.raises(CheckpointError, match=r"several GGUF files: model-Q4_K_M\.gguf, model-Q8_0\.gguf; pass"):
        open_checkpoint(folder)
    shutil.copy(theirs / "model.safetensors", folder)
    assert open_checkpoint(folder).format == "safetensors, F32"


def test_a_gguf_file_of_a_repository(gguf_file, tmp_path, monkeypatch):
    requested = []

    def download(name, allow_patterns, ignore_patterns, revision, **options):
        requested.append((name, allow_patterns, ignore_patterns, revision))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    (tmp_path / "Q8").mkdir()
    shutil.copy(gguf_file, tmp_path / "Q8" / "m.gguf")
    checkpoint = open_checkpoint("owner/name/Q8/m.gguf", "v1")
    assert checkpoint.path == tmp_path / "Q8" / "m.gguf" and checkpoint.cfg.model_name == "m.gguf"
    with pytest.raises(CheckpointError, match=r"owner/name has no file m-00001-of-00002\.gguf; check the name"):
        open_checkpoint("owner/name/m-00001-of-00002.gguf")
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **options: str(empty))
    with pytest.raises(CheckpointError, match=r'It contains nothing\. For a GGUF file, pass "owner/name/FILE\.gguf"'):
        open_checkpoint("owner/name")
    assert requested == [
        ("owner/name", ["Q8/m.gguf"], [], "v1"), ("owner/name", ["m-*-of-00002.gguf"], [], None),
    ]  # fmt: skip


def test_conversions_of_gguf_files(theirs, gguf_file, tmp_path):
    """Into jaxlens's format, and into a folder for transformers whose tensors are those of the original."""
    convert(gguf_file, tmp_path / "ours")
    convert_back(tmp_path / "ours", tmp_path / "back")
    original, back = (load_file(folder / "model.safetensors") for folder in (theirs, tmp_path / "back"))
    assert original.keys() == back.keys() and all(torch.equal(original[name], back[name]) for name in original)
    ours, direct = load(tmp_path / "ours"), load(gguf_file)
    assert all(np.array_equal(ours.params[name], direct.params[name]) for name in direct.params)


def test_the_test_extra_asks_for_a_correct_transformers():
    """Older versions compute the rotary scaling of DeepSeek V2 and OLMo 3 incorrectly; `jaxlens verify` says so."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert "transformers>=5.15" in extras["test"]


def test_rows_of_the_page_have_three_cells():
    for rows in (readable.FILES, readable.QUANTIZED, readable.ADAPTERS, readable.REPOSITORIES):
        assert all(len(row) == 3 and not any("|" in cell for cell in row) for row in rows)
    assert all(len(row) == 2 and not any("|" in cell for cell in row) for row in readable.MULTIMODAL)
