"""Hooks as a user writes them: added and removed, nested, on gradients, as data, inside jit, grad and vmap.

The fourth law of the project is here: a new Python hook compiles no model code.
"""

import concurrent.futures
import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.models import CONFIGS, model, tokens
from support.programs import compilations
from test_models import close

from jaxlens import Config, HookedTransformer, HookError, hook
from jaxlens.analysis import residual_jacobian
from jaxlens.hooks.table import sites
from jaxlens.nn.parameters import parameter_shapes

RESID_PRE, RESID_POST, Z = "blocks.1.hook_resid_pre", "blocks.1.hook_resid_post", "blocks.1.attn.hook_z"
# One site on every path through the model: what Python edits there runs in pieces of its own.
PATHS = (
    "hook_embed", "blocks.0.hook_resid_pre", "blocks.0.attn.hook_attn_scores", "blocks.0.attn.hook_result",
    "blocks.0.hook_q_input", "unembed.hook_in",
)  # fmt: skip


@pytest.fixture
def the_model() -> HookedTransformer:
    """A model without hooks for each test; weights, hook points and compiled programs are shared."""
    shared = model("gpt2")
    shared.clear_contexts()
    return shared.with_params(shared.params)


@functools.cache
def small_model() -> HookedTransformer:
    """The smallest model with hook points in four layers: gradients of it compile fast."""
    cfg = Config(
        n_layers=4, d_model=6, n_heads=2, d_head=4, d_vocab=11, n_ctx=8, attn_only=True, normalization_type=None,
        positional_embedding_type="none", biases=(),
    )  # fmt: skip
    rng, shapes = np.random.default_rng(0), parameter_shapes(cfg).items()
    params = {name: jax.device_put(rng.normal(size=of.shape).astype(np.float32) * 0.4) for name, of in shapes}
    return HookedTransformer(cfg, params=params)


@pytest.fixture
def small() -> HookedTransformer:
    return small_model().with_params(small_model().params)


def few_tokens() -> jax.Array:
    """A prompt for the small model."""
    return tokens(1, 5, d_vocab=11)


def halve(value, hook):
    return value * 0.5


def keep(value, hook):
    return value


def scale(value, hook, by):
    return value * by


def recorder(order: list, mark):
    """A hook that changes nothing and writes down that it ran."""
    return lambda value, hook: order.append(mark)


def same(a, b) -> bool:
    return bool(jnp.array_equal(a, b))


# --- adding and removing


def test_an_added_hook_acts_in_every_run_until_it_is_reset(the_model):
    plain = the_model(tokens())
    the_model.add_hook(Z, halve)
    edited = the_model(tokens())
    assert not same(edited, plain)
    assert same(the_model(tokens()), edited)
    close(the_model.run_with_cache(tokens())[0], edited)
    the_model.reset_hooks()
    assert the_model.list_hooks() == {}
    assert same(the_model(tokens()), plain)


def test_a_permanent_hook_survives_resets_and_blocks(the_model):
    with the_model.hooks(fwd_hooks=[(Z, keep)]):
        the_model.add_perma_hook(RESID_PRE, halve)
        the_model.add_hook(RESID_POST, halve)
    assert list(the_model.list_hooks()) == [RESID_PRE]
    the_model.reset_hooks()
    assert list(the_model.list_hooks()) == [RESID_PRE]
    assert the_model.list_hooks(including_permanent=False) == {}
    the_model.reset_hooks(including_permanent=True)
    assert the_model.list_hooks() == {}


def test_hooks_are_reset_by_direction(the_model):
    the_model.add_hook(Z, keep)
    the_model.add_hook(RESID_PRE, keep, dir="bwd")
    assert list(the_model.list_hooks(dir="bwd")) == [RESID_PRE]
    the_model.reset_hooks(direction="bwd")
    assert list(the_model.list_hooks()) == [Z]
    the_model.reset_hooks(direction="fwd")
    assert the_model.list_hooks() == {}


def test_hooks_are_reset_by_level(the_model):
    the_model.add_hook(Z, keep, level=1)
    the_model.add_hook(RESID_PRE, keep, level=2)
    the_model.remove_all_hook_fns(level=1)
    assert list(the_model.list_hooks()) == [RESID_PRE]


