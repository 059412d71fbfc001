"""The data of a hook can be learned: a subspace, a steering vector, a mask over heads."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.models import CONFIGS, model, tokens
from test_models import close

from jaxlens import hook

PAGE = (Path(__file__).parents[1] / "docs" / "interchange.md").read_text()
SEARCH, CHECK = re.findall(r"```python\n(.*?)```", PAGE, re.S)


def learn(loss, initial, steps, rate, *data):
    """The result of gradient descent from `initial`, and the losses."""
    optimizer = optax.adam(rate)

    @jax.jit
    def step(learned, state, *data):
        value, gradient = jax.value_and_grad(loss)(learned, *data)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(learned, updates), state, value

    learned, state, values = initial, optimizer.init(initial), []
    for _ in range(steps):
        learned, state, value = step(learned, state, *data)
        values.append(float(value))
    return learned, values


# --- subspaces


def test_the_documented_search_finds_the_hidden_subspace(capsys):
    names: dict = {}
    exec(SEARCH + CHECK, names)
    assert len([line for line in SEARCH.splitlines() if line]) <= 20
    learned, random = map(float, re.findall(r"\d\.\d+", capsys.readouterr().out))
    assert learned > 0.999 and random < 0.5
    documented = re.search(r"overlap of ([\d.]+) .* and ([\d.]+) for random", PAGE)
    assert [learned, random] == pytest.approx([float(number) for number in documented.groups()], abs=2e-3)
    base, source = jax.random.randint(jax.random.key(7), (2, 64, 6), 0, 20)  # not the prompts of the search
    logits = {name: names["interchanged"](names[name], names["model"], base, source)
              for name in ("hidden", "directions", "random")}  # fmt: skip
    distance = {name: float(jnp.abs(logits[name] - logits["hidden"]).mean()) for name in logits}
    assert distance["directions"] < 0.02 * distance["random"]


def test_interchange_of_all_directions_gives_the_source_and_of_equal_runs_the_base():
    names: dict = {}
    exec(SEARCH + CHECK.partition("hidden, random")[0], names)
    the_model, interchanged = names["model"], names["interchanged"]
    base, source = (tokens(3, 6, seed, d_vocab=20) for seed in (0, 1))
    close(interchanged(jnp.eye(16), the_model, base, source), the_model(source))
    directions = np.random.default_rng(0).normal(size=(16, 2))
    close(interchanged(directions, the_model, base, base), the_model(base))


# --- steering vectors


@pytest.mark.parametrize("name", ["gpt2", "qwen3", "gemma"])
def test_a_steering_vector_is_learned(name):
    """A vector that is added at every position of a layer makes a token likely, also for unseen prompts."""
    the_model, target = model(name), 11

    def steer(resid, hook, vector):
        return resid + vector

    def steered(vector, the_model, prompts):
        hooks = [("blocks.1.hook_resid_post", hook(steer, vector=vector))]
        return jax.nn.log_softmax(the_model.run_with_hooks(prompts, fwd_hooks=hooks)[:, -1])[:, target]

    def loss(vector, the_model, prompts):
        return -steered(vector, the_model, prompts).mean() + 0.001 * jnp.sum(vector**2)

    zero, prompts, unseen = jnp.zeros(14), tokens(8, 7), tokens(8, 7, seed=5)
    vector, losses = learn(loss, zero, 60, 0.1, the_model, prompts)
    assert losses[-1] < losses[0] - 0.5
    random = np.random.default_rng(0).normal(size=(5, 14))
    random *= np.linalg.norm(vector) / np.linalg.norm(random, axis=1, keepdims=True)
    learned, *controls = (steered(jnp.asarray(v, jnp.float32), the_model, unseen).mean() for v in (vector, *random))
    assert learned > max(controls) and learned > steered(zero, the_model, unseen).mean() + 0.4


# --- masks


def test_a_learned_mask_keeps_the_heads_that_have_an_effect():
    """All heads except three write zeros. With a penalty per head, the learned mask keeps these three."""
    cfg, used = CONFIGS["llama"], [(0, 4), (2, 1), (3, 3)]
    params = dict(model("llama").params)
    keep = np.zeros((cfg.n_layers, cfg.n_heads, 1, 1), np.float32)
    for head in used:
        keep[head] = 1
    params["blocks.*.attn.W_O"] = params["blocks.*.attn.W_O"] * keep * 3
    the_model, prompts = model("llama").with_params(params), tokens(16, 9)
    target = jax.nn.softmax(the_model(prompts))

    def masked(z, hook, mask):
        return z * mask[hook.layer()][:, None]

    def loss(weights, the_model, target):
        mask = jax.nn.sigmoid(weights)
        logits = the_model.run_with_hooks(prompts, fwd_hooks=[("blocks.*.attn.hook_z", hook(masked, mask=mask))])
        return optax.softmax_cross_entropy(logits, target).mean() + 0.002 * mask.sum()

    weights, _ = learn(loss, jnp.zeros((cfg.n_layers, cfg.n_heads)), 150, 0.1, the_model, target)
    kept = np.argwhere(jax.nn.sigmoid(weights) > 0.5)
    assert [tuple(head) for head in kept.tolist()] == used


def test_new_data_of_a_learned_hook_compiles_nothing():
    """The gradient through a hook is compiled once for all data of the hook."""
    the_model, traced = model("qwen3"), []

    def add(resid, hook, vector):
        traced.append(hook.name)
        return resid + vector

    @jax.jit
    @jax.grad
    def gradient(vector, the_model):
        hooks = [("blocks.2.hook_resid_mid", hook(add, vector=vector))]
        return the_model.run_with_hooks(tokens(), fwd_hooks=hooks, return_type="loss")

    first = gradient(jnp.zeros(14), the_model)
    count = len(traced)
    second = gradient(jnp.ones(14), the_model)
    assert len(traced) == count > 0 and not np.allclose(first, second)
