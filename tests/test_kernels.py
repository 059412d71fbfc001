"""Attention by a kernel of tokamax. CPUs have none: its reference implementation takes their place, with the same
arguments. Programs with the kernels themselves are compiled for GPUs and TPUs up to the point that needs the device.
"""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.models import CONFIGS, model, tokens

from jaxlens import Config, HookedTransformer, KVCache
from jaxlens.config import Rotary
from jaxlens.nn import kernels

tokamax = pytest.importorskip("tokamax")

WITH_KERNEL = (
    "gpt2", "neo", "mistral", "gemma", "parallel", "shortformer", "latent", "adapter", "no_rope_layer", "long",
)  # fmt: skip
PADDING = {"last": [(), (15, 16, 17, 18)], "anywhere": [(), (0, 1, 2), (16, 17, 18), (3, 4, 9), (0, 5, 6, 18)]}
"""The columns of padding in the rows of a batch."""


@pytest.fixture
def calls(monkeypatch):
    """The options of the calls of tokamax, which computes with its reference implementation, in every dtype and shape.

    Programs of other tests do not use it, nor do others use those of this one.
    """
    found, original = [], tokamax.dot_product_attention

    def counted(q, k, v, **options):
        found.append(options)
        return original(q, k, v, **options)

    monkeypatch.setattr(tokamax, "dot_product_attention", counted)
    monkeypatch.setattr(kernels, "IMPLEMENTATIONS", ("xla",))
    monkeypatch.setattr(kernels, "HEAD_MULTIPLE", 1)
    monkeypatch.setattr(kernels, "DTYPES", ("float32",))
    jax.clear_caches()
    yield found
    jax.clear_caches()


def close(value, expected):
    value, expected = np.asarray(value), np.asarray(expected)
    np.testing.assert_allclose(value, expected, atol=1e-5 * max(1, np.abs(expected).max()), rtol=0)


def with_blocks(name: str) -> HookedTransformer:
    """A model whose sequences of 5 tokens are long."""
    return HookedTransformer(CONFIGS[name].replace(attn_block=4), params=model(name).params)


@pytest.mark.parametrize("padding", PADDING)
@pytest.mark.parametrize("name", WITH_KERNEL)
def test_kernels_agree(name, padding, calls):
    given = tokens(len(PADDING[padding]), 19)
    mask = np.array([[column not in columns for column in range(19)] for columns in PADDING[padding]])
    expected = model(name)(given, attention_mask=mask)
    assert calls == []
    logits, cache = with_blocks(name).run_with_cache(given, attention_mask=mask, names_filter="blocks.*.attn.hook_z")
    assert {options["local_window_size"] for options in calls} == {
        None if window is None else (window - 1, 0) for window in CONFIGS[name].windows
    }
    assert all(np.isfinite(z).all() for z in cache.values())
    close(logits[mask], expected[mask])


@pytest.mark.parametrize("name", ["bloom", "oss", "deepseek"])
def test_position_biases_and_sinks_have_no_kernel(name, calls):
    expected = model(name)(tokens(2, 19))
    close(with_blocks(name)(tokens(2, 19)), expected)
    assert not calls


def test_stored_patterns_use_no_kernel(calls):
    long = with_blocks("gemma")
    long.run_with_cache(tokens(1, 19), names_filter="blocks.*.attn.hook_pattern")
    long.run_with_hooks(tokens(1, 19), fwd_hooks=[("blocks.*.attn.hook_attn_scores", lambda x, hook: x)])
    assert not calls


@pytest.mark.parametrize("name", ["gpt2", "gemma"])
def test_derivatives(name, calls):
    given, long = tokens(2, 19), with_blocks(name)
    mask = jnp.ones((2, 19), bool).at[0, :3].set(False)

    def loss(params, of):
        return of.with_params(params)(given, attention_mask=mask, return_type="loss")

    found, expected = (jax.jit(jax.grad(functools.partial(loss, of=of)))(of.params) for of in (long, model(name)))
    for key in expected:
        close(found[key], expected[key])
    change = jax.tree.map(jnp.ones_like, long.params)
    found, expected = (
        jax.jvp(functools.partial(loss, of=of), (of.params,), (change,))[1] for of in (long, model(name))
    )
    close(found, expected)
    residual = model(name).run_with_cache(given, names_filter="blocks.0.hook_resid_pre")[1]["blocks.0.hook_resid_pre"]
    stacked = jax.vmap(lambda x: long(x, start_at_layer=0))(jnp.stack([residual, 2 * residual]))
    close(stacked[1], model(name)(2 * residual, start_at_layer=0))