def test_hooks_run_in_the_order_they_were_added_and_prepended_ones_first(the_model):
    order = []
    the_model.add_hook(Z, recorder(order, "first"))
    the_model.add_hook(Z, recorder(order, "second"))
    the_model.add_hook(Z, recorder(order, "prepended"), prepend=True)
    the_model.run_with_hooks(tokens(), fwd_hooks=[(Z, recorder(order, "of this run"))])
    assert order == ["prepended", "first", "second", "of this run"]


def test_a_later_hook_sees_what_an_earlier_one_made(the_model):
    seen = []
    steps = [(Z, lambda z, hook: z * 0), (Z, lambda z, hook: z + 3), (Z, lambda z, hook: seen.append(float(z.max())))]
    the_model.run_with_hooks(tokens(), fwd_hooks=steps)
    assert seen == [3.0]


def test_blocks_nest_and_each_removes_only_its_own(the_model):
    plain = the_model(tokens())
    with the_model.hooks(fwd_hooks=[(Z, halve)]):
        outer = the_model(tokens())
        with the_model.hooks(fwd_hooks=[(RESID_PRE, halve)]):
            assert sorted(the_model.list_hooks()) == sorted([Z, RESID_PRE])
            the_model.add_hook(RESID_POST, keep)  # belongs to the block it was added in
            assert not same(the_model(tokens()), outer)
        assert list(the_model.list_hooks()) == [Z]
        assert same(the_model(tokens()), outer)
    assert same(the_model(tokens()), plain)


def test_a_block_left_by_an_error_removes_its_hooks(the_model):
    the_model.add_hook(RESID_PRE, keep)
    with pytest.raises(ZeroDivisionError), the_model.hooks(fwd_hooks=[(Z, halve)]):
        with contextlib.suppress(KeyError), the_model.hooks(fwd_hooks=[(RESID_POST, halve)]):
            raise KeyError
        assert sorted(the_model.list_hooks()) == sorted([RESID_PRE, Z])
        _ = 1 / 0
    assert list(the_model.list_hooks()) == [RESID_PRE]


def test_reset_hooks_end_false_keeps_the_hooks_of_a_run(the_model):
    edited = the_model.run_with_hooks(tokens(), fwd_hooks=[(Z, halve)], reset_hooks_end=False)
    assert same(the_model(tokens()), edited)
    with the_model.hooks(fwd_hooks=[(RESID_PRE, keep)]):
        pass
    assert list(the_model.list_hooks()) == [Z]
    with the_model.hooks(fwd_hooks=[(Z, halve)], reset_hooks_end=False):
        pass
    with the_model.hooks(fwd_hooks=[(Z, halve)]):  # the same function again, which ends with its block
        assert len(the_model.list_hooks()[Z]) == 3
    assert len(the_model.list_hooks()[Z]) == 2


def test_hooks_given_to_the_call_act_in_that_call_alone(the_model):
    plain = the_model(tokens())
    edited = the_model(tokens(), hooks=[(Z, halve)])
    assert same(edited, the_model.run_with_hooks(tokens(), fwd_hooks=[(Z, halve)]))
    assert not same(edited, plain)
    _, cache = the_model.run_with_cache(tokens(), hooks=[(Z, halve)], names_filter=Z)
    assert not same(cache[Z], the_model.run_with_cache(tokens(), names_filter=Z)[1][Z])
    assert the_model.list_hooks() == {}
    assert same(the_model(tokens()), plain)


# --- what a hook is told and may do


def test_a_hook_point_knows_its_name_and_its_layer(the_model):
    seen = []
    the_model.run_with_hooks(
        tokens(),
        fwd_hooks=[("blocks.*.attn.hook_z", lambda z, hook: seen.append((hook.name, hook.layer())))],
    )
    assert seen == [(f"blocks.{layer}.attn.hook_z", layer) for layer in range(4)]
    assert [point.name for point in the_model.hook_points()] == list(the_model.hook_dict) == list(sites(the_model.cfg))


