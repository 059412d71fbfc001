"""Sweeps: what they find is what one hooked run after another finds, and they compile once."""

import dataclasses
import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxlens.patching import get_act_patch_direct_path, get_act_patch_direct_path_all_sources
from support.mistakes import Case, unreached
from support.models import CONFIGS, model, randomised, tokens
from test_engine import compilations  # noqa: F401, a fixture
from test_errors import reading
from test_models import close

from jaxlens import ActivationNotFound, HookError, hook, patching
from jaxlens.analysis.interventions.activation_patching import ablate, activation_patch
from jaxlens.analysis.interventions.cells import Cells
from jaxlens.analysis.interventions.metric import Metric, Read
from jaxlens.analysis.interventions.path_patching import path_patch
from jaxlens.analysis.interventions.sweep import baseline_run, sweep
from jaxlens.analysis.interventions.sweep_batches import BatchShape
from jaxlens.analysis.labelled_array import Labelled
from jaxlens.hooks.names import get_act_name

LENGTH = 7
QUIET = {"progress": False}
SWEEPS = {  # function: the activation it patches, and how its index says where, on an activation with a batch axis
    "resid_pre": ("resid_pre", lambda pos: np.s_[:, pos]),
    "resid_mid": ("resid_mid", lambda pos: np.s_[:, pos]),
    "attn_out": ("attn_out", lambda pos: np.s_[:, pos]),
    "mlp_out": ("mlp_out", lambda pos: np.s_[:, pos]),
    "attn_head_out_by_pos": ("z", lambda pos, head: np.s_[:, pos, head]),
    "attn_head_q_by_pos": ("q", lambda pos, head: np.s_[:, pos, head]),
    "attn_head_k_by_pos": ("k", lambda pos, head: np.s_[:, pos, head]),
    "attn_head_v_by_pos": ("v", lambda pos, head: np.s_[:, pos, head]),
    "attn_head_out_all_pos": ("z", lambda head: np.s_[:, :, head]),
    "attn_head_q_all_pos": ("q", lambda head: np.s_[:, :, head]),
    "attn_head_k_all_pos": ("k", lambda head: np.s_[:, :, head]),
    "attn_head_v_all_pos": ("v", lambda head: np.s_[:, :, head]),
    "attn_head_pattern_all_pos": ("pattern", lambda head: np.s_[:, head]),
    "attn_head_pattern_by_pos": ("pattern", lambda head, dest: np.s_[:, head, dest]),
    "attn_head_pattern_dest_src_pos": ("pattern", lambda head, dest, src: np.s_[:, head, dest, src]),
}


def pair(seed=0):
    """Clean and corrupted tokens: two prompts that first differ at another position each."""
    clean = tokens(2, LENGTH, seed)
    return clean, clean.at[0, 3].add(1).at[1, 1].add(-1).at[1, 5].add(1) % 37


def metric(logits):
    return jnp.mean(logits[:, -1, 3] - logits[:, -1, 4]) + logits[0, 2, 7]


def naive(the_model, base, source, name, where, index):
    """The metric of one hooked run, with the source's activation where the index points."""
    full = get_act_name(name, index[0])

    def put(value, hook):
        return value.at[where(*index[1:])].set(source[full][where(*index[1:])])

    return metric(the_model.run_with_hooks(base, fwd_hooks=[(full, put)]))


def some_of(shape, count=9, seed=0):
    """A few indices of a sweep, the first and the last among them."""
    every = list(itertools.product(*map(range, shape)))
    chosen = np.random.default_rng(seed).choice(len(every), min(count, len(every)), replace=False)
    return [every[i] for i in {0, len(every) - 1, *chosen.tolist()}]


def check(the_model, name, seed=0, count=4, **options):
    clean, corrupted = pair(seed)
    _, cache = the_model.run_with_cache(clean)
    activation, where = SWEEPS[name]
    found = getattr(patching, f"get_act_patch_{name}")(the_model, corrupted, cache, metric, **QUIET, **options)
    indices = some_of(found.shape, count, seed)
    expected = [naive(the_model, corrupted, cache, activation, where, index) for index in indices]
    close(np.array([found[index] for index in indices]), np.array(expected))
    assert np.ptp(np.array(found)) > 1e-3
    return found


@pytest.mark.parametrize("config", CONFIGS)
def test_a_sweep_of_the_residual_stream_equals_hooked_runs(config):
    assert check(model(config), "resid_pre").shape == (CONFIGS[config].n_layers, LENGTH)


@pytest.mark.parametrize("config", ["gpt2", "gemma", "bloom", "original", "deepseek"])
def test_a_sweep_computes_the_logits_of_the_tokens_that_metrics_read(config, monkeypatch):
    shapes = []

    def reading(self, logits, *read):
        shapes.append(logits.shape[-1])
        return value(self, logits, *read)

    value = Metric.__call__
    monkeypatch.setattr(Metric, "__call__", reading)
    monkeypatch.setattr("jaxlens.analysis.interventions.metric.FEW_TOKENS", 2)
    check(model(config, seed=2), "attn_head_out_all_pos", seed=2)
    assert set(shapes) == {4}  # three tokens, and one of them again
    clean, corrupted = pair(2)
    metrics = {"few": metric, "every": lambda logits: jnp.max(logits[:, -1])}
    together = activation_patch(model(config, seed=2), corrupted, clean, metrics, "z", ("layer", "head"), **QUIET)
    monkeypatch.undo()
    for name, one in metrics.items():
        alone = activation_patch(model(config, seed=2), corrupted, clean, one, "z", ("layer", "head"), **QUIET)
        close(together[name].values, alone.values)
        close(together[name].normalised, alone.normalised)


@pytest.mark.parametrize("config", ["neo", "gemma", "moe", "long", "shared_norm", "shortformer"])
@pytest.mark.parametrize("name", ["attn_head_v_by_pos", "attn_head_pattern_by_pos"])
def test_sweeps_of_heads_equal_hooked_runs(config, name):
    check(model(config, seed=1), name, seed=1)


@pytest.mark.parametrize("config", ["gpt2", "llama"])
@pytest.mark.parametrize("name", SWEEPS)
def test_every_sweep_of_transformerlens_equals_hooked_runs(config, name):
    found, cfg = check(model(config), name), CONFIGS[config]
    n_heads = cfg.n_key_value_heads if "_k_" in name or "_v_" in name else cfg.n_heads
    axes = {"pos": LENGTH, "dest": LENGTH, "src": LENGTH, "head": n_heads}
    assert found.shape == (cfg.n_layers, *(axes[axis] for axis in SWEEPS[name][1].__code__.co_varnames))


