"""Models loaded on meshes of eight devices, and on two processes."""

import functools
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file
from support.mistakes import Case, unreached
from support.models import CONFIGS, model, tokens
from support.on_devices import TOKENS
from support.processes import free_port, run_together
from support.tiny import write_checkpoint

from jaxlens import HookedTransformer
from jaxlens.checkpoints.rules.rule import Rule
from jaxlens.checkpoints.safetensors_reader import SafetensorsFile
from jaxlens.sharding import DEFAULT_RULES, default_mesh, parameter_shardings, shard

SIZES = {"vocab_size": 72, "hidden_size": 40, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 6}
MODELS = {
    "gpt2": ("gpt2", {"vocab_size": 72, "n_embd": 40, "n_layer": 2, "n_head": 8}),
    "llama": ("llama", {**SIZES, "hidden_size": 36, "num_attention_heads": 9, "num_key_value_heads": 3}),
    "gemma3": ("gemma3_text", {**SIZES, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 4}),
    "mixtral": ("mixtral", {**SIZES, "num_attention_heads": 8, "num_key_value_heads": 2, "num_local_experts": 4}),
    "deepseek": ("deepseek_v3", {
        **{name: size for name, size in SIZES.items() if name != "head_dim"}, "num_attention_heads": 8,
        "num_key_value_heads": 8, "n_routed_experts": 24, "n_group": 4, "moe_intermediate_size": 24,
    }),
}  # fmt: skip
"""Model types and sizes. Some can be divided by 8, some only by 4, and the heads of the llama by neither.

No weight has the shape of a block of 1, 8, 16 … tokens of an expert, which devices do send each other.
"""