def test_a_context_is_kept_between_runs_until_it_is_cleared(the_model):
    def count(value, hook):
        hook.ctx["runs"] = hook.ctx.get("runs", 0) + 1

    runs = lambda: the_model.hook_dict[Z].ctx.get("runs", 0)  # noqa: E731
    the_model.run_with_hooks(tokens(), fwd_hooks=[(Z, count)])
    the_model.run_with_hooks(tokens(), fwd_hooks=[(Z, count)])
    assert runs() == 2
    the_model.run_with_hooks(tokens(), fwd_hooks=[(Z, count)], clear_contexts=True)
    assert runs() == 0
    the_model.run_with_hooks(tokens(), fwd_hooks=[(Z, count)])
    the_model.remove_all_hook_fns()
    assert runs() == 1
    the_model.reset_hooks()
    assert runs() == 0


def test_a_filter_function_chooses_every_name_it_is_true_of(the_model):
    fired = []
    wanted = lambda name: name.endswith(("hook_embed", "attn.hook_q")) and "2" not in name  # noqa: E731
    the_model.run_with_hooks(tokens(), fwd_hooks=[(wanted, lambda value, hook: fired.append(hook.name))])
    assert fired == ["hook_embed", *(f"blocks.{layer}.attn.hook_q" for layer in (0, 1, 3))]


def test_newer_names_of_a_block_are_the_same_hook_points(the_model):
    fired = []
    new = [(f"blocks.2.hook_{end}", lambda value, hook: fired.append(hook.name)) for end in ("in", "out")]
    the_model.run_with_hooks(tokens(), fwd_hooks=new)
    assert fired == ["blocks.2.hook_resid_pre", "blocks.2.hook_resid_post"]


def test_a_python_hook_sees_plain_values_and_may_print_and_keep_them(the_model, capsys):
    norms, kept = [], {}

    def look(value, hook):
        norms.append(float(jnp.abs(value).max()))
        kept[hook.name] = np.asarray(value)
        if norms[-1] > 0:
            print("largest", f"{norms[-1]:.3f}")

    the_model.run_with_hooks(tokens(), fwd_hooks=[("blocks.*.hook_resid_pre", look)])
    assert len(norms) == 4
    assert capsys.readouterr().out.count("largest") == 4
    _, cache = the_model.run_with_cache(tokens(), names_filter="blocks.*.hook_resid_pre")
    for name, value in kept.items():
        close(value, cache[name])


def test_a_hook_may_return_nothing_a_numpy_array_or_a_tuple_of_one(the_model):
    edited = the_model.run_with_hooks(tokens(), fwd_hooks=[(Z, halve)])
    in_numpy = the_model.run_with_hooks(tokens(), fwd_hooks=[(Z, lambda z, hook: np.asarray(z) * np.float32(0.5))])
    in_tuple = the_model.run_with_hooks(tokens(), fwd_hooks=[(Z, lambda z, hook: (z * 0.5,))])
    assert same(in_numpy, edited)
    assert same(in_tuple, edited)
    assert same(the_model.run_with_hooks(tokens(), fwd_hooks=[(Z, lambda z, hook: None)]),
                the_model.run_with_hooks(tokens(), fwd_hooks=[(Z, keep)]))  # fmt: skip


def test_an_array_that_a_hook_returned_may_be_written_over_afterwards(the_model):
    buffer = np.zeros((2, 11, 6, 4), np.float32)

    def reuse(z, hook):
        buffer[:] = np.asarray(z) * 0.5
        return buffer

    edited = the_model.run_with_hooks(tokens(), fwd_hooks=[("blocks.*.attn.hook_z", reuse)])
    assert same(edited, the_model.run_with_hooks(tokens(), fwd_hooks=[("blocks.*.attn.hook_z", halve)]))


def test_runs_are_deterministic(the_model):
    def edited():
        return the_model.run_with_hooks(tokens(), fwd_hooks=[(Z, halve)])

    assert same(the_model(tokens()), the_model(tokens()))
    assert same(edited(), edited())
    first, again, other = (HookedTransformer(CONFIGS["gpt2"], seed=seed).params for seed in (3, 3, 4))
    assert all(same(first[name], again[name]) for name in first)
    assert not same(first["embed.W_E"], other["embed.W_E"])