def test_a_cache_of_some_layers_serves_a_sweep_over_those():
    pandas = pytest.importorskip("pandas")
    clean, corrupted = pair()
    names = ["blocks.1.hook_mlp_out", "blocks.3.hook_mlp_out"]
    _, cache = model("llama").run_with_cache(clean, names_filter=names)
    given = model("llama"), corrupted, cache, metric, patching.layer_pos_patch_setter, "mlp_out"
    whole = check(model("llama"), "mlp_out")
    for layers in ([1, 3], [3]):
        indices = pandas.DataFrame([(layer, 4) for layer in layers], columns=["layer", "pos"])
        close(patching.generic_activation_patch(*given, index_df=indices, **QUIET), whole[np.array(layers), 4])


def test_a_sweep_leaves_out_layers_without_the_activation():
    """Experts of a model whose first layer has none."""
    name, (clean, corrupted), of = "mlp.hook_expert_weights", pair(), model("moe")
    source = of.run_with_cache(clean)[1]
    generic, indices = patching.generic_activation_patch(
        of, corrupted, source, metric, patching.layer_pos_patch_setter, name, ("layer", "pos"), return_index_df=True,
        **QUIET,
    )  # fmt: skip
    labeled = activation_patch(of, corrupted, clean, metric, name, ("layer", "pos"), **QUIET)
    assert labeled.labels["layer"] == ["1", "2"]
    assert sorted(set(indices["layer"])) == [1, 2]
    expected = [naive(of, corrupted, source, name, lambda pos: np.s_[:, pos], index) for index in indices.to_numpy()]
    close(generic.reshape(-1), jnp.array(expected))
    close(labeled.values, generic)
    zeroed = hook(lambda weights, hook: weights.at[..., 1].set(0))
    expected = [metric(of.run_with_hooks(clean, fwd_hooks=[(f"blocks.{layer}.{name}", zeroed)])) for layer in (1, 2)]
    close(ablate(of, clean, metric, name, ("layer", "expert"), **QUIET).values[:, 1], jnp.array(expected))


@pytest.mark.parametrize("config", ["gpt2", "llama"])
def test_aggregates_stack_sweeps_and_fill_up_grouped_heads_with_zeros(config):
    the_model, cfg = model(config), CONFIGS[config]
    clean, corrupted = pair()
    given = the_model, corrupted, the_model.run_with_cache(clean)[1], metric
    heads = patching.get_act_patch_attn_head_all_pos_every(*given, **QUIET)
    by_pos = patching.get_act_patch_attn_head_by_pos_every(*given, **QUIET)
    blocks = patching.get_act_patch_block_every(*given, **QUIET)
    assert heads.shape == (5, cfg.n_layers, cfg.n_heads)
    assert by_pos.shape == (5, cfg.n_layers, LENGTH, cfg.n_heads)
    assert blocks.shape == (3, cfg.n_layers, LENGTH)
    k = cfg.n_key_value_heads
    assert jnp.array_equal(heads[2, :, :k], patching.get_act_patch_attn_head_k_all_pos(*given, **QUIET))
    assert not heads[2:4, :, k:].any()
    patterns = patching.get_act_patch_attn_head_pattern_by_pos(*given, **QUIET)
    assert jnp.array_equal(by_pos[4], patterns.swapaxes(1, 2))
    assert jnp.array_equal(blocks[1], patching.get_act_patch_attn_out(*given, **QUIET))


# --- identities


@pytest.mark.parametrize("config", CONFIGS)
def test_the_same_run_changes_nothing_and_the_whole_clean_run_restores_its_metric(config):
    the_model = model(config)
    clean, corrupted = pair()
    same = activation_patch(the_model, corrupted, corrupted, metric, **QUIET)
    assert np.array_equal(same.values, np.broadcast_to(same.start, same.shape))
    close(same.start, metric(the_model(corrupted)))
    for base, other in ((corrupted, clean), (clean, corrupted)):
        whole = activation_patch(the_model, base, other, metric, "resid_pre", ("layer",), **QUIET)
        end = metric(the_model(other))
        close(whole.values, np.full(whole.shape, end))
        change = end - whole.start  # values are rounded as the metric is, however small its change is
        close(whole.normalised.values * change, np.full(whole.shape, change))


@pytest.mark.parametrize(
    "metric", [lambda x: (100 - 100 * x[:, -1, 3]).astype(jnp.uint8), lambda x: x[:, -1, 3] > x[:, -1, 4]]
)
def test_changes_of_counts_and_truths_have_a_sign(metric):
    the_model, given = model("gpt2"), tokens(2, 5)
    patched = activation_patch(the_model, given, tokens(2, 5, 1), metric, progress=False)
    expected = patched.values.astype(float) - np.asarray(patched.start, float)
    np.testing.assert_array_equal(patched.change.values, expected)
    assert repr(patched).startswith("Patched(")


def test_direct_paths_take_every_metric():
    the_model, clean, corrupted = model("gpt2"), tokens(2, 5), tokens(2, 5, 1)
    caches = [the_model.run_with_cache(each)[1] for each in (clean, corrupted)]
    n_layers, n_heads = the_model.cfg.n_layers, the_model.cfg.n_heads
    for layer in (0, n_layers - 1):  # no layer is after the last
        given = (the_model, corrupted, *caches, lambda x: x[:, -1, 3], layer, 1)
        assert get_act_patch_direct_path(*given, verbose=False).shape == (n_layers, n_heads, 2)


def direct_path_of_a_shorter_run():
    run = model("gpt2").run_with_cache
    caches = run(tokens(2, 5))[1], run(tokens(2, 3))[1]
    get_act_patch_direct_path(model("gpt2"), tokens(2, 5), *caches, metric, 0, 1)


def test_noising_is_denoising_with_the_runs_exchanged():
    clean, corrupted = pair()
    noising = activation_patch(model("llama"), corrupted, clean, metric, direction="noising", **QUIET)
    exchanged = activation_patch(model("llama"), clean, corrupted, metric, **QUIET)
    assert np.array_equal(noising.values, exchanged.values)
    assert np.array_equal(noising.start, exchanged.start)


