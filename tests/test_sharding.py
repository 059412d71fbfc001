"""Models on a mesh of several devices, with Auto and with Explicit axes."""

import json
import os
import subprocess
import sys

import jax
import pytest
from support.models import CONFIGS


@pytest.fixture(scope="module")
def found(request):
    """The results of tests/support/sharded.py for the configs of the tests that run."""
    of_configs = test_results_on_explicit_axes_equal_those_on_one_device.__name__
    names = [item.callspec.params["name"] for item in request.session.items if item.originalname == of_configs]
    environment = {
        **os.environ, "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4",
        # Programs with collectives that run at the same time can wait for each other's threads on few cores.
        "JAX_CPU_ENABLE_ASYNC_DISPATCH": "0", "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "PYTHONPATH": os.pathsep.join(sys.path),
    }  # fmt: skip
    command = [sys.executable, "-m", "support.sharded", *names]
    return json.loads(subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE).stdout)


RARE = [pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS if name not in ("llama", "gemma", "moe")]


@pytest.mark.parametrize("name", ["llama", "gemma", "moe", *RARE])
def test_results_on_explicit_axes_equal_those_on_one_device(found, name):
    assert found[name]
    assert {what: distance for what, distance in found[name].items() if not distance < 1e-10} == {}


@pytest.mark.parametrize("what", ["forward pass", "gradient"])
def test_explicit_axes_communicate_no_more_than_auto_axes(found, what):
    explicit = found["collectives"][f"{what} Explicit"]
    assert explicit == found["collectives"][f"{what} Auto"]
    assert explicit.keys() == {"all-reduce"}


def test_logits_stay_divided_over_the_vocabulary(found):
    expected = ["data", None, "model"]
    assert found["collectives"]["logits Explicit"] == found["collectives"]["logits Auto"] == expected