# --- gradients


def loss_gradients(the_model, **hooks) -> dict[str, jax.Array]:
    """The gradient of the loss by every parameter, with hooks on the run."""

    def loss(params):
        return the_model.with_params(params).run_with_hooks(few_tokens(), return_type="loss", **hooks)

    return jax.jit(jax.grad(loss))(the_model.params)


@pytest.fixture(scope="module")
def plain_gradients() -> dict[str, jax.Array]:
    return loss_gradients(small_model())


@pytest.fixture(scope="module")
def gradient_at_z() -> jax.Array:
    """The gradient of the loss at the hook point `Z`."""
    return small_model().run_with_cache(few_tokens(), return_type="loss", incl_bwd=True, names_filter=Z)[1][f"{Z}_grad"]


def layers_with_gradient(gradient) -> list[int]:
    return [layer for layer, of_layer in enumerate(gradient) if jnp.any(of_layer)]


@pytest.mark.parametrize("zero", [lambda gradient, hook: gradient * 0, hook(scale, by=0.0)], ids=["python", "data"])
def test_a_gradient_zeroed_at_a_layer_is_gone_below_and_untouched_above(small, plain_gradients, zero):
    plain, edited = plain_gradients, loss_gradients(small, bwd_hooks=[(RESID_POST, zero)])
    for name in ("blocks.*.attn.W_V", "blocks.*.attn.W_Q"):
        assert layers_with_gradient(plain[name]) == [0, 1, 2, 3]
        assert layers_with_gradient(edited[name]) == [2, 3]
        close(edited[name][2:], plain[name][2:])
    assert not jnp.any(edited["embed.W_E"])
    close(edited["unembed.W_U"], plain["unembed.W_U"])


def test_a_cached_gradient_is_what_arrives_and_a_backward_hook_edits_what_goes_on(small):
    wanted = ["hook_embed", "blocks.*.hook_resid_post"]
    with small.hooks(bwd_hooks=[(RESID_POST, hook(scale, by=0.0))]):
        loss, cache = small.run_with_cache(few_tokens(), return_type="loss", incl_bwd=True, names_filter=wanted)
    close(loss, small(few_tokens(), return_type="loss"))
    arriving = [bool(jnp.any(cache[f"blocks.{layer}.hook_resid_post_grad"])) for layer in range(4)]
    assert arriving == [False, True, True, True]
    assert not jnp.any(cache["hook_embed_grad"])


def test_backward_hooks_meet_the_gradient_in_the_order_they_were_added(small, gradient_at_z):
    """Twice the gradient plus one, not twice (the gradient plus one); and a hook knows where it is."""
    seen = set()

    def double(gradient, hook):
        seen.add((hook.name, hook.layer()))
        return (gradient * 2,)

    def plus_one(gradient, hook):
        return gradient + 1

    def loss(bias):
        moved = hook(lambda value, hook, bias: value + bias, bias=bias)
        both = [(Z, double), (Z, plus_one)]
        return small.run_with_hooks(few_tokens(), return_type="loss", fwd_hooks=[(Z, moved)], bwd_hooks=both)

    close(jax.jit(jax.grad(loss))(jnp.zeros((1, 5, 2, 4))), 2 * gradient_at_z + 1)
    assert seen == {(Z, 1)}


@pytest.mark.parametrize("halved", [lambda gradient, hook: gradient / 2, hook(scale, by=0.5)], ids=["python", "data"])
def test_backward_hooks_have_no_effect_in_forward_mode(small, halved):
    residual = small(few_tokens(), stop_at_layer=0)
    change = jnp.asarray(np.random.default_rng(0).normal(size=residual.shape), jnp.float32)

    def run(x):
        return small(x, start_at_layer=0)

    def gradient(x):
        return jax.grad(lambda x: jnp.sum(run(x) ** 2))(x)

    plain, plain_gradient = jax.jvp(run, (residual,), (change,))[1], gradient(residual)
    small.add_hook(RESID_POST, halved, dir="bwd")
    small.add_hook("unembed.hook_in", halved, dir="bwd")
    for push in (jax.jvp, jax.jit(jax.jvp, static_argnums=0)):
        close(push(run, (residual,), (change,))[1], plain)
    close(residual_jacobian(small, few_tokens(), 0).matvec(change), small_jacobian(change))
    close(gradient(residual), plain_gradient / 4)