def test_activation_patch_runs_the_model_twice(monkeypatch):
    the_model, runs = model("llama"), []
    run = type(the_model).run

    def recorded(self, model_input, *args, **kwargs):
        runs.append(model_input.residual is None)  # a run from the tokens on, not from a layer
        return run(self, model_input, *args, **kwargs)

    monkeypatch.setattr(type(the_model), "run", recorded)
    activation_patch(the_model, *reversed(pair()), metric, **QUIET)
    assert sum(runs) == 2  # the clean run and the corrupted run, which is also the baseline


# --- what a sweep may be given


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_the_size_of_a_batch_changes_nothing(batch_size):
    check(model("llama"), "attn_head_out_by_pos", batch_size=batch_size)


def test_a_batch_of_cells_has_room_for_a_whole_run_at_least():
    the_model = model("gpt2")
    given = the_model.read_input(tokens(2, LENGTH))
    baseline, _ = baseline_run(the_model, given, "hook_resid_pre", [0, 1, 2, 3])
    for batch_size in (None, 1, 3, 1000):
        shape = BatchShape.for_sweep(CONFIGS["gpt2"], baseline, Read(np.arange(1), np.arange(37)), batch_size)
        assert shape.rows >= 2 * LENGTH
        assert shape.cells >= 1


def test_batches_keep_their_shape_while_free_memory_changes_little():
    the_model, cfg = model("gpt2"), CONFIGS["gpt2"]
    baseline, _ = baseline_run(the_model, the_model.read_input(tokens(2, LENGTH)), "hook_resid_pre", [0, 1, 2, 3])

    def shape(in_use, limit=2**24):
        stats = {"bytes_limit": limit, "bytes_in_use": in_use}
        device = types.SimpleNamespace(platform="gpu", memory_stats=lambda: stats)
        logits = types.SimpleNamespace(dtype=baseline.logits.dtype, devices=lambda: [device])
        read = Read(np.arange(1), np.arange(37))
        return BatchShape.for_sweep(cfg, dataclasses.replace(baseline, logits=logits), read, None)

    assert shape(0) == shape(10**5) == shape(3 * 10**6)
    assert shape(12 * 10**6).cells < shape(0).cells < shape(0, 2**26).cells
    assert shape(2**24).rows >= 2 * LENGTH  # no free memory


@pytest.mark.parametrize(("name", "block"), [("mistral", 2), ("neo", 3)])
def test_a_sweep_runs_blockwise_where_the_model_does(name, block):
    the_model = randomised(CONFIGS[name].replace(attn_block=block))
    clean, corrupted = pair()
    _, cache = the_model.run_with_cache(clean, names_filter="blocks.*.attn.hook_k")
    of_blocks, explicit = (
        patching.get_act_patch_attn_head_k_by_pos(one, corrupted, cache, metric, **QUIET)
        for one in (the_model, model(name))
    )
    close(of_blocks, explicit)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("config", ["gpt2", "long", "mistral"])
def test_padding_is_left_out(config, side):
    """A padded prompt and the same one alone: every patch of its real positions gives the same."""
    the_model = model(config)
    clean, corrupted = tokens(1, 5), tokens(1, 5).at[0, 2].set(8)
    alone = activation_patch(the_model, corrupted, clean, lambda logits: logits[0, -1], **QUIET)
    ends = {"left": slice(2, None), "right": slice(0, 5)}[side]
    padded = [jnp.zeros((1, 7), jnp.int32).at[:, ends].set(run) for run in (clean, corrupted)]
    mask = jnp.zeros((1, 7), bool).at[:, ends].set(True)
    _, cache = the_model.run_with_cache(padded[0], attention_mask=mask)
    last = 6 if side == "left" else 4
    found = patching.get_act_patch_resid_pre(
        the_model, padded[1], cache, lambda logits: logits[0, last], attention_mask=mask, **QUIET
    )
    close(found[:, ends], alone.values)


def test_several_metrics_and_a_value_for_every_prompt_in_one_sweep():
    clean, corrupted = pair()
    metrics = {"one": metric, "each": lambda logits: logits[:, -1, 3], "python": lambda logits: float(logits[0, 0, 1])}
    found = activation_patch(model("gpt2"), corrupted, clean, metrics, "z", ("layer", "pos", "head"), **QUIET)
    assert found["each"].axes == ("layer", "pos", "head", "prompt")
    assert found["each"].shape == (4, LENGTH, 6, 2)
    for name, one in metrics.items():
        alone = activation_patch(model("gpt2"), corrupted, clean, one, "z", ("layer", "pos", "head"), **QUIET)
        close(found[name].values, alone.values)


def test_prompts_of_a_batch_are_patched_each_from_its_own_pair():
    clean, corrupted = pair()
    both = activation_patch(model("llama"), corrupted, clean, lambda logits: logits[:, -1, 3], **QUIET)
    for prompt in range(2):
        one = slice(prompt, prompt + 1)
        alone = activation_patch(model("llama"), corrupted[one], clean[one], lambda x: x[:, -1, 3], **QUIET)
        close(both.values[..., prompt], alone.values[..., 0])


def test_one_clean_prompt_may_serve_all_corrupted_ones():
    clean, corrupted = pair()
    _, cache = model("gpt2").run_with_cache(clean[:1])
    found = patching.get_act_patch_resid_pre(model("gpt2"), corrupted, cache, metric, **QUIET)
    _, repeated = model("gpt2").run_with_cache(jnp.repeat(clean[:1], 2, axis=0))
    close(found, patching.get_act_patch_resid_pre(model("gpt2"), corrupted, repeated, metric, **QUIET))


def test_a_setter_of_ones_own_and_a_dataframe_of_indices():
    pandas = pytest.importorskip("pandas")
    clean, corrupted = pair()
    _, cache = model("llama").run_with_cache(clean)

    def halfway(corrupted_activation, index, clean_activation):
        layer, pos, width = index
        wide = jnp.arange(corrupted_activation.shape[-1]) < width
        mixed = (corrupted_activation[:, pos] + clean_activation[:, pos]) / 2 * (layer + 1)
        return corrupted_activation.at[:, pos].set(jnp.where(wide, mixed, corrupted_activation[:, pos]))

    indices = pandas.DataFrame([(3, 6, 4), (0, 3, 14), (2, 1, 1)], columns=["layer", "pos", "width"])
    found, returned = patching.generic_activation_patch(
        model("llama"), corrupted, cache, metric, halfway, "mlp_out", index_df=indices, return_index_df=True, **QUIET
    )
    assert returned is indices
    for value, index in zip(found, indices.to_numpy(), strict=True):
        name = f"blocks.{index[0]}.hook_mlp_out"
        put = lambda v, hook, i=index, n=name: halfway(v, i, cache[n])  # noqa: E731
        close(value, metric(model("llama").run_with_hooks(corrupted, fwd_hooks=[(name, put)])))


