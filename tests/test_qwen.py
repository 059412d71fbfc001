"""Qwen 1, which transformers no longer supports.

The references are Qwen 2 and, with biases everywhere, Llama. Their tensors are renamed and fused as in Qwen 1.
"""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.tiny import hf_logits, random_tokens, write_checkpoint
from test_families import assert_equal_logits, assert_same_tensors, logits, tensors

from jaxlens import CheckpointError
from jaxlens.checkpoints import export, load
from jaxlens.checkpoints.open import read_config

SIZES = {"hidden_size": 36, "intermediate_size": 44, "num_attention_heads": 6, "head_dim": 6}
CONFIG = {
    "model_type": "qwen",
    "hidden_size": 36,
    "intermediate_size": 88,
    "kv_channels": 6,
    "layer_norm_epsilon": 1e-6,
    "max_position_embeddings": 128,
    "no_bias": True,
    "num_attention_heads": 6,
    "num_hidden_layers": 3,
    "rotary_emb_base": 10000,
    "rotary_pct": 1.0,
    "scale_attn_weights": True,
    "seq_length": 64,
    "tie_word_embeddings": False,
    "use_dynamic_ntk": True,
    "use_logn_attn": True,
    "vocab_size": 61,
}
NAMES = {
    "model.embed_tokens.": "wte.", "model.norm.": "ln_f.", "model.layers.": "h.", "input_layernorm": "ln_1",
    "post_attention_layernorm": "ln_2", "self_attn.o_proj": "attn.c_proj", "gate_proj": "w2", "up_proj": "w1",
    "down_proj": "c_proj",
}  # fmt: skip


def as_qwen(theirs, folder, **fields):
    """A folder with the model in `theirs`, in the format of Qwen 1."""
    renamed, projections = {}, {}
    for name, value in load_file(theirs / "model.safetensors").items():
        for old, new in NAMES.items():
            name = name.replace(old, new)
        name = name if name.startswith("lm_head") else f"transformer.{name}"
        if "self_attn" in name:
            block, letter, kind = name.replace("_proj", "").rsplit(".", 2)
            fused_name = f"{block.replace('self_attn', 'attn')}.c_attn.{kind}"
            projections.setdefault(fused_name, {})[letter] = value
        else:
            renamed[name] = value
    fused = {name: np.concatenate([qkv[letter] for letter in "qkv"]) for name, qkv in projections.items()}
    folder.mkdir()
    save_file({**renamed, **fused}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**CONFIG, **fields}))
    return folder


@pytest.mark.parametrize(
    ("kind", "theirs", "ours"),
    [
        ("qwen2", {}, {}),
        ("qwen2", {"tie_word_embeddings": True, "rms_norm_eps": 0.1}, {"layer_norm_epsilon": 0.1}),
        ("qwen2", {"rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}}, {"rotary_emb_base": 500}),
        ("llama", {"attention_bias": True, "mlp_bias": True, "rms_norm_eps": 1e-6}, {"no_bias": False}),
    ],
)
def test_logits_and_round_trip(tmp_path, kind, theirs, ours):
    for seed in range(2):
        reference = write_checkpoint(tmp_path / f"{seed}", kind, seed, num_key_value_heads=6, **SIZES, **theirs)
        tied = theirs.get("tie_word_embeddings", False)
        folder = as_qwen(reference, tmp_path / f"qwen-{seed}", tie_word_embeddings=tied, **ours)
        tokens = random_tokens(seed)
        assert_equal_logits(logits(folder, tokens), hf_logits(reference, tokens))
    loaded = load(folder)
    exported = export(tmp_path / "exported", loaded.cfg, loaded.params, loaded.source)
    assert_same_tensors(tensors(exported), tensors(folder))


def test_the_first_layers_and_a_shorter_context(tmp_path):
    reference = write_checkpoint(tmp_path / "reference", "qwen2", num_key_value_heads=6, **SIZES)
    cut = load(as_qwen(reference, tmp_path / "qwen"), first_n_layers=2, n_ctx=20)
    exported = load(export(tmp_path / "exported", cut.cfg, cut.params, cut.source))
    assert (exported.cfg.n_layers, exported.cfg.n_ctx) == (2, 20)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"kv_channels": 8}, "kv_channels is 8; expected 6: it must equal hidden_size / num_attention_heads"),
        ({"rotary_pct": 0.5}, "rotary_pct is 0.5; expected 1: Qwen 1 rotates all dimensions of a head"),
        ({"scale_attn_weights": False}, "scale_attn_weights is False; expected True: Qwen 1 always scales"),
    ],
)
def test_unsupported_fields_are_refused(fields, text):
    with pytest.raises(CheckpointError, match=text):
        read_config({**CONFIG, **fields})
