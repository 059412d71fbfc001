"""Shapes are checked while the tests run, and compiled programs are kept between runs."""

import gc
import os
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ["XDG_CACHE_HOME"] = str(Path(__file__).parents[1] / ".cache")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch's threads would double the time of models as small as these
# XLA's optimisation of programs that run once would be three quarters of the time. With XLA_FLAGS set, if only to
# nothing, programs are as users have them: in `make test-all`, and in `make test` where compiled code is read.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1 "
    "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters=true",
)

import jax
import pytest
from jaxtyping import install_import_hook

COMMON = {"gpt2", "llama", "gemma", "moe", "parallel"}
"""Configs of `models.py` that `make test` runs everything on; the others where parts themselves are tested."""

MORE_CONFIGS_IN = {"test_models.py": {"attn_only", "shortformer"}}
EVERY_CONFIG_IN = {"test_config.py", "test_masks.py", "test_torch_files.py"}

# Where arrays are computed with. What users call checks its own arguments, and its errors are tested as they are.
install_import_hook(["jaxlens.nn", "jaxlens.model.loss"], "beartype.beartype")

cache = Path(os.environ.get("JAXLENS_TEST_CACHE", Path(__file__).parents[1] / ".cache" / "xla"))
jax.config.update("jax_compilation_cache_dir", str(cache))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture(scope="module", autouse=True)
def programs_of_one_file():
    """Programs are kept until there are many."""
    from support.maps import forget_programs

    yield
    forget_programs()


def pytest_collection_finish():
    """Imported modules live as long as the process, so the garbage collector need not look at their objects again.

    Tracing makes many objects that are freed without it. With the usual thresholds it takes some percent of the time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 10)


@pytest.hookimpl(tryfirst=True)  # before those that are not wanted are left out
def pytest_collection_modifyitems(items):
    """Leaves most analyses on most configs to `make test-all`."""
    from support.models import CONFIGS

    for item in items:
        values = getattr(getattr(item, "callspec", None), "params", {}).values()
        rare = CONFIGS.keys() - COMMON - MORE_CONFIGS_IN.get(item.path.name, set())
        other = any(isinstance(value, str) and value in rare for value in values)
        if other and "model_type" not in item.callspec.params and item.path.name not in EVERY_CONFIG_IN:
            item.add_marker(pytest.mark.slow)