def test_a_plain_setter_is_read_anew_in_every_sweep():
    strength = [1.0]
    found = []
    for strength[0] in (1.0, 3.0):
        found.append(generic(lambda a, i, c: a.at[:, i[1]].set(strength[0] * c[:, i[1]])))
    assert np.abs(found[0] - found[1]).max() > 1e-3


def test_negative_indices_count_from_the_end():
    ends, starts = (
        generic(axes=None, index_df=Table([(1, pos), (3, pos)], "layer", "pos")) for pos in (-1, LENGTH - 1)
    )
    close(ends, starts)


def test_a_metric_of_several_values_for_every_prompt_has_axes_of_its_own():
    clean, corrupted = pair()
    found = activation_patch(model("gpt2"), corrupted, clean, lambda x: x[:, -1, :3], "z", ("layer", "head"), **QUIET)
    assert found.axes == ("layer", "head", "prompt", "metric axis 1")
    assert found.shape == (4, 6, 2, 3)


def test_a_position_is_selected_by_its_label_or_its_number():
    labels = {"layer": ["3", "4"], "pos": ["<s> 0", " key 1", " 2 2"]}
    result = Labelled(np.arange(6.0).reshape(2, 3), ("layer", "pos"), labels)
    assert result.at(pos=" key 1").values.tolist() == result.at(pos=1).values.tolist() == [1, 4]
    assert result.at(layer=np.int32(4), pos=2).values == 5
    for missing in (3, -1, "1", "key"):
        with pytest.raises(KeyError, match="there is no pos"):
            result.at(pos=missing)


def test_indices_can_be_returned_as_a_dataframe():
    pytest.importorskip("pandas")
    clean, corrupted = pair()
    _, cache = model("gpt2").run_with_cache(clean)
    found, frame = patching.get_act_patch_attn_head_out_all_pos(
        model("gpt2"), corrupted, cache, metric, return_index_df=True, **QUIET
    )
    assert list(frame.columns) == ["layer", "head"]
    assert frame.to_numpy().tolist() == [list(index) for index in np.ndindex(*found.shape)]
    result = activation_patch(model("gpt2"), corrupted, clean, metric, "z", ("layer", "head"), **QUIET)
    assert np.array_equal(result.to_dataframe()["value"], result.values.ravel())


# --- one program


def test_a_warm_sweep_compiles_nothing_for_other_prompts_metrics_answers_or_batches(compilations):  # noqa: F811
    the_model = model("llama")
    runs = []
    for seed in (0, 1, 2, 5):  # where the two runs begin to differ is data, too
        clean, corrupted = (np.array(run) for run in pair(seed))
        if seed:
            corrupted = np.concatenate((clean[:, :seed], (clean[:, seed:] + 1) % 37), axis=1)
        runs.append((clean, corrupted, np.array([[seed, 2], [7, seed]])))

    for clean, corrupted, answers in runs:

        def difference(logits, answers=answers):
            last = logits[:, -1]
            return jnp.mean(last[jnp.arange(2), answers[:, 0]] - last[jnp.arange(2), answers[:, 1]])

        for name, axis in (("resid_pre", "pos"), ("z", "head")):
            activation_patch(the_model, corrupted, clean, difference, name, ("layer", axis), **QUIET)
        if clean is runs[0][0]:
            compilations.clear()
    assert not compilations


def test_a_metric_says_which_positions_and_tokens_it_reads():
    logits = jax.ShapeDtypeStruct((3, 9, 20), jnp.float32)
    ends, rows, answers = jnp.array([4, 5, 6]), jnp.arange(3), jnp.array([[2, 7], [11, 19], [7, 0]])
    last = lambda x: jnp.take_along_axis(x[:, -1], answers, axis=-1)  # noqa: E731
    everywhere, everything = list(range(9)), list(range(20))

    def printing(x):
        jax.debug.print("")
        return x[:, -1, 3]

    cases = [
        (lambda x: x[:, -1].max(), [8], everything),
        (lambda x: x[0, -1, 3] - x[1, 2, 5], [2, 8], [3, 5]),
        (lambda x: last(x).sum(), [8], [0, 2, 7, 11, 19]),
        (jax.jit(lambda x: jax.jit(last)(x).T[0] * 2), [8], [2, 7, 11]),
        (jax.jit(lambda x: jax.nn.log_softmax(x[:, -1])[:, 3]), [8], everything),
        (lambda x: sum(x[i, -1, token] for i, token in enumerate((7, 19, 0))), [8], [0, 7, 19]),
        (lambda x: jax.vmap(lambda row, token: row[-1, token])(x, answers[:, 0]), [8], [2, 7, 11]),
        (lambda x: jnp.take(x[:, -2], answers[1], axis=-1), [7], [11, 19]),
        (lambda x: x[rows, ends, rows].mean(), [4, 5, 6], [0, 1, 2]),
        (lambda x: x[:, -1][:, answers[0]].astype(jnp.bfloat16).astype(jnp.float32) * 2, [8], [2, 7]),
        (lambda x: x.astype(jnp.int8)[:, -1, 4], [8], [4]),
        (lambda x: x[::-1, ::4, ::-7][:, 1, 1:].T, [4], [5, 12]),
        (lambda x: x.reshape(27, 20)[8:10, 2].reshape(1, 2, 1).swapaxes(0, 1), [0, 8], [2]),
        (lambda x: jnp.flip(x.ravel()[jnp.array([7, 33, -1])]) - 1, [0, 1, 8], [7, 13, 19]),
        (lambda x: jnp.broadcast_to(x[0, -1, 3], (2, 3)) + x[:, 1, 4], [1, 8], [3, 4]),
        (lambda x: jax.lax.dynamic_slice(x, (0, 7, 25), (3, 2, 2)).sum((1, 2)), [7, 8], [18, 19]),
        (lambda x: x[0, 3, 2:5], [3], [2, 3, 4]),
        (lambda x: x[0, -1, 3], [8], [3]),
        (lambda x: jnp.take(x[:, -1], jnp.array([3, 25]), axis=-1)[:, 0], [8], [3]),
        (lambda x: jnp.nan_to_num(jnp.take(x[:, -1], jnp.array([3, 25]), axis=-1)), [8], everything),
        (printing, [8], [3]),
        (lambda x: x[0, -1, 3] + x.sum(), everywhere, everything),
        (lambda x: x[:, 4:7].sum() + x[..., -1, 3].sum(), [4, 5, 6, 8], everything),
        (lambda x: (x[:, :-1].argmax(-1) == 2).mean(), everywhere[:8], everything),
        (lambda x: jax.nn.log_softmax(x, -1)[:, -1].max(), everywhere, everything),
        (lambda x: x[:, x[0, 0].argmax() % 9].sum(), everywhere, everything),
        (lambda x: x.sum(), everywhere, everything),
        (lambda x: float(x[0, -1, 3]), everywhere, everything),
        (lambda x: 1.0, everywhere, everything),
        (lambda x: x[x > 0].sum(), everywhere, everything),
        (lambda x: float(f"{x[0, -1, 3]:.6f}"), everywhere, everything),
        (lambda x: x.block_until_ready()[0, -1, 3], everywhere, everything),
        (lambda x: x[:, 3:3].sum(), everywhere, everything),
    ]
    values = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3, 9, 20)) * 3, jnp.float32)
    for function, positions, read in cases:
        ready, expected = Metric(function, logits), np.stack([np.asarray(function(one)) for one in values])
        assert ready.positions.tolist() == positions
        assert ready.tokens.tolist() == read
        close(ready(values[:, :, ready.positions][..., ready.tokens]), expected)
        more = np.union1d(ready.positions, [1, 8]), np.union1d(ready.tokens, [0, 5, 19])
        close(ready(values[:, :, more[0]][..., more[1]], *more), expected)