MESHES = ("1x8-Auto", "2x4-Explicit", "8x1-Auto")
OFTEN = ("mixtral-1x8-Auto", "llama-2x4-Explicit")
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
    rows = {size: len(TOKENS) // n_data for size in ("tokens", "logits", "keys", "values")}
    assert found[name]["rows of a generation"] == rows  # of a device
    assert found[name]["part of experiments"] == {"sweep": 1 / n_data, "attribution": 1 / n_data}


def test_replicated_weights_are_named(found):
    why = "replicated, because n = 9 is not a multiple of the 4 devices of 'model'"
    note = found["llama-2x4-Explicit"]["note"]
    assert note.startswith(f"sharding: data 2 × model 4; blocks.*.attn.W_Q, blocks.*.attn.W_O {why}; blocks.*.attn.W_K")


# ---- two processes --------------------------------------------------------------------------------------------------


def test_two_processes_hold_a_model_together(checkpoints, tmp_path):
    command, port = [sys.executable, "-m", "support.two_processes"], str(free_port())
    commands = [[*command, str(i), port, checkpoints / "gpt2", tmp_path] for i in range(2)]
    for output in run_together(commands, environment(1)):
        found = json.loads(output.splitlines()[-1])
        assert {what: error for what, error in found["distances"].items() if not error <= 1e-5} == {}
        assert found["read"] <= 1.1 * found["expected"]  # each process reads its own part of the file


# ---- memory ---------------------------------------------------------------------------------------------------------

MEMORY = """
import gc, sys
from transformers import LlamaConfig  # which a new config.json needs
from jaxlens import HookedTransformer
from jaxlens.checkpoints.rules.rule import Rule
from jaxlens.checkpoints.safetensors_reader import SafetensorsFile
from jaxlens.sharding import default_mesh

def kilobytes(field):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field))

mesh = default_mesh(1, 8)
HookedTransformer.from_pretrained_no_processing(sys.argv[1], mesh=mesh)  # imports and first allocations
gc.collect()
before = kilobytes("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
model = HookedTransformer.from_pretrained_no_processing(sys.argv[2], mesh=mesh)
print((kilobytes("VmHWM") - before) * 1024, sum(w.nbytes for w in model.params.values()))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_loading_needs_the_memory_of_the_weights_and_one_tensor(tmp_path, checkpoints):
    large = write_checkpoint(tmp_path, "llama", hidden_size=1024, intermediate_size=4096, num_hidden_layers=4,
                             num_attention_heads=16, num_key_value_heads=8, head_dim=64, vocab_size=4000)  # fmt: skip
    program = [sys.executable, "-c", MEMORY, str(checkpoints / "llama"), str(large)]
    output = subprocess.run(program, check=True, env=environment(8), stdout=subprocess.PIPE).stdout
    peak, parameters = map(int, output.split())
    assert peak <= parameters + 4 * 1024 * 4096 + 2**23  # the largest tensor, and 8 MiB


# ---- on one device --------------------------------------------------------------------------------------------------


@pytest.fixture
def mesh():
    return default_mesh(devices=jax.devices()[:1])


def test_a_mesh_of_one_device_changes_nothing(mesh):
    whole, batch = model("llama"), tokens()
    placed = shard(whole, mesh)
    assert whole.sharding is None and placed.sharding.mesh == mesh
    np.testing.assert_array_equal(placed(batch), whole(batch))
    assert [entry.name for entry in placed.processed().processing][-1] == "sharding"
    assert "sharding" not in [entry.name for entry in placed.to(jax.devices()[0]).processing]


def test_the_first_rule_that_fits_divides_a_weight(mesh):
    def spec(weight, rules=None):
        shardings = parameter_shardings(CONFIGS["moe"], mesh, rules)
        return [*[sharding.spec for name, sharding in shardings.items() if name.endswith(weight)][-1]]

    assert spec("attn.W_K") == [None, "model"]
    assert spec("mlp.W_out") == [None, None, "model"]  # the neurons of every expert
    experts_first = {"d": "data", "e": "model", "f": "model"}
    assert spec("mlp.W_out", experts_first) == [None, "model", None, "data"]
    assert spec("attn.W_K", experts_first) == [None, None, "data"]


@pytest.mark.parametrize(
    "rule",
    [
        Rule("x", "W", "(n h) d -> n d h"),
        Rule("x", "W", "d (n h) -> n h d"),
        Rule("x", ("Q", "K", "V"), "d (three n h) -> three n d h"),
        Rule("x", ("Q", "K", "V"), "(n three h) -> three n h"),
        Rule("x", ("Q", "K", "V"), "(heads h) d -> heads d h", split=("n", "k", "k")),
        Rule("x", "W", "v d"),
    ],
    ids=lambda rule: rule.pattern,
)
def test_a_part_of_a_parameter_is_read_from_its_tensor(rule, tmp_path):
    lengths = {"n": 6, "k": 2, "h": 4, "d": 5, "v": 8}
    tensor = np.random.default_rng(0).normal(size=rule.their_shape(lengths)).astype(jnp.bfloat16)
    save_file({"x": tensor}, tmp_path / "model.safetensors")
    read = functools.partial(SafetensorsFile(tmp_path / "model.safetensors").part, "x")
    for target, whole in enumerate(rule.load(tensor, lengths)):
        ranges = [(length // 2, length) for length in whole.shape]
        part = rule.load_part(target, ranges, lengths, read)
        np.testing.assert_array_equal(part, whole[tuple(slice(*of_axis) for of_axis in ranges)])


MESH = default_mesh(devices=jax.devices()[:1])
MISTAKES = [
    Case(call, ValueError, text)
    for call, text in [
        (lambda: default_mesh(3, 2, devices=jax.devices()[:1]), "3 × 2 (data × model) are 6 devices, but there"),
        (lambda: default_mesh(2.0), "n_data is 2.0; expected a positive number of devices"),
        (lambda: default_mesh(1, 0), "n_model is 0; expected a positive number of devices"),
        (lambda: HookedTransformer.from_pretrained("x", n_devices=0), "n_devices is 0; expected a positive number of"),
        (lambda: HookedTransformer.from_pretrained("x", n_devices="2"), "n_devices is '2'; expected a positive number"),
        (lambda: shard(model("gpt2"), MESH, {"n": ["model"]}), "divide n over ['model'], but the mesh has the axes"),
        (lambda: shard(model("gpt2"), MESH, {"q": "model"}), "rules have the letter 'q'; expected one of a, b, c"),
        (lambda: shard(model("gpt2"), MESH, {"l": "model"}), "rules divide l, the layers, which run one after"),
        (lambda: shard(model("gpt2"), MESH, {"n": "tensor"}), "divide n over 'tensor', but the mesh has the axes"),
        (lambda: shard(model("gpt2"), MESH, [("n", "model")]), "rules"),
        (lambda: shard(model("gpt2"), "cpu"), "mesh is 'cpu'; expected a jax.sharding.Mesh"),
        (lambda: HookedTransformer.from_pretrained("x", rules=DEFAULT_RULES), "rules are given without a mesh"),
        (lambda: HookedTransformer.from_pretrained("x", mesh=MESH, device="cpu"), "mesh and device are given"),
        (lambda: HookedTransformer.from_pretrained("x", mesh=MESH, n_devices=2), "mesh and n_devices are given"),
        (lambda: HookedTransformer.from_pretrained("x", n_devices=2), "n_devices is 2; there are 1 devices from"),
        (
            lambda: HookedTransformer.from_pretrained(
                "x", n_devices=2, device=jax.sharding.SingleDeviceSharding(jax.devices()[0])
            ),
            "expected a kind of device",
        ),
    ]
] + [Case(lambda: shard(model("gpt2").params, MESH), TypeError, "model is a dict; expected a HookedTransformer")]


@pytest.mark.parametrize("case", MISTAKES, ids=lambda case: case.text)
def test_a_mistake_is_explained(case):
    case.check()


def test_every_error_is_reached_by_a_case():
    assert unreached(__file__, MISTAKES) == []