def small_jacobian(change):
    return residual_jacobian(small_model(), few_tokens(), 0).matvec(change)


@pytest.mark.parametrize("inner", ["grad", "vmap"])
def test_backward_hooks_of_a_batch_are_those_of_each_prompt(small, inner):
    """The gradient of vmap, and vmap of the gradient; the data of the hook are mapped too."""
    residual = small(tokens(3, 5, d_vocab=11), stop_at_layer=0)[:, None]
    by = jnp.array([0.5, 2.0, -1.0])

    def loss(x, by):
        edit = [(RESID_POST, hook(scale, by=by)), (Z, lambda gradient, hook: gradient / jnp.linalg.norm(gradient))]
        return jnp.sum(small.run_with_hooks(x, start_at_layer=0, bwd_hooks=edit) ** 2)

    expected = jnp.stack([jax.grad(loss)(x, by) for x, by in zip(residual, by, strict=True)])
    if inner == "grad":
        close(jax.vmap(jax.grad(loss))(residual, by), expected)
    else:
        close(jax.grad(lambda x: jnp.sum(jax.vmap(loss)(x, by)))(residual), expected)


def test_the_derivative_of_a_gradient_includes_its_hooks(small):
    residual = small(few_tokens(), stop_at_layer=0)

    def squared_gradient(by):
        edit = [(RESID_POST, hook(scale, by=by))]
        run = lambda x: jnp.sum(small.run_with_hooks(x, start_at_layer=0, bwd_hooks=edit) ** 2)  # noqa: E731
        return jnp.sum(jax.grad(run)(residual) ** 2)  # by ** 2 times that without the hook

    for derivative in (jax.grad, jax.jacfwd):
        close(derivative(squared_gradient)(1.5), 3.0 * squared_gradient(1.0), 1e-4)


# --- Python hooks of several layers, under jit


@pytest.mark.parametrize("direction", ["fwd_hooks", "bwd_hooks"])
@pytest.mark.parametrize("depends_on", [None, "name", "layer"])
def test_a_python_hook_is_traced_once_unless_it_reads_its_layer(the_model, depends_on, direction):
    calls = []

    def scaled(value, hook):
        calls.append(type(hook))
        layer = {None: lambda: 2, "name": lambda: int(hook.name.split(".")[1]), "layer": lambda: hook.layer()}
        return value * (1 + layer[depends_on]() / 8)

    hooks = {direction: [(lambda name: name.endswith("hook_resid_mid"), scaled)]}
    gradient = jax.grad(lambda m, t: m.run_with_hooks(t, return_type="loss", **hooks))
    expected = gradient(the_model, tokens())
    assert len(calls) == the_model.cfg.n_layers
    calls.clear()
    for ours, eager in zip(*map(jax.tree.leaves, (jax.jit(gradient)(the_model, tokens()), expected)), strict=True):
        close(ours, eager)
    assert len(calls) == (1 if depends_on is None else 1 + the_model.cfg.n_layers)


# --- hooks as data


def test_new_data_and_new_layers_compile_nothing(the_model):
    def edited(name, by):
        return the_model.run_with_hooks(tokens(), fwd_hooks=[(name, hook(scale, by=by))])

    edited(RESID_PRE, 1.0)
    with compilations() as compiled:
        results = [edited(f"blocks.{layer}.hook_resid_pre", by) for layer in range(4) for by in (0.5, -2.0)]
        everywhere = edited("blocks.*.hook_resid_pre", 0.25)
    assert compiled == []
    assert len({np.asarray(result).tobytes() for result in [*results, everywhere]}) == 9
    close(edited("blocks.2.hook_resid_pre", 0.5),
          the_model.run_with_hooks(tokens(), fwd_hooks=[("blocks.2.hook_resid_pre", halve)]))  # fmt: skip


