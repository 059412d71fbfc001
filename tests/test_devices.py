"""Models loaded on meshes of eight devices, and on two processes."""

import json
import os
import subprocess
import sys

import jax
import pytest
from support.tiny import write_checkpoint

SIZES = {"vocab_size": 72, "hidden_size": 40, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 6}
MODELS = {
    "gpt2": ("gpt2", {"vocab_size": 72, "n_embd": 40, "n_layer": 2, "n_head": 8}),
    "llama": ("llama", {**SIZES, "hidden_size": 36, "num_attention_heads": 9, "num_key_value_heads": 3}),
    "gemma3": ("gemma3_text", {**SIZES, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 4}),
    "mixtral": ("mixtral", {**SIZES, "num_attention_heads": 8, "num_key_value_heads": 2, "num_local_experts": 4}),
    "deepseek": ("deepseek_v3", {
        **{name: size for name, size in SIZES.items() if name != "head_dim"}, "num_attention_heads": 8,
        "num_key_value_heads": 8, "n_routed_experts": 8, "n_group": 4, "moe_intermediate_size": 24,
    }),
}  # fmt: skip
"""Model types and sizes. Some can be divided by 8, some only by 4, and the heads of the llama by neither."""

MESHES = ("1x8-Auto", "2x4-Explicit", "8x1-Auto")
OFTEN = ("gpt2-1x8-Auto", "llama-2x4-Explicit", "mixtral-2x4-Explicit")
COMBINATIONS = [
    pytest.param(name, marks=() if name in OFTEN else pytest.mark.slow)
    for name in (f"{model}-{mesh}" for model in MODELS for mesh in MESHES)
]


def environment(devices: int) -> dict[str, str]:
    return {
        **os.environ, "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}",
        # Programs with collectives that run at the same time can wait for each other's threads on few cores.
        "JAX_CPU_ENABLE_ASYNC_DISPATCH": "0", "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "PYTHONPATH": os.pathsep.join(sys.path),
    }  # fmt: skip


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    for name, (model_type, fields) in MODELS.items():
        write_checkpoint(folder / name, model_type, **fields)
    return folder


@pytest.fixture(scope="module")
def found(request, checkpoints):
    """The results of tests/support/on_devices.py for the combinations of the tests that run."""
    items = [item.callspec.params for item in request.session.items if item.path == request.path and
             hasattr(item, "callspec")]  # fmt: skip
    names = dict.fromkeys(params["name"] for params in items if "name" in params)
    command = [sys.executable, "-m", "support.on_devices", str(checkpoints), *names]
    return json.loads(subprocess.run(command, check=True, env=environment(8), stdout=subprocess.PIPE).stdout)


@pytest.mark.parametrize("name", COMBINATIONS)
def test_results_equal_those_on_one_device(found, name):
    assert {what: error for what, error in found[name]["results"].items() if not error <= 1e-5} == {}
    assert found[name]["weights"] <= 1e-6
    assert found[name]["sharded otherwise later"] == []


@pytest.mark.parametrize("name", COMBINATIONS)
def test_no_weight_is_gathered(found, name):
    assert found[name]["gathered"] == []


@pytest.mark.parametrize("name", COMBINATIONS)
def test_devices_hold_only_their_part(found, name):
    n_data, n_model = map(int, name.split("-")[1].split("x"))
    of = found[name]["bytes"]
    assert of["of a device"] - of["replicated"] <= 1.1 * (of["all"] - of["replicated"]) / n_model
    assert found[name]["logits"][0] == ("data" if n_data > 1 else None)
