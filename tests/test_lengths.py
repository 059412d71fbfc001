"""Prompts of any length: programs run at a few lengths, and results are those of the exact length."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.models import CONFIGS, model, randomised, tokens
from support.programs import compilations, most_compiled
from test_models import close

from jaxlens import hook
from jaxlens.analysis import (
    ablate,
    activation_patch,
    attribution_patch,
    edge_attribution_patch,
    integrated_gradients,
    path_patch,
)
from jaxlens.analysis.interventions.generic import generic_activation_patch, layer_head_pattern_patch_setter
from jaxlens.config import Dynamic, LongRope, Rotary
from jaxlens.hooks.slice import Slice
from jaxlens.model.lengths import program_length

LENGTH = 5  # programs run at 8


def exact(program, the_model, *args):
    """What the program computes at the exact length: nothing is padded under a transformation of the caller."""
    return jax.jit(program)(the_model, *args)


def double(value, hook):
    return 2 * value


def test_steps_are_at_most_an_eighth_of_the_length():
    lengths = [program_length(n, 10**6) for n in range(1, 3000)]
    assert lengths[:9] == [8] * 8 + [16]
    assert sorted(set(lengths))[:16] == [8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256]
    assert all(n <= padded <= max(8, n + max(8, n / 4)) for n, padded in enumerate(lengths, 1))
    assert all(program_length(padded, 10**6) == padded for padded in lengths)


def test_no_program_is_longer_than_the_context_unless_the_input_is():
    assert program_length(9, 11) == 11
    assert program_length(12, 11) == 12


@pytest.mark.parametrize("config", CONFIGS)
def test_every_activation_is_that_of_the_exact_length(config):
    the_model, given = model(config), tokens(2, LENGTH)
    logits, cache = the_model.run_with_cache(given)
    expected, exact_cache = exact(lambda model, given: model.run_with_cache(given), the_model, given)
    close(logits, expected)
    assert list(cache) == list(exact_cache)
    for name, value in exact_cache.items():
        assert cache[name].shape == value.shape, name
        visible = np.isfinite(np.asarray(value))  # scores of later positions are -inf
        assert np.array_equal(np.isfinite(np.asarray(cache[name])), visible), name
        close(np.where(visible, cache[name], 0), np.where(visible, value, 0))


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("mask", [None, [[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]], [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]])
def test_losses_are_those_of_the_exact_length(mask, per_token):
    the_model, given = model("llama"), tokens(2, LENGTH)
    mask = mask if mask is None else jnp.array(mask)

    def losses(model, given, mask):
        return model(given, return_type="both", loss_per_token=per_token, attention_mask=mask)

    output, expected = losses(the_model, given, mask), exact(losses, the_model, given, mask)
    assert output.logits.shape == expected.logits.shape and output.loss.shape == expected.loss.shape
    close(output.loss, expected.loss)
    alone = the_model(given, return_type="loss", loss_per_token=per_token, attention_mask=mask)
    close(alone, expected.loss)


def test_a_residual_stream_is_cut_and_padded_too():
    the_model, given = model("gpt2"), tokens(2, LENGTH)
    middle = the_model(given, stop_at_layer=2)
    assert middle.shape == (2, LENGTH, the_model.cfg.d_model)
    close(the_model(middle, start_at_layer=2), the_model(given))


@pytest.mark.parametrize("config", ["gpt2", "mistral", "moe", "shortformer"])
def test_a_python_hook_receives_and_returns_values_of_the_exact_length(config):
    the_model, given = model(config), tokens(2, LENGTH)
    names = [name for name in the_model.hook_dict if not name.endswith(("hook_attn_scores", "hook_expert_indices"))]
    shapes = {}

    def record(value, hook):
        shapes[hook.name] = value.shape

    _, cache = the_model.run_with_cache(given, names_filter=names)
    the_model.run_with_hooks(given, fwd_hooks=[(name, record) for name in names])
    assert shapes == {name: cache[name].shape for name in names}


@pytest.mark.parametrize("site", ["hook_resid_pre", "attn.hook_q", "attn.hook_pattern", "attn.hook_z", "hook_mlp_out"])
def test_an_edit_by_a_python_hook_is_that_of_the_exact_length(site):
    the_model, given = model("mistral"), tokens(2, LENGTH)
    name = f"blocks.1.{site}"

    def last_position(value, hook):
        axis = 2 if site.endswith("pattern") else 1
        return value.at[(slice(None),) * axis + (-1,)].multiply(3)

    def run(model, given):
        return model.run_with_hooks(given, fwd_hooks=[(name, last_position)])

    close(run(the_model, given), exact(run, the_model, given))
    assert not np.allclose(run(the_model, given), the_model(given))


@pytest.mark.parametrize("name", ["hook_embed", "unembed.hook_in", "unembed.hook_out", "ln_final.hook_scale"])
def test_hooks_outside_the_blocks_too(name):
    the_model, given = model("gpt2"), tokens(2, LENGTH)

    def run(model, given):
        return model.run_with_hooks(given, fwd_hooks=[(name, double)])

    close(run(the_model, given), exact(run, the_model, given))


def test_a_data_hook_counts_from_the_end_of_the_exact_length():
    the_model, given = model("llama"), tokens(2, LENGTH)

    def last(value, hook, factor):
        return value.at[:, -1].multiply(factor)

    def run(model, given):
        return model.run_with_hooks(given, fwd_hooks=[("blocks.0.hook_resid_post", hook(last, factor=3.0))])

    close(run(the_model, given), exact(run, the_model, given))


def test_gradients_are_those_of_the_exact_length():
    the_model, given = model("mistral"), tokens(2, LENGTH)

    def run(model, given):
        return model.run_with_cache(given, return_type="loss", incl_bwd=True)

    (loss, cache), (expected, exact_cache) = run(the_model, given), exact(run, the_model, given)
    close(loss, expected)
    assert list(cache) == list(exact_cache)
    for name, value in exact_cache.items():
        finite = np.isfinite(np.asarray(value))
        close(np.where(finite, cache[name], 0), np.where(finite, value, 0), 1e-4)


def test_a_new_length_compiles_no_model_code():
    the_model = model("llama")

    def everything(length):
        given = np.asarray(tokens(1, 16))[:, :length]
        the_model(given)
        the_model(given, return_type="loss")
        the_model.run_with_hooks(given, fwd_hooks=[("blocks.1.attn.hook_z", lambda z, hook: None)])
        the_model.run_with_cache(given, names_filter="blocks.*.hook_resid_pre")
        the_model.run_with_cache(given, return_type="loss", incl_bwd=True, names_filter="blocks.*.hook_resid_pre")

    assert most_compiled(everything, 10, 13, 16) <= 2  # cuts: of logits, and of the value that the hook receives


def difference(logits):
    return logits[:, -1, 3] - logits[:, 1, 4]


def last_position(activation, index, source):
    return activation.at[:, -1].set(source[:, -1])


EXPERIMENTS = {
    "activation patching": lambda model, a, b: activation_patch(model, a, b, difference),
    "patching of patterns": lambda model, a, b: activation_patch(
        model, a, b, difference, "pattern", ("layer", "head", "dest_pos")
    ),
    "ablation": lambda model, a, b: ablate(model, a, difference, by="mean"),
    "path patching": lambda model, a, b: path_patch(model, a, b, difference),
    "a metric of all positions": lambda model, a, b: activation_patch(
        model, a, b, lambda logits: logits.mean((1, 2)), "resid_pre"
    ),
    "a metric that cannot be traced": lambda model, a, b: activation_patch(
        model, a, b, lambda logits: float(logits[0, -1, 0]), "z", ("layer", "head")
    ),
    "a setter that counts from the end": lambda model, a, b: generic_activation_patch(
        model, a, model.run_with_cache(b)[1], difference, last_position, "resid_pre", ("layer",)
    ),
    "scores from a cache": lambda model, a, b: generic_activation_patch(
        model, a, model.run_with_cache(b)[1], difference, layer_head_pattern_patch_setter, "attn_scores",
        ("layer", "head"),
    ),
    "attribution": lambda model, a, b: attribution_patch(model, a, b, difference, ("resid_pre", "pattern"))["pattern"],
    "exact attribution": lambda model, a, b: attribution_patch(model, a, b, difference, "k", exact_softmax=True)["k"],
    "edges": lambda model, a, b: edge_attribution_patch(model, a, b, difference),
    "integrated gradients": lambda model, a, b: integrated_gradients(model, a, difference, b, steps=2),
    "a baseline of embeddings": lambda model, a, b: integrated_gradients(
        model, a, difference, np.full((a.shape[1], model.cfg.d_model), 0.1, np.float32), steps=2
    ),
}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiments_at_the_length_of_a_program_give_those_of_the_exact_length(experiment, monkeypatch):
    the_model, run = model("llama"), EXPERIMENTS[experiment]
    pair = tokens(2, 9, seed=1), tokens(2, 9, seed=2)
    if experiment == "exact attribution":
        pair = tuple(given[:, :6] for given in pair)
    at_program_length = run(the_model, *pair)
    monkeypatch.setattr("jaxlens.model.lengths.program_length", lambda length, n_ctx: length)
    exact_length = run(the_model, *pair)
    assert at_program_length.shape == exact_length.shape
    close(np.asarray(at_program_length), np.asarray(exact_length))
    if hasattr(exact_length, "labels"):
        assert at_program_length.labels == exact_length.labels


def test_an_experiment_at_a_new_length_compiles_no_model_code():
    the_model = model("llama")
    pair = np.asarray(tokens(1, 16, seed=1)), np.asarray(tokens(1, 16, seed=2))

    def experiments(length):
        a, b = (given[:, :length] for given in pair)
        activation_patch(the_model, a, b, difference)
        path_patch(the_model, a, b, difference)
        attribution_patch(the_model, a, b, difference)
        integrated_gradients(the_model, a, difference, b, steps=2)

    assert most_compiled(experiments, 10, 15) <= 2  # cuts of the logits


def test_a_new_position_compiles_nothing():
    the_model, given = model("llama"), tokens(2, 8)
    for position in (1, 4):
        with compilations() as compiled:
            _, cache = the_model.run_with_cache(given, pos_slice=position)
            _, single = the_model.run_with_cache(given, pos_slice=Slice(position))
    assert not compiled
    _, whole = the_model.run_with_cache(given)
    for name in ("blocks.1.hook_resid_post", "blocks.0.attn.hook_pattern", "unembed.hook_out"):
        axis = 2 if name.endswith("pattern") else 1
        close(cache[name], np.take(np.asarray(whole[name]), [4], axis))
        close(single[name], np.take(np.asarray(whole[name]), 4, axis))


@pytest.mark.parametrize("pos_slice", [2, -1, (1, 4), [0, -2], Slice(-1), slice(None, None, 2)])
def test_positions_of_a_padded_run_are_those_of_the_exact_length(pos_slice):
    the_model, given = model("mistral"), tokens(2, LENGTH)

    def run(model, given):
        return model.run_with_cache(given, pos_slice=pos_slice)[1]

    cache, expected = run(the_model, given), exact(run, the_model, given)
    for name, value in expected.items():
        assert cache[name].shape == value.shape, name
        close(jnp.nan_to_num(cache[name], neginf=0), jnp.nan_to_num(value, neginf=0))


def test_negative_positions_count_the_tokens_of_each_row():
    the_model, given = model("llama"), tokens(2, LENGTH)
    mask = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    _, whole = the_model.run_with_cache(given, attention_mask=mask)
    _, last = the_model.run_with_cache(given, attention_mask=mask, pos_slice=-1)
    _, two = the_model.run_with_cache(given, attention_mask=mask, pos_slice=[0, -2])
    for name in ("blocks.1.hook_resid_post", "unembed.hook_out"):
        rows = np.asarray(whole[name])
        close(last[name][:, 0], np.stack([rows[0, 2], rows[1, 4]]))
        close(two[name][:, 1], np.stack([rows[0, 1], rows[1, 3]]))
        close(two[name][:, 0], rows[:, 0])
    with pytest.raises(IndexError, match="position -4 is out of range: row 0 has 3 tokens"):
        the_model.run_with_cache(given, attention_mask=mask, pos_slice=-4)
    with pytest.warns(UserWarning, match=r"rows \[0\] end with padding"):
        the_model.run_with_cache(given, attention_mask=mask, pos_slice=(-2, None))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        the_model.run_with_cache(given, attention_mask=mask[:, ::-1], pos_slice=(-2, None))


# --- a row means the same beside longer rows, and with padding between its tokens


@pytest.mark.parametrize(
    ("config", "block"),
    [
        *((name, None) for name in ("gpt2", "llama", "mistral", "neo", "gemma", "bloom", "oss", "shortformer")),
        ("mistral", 3), ("neo", 3), ("bloom", 3), ("oss", 3),
    ],
)
def test_padding_between_tokens_changes_nothing(config, block):
    cfg = CONFIGS[config] if block is None else CONFIGS[config].replace(attn_block=block)
    the_model = randomised(cfg)
    given = tokens(1, 9)
    with_hole = np.insert(np.asarray(given), [5, 5], 0, axis=1)
    mask = np.insert(np.ones((1, 9), int), [5, 5], 0, axis=1)
    logits = the_model(with_hole, attention_mask=mask)
    close(np.delete(np.asarray(logits), [5, 6], axis=1), the_model(given))


SCALINGS = {
    "dynamic": Dynamic(factor=4.0, original_n_ctx=5),
    "longrope": LongRope(
        short_factor=(1.0, 1.5), long_factor=(3.0, 5.0), original_n_ctx=5, attention_factor=1.3,
        short_attention_factor=1.1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("scaling", SCALINGS.values(), ids=SCALINGS)
def test_a_short_row_means_the_same_beside_a_long_one(scaling):
    cfg = CONFIGS["llama"].replace(d_head=4, rotary=Rotary(scaling=scaling))
    the_model, given = randomised(cfg), np.asarray(tokens(2, 9))
    mask = np.array([[1] * 4 + [0] * 5, [1] * 9])
    both = the_model(given, attention_mask=mask)
    close(both[:1, :4], the_model(given[:1, :4]))
    close(both[1:], the_model(given[1:]))
    left = the_model(given[:, ::-1], attention_mask=mask[:, ::-1])
    close(left[:1, 5:], the_model(given[:1, :4][:, ::-1]))


def test_a_token_outside_the_vocabulary_is_nan_under_jit():
    the_model = model("llama")
    outside = np.array([[1, 2], [1, the_model.cfg.d_vocab], [-1, 2]])
    logits = jax.jit(lambda model, given: model(given))(the_model, outside)
    assert np.isfinite(np.asarray(logits[0])).all()
    assert np.isnan(np.asarray(logits[1, 1])).all() and np.isnan(np.asarray(logits[2])).all()
    for tokens_outside in (outside[:2], outside[:, ::-1]):  # 37 and -1 as the last token, whose logits are not used
        losses = jax.jit(lambda model, given: model(given, "loss", loss_per_token=True))(the_model, tokens_outside)
        assert np.array_equal(np.isnan(losses[:, 0]), (tokens_outside % 37 != tokens_outside).any(axis=1))
    directions = jax.jit(lambda model, given: model.tokens_to_residual_directions(given))(the_model, outside)
    assert np.array_equal(np.isnan(directions).all(-1), outside % 37 != outside)
    assert np.array_equal(np.isnan(directions).any(-1), outside % 37 != outside)


# --- caches of padded batches


@pytest.mark.parametrize(
    "read",
    [
        lambda cache: cache.accumulated_resid(pos_slice=-1), lambda cache: cache.decompose_resid(pos_slice=[0, -1]),
        lambda cache: cache.logit_lens(), lambda cache: cache.stack_head_results(pos_slice=slice(-2, None)),
    ],
)  # fmt: skip
def test_positions_from_the_end_of_a_padded_cache_warn(read):
    the_model = model("llama")
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    _, cache = the_model.run_with_cache(tokens(2, 5), attention_mask=mask)
    with pytest.warns(UserWarning, match=r"rows \[1\] end with padding"):
        read(cache)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(cache.apply_slice_to_batch_dim([0]))
        read(the_model.run_with_cache(tokens(2, 5), attention_mask=mask[:, ::-1])[1])
    cache.accumulated_resid(pos_slice=2)


def test_a_slice_of_no_position_is_refused():
    _, cache = model("llama").run_with_cache(tokens(1, 5))
    with pytest.raises(ValueError, match=r"pos_slice=slice\(3, 3, None\) selects no position"):
        cache.accumulated_resid(pos_slice=slice(3, 3))


# --- values that are not finite


def test_a_loss_that_is_not_finite_names_the_first_hook_point():
    the_model = randomised(CONFIGS["llama"]).to("float16")
    params = the_model.params
    factors = {"blocks.*.mlp.W_in": 500, "blocks.*.mlp.W_out": 60000}
    the_model.set_params({**params, **{name: params[name].at[1].mul(by) for name, by in factors.items()}})
    with pytest.warns(UserWarning, match=r'"blocks.1.hook_mlp_out" is the first .*float16 ends at 65504'):
        assert not np.isfinite(the_model(tokens(1, 5), return_type="loss"))


def test_logits_are_checked_on_request():
    the_model = randomised(CONFIGS["llama"])
    params = the_model.params
    the_model.set_params({**params, "embed.W_E": params["embed.W_E"].at[3, 2].set(jnp.nan)})
    given = jnp.array([[1, 3, 2]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        the_model(given)
        the_model.check_finite = True
        jax.jit(lambda model: model(given))(the_model)
    with pytest.warns(UserWarning, match='the logits are not finite: "hook_embed" is the first hook point'):
        the_model(given)
    infinite = [("blocks.1.hook_mlp_out", lambda value, hook: value * jnp.inf)]
    with pytest.warns(UserWarning, match="the residual stream is not finite: .* in a run without its Python hooks"):
        the_model.run_with_hooks(given % 3, stop_at_layer=2, fwd_hooks=infinite)
