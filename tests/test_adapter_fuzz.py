"""Damaged adapters raise a CheckpointError with a path, or load. They never raise another exception."""

import json
import math

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.adapters import config, write_adapter
from support.tiny import write_checkpoint

from jaxlens import CheckpointError
from jaxlens.checkpoints import load

ADAPTERS = {
    "embeddings": ("llama", config("q_proj", "embed_tokens", "lm_head")),
    "DoRA": ("gpt2", config("c_attn", "c_fc", use_dora=True, modules_to_save=["ln_f"])),
    "biases": ("gpt2", config("c_attn", lora_bias=True, bias="all")),
    "tokens": ("llama", config("q_proj", trainable_token_indices=[1, 5])),
    "experts": ("mixtral", config("q_proj", target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"])),
}  # fmt: skip
VALUES = (
    None, True, False, -1, 0, 1, 2**31, 10**400, 0.5, math.nan, math.inf, "", "x", "[", "../../etc/passwd", [], [1],
    ["q_proj"], ["["], {}, {"a": 1}, {"[": 3}, {"q_proj": -1}, {"c_attn": "x"}, {"q_proj": 2.5}, [[0, 1]],
    {"embed_tokens": ["x"]}, {"embed_tokens": [70]}, [70], [-1], ["a"], "all-linear",
)  # fmt: skip
"""Replacements for the value of a field."""

RESHAPED = (
    lambda value: value[None], lambda value: value.reshape(-1), lambda value: value.astype(np.int32),
    lambda value: value[:-1].copy(), lambda value: value[..., :-1].copy(), lambda value: value.reshape(-1)[:1].copy(),
    lambda value: np.concatenate([value, value]),
)  # fmt: skip


@pytest.mark.parametrize("kind", ADAPTERS)
def test_damaged_adapters_are_refused_or_load(tmp_path, kind):
    model_type, lora = ADAPTERS[kind]
    base, adapter = write_checkpoint(tmp_path / "base", model_type), tmp_path / "adapter"
    write_adapter(adapter, base, lora)
    files = adapter / "adapter_config.json", adapter / "adapter_model.safetensors"
    original, weights = json.loads(files[0].read_text()), load_file(files[1])
    random, refused = np.random.default_rng(0), 0
    for damage in range(60):
        fields, tensors = dict(original), dict(weights)
        name = str(random.choice(sorted(weights if damage % 2 else original)))
        if damage % 2:
            tensors[name] = RESHAPED[random.integers(len(RESHAPED))](tensors[name])
        else:
            fields[name] = VALUES[random.integers(len(VALUES))]
        files[0].write_text(json.dumps(fields))
        save_file(tensors, files[1])
        for merge in (True, False):
            try:
                load(base, adapter=adapter, merge=merge)
            except CheckpointError as error:
                assert str(tmp_path) in str(error), name
                refused += 1
    assert 40 < refused < 120