def test_a_data_hook_is_told_its_layer_as_a_traced_number(the_model):
    def by_depth(value, hook, step):
        return value * (1 + step * hook.layer())

    everywhere = "blocks.*.hook_attn_out"
    as_data = the_model.run_with_hooks(tokens(), fwd_hooks=[(everywhere, hook(by_depth, step=0.3))])
    in_python = lambda value, hook: value * (1 + 0.3 * hook.layer())  # noqa: E731
    close(as_data, the_model.run_with_hooks(tokens(), fwd_hooks=[(everywhere, in_python)]))
    with pytest.raises(HookError, match=r'"hook_embed" is outside the blocks'):
        the_model.run_with_hooks(tokens(), fwd_hooks=[("hook_embed", hook(by_depth, step=0.3))])


def test_data_may_be_any_tree_of_arrays_and_numbers(the_model):
    def affine(value, hook, terms):
        return value * terms["by"] + terms["plus"][0]

    terms = {"by": np.float32(0.5), "plus": [jnp.ones(14), None]}
    as_data = the_model.run_with_hooks(tokens(), fwd_hooks=[(RESID_PRE, hook(affine, terms=terms))])
    close(as_data, the_model.run_with_hooks(tokens(), fwd_hooks=[(RESID_PRE, lambda v, hook: v * 0.5 + 1)]))


def test_a_sweep_over_data_is_a_vmap(small):
    def loss(by):
        return small.run_with_hooks(few_tokens(), return_type="loss", fwd_hooks=[(RESID_PRE, hook(scale, by=by))])

    values = jnp.array([0.0, 0.5, 3.0])
    close(jax.vmap(loss)(values), jnp.stack([loss(by) for by in values]))


def test_the_gradient_by_data_is_the_gradient_at_the_hook_point(small, gradient_at_z):
    direction = jnp.asarray(np.random.default_rng(0).normal(size=4), jnp.float32)

    def steered(strength):
        steer = hook(lambda value, hook, along: value + along, along=strength * direction)
        return small.run_with_hooks(few_tokens(), return_type="loss", fwd_hooks=[(Z, steer)])

    close(jax.jit(jax.grad(steered))(0.0), jnp.sum(gradient_at_z * direction))


def test_the_gradient_by_what_a_python_hook_closes_over(small):
    def loss(by):
        return small.run_with_hooks(few_tokens(), return_type="loss", fwd_hooks=[(RESID_PRE, lambda v, hook: v * by)])

    as_data = lambda by: small(few_tokens(), "loss", hooks=[(RESID_PRE, hook(scale, by=by))])  # noqa: E731
    expected = jax.jit(jax.grad(as_data))(0.5)
    for transformed in (jax.grad, lambda f: jax.jit(jax.grad(f)), lambda f: jax.jit(jax.jacfwd(f))):
        close(transformed(loss)(0.5), expected)


def test_a_python_hook_under_grad_reads_its_globals_at_every_call(small):
    """The same function object with another global: nothing compiled for the first value may answer for the second."""
    state = {}

    def edit(value, hook):
        return value * state["by"]

    def loss(shift):
        hooks = [("hook_embed", edit), (RESID_PRE, edit), ("unembed.hook_in", edit)]
        data = [("blocks.0.hook_resid_pre", hook(lambda v, hook, s: v + s, s=shift))]
        return small.run_with_hooks(few_tokens(), return_type="loss", fwd_hooks=data + hooks)

    losses = {}
    for by in (1.0, 0.5):
        state["by"] = by
        losses[by] = jax.value_and_grad(loss)(0.0)[0]
        close(losses[by], loss(0.0))
    assert abs(losses[1.0] - losses[0.5]) > 1e-4