def test_an_error_of_a_metric_comes_before_the_run_and_other_metrics_run_on_concrete_logits():
    logits = jax.ShapeDtypeStruct((3, 9, 20), jnp.float32)
    with pytest.raises(ZeroDivisionError):
        Metric(lambda x: x[:, -1].sum() / (1 // 0), logits)
    total = lambda x: jax.pure_callback(np.sum, jax.ShapeDtypeStruct((), "float32"), x)  # noqa: E731
    ready = Metric(total, logits)  # its callback has no rule for vmap
    close(ready(jnp.ones((2, 3, 9, 20))), np.full(2, 540.0))


# --- ablation


def test_ablations_equal_hooked_runs():
    the_model, given = model("llama"), tokens(3, LENGTH)
    _, cache = the_model.run_with_cache(given)
    others = activation_sources(ablate(the_model, given, per_prompt, by="resample", seed=3, **QUIET), cache)
    for by in ("zero", "mean", "resample"):
        found = ablate(the_model, given, per_prompt, by=by, seed=3, **QUIET)
        assert found.axes == ("layer", "head", "prompt")
        for layer, head in some_of(found.shape[:2], 5):
            z = cache["z", layer]
            put = {"zero": 0.0, "mean": z.mean((0, 1))[head], "resample": z[others][:, :, head]}[by]
            edit = lambda v, hook, put=put, head=head: v.at[:, :, head].set(put)  # noqa: E731
            edited = the_model.run_with_hooks(given, fwd_hooks=[(get_act_name("z", layer), edit)])
            close(found.values[layer, head], per_prompt(edited))


def per_prompt(logits):
    return logits[:, -1, 3]


def activation_sources(found, cache):
    """Which prompt each took its activation from: the only cycle that explains what a resample ablation found."""
    orders = [order for order in itertools.permutations(range(3)) if all(i != o for i, o in enumerate(order))]
    the_model = model("llama")
    errors = []
    for order in orders:
        edit = lambda v, hook, order=order: v.at[:, :, 2].set(cache["z", 1][np.array(order)][:, :, 2])  # noqa: E731
        edited = the_model.run_with_hooks(tokens(3, LENGTH), fwd_hooks=[(get_act_name("z", 1), edit)])
        errors.append(np.abs(np.asarray(per_prompt(edited)) - found.values[1, 2]).max())
    return np.array(orders[int(np.argmin(errors))])


def test_prompts_of_other_lengths_are_resampled_from_prompts_of_their_own():
    given, last = tokens(4, LENGTH), np.array([LENGTH - 1, 3, LENGTH - 1, 3])
    mask = np.arange(LENGTH) <= last[:, None]
    found = ablate(
        model("gpt2"), given, lambda x: x[jnp.arange(4), last, 3], by="resample", attention_mask=mask, **QUIET
    )
    for rows in ([0, 2], [1, 3]):
        ends = given[np.array(rows), : last[rows[0]] + 1]
        alone = ablate(model("gpt2"), ends, per_prompt, by="resample", **QUIET)
        close(found.values[..., rows], alone.values)


def test_neurons_and_experts_are_ablated():
    neurons = ablate(model("gpt2"), tokens(), metric, "post", ("layer", "neuron"), **QUIET)
    assert neurons.shape == (4, 22)
    edit = lambda v, hook: v.at[..., 5].set(0)  # noqa: E731
    edited = model("gpt2").run_with_hooks(tokens(), fwd_hooks=[(get_act_name("post", 2), edit)])
    close(neurons.values[2, 5], metric(edited))


def test_the_mean_leaves_padding_out():
    the_model = model("gpt2")
    from jaxlens.analysis.interventions.activation_patching import _mean

    value = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 3)), jnp.float32)
    real = jnp.array([[0, 1, 1, 1, 1], [0, 0, 0, 1, 1]], bool)
    close(_mean(value, real, "b p d")[1, 0], value[np.asarray(real)].mean(0))
    assert the_model.cfg.n_layers == 4


# --- paths


def outputs(the_model, cache, layer, head):
    return jnp.einsum("bph,hd->bpd", cache["z", layer][:, :, head], the_model.blocks[layer].attn.W_O[head])


