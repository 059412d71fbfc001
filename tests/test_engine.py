"""The stretches of runs: what is compiled, when, and for how much."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.hlo import buffers
from support.models import CONFIGS, LLAMA, model, tokens
from test_models import close, every_config

from jaxlens import Config, HookedTransformer, hook
from jaxlens._jax import is_traced
from jaxlens.hooks.plan import HookPlan, register
from jaxlens.model import engine
from jaxlens.model.engine import stretches
from jaxlens.model.generation.past import TransformerLensKeyValueCache


@pytest.fixture
def compilations():
    """The durations of the compilations since the test began, or since `.clear()`."""
    seen: list[float] = []

    def listen(event, seconds, **_):
        if event.endswith("backend_compile_duration"):
            seen.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.clear_event_listeners()


def plan_of(cfg, *hooks, wanted=()):
    added = tuple(register(cfg, name, fn) for name, fn in hooks)
    return HookPlan.of(cfg, added, frozenset(wanted), None, None)


def planned(cfg, plan, start=0, stop=None):
    return [(s.stack, s.layers, s.edited) for s in stretches(plan, start, cfg.n_layers if stop is None else stop)]


def test_an_unhooked_forward_is_one_stretch():
    cfg = CONFIGS["llama"]
    assert planned(cfg, plan_of(cfg)) == [(0, (0, 1, 2, 3), False)]
    assert planned(cfg, plan_of(cfg), 1, 3) == [(0, (1, 2), False)]
    assert planned(cfg, plan_of(cfg), 2, 2) == []


def test_only_the_layer_that_python_edits_leaves_the_loop():
    cfg = CONFIGS["llama"]
    plan = plan_of(cfg, ("blocks.2.attn.hook_z", print), ("blocks.0.hook_resid_pre", hook(print)))
    assert planned(cfg, plan) == [(0, (0, 1), False), (0, (2,), True), (0, (3,), False)]


def test_between_two_layers_python_edits_what_one_loop_gives_the_next():
    cfg = CONFIGS["llama"]
    ends = [("blocks.1.hook_resid_post", print), ("blocks.2.hook_resid_pre", print), ("blocks.3.hook_resid_pre", print)]
    assert planned(cfg, plan_of(cfg, *ends)) == [(0, (0, 1), False), (0, (2,), False), (0, (3,), False)]
    beside_data = plan_of(cfg, ("blocks.2.hook_resid_post", print), ("blocks.*.hook_resid_post", hook(print)))
    assert planned(cfg, beside_data) == [(0, (0, 1), False), (0, (2,), True), (0, (3,), False)]


@pytest.mark.parametrize("name", ["llama", "moe"])
@pytest.mark.parametrize("names_filter", ["large", None, ["blocks.1.hook_resid_post", "blocks.2.hook_resid_pre"]])
def test_an_edit_between_two_layers_is_that_of_the_traced_run_and_is_captured(name, names_filter, monkeypatch):
    the_model, given, ran = model(name), tokens(2, 7), []
    if names_filter == "large":
        names_filter = None
        monkeypatch.setattr(engine, "MANY_BYTES", 0)

    def bent(value, hook):
        ran.append(hook.name)
        return value + jnp.sin(value) * (1 + hook.layer())

    names = [f"blocks.{layer}.hook_resid_{end}" for layer in range(4) for end in ("pre", "post")]
    data = ("blocks.*.hook_resid_post", hook(lambda value, hook, by: value * by, by=0.7))
    for hooks in ([(n, bent) for n in names], [("blocks.1.hook_resid_post", bent), data], [data, (names[3], bent)]):

        def run(m, hooks=hooks):
            out, cache = m.run_with_cache(given, hooks=hooks, names_filter=names_filter)
            return out, dict(cache.items())

        ran.clear()
        (out, cache) = run(the_model)
        assert ran == [n for n in names if any(n == other for other, fn in hooks if fn is bent)]
        expected, by_name = jax.jit(run)(the_model)
        close(out, expected)
        assert cache.keys() == by_name.keys()
        for key in cache:
            close(jnp.nan_to_num(cache[key], neginf=0), jnp.nan_to_num(by_name[key], neginf=0))


def test_a_hook_between_two_layers_compiles_nothing(compilations):
    the_model, given = HookedTransformer(Config(**{**LLAMA, "d_model": 22})), tokens(2, 8)
    the_model(given)
    compilations.clear()
    for end in ("pre", "post"):
        the_model.run_with_hooks(given, fwd_hooks=[(f"blocks.2.hook_resid_{end}", lambda value, hook: value)])
    assert not compilations


def test_only_layers_whose_head_inputs_are_edited_copy_them_for_each_head():
    cfg = CONFIGS["llama"]
    plan = plan_of(cfg, ("blocks.2.hook_q_input", hook(print)), ("blocks.*.attn.hook_q", hook(print)))
    assert [(s.layers, s.per_head) for s in stretches(plan, 0, 4)] == [((0, 1), False), ((2,), True), ((3,), False)]
    the_model, given = model("llama"), tokens()
    name, edit = "blocks.2.hook_q_input", lambda value, hook: value.at[:, :, 1].multiply(2)
    close(
        the_model.run_with_hooks(given, fwd_hooks=[(name, hook(edit))]),
        jax.jit(lambda m: m.run_with_hooks(given, fwd_hooks=[(name, hook(edit))]))(the_model),
    )


def test_a_cache_with_a_python_hook_has_a_fixed_number_of_stretches():
    cfg = CONFIGS["llama"]
    everywhere = [f"blocks.{layer}.attn.hook_z" for layer in range(4)]
    plan = plan_of(cfg, ("blocks.2.attn.hook_z", print), wanted=everywhere)
    assert planned(cfg, plan) == [(0, (0, 1), False), (0, (2,), True), (0, (3,), False)]


def test_captures_are_of_a_whole_stack_or_of_single_layers():
    cfg = CONFIGS["llama"]
    everywhere = [f"blocks.{layer}.attn.hook_z" for layer in range(4)]
    assert planned(cfg, plan_of(cfg, wanted=everywhere)) == [(0, (0, 1, 2, 3), False)]
    some = planned(cfg, plan_of(cfg, wanted=everywhere[1:3]))
    assert some == [(0, (0,), False), (0, (1,), False), (0, (2,), False), (0, (3,), False)]


@pytest.mark.parametrize("name", ["shortformer", "gemma", "moe", "latent", "adapter"])
def test_a_large_cache_has_the_same_values_in_an_array_for_each_layer(name, monkeypatch):
    the_model, given = model(name), tokens(2, 7)
    mask, steer = np.arange(7) >= [[2], [0]], hook(lambda value, hook, by: value * by, by=0.7)

    def runs():
        yield the_model.run_with_cache(given)
        hooks = [("blocks.1.hook_resid_pre", lambda value, hook: value + 1), ("blocks.*.attn.hook_z", steer)]
        yield the_model.run_with_cache(given, attention_mask=mask, hooks=hooks)
        past = TransformerLensKeyValueCache.init_cache(the_model.cfg, batch_size=2)
        the_model(given[:, :3], past_kv_cache=past)
        yield the_model.run_with_cache(given[:, 3:], past_kv_cache=past)

    expected = list(runs())
    monkeypatch.setattr(engine, "MANY_BYTES", 0)
    for (found, cache), (output, stacked) in zip(runs(), expected, strict=True):
        close(found, output)
        assert cache.keys() == stacked.keys()
        for key, value in stacked.items():
            close(cache[key], value)
        close(cache.stack_activation("resid_post"), stacked["blocks.*.hook_resid_post"])
    assert all(not key.startswith("blocks.*") for key in cache._arrays)


@every_config
def test_the_size_of_a_cache_is_known_before_the_run(name):
    names = [*model(name).hook_dict]
    cache = model(name).run_with_cache(tokens(3, 8), names_filter=names)[1]
    size = sum(value.nbytes for key, value in cache.items() if key.startswith("blocks."))
    assert engine._captured_bytes(model(name).cfg, frozenset(names), (3, 8)) == size


def test_gradients_through_a_large_cache(monkeypatch):
    """The residual stream becomes a tracer in a Python hook, after half of the layers."""
    the_model, given = model("llama"), tokens(2, 7)

    def loss(vector):
        hooks = [("blocks.2.hook_resid_pre", lambda value, hook: value + vector)]
        cache = the_model.run_with_cache(given, hooks=hooks)[1]
        return jnp.sum(cache["blocks.3.mlp.hook_post"] ** 2) + jnp.sum(cache["blocks.1.attn.hook_z"])

    expected = jax.grad(loss)(jnp.ones(14))
    monkeypatch.setattr(engine, "MANY_BYTES", 0)
    close(jax.grad(loss)(jnp.ones(14)), expected)


def test_blocks_of_different_shape_are_a_few_stacks_in_order():
    cfg = CONFIGS["moe"]  # dense, mixed, mixed, dense
    assert cfg.stacks == ((0, 3), (1, 2))
    assert planned(cfg, plan_of(cfg)) == [(0, (0,), False), (1, (1, 2), False), (0, (3,), False)]
    assert "blocks.0,3.mlp.W_in" in model("moe").params
    assert "blocks.1-2.mlp.W_router" in model("moe").params
    assert model("moe").blocks[2].mlp.W_in.shape == (5, 14, 22)
    assert model("moe").W_Q.shape == (4, 6, 14, 4)
    assert jnp.array_equal(model("moe").W_Q[3], model("moe").blocks[3].attn.W_Q)


def test_any_stretch_of_layers_runs_the_same_program(compilations):
    the_model, given = model("llama"), tokens()
    middle = the_model(given, stop_at_layer=2)
    the_model(middle, start_at_layer=2)
    compilations.clear()
    for start, stop in ((0, 1), (0, 3), (1, 4), (2, 3)):
        the_model(middle, start_at_layer=start, stop_at_layer=stop)
    assert not compilations


def test_new_hooks_captures_and_gradients_reuse_what_is_compiled(compilations):
    the_model, given = model("llama"), tokens()
    direction = np.ones(14, np.float32)

    def steer(value, hook, direction):
        return value + direction

    def loss(direction, layer):
        hooks = [(f"blocks.{layer}.hook_resid_post", hook(steer, direction=direction))]
        return the_model.run_with_hooks(given, return_type="loss", fwd_hooks=hooks)

    def everything(layer, direction):
        the_model.run_with_hooks(given, fwd_hooks=[(f"blocks.{layer}.attn.hook_z", lambda z, hook: None)])
        the_model.run_with_cache(given, names_filter=f"blocks.{layer}.hook_resid_mid")
        jax.grad(loss)(direction, layer)
        jax.vmap(lambda d: loss(d, layer))(direction[None])
        loss(direction, layer)
        the_model.run_with_cache(given, return_type="loss", incl_bwd=True)

    everything(1, direction)
    compilations.clear()
    everything(2, direction * 2)
    assert not compilations


def test_compiled_size_does_not_grow_with_depth():
    texts = []
    for depth in (3, 12):
        deep = HookedTransformer(Config(**{**LLAMA, "n_layers": depth}))
        compiled = jax.jit(lambda m, t: m(t)).lower(deep, tokens()).compile()
        texts.append(len(buffers(compiled.as_text())))
    assert texts[0] == texts[1]


def test_weights_are_never_copied_whole():
    """Temporary memory of a forward stays far below the size of the weights: a layer at a time."""
    deep = HookedTransformer(Config(**{**LLAMA, "n_layers": 24, "d_model": 128, "d_mlp": 512}))
    size = sum(value.size * 4 for value in deep.params.values())
    compiled = jax.jit(lambda m, t: m(t)).lower(deep, tokens(1, 4)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < size / 6


def test_tracers_are_told_from_arrays():
    found = []
    look = lambda x: found.append(is_traced(x)) or x.sum()  # noqa: E731
    x = jnp.ones((2, 3))
    look(x)
    jax.jit(look)(x)
    jax.grad(look)(x)
    jax.vmap(look)(x)
    jax.jvp(look, (x,), (x,))
    assert found == [False, True, True, True, True]


def test_a_model_is_a_pytree_and_closing_over_it_works_too():
    the_model, given = model("gemma"), tokens()
    plain = the_model(given)
    close(jax.jit(lambda t: the_model(t))(given), plain)
    twice = jax.tree.map(lambda w: w, the_model)
    close(twice(given), plain)
    batched = jax.vmap(the_model)(jnp.stack([given, given[::-1]]))
    close(batched[0], plain)
    close(batched[1], plain[::-1])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["gpt2", "gemma", "moe"])
def test_half_precision_stays_half_and_close(name, dtype):
    full = model(name)
    params = {key: value.astype(dtype) for key, value in full.params.items()}
    half = HookedTransformer(full.cfg.replace(dtype=dtype), params=params)
    logits, cache = half.run_with_cache(tokens())
    assert logits.dtype == dtype
    scales = [n for n in cache if n.endswith(("hook_scale", "expert_weights"))]
    assert all(cache[full_name].dtype == (jnp.float32 if full_name in scales else dtype) for full_name in cache)
    exact = jax.nn.log_softmax(full(tokens()))
    got = jax.nn.log_softmax(logits.astype(jnp.float32))
    assert float(jnp.sum(jnp.exp(exact) * (exact - got), -1).mean()) < 2e-2
    close(half.run_with_hooks(tokens(), fwd_hooks=[("blocks.1.attn.hook_z", lambda z, hook: z)]), logits, 0.1)