def test_a_python_hook_beside_cached_gradients_reads_its_globals_at_every_call(small):
    state = {}
    edit = [(Z, lambda value, hook: value * state["by"])]
    losses = []
    for by in (1.0, -1.0):
        state["by"] = by
        loss, cache = small.run_with_cache(few_tokens(), "loss", incl_bwd=True, names_filter=RESID_PRE, hooks=edit)
        close(loss, small(few_tokens(), "loss", hooks=edit))
        losses.append((loss, cache[f"{RESID_PRE}_grad"]))
    assert abs(losses[0][0] - losses[1][0]) > 1e-4
    assert not np.allclose(losses[0][1], losses[1][1])


def test_a_vmap_over_what_a_python_hook_closes_over(small):
    def loss(by):
        return small.run_with_hooks(few_tokens(), return_type="loss", fwd_hooks=[(RESID_PRE, lambda v, hook: v * by)])

    values = jnp.array([0.0, 0.5, 3.0])
    close(jax.vmap(loss)(values), jnp.stack([loss(by) for by in values]))


# --- law 4: a new hook compiles no model code


def warm(the_model, given) -> None:
    """One plain forward, and one in which Python edits something on every path."""
    the_model(given)
    for name in PATHS:
        the_model.run_with_hooks(given, fwd_hooks=[(name, keep)])


@pytest.mark.parametrize("name", ["gpt2", "qwen3"])
def test_a_new_hook_on_any_site_of_any_layer_compiles_nothing(name):
    the_model, given = model(name), tokens(2, 8)  # the length of a program; at other lengths, values are cut
    warm(the_model, given)
    with compilations() as compiled:
        for full in sites(the_model.cfg):
            the_model.run_with_hooks(given, fwd_hooks=[(full, lambda value, hook: value)])
            the_model.run_with_hooks(given, fwd_hooks=[(full, lambda value, hook: np.asarray(value) * 1)])
    assert compiled == []


def test_a_new_hook_compiles_its_own_operations_and_no_others(the_model):
    warm(the_model, tokens(2, 8))
    with compilations() as compiled:
        the_model.run_with_hooks(tokens(2, 8), fwd_hooks=[(Z, lambda z, hook: jnp.cosh(z) + jnp.arctan(z) * 0)])
    assert "jit(cosh)" in compiled
    assert set(compiled) <= {f"jit({name})" for name in ("cosh", "arctan", "add", "multiply")}


def test_the_first_hook_at_a_new_length_compiles_small_pieces_and_not_the_model(the_model):
    """The loop over layers is what takes long to compile; the pieces of a layer are shared by all layers."""
    given = tokens(1, 9)
    the_model(given)
    with compilations() as compiled:
        the_model.run_with_hooks(given, fwd_hooks=[(Z, lambda z, hook: z)])
    assert not {"jit(_loop)", "jit(_scan)", "jit(_stage)"} & set(compiled)
    with compilations() as compiled:
        for layer in range(4):
            the_model.run_with_hooks(given, fwd_hooks=[(f"blocks.{layer}.hook_mlp_out", lambda value, hook: value)])
    assert compiled == ["jit(shortened)"]  # the value that a hook receives is cut to the length of the prompt


def test_a_hook_sees_the_present_value_of_what_it_closes_over(the_model):
    by = 1.0
    edit = lambda value, hook: value * by  # noqa: E731
    first = the_model.run_with_hooks(tokens(), fwd_hooks=[(RESID_PRE, edit)])
    by = 0.0
    second = the_model.run_with_hooks(tokens(), fwd_hooks=[(RESID_PRE, edit)])
    assert not same(first, second)


# --- under the user's own transformations


def test_a_hook_added_after_compilation_acts_and_removing_it_needs_no_new_program(the_model):
    run = jax.jit(lambda m, t: m(t))
    plain = run(the_model, tokens())
    the_model.add_hook(Z, halve)
    close(run(the_model, tokens()), the_model(tokens()))
    assert not np.allclose(run(the_model, tokens()), plain)
    the_model.reset_hooks()
    with compilations() as compiled:
        assert same(run(the_model, tokens()), plain)
    assert compiled == []


def test_the_data_of_an_added_hook_may_change_under_jit_without_a_new_program(the_model):
    run = jax.jit(lambda m, t: m(t))
    results = []
    for by in (0.5, 2.0):
        the_model.add_hook(RESID_PRE, hook(scale, by=by))
        with compilations() as compiled:
            results.append(run(the_model, tokens()))
        the_model.reset_hooks()
    assert compiled == []
    assert not np.allclose(*results)