@pytest.mark.parametrize("name", ["mistral", "gemma", "latent"])
def test_prompts_and_experiments(name, calls):
    """A prompt goes through the kernel; what follows reads the slots of a cache, and sweeps pack rows."""
    long, given = with_blocks(name), tokens(2, 17)
    generated = long.generate(given, 5, do_sample=False, stop_at_eos=False, verbose=False, return_type="tokens")
    assert calls
    whole = model(name)(generated)
    np.testing.assert_array_equal(generated[:, 17:], np.argmax(whole[:, 16:-1], axis=-1))
    cache: KVCache = long.init_kv_cache(2, 24)
    first, cache = long.decode(given[:, :9], cache)
    second, cache = long.decode(given[:, 9:], cache)
    close(jnp.concatenate([first, second], axis=1), model(name)(given))


def test_other_arguments_of_the_program():
    """tokamax reads its options from the arguments of the program, which Jupyter and scripts have others of."""
    code = "import jaxlens.nn.kernels as k; k.tokamax().config.cross_compile.value"
    subprocess.run([sys.executable, "-c", code, "-f", "kernel.json"], check=True)


def test_without_a_kernel_for_the_device(monkeypatch):
    jax.clear_caches()
    monkeypatch.setattr(kernels, "HEAD_MULTIPLE", 1)
    monkeypatch.setattr(kernels, "DTYPES", ("float32",))
    close(with_blocks("gemma")(tokens(2, 19)), model("gemma")(tokens(2, 19)))
    monkeypatch.setattr(kernels, "tokamax", lambda: None)
    jax.clear_caches()
    close(with_blocks("gemma")(tokens(2, 19)), model("gemma")(tokens(2, 19)))
    jax.clear_caches()


# --- programs for accelerators

SIZES = {
    "n_layers": 4, "d_model": 96, "n_heads": 6, "n_key_value_heads": 2, "d_head": 64, "d_mlp": 40, "d_vocab": 50,
    "n_ctx": 512, "normalization_type": "RMS", "positional_embedding_type": "rotary", "rotary": Rotary(), "biases": (),
    "dtype": "bfloat16",
}  # fmt: skip
TOKENS_FIRST_OR_MOVED = 2
"""A program has each kernel twice: where padding comes last, and where it is moved there."""


def program(platform: str, length: int = 300, **fields) -> str:
    """A forward pass of a batch of two, compiled for a platform up to the point that needs its devices."""
    the_model, given = HookedTransformer(Config(**SIZES | fields)), np.zeros((2, length), np.int32)
    jax.clear_caches()  # a step that was traced for another device has its kernels
    try:
        traced = jax.jit(lambda the_model, given: the_model(given)).trace(the_model, given)
        return traced.lower(lowering_platforms=(platform,)).as_text()
    finally:
        jax.clear_caches()


@pytest.mark.parametrize(
    ("fields", "n_kernels"),
    [
        ({}, 1), ({"windows": 40}, 1), ({"windows": (40, 40, None, 40)}, 2), ({"dtype": "float16"}, 1),
        ({"attn_scores_soft_cap": 20.0}, 1), ({"length": 257, "d_head": 128, "n_key_value_heads": 6}, 1),
        ({"dtype": "float32"}, 0), ({"length": 256}, 0), ({"attn_sinks": True}, 0), ({"d_head": 20}, 0),
        ({"scale_attn_by_inverse_layer_idx": True}, 0),
    ],
)  # fmt: skip
def test_a_program_for_gpus_has_the_kernels(fields, n_kernels):
    with tokamax.config.cross_compile(True):
        assert program("cuda", **fields).count("xla.gpu.triton") == TOKENS_FIRST_OR_MOVED * n_kernels


@pytest.mark.parametrize(
    ("fields", "n_kernels"),
    [({}, 1), ({"windows": (40, 40, None, 40)}, 1), ({"n_key_value_heads": 1}, 1), ({"attn_scores_soft_cap": 20.0}, 1),
     ({"windows": 40}, 0), ({"dtype": "float16"}, 0), ({"dtype": "float32"}, 0), ({"length": 256}, 0)],
)  # fmt: skip
def test_a_program_for_tpus_has_the_kernels_of_layers_without_a_window(fields, n_kernels, monkeypatch):
    from tokamax._src.ops.attention.pallas_mosaic_tpu import PallasMosaicTpuFlashAttention

    monkeypatch.setattr(PallasMosaicTpuFlashAttention, "supported_on", lambda self, device: True)
    assert program("tpu", **fields).count("tpu_custom_call") == n_kernels  # called from both places