@pytest.mark.parametrize("config", ["gpt2", "llama", "parallel", "shared_norm"])
@pytest.mark.parametrize("component", ["q", "k", "v", "mlp", "logits"])
def test_a_path_patch_moves_what_one_receiver_reads(config, component):
    the_model, cfg = model(config), CONFIGS[config]
    clean, corrupted = pair()
    (_, clean_cache), (_, cache) = (the_model.run_with_cache(run) for run in (clean, corrupted))
    senders = [(0, 1), (2, 5), 1]
    found = path_patch(the_model, corrupted, clean, metric, component, senders, **QUIET)
    read = {"q": "hook_q_input", "k": "hook_k_input", "v": "hook_v_input", "mlp": "hook_mlp_in"}
    for row, sender in enumerate(senders):
        if isinstance(sender, tuple):
            moved = outputs(the_model, clean_cache, *sender) - outputs(the_model, cache, *sender)
        else:
            moved = clean_cache["mlp_out", sender] - cache["mlp_out", sender]
        written = sender[0] if isinstance(sender, tuple) else sender
        for layer in range(cfg.n_layers):
            if component == "logits":
                name, edit, column = "blocks.3.hook_resid_post", lambda v, hook, m=moved: v + m, 0
            elif component == "mlp":
                name, edit, column = f"blocks.{layer}.hook_mlp_in", lambda v, hook, m=moved: v + m, layer
            else:
                name = f"blocks.{layer}.{read[component]}"
                edit = lambda v, hook, m=moved: v.at[:, :, 1].add(m)  # noqa: E731
                column = layer * (found.shape[1] // cfg.n_layers) + 1
            same_layer = component == "mlp" and isinstance(sender, tuple) and not cfg.parallel_attn_mlp
            reached = component == "logits" or written < layer or (same_layer and written == layer)
            hooks = [(name, edit)] if reached else []
            close(found.values[row, column], metric(the_model.run_with_hooks(corrupted, fwd_hooks=hooks)))


def test_paths_have_a_value_for_every_prompt_and_run_in_half_precision():
    the_model, (clean, corrupted) = model("llama"), pair()
    half = type(the_model)(
        the_model.cfg.replace(dtype="bfloat16"),
        params={name: value.astype("bfloat16") for name, value in the_model.params.items()},
    )
    for component in ("v", "mlp", "logits"):
        given = corrupted, clean, per_prompt, component, jnp.array([[0, 1], [1, 2]])
        each = path_patch(the_model, *given, **QUIET)
        assert each.axes == ("sender", "receiver", "prompt") and each.labels["sender"] == ["L0H1", "L1H2"]
        together = path_patch(the_model, corrupted, clean, lambda x: per_prompt(x).sum(), *given[3:], **QUIET)
        close(each.values.sum(-1), together.values)
        found = path_patch(half, *given, **QUIET)
        assert found.values.dtype == np.float32
        assert np.abs(found.values - each.values).max() < 0.05 * np.abs(each.values).max()


@pytest.mark.parametrize("config", ["post_norm", "gemma"])
def test_senders_write_what_is_added_to_the_residual_stream(config):
    """All heads of a layer together move the logits as attn_out does, where a norm stands behind attention too."""
    the_model = model(config)
    clean, corrupted = pair()
    (_, clean_cache), (_, cache) = (the_model.run_with_cache(run) for run in (clean, corrupted))
    from jaxlens.analysis.interventions.path_patching import _outputs

    heads = [(1, head) for head in range(6)]
    (_, of_clean), (_, of_corrupted) = (
        _outputs(the_model, the_model.read_input(run), heads, metric) for run in (clean, corrupted)
    )
    close((of_clean - of_corrupted).sum(0), clean_cache["attn_out", 1] - cache["attn_out", 1])


@pytest.mark.parametrize("config", ["gpt2", "llama"])
@pytest.mark.parametrize("component", ["q", "k", "v"])
def test_linear_direct_paths_keep_the_receivers_scale(config, component):
    the_model, cfg = model(config), CONFIGS[config]
    clean, corrupted = pair()
    (_, clean_cache), (_, cache) = (the_model.run_with_cache(run) for run in (clean, corrupted))
    given = the_model, corrupted, clean_cache, cache, metric
    found = get_act_patch_direct_path(*given, 1, 2, component, verbose=False)
    every = get_act_patch_direct_path_all_sources(*given, component, verbose=False)
    close(every[1, 2], found)
    assert not found[:2].any()
    assert not every[3].any()
    moved = outputs(the_model, clean_cache, 1, 2) - outputs(the_model, cache, 1, 2)
    block = the_model.blocks[3]
    moved = (moved - moved.mean(-1, keepdims=True) if config == "gpt2" else moved) * block.ln1.w
    W = getattr(block.attn.module, f"W_{component.upper()}")[1]
    edit = lambda v, hook: v.at[:, :, 1].add(moved / cache["scale", 3, "ln1"] @ W)  # noqa: E731
    edited = the_model.run_with_hooks(corrupted, fwd_hooks=[(f"blocks.3.attn.hook_{component}", edit)])
    close(found[3, 1], metric(edited))
    assert found.shape == (cfg.n_layers, cfg.n_heads if component == "q" else cfg.n_key_value_heads)


@pytest.mark.parametrize("component", ["q", "k", "v"])
def test_direct_paths_include_an_adapter(component):
    clean, corrupted = pair()
    apart, merged = model("adapter"), model("adapter").merge_adapter()
    found = [
        get_act_patch_direct_path(
            of, corrupted, of.run_with_cache(clean)[1], of.run_with_cache(corrupted)[1], metric, 0, 1, component,
            verbose=False,
        ) for of in (apart, merged)
    ]  # fmt: skip
    close(*found)


def test_a_sweep_takes_data_hooks_as_setters():
    clean, corrupted = pair()
    _, cache = model("gpt2").run_with_cache(clean)

    def add(activation, index, source, amount):
        return activation.at[:, index[1]].add(amount)

    for amount in (0.5, 1.0):
        found = patching.generic_activation_patch(
            model("gpt2"), corrupted, cache, metric, hook(add, amount=amount), "attn_out", ("layer", "pos"), **QUIET
        )
        edit = lambda v, hook, amount=amount: v.at[:, 4].add(amount)  # noqa: E731
        edited = model("gpt2").run_with_hooks(corrupted, fwd_hooks=[("blocks.2.hook_attn_out", edit)])
        close(found[2, 4], metric(edited))


@pytest.mark.parametrize(
    ("config", "layer", "names"),
    [
        ("gpt2", 0, ["ln1.hook_scale", "attn.hook_result", "hook_q_input", "hook_mlp_in", "mlp.hook_pre"]),
        ("gemma", 2, ["attn.hook_rot_k", "attn.hook_attn_scores", "ln2_post.hook_normalized", "hook_v_input"]),
        ("llama", 2, ["ln1.hook_out", "ln2.hook_out"]),
        ("shared_norm", 1, ["ln1.hook_out", "mlp.hook_in"]),
        ("moe", 1, ["mlp.hook_expert_weights", "mlp.hook_post", "hook_resid_post"]),
        ("solu_ln", 3, ["mlp.hook_mid", "mlp.ln.hook_scale"]),
    ],
)
def test_any_activation_of_a_layer_can_be_swept(config, layer, names):
    """Sites on request, those of norms, and those that only some layers have: the whole activation from the source."""
    the_model = model(config)
    clean, corrupted = pair()
    _, cache = the_model.run_with_cache(clean, names_filter=[f"blocks.{layer}.{name}" for name in names])
    put = hook(lambda activation, index, source: source)
    for name in names:
        cells = Cells(name, np.array([layer]), np.array([[layer]]))
        found = sweep(
            the_model, the_model.read_input(corrupted), cells, put, cache, {"": metric}, progress=False
        ).cells[""]
        edit = lambda v, hook: cache[hook.name]  # noqa: E731
        edited = the_model.run_with_hooks(corrupted, fwd_hooks=[(f"blocks.{layer}.{name}", edit)])
        close(found[0], metric(edited))


# --- mistakes


class Table:
    """As much of a DataFrame as a sweep reads."""

    def __init__(self, rows, *columns):
        self.rows, self.columns = rows, columns

    def to_numpy(self):
        return np.array(self.rows)

    def __len__(self):
        return len(self.rows)


def generic(setter=patching.layer_pos_patch_setter, name="attn_out", axes=("layer", "pos"), source=None, **how):
    clean, corrupted = pair()
    corrupted = how.pop("tokens", corrupted)
    source = model("gpt2").run_with_cache(clean)[1] if source is None else source
    return patching.generic_activation_patch(
        how.pop("the_model", model("gpt2")), corrupted, source, metric, setter, name, axes, **how, **QUIET
    )


def with_hook():
    twin = model("gpt2").with_params(model("gpt2").params)
    twin.add_hook("blocks.0.hook_mlp_out", lambda value, hook: value)
    return twin


def patch(*args, **how):
    clean, corrupted = pair()
    return activation_patch(model("gpt2"), corrupted, clean, metric, *args, **QUIET, **how)


def path(*args, name="gpt2", **how):
    clean, corrupted = pair()
    return path_patch(model(name), corrupted, clean, metric, *args, **QUIET, **how)


def of_padded_rows():
    rows, everywhere = tokens(2, 4), np.ones((2, 4), int)
    _, source = model("gpt2").run_with_cache(rows, attention_mask=everywhere)
    return generic(tokens=rows, source=source, attention_mask=everywhere - [[0] * 4, [0, 0, 0, 1]])


def shorter():
    return model("gpt2").run_with_cache(tokens(2, LENGTH - 1))[1]


def moe_neurons(rows):
    clean, corrupted = pair()
    _, cache = model("moe").run_with_cache(clean)
    put = patching.layer_neuron_patch_setter
    given = model("moe"), corrupted, cache, metric, put
    return patching.generic_activation_patch(*given, "post", index_df=Table(rows, "layer", "neuron"), **QUIET)


UNLIKE = ["word1 word2", "word3"], ["word5 word6", "word3 word4"]
OF_ROW = "prompt 1 has 2 tokens and 1 padding positions in corrupted, but 3 tokens and 0 padding positions in clean"
RESULT = Labelled(np.zeros((2, 1)), ("layer", "head"), {"layer": ["0", "1"], "head": ["0"]})
MISTAKES = {
    "under a transformation": Case(
        lambda: jax.jit(lambda t: generic(source={}, tokens=t))(pair()[1]), ValueError, "outside jit, grad and vmap"
    ),
    "a cache of more prompts": Case(
        lambda: generic(source=model("gpt2").run_with_cache(tokens(3, LENGTH))[1]), ValueError,
        "both need the same positions, and the source as many prompts or a single prompt",
    ),
    "a misspelt argument": Case(lambda: generic(bach_size=3), TypeError, "no argument 'bach_size'"),
    "a batch of nothing": Case(lambda: generic(batch_size=0), ValueError, "batch_size is 0; expected a number"),
    "half a cell": Case(lambda: generic(batch_size=2.5), ValueError, "batch_size is 2.5; expected a number"),
    "no metric by any name": Case(
        lambda: ablate(model("gpt2"), tokens(), {}, **QUIET), ValueError, "the dict of metrics is empty"
    ),
    "no cache": Case(
        lambda: patching.get_act_patch_mlp_out(model("gpt2"), tokens(), None, metric), TypeError, "clean_cache is None"
    ),
    "a cache without the site": Case(lambda: generic(source={"hook_embed": 1}), ActivationNotFound, "hook_attn_out"),
    "a setter that looks at its index": Case(
        lambda: generic(lambda a, i, c: a if i[1] == 1 else c), TypeError, "use jnp.where"
    ),
    "a position past the end": Case(
        lambda: generic(axes=None, index_df=Table([(1, 50)], "layer", "pos")), ValueError, "index_df has pos 50 to 50"
    ),
    "half a position": Case(
        lambda: generic(axes=None, index_df=Table([(1, 1.5)], "layer", "pos")), TypeError, "index_df holds float64"
    ),
    "axes as one string": Case(lambda: generic(axes="layer"), ValueError, "index_axis_names is the string 'layer'"),
    "one layer's name": Case(lambda: generic(name="blocks.1.hook_attn_out"), ValueError, '"blocks.1.hook_attn_out"'),
    "a metric without a value": Case(
        lambda: activation_patch(model("gpt2"), *pair(), lambda x: None, **QUIET), TypeError, "got NoneType"
    ),
    "hooks on the model": Case(lambda: generic(the_model=with_hook()), ValueError, "a sweep runs many interventions"),
    "a cache of other positions": Case(lambda: generic(source=shorter()), ValueError, "need the same positions"),
    "a cache of rows with other padding": Case(
        of_padded_rows, ValueError, "row 1 has 3 tokens in the run, but 4 in the cache"
    ),
    "a setter without a result": Case(lambda: generic(lambda a, i, c: None), ValueError, ".at[:, pos].set(...)"),
    "a setter of one position": Case(lambda: generic(lambda a, i, c: c[:, 0]), ValueError, "the whole activation"),
    "no such layer": Case(
        lambda: generic(axes=None, index_df=Table([(4, 0)], "layer", "pos")), ValueError, "no layer 4"
    ),
    "a layer before the first": Case(
        lambda: generic(axes=None, index_df=Table([(-1, 0)], "layer", "pos")), ValueError, "no layer -1"
    ),
    "no row": Case(lambda: generic(axes=None, index_df=Table([], "layer", "pos")), ValueError, "at least one row"),
    "layers not first": Case(
        lambda: generic(axes=None, index_df=Table([(0, 1)], "pos", "layer")), ValueError, "index_df has columns ['pos'"
    ),
    "axes and indices": Case(lambda: generic(index_df=Table([(0, 1)], "layer", "pos")), ValueError, "exactly one"),
    "neither axes nor indices": Case(lambda: generic(axes=None), ValueError, "exactly one"),
    "no such axis": Case(lambda: generic(axes=("layer", "token")), ValueError, "no axis 'token'"),
    "no layer axis": Case(lambda: generic(axes=("pos",)), ValueError, 'the first axis of a sweep must be "layer"'),
    "an activation outside the layers": Case(lambda: generic(name="hook_embed"), ValueError, '"hook_embed" is outside'),
    "no such activation": Case(lambda: generic(name="resid_past"), HookError, "did you mean"),
    "no experts in that layer": Case(
        lambda: patching.generic_activation_patch(
            model("moe"), pair()[1], {}, metric, patching.layer_pos_patch_setter, "mlp.hook_expert_weights",
            index_df=Table([(0, 1)], "layer", "pos"), **QUIET,
        ), ValueError, "the model has it in layers [1, 2]",
    ),
    "layers of several shapes": Case(lambda: moe_neurons([(0, 1), (1, 1)]), ValueError, "layers of one shape"),
    "no such direction": Case(lambda: patch(direction="sideways"), ValueError, "denoising"),
    "runs of other shapes": Case(
        lambda: activation_patch(model("gpt2"), tokens(2, 5), tokens(2, 6), metric), ValueError,
        "prompt 0 has 5 tokens and 0 padding positions in corrupted, but 6 tokens and 0 padding positions in clean",
    ),
    "runs of other numbers of prompts": Case(
        lambda: activation_patch(model("gpt2"), tokens(2, 5), tokens(3, 5), metric), ValueError,
        "corrupted has 2 prompts, but clean has 3; give pairs",
    ),
    "rows that do not correspond": Case(
        lambda: activation_patch(reading(), *UNLIKE, metric, direction="noising"), ValueError, OF_ROW
    ),
    "paths between rows that do not correspond": Case(
        lambda: path_patch(reading(), *UNLIKE, metric), ValueError, OF_ROW
    ),
    "two runs under a transformation": Case(
        lambda: jax.jit(lambda t: activation_patch(model("gpt2"), t, pair()[0], metric))(pair()[1]), ValueError,
        "call it outside jit, grad and vmap",
    ),
    "an axis that the activation lacks": Case(
        lambda: patch("mlp_out", ("layer", "head")), ValueError,
        "cannot be swept along ('layer', 'head'); its axes are ('layer', 'pos', 'dest_pos')",
    ),
    "layers twice": Case(lambda: patch("z", ("layer", "layer")), ValueError, "cannot be swept along ('layer', "),
    "the same axis twice": Case(lambda: patch("z", ("layer", "head", "head_index")), ValueError, "cannot be swept"),
    "nothing to normalise by": Case(
        lambda: ablate(model("gpt2"), tokens(1, 3), lambda x: x.mean(), **QUIET).normalised, ValueError, "and None in"
    ),
    "no such ablation": Case(lambda: ablate(model("gpt2"), tokens(), metric, by="noise"), ValueError, '"resample"'),
    "no other prompt": Case(
        lambda: ablate(model("gpt2"), tokens(1, 4), metric, by="resample"), ValueError,
        "no other prompt has the 4 tokens and the padding of prompt 0; add one",
    ),
    "no other prompt of that length": Case(
        lambda: ablate(reading(), ["word1", "word2", "word3 word4"], metric, by="resample"), ValueError,
        "no other prompt has the 3 tokens and the padding of prompt 2; add one",
    ),
    "the mean of patterns": Case(
        lambda: ablate(model("gpt2"), tokens(), metric, "pattern", by="mean"), ValueError, 'the mean of "pattern" over'
    ),
    "paths between runs of other shapes": Case(
        lambda: path_patch(model("gpt2"), tokens(2, 5), tokens(2, 6), metric), ValueError, "prompt 0 has 5 tokens"
    ),
    "no such component": Case(lambda: path("z"), ValueError, "component is 'z'"),
    "no MLP to receive": Case(lambda: path("mlp", name="attn_only"), ValueError, "component is 'mlp'"),
    "no such sender": Case(lambda: path("q", [(0, 6)]), ValueError, "no sender (0, 6)"),
    "no such receiver": Case(lambda: path("mlp", None, [(0, 1)]), ValueError, "no receiver (0, 1)"),
    "no sender": Case(lambda: path("q", []), ValueError, "the list of senders is empty"),
    "no norm to keep the scale of": Case(
        lambda: get_act_patch_direct_path(model("post_norm"), tokens(), {}, {}, metric, 0, 0), ValueError, "path_patch"
    ),
    "a shorter run": Case(
        direct_path_of_a_shorter_run, ValueError, "the caches hold (2, 5) and (2, 3) prompts and positions"
    ),
    "labels that do not fit": Case(lambda: Labelled(np.zeros(2), ("layer",), {"layer": ["0"]}), ValueError, "(2,)"),
    "no such place": Case(lambda: RESULT.at(layer=2), KeyError, "no layer 2"),
    "no such axis of a result": Case(lambda: RESULT.sum("pos"), KeyError, "no axis 'pos'"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_answered_with_what_was_wanted(case):
    case.check()


def test_every_error_is_reached_by_a_case():
    assert unreached(__file__, MISTAKES.values()) == []