def test_a_model_is_a_tree_that_can_be_differentiated(small, plain_gradients):
    by_model = jax.jit(jax.grad(lambda m: m(few_tokens(), return_type="loss")))(small)
    assert isinstance(by_model, HookedTransformer)
    assert set(by_model.params) == set(plain_gradients)
    for name, gradient in by_model.params.items():
        close(gradient, plain_gradients[name])


def test_tokens_may_be_vmapped(the_model):
    given = jnp.stack([tokens(seed=seed) for seed in range(3)])
    edit = [(Z, halve)]
    run = jax.vmap(lambda m, t: m.run_with_hooks(t, fwd_hooks=edit), in_axes=(None, 0))
    close(run(the_model, given), jnp.stack([the_model.run_with_hooks(one, fwd_hooks=edit) for one in given]))


# --- what a hook on one layer must not do to the others


def gradient_of_W_O(the_model, bwd_hooks):
    def loss(params):
        return the_model.with_params(params).run_with_hooks(tokens(), return_type="loss", bwd_hooks=bwd_hooks)

    return jax.grad(loss)(the_model.params)["blocks.*.attn.W_O"]


def test_a_data_hook_on_gradients_acts_on_its_layer_alone(the_model):
    where = "blocks.1.hook_resid_post"

    def plus(gradient, hook, c):
        return gradient + c

    def unit(gradient, hook, c):
        return c * gradient / jnp.linalg.norm(gradient)

    for fn in (plus, unit):
        as_data = gradient_of_W_O(the_model, [(where, hook(fn, c=1.0))])
        plain = gradient_of_W_O(the_model, [(where, lambda g, hook, fn=fn: fn(g, hook, 1.0))])
        close(as_data, plain)
    close(as_data[2:], gradient_of_W_O(the_model, [])[2:])


def test_a_data_hook_that_is_singular_elsewhere_has_its_derivative(the_model):
    reference = the_model.run_with_cache(tokens())[1]["resid_pre", 0]

    def unit(value, hook, by):
        return by * value / jnp.linalg.norm(value[:, :1] - reference[:, :1])

    def loss(by, edit):
        return the_model.run_with_hooks(tokens(), return_type="loss", fwd_hooks=[("blocks.2.hook_resid_pre", edit(by))])

    as_data = jax.grad(lambda by: loss(by, lambda by: hook(unit, by=by)))(1.0)
    close(as_data, jax.grad(lambda by: loss(by, lambda by: lambda value, point: unit(value, point, by)))(1.0))


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_split_inputs_and_edits_of_ln1_go_together(name):
    """In different layers and in the same one, however it runs."""
    the_model, given = model(name), tokens()
    doubled = ("blocks.0.ln1.hook_normalized", lambda value, hook: value * 2)
    expected = the_model.run_with_hooks(given, fwd_hooks=[doubled])
    assert float(jnp.abs(expected - the_model(given)).max()) > 1e-2
    for asked in ("blocks.1.hook_q_input", "blocks.0.hook_v_input"):
        for edit in (doubled, (doubled[0], hook(scale, by=2.0))):
            close(the_model.run_with_cache(given, names_filter=asked, hooks=[edit])[0], expected)
            traced = jax.jit(lambda m, t, a=asked, e=edit: m.run_with_cache(t, names_filter=a, hooks=[e])[0])
            close(traced(the_model, given), expected)


def test_threads_do_not_share_the_hooks_of_their_runs(the_model):
    given = tokens()
    alone = {by: the_model.run_with_hooks(given, fwd_hooks=[(Z, lambda z, h, by=by: z * by)]) for by in range(4)}

    def runs(by):
        return [the_model.run_with_hooks(given, fwd_hooks=[(Z, lambda z, h: z * by)]) for _ in range(5)]

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for by, results in zip(range(4), pool.map(runs, range(4)), strict=True):
            for result in results:
                close(result, alone[by])
    assert not the_model.list_hooks()
