"""Checkpoints in MXFP4: all values equal those of transformers, and so do the logits of a gpt-oss."""

import json
import re

import ml_dtypes
import numpy as np
import pytest
import torch
from families.gpt_oss import MXFP4
from safetensors.numpy import load_file, save_file
from support.tiny import hf_logits, random_tokens, write_checkpoint
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from jaxlens import CheckpointError, HookedTransformer
from jaxlens.checkpoints import export, load, open_checkpoint
from jaxlens.checkpoints.quantized.mxfp4 import unpack

SIZES = {"hidden_size": 64, "intermediate_size": 32, "head_dim": 8, "num_local_experts": 3}
FUSED = {"gate_up_proj": (3, 64, 2, 16), "down_proj": (3, 64, 1, 16)}


def theirs(blocks, scales):
    """The values that transformers computes from blocks and scales."""
    return convert_moe_packed_tensors(torch.tensor(blocks), torch.tensor(scales)).float().numpy()


def test_every_byte_and_every_scale():
    blocks = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16).repeat(255, axis=1)
    scales = np.arange(255, dtype=np.uint8)[None, :, None].repeat(16, axis=2)
    ours = unpack(blocks, scales)
    assert ours.dtype == ml_dtypes.bfloat16
    assert np.array_equal(ours.astype(np.float32), theirs(blocks, scales))
    assert np.isnan(unpack(blocks[:, :1], np.full((1, 1, 16), 255, np.uint8)).astype(np.float32)).all()


@pytest.fixture
def folders(tmp_path):
    """A gpt-oss with experts in MXFP4, and the same model after transformers has dequantised them: (plain, packed)."""
    plain = write_checkpoint(tmp_path / "plain", "gpt_oss", **SIZES)
    packed = write_checkpoint(tmp_path / "packed", "gpt_oss", **SIZES)
    tensors, random = load_file(plain / "model.safetensors"), np.random.default_rng(0)
    stored = dict(tensors)
    for layer in range(3):
        for name, shape in FUSED.items():
            name = f"model.layers.{layer}.mlp.experts.{name}"
            blocks = random.integers(0, 256, shape, np.uint8)
            scales = random.integers(122, 127, shape[:-1], np.uint8)
            tensors[name] = theirs(blocks, scales).copy()
            del stored[name]
            stored |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
    save_file(tensors, plain / "model.safetensors", {"format": "pt"})
    save_file(stored, packed / "model.safetensors", {"format": "pt"})
    config = json.loads((packed / "config.json").read_text())
    (packed / "config.json").write_text(json.dumps({**config, "quantization_config": MXFP4}))
    return plain, packed


def test_loading_and_exporting_a_checkpoint(folders, tmp_path):
    plain, packed = folders
    loaded, expected = load(packed), load(plain)
    for name, value in expected.params.items():
        assert np.array_equal(loaded.params[name], value), name
    tokens = random_tokens(0)
    ours = np.asarray(HookedTransformer(loaded.cfg, params=loaded.params, source=loaded.source)(tokens))
    reference = hf_logits(plain, tokens)
    assert np.abs(ours - reference).max() <= 1e-5 * np.abs(reference).max()
    exported = export(tmp_path / "ours", loaded.cfg, loaded.params, loaded.source)
    assert "quantization_config" not in json.loads((exported / "config.json").read_text())
    assert np.array_equal(hf_logits(exported, tokens), reference)


def test_tensors_are_unpacked_when_they_are_read(folders):
    tensors, name = open_checkpoint(folders[1]).tensors, "model.layers.0.mlp.experts.gate_up_proj"
    assert (tensors.dtype(name), tensors.shape(name)) == ("BF16", (3, 64, 64))
    assert not [stored for stored in tensors.names() if stored.endswith(("_blocks", "_scales"))]
    assert tensors.dtype("model.norm.weight") == "F32"


@pytest.mark.parametrize(
    ("scales", "text"),
    [
        (np.zeros((3, 64, 3), np.uint8), "_blocks is U8 of shape (3, 64, 2, 16); expected U8 of shape (3, 64, 3, 16)"),
        (np.zeros((3, 64, 2), np.float32), "_scales is F32 of shape (3, 64, 2); expected U8 of shape (3, 64, 2)"),
    ],
)
def test_blocks_and_scales_that_do_not_match(folders, scales, text):
    name, file = "model.layers.0.mlp.experts.gate_up_proj", folders[1] / "model.safetensors"
    save_file({**load_file(file), f"{name}_scales": scales}, file)
    with pytest.raises(CheckpointError, match=re.escape(text)):
        load(folders[1])


def test_blocks_without_scales(folders):
    name, file = "model.layers.0.mlp.experts.down_proj", folders[1] / "model.safetensors"
    save_file({stored: value for stored, value in load_file(file).items() if stored != f"{name}_scales"}, file)
    with pytest.raises(CheckpointError, match=re.escape(f"{name}_scales missing beside {name}_blocks")):
        load(folders[1])
