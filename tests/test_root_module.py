"""Hooks in Flax models that users write: a transformer from scratch, and toy modules."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support.mistakes import Case, unreached
from support.models import model, tokens
from test_models import close

import jaxlens
from jaxlens import HookedRootModule, HookError, HookPoint


class SquareThenAdd(nnx.Module):
    """The module of TransformerLens's main demo."""

    def __init__(self, offset):
        self.offset = nnx.Param(jnp.array(offset))
        self.hook_square = HookPoint()

    def __call__(self, x):
        return self.offset + self.hook_square(x * x)


class TwoLayerModel(HookedRootModule):
    def __init__(self):
        super().__init__()
        self.layer1, self.layer2 = SquareThenAdd(3.0), SquareThenAdd(-4.0)
        self.hook_in, self.hook_mid, self.hook_out = HookPoint(), HookPoint(), HookPoint()
        super().setup()

    def forward(self, x):
        x_in = self.hook_in(x)
        x_mid = self.hook_mid(self.layer1(x_in))
        return self.hook_out(self.layer2(x_mid))


class HookedMLP(HookedRootModule):
    """Layers in a list, with weights, dropout and a running mean."""

    def __init__(self, sizes=(3, 5, 2), dropout=0.0):
        rngs = nnx.Rngs(0)
        self.layers = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in itertools.pairwise(sizes)])
        self.dropout, self.norm = nnx.Dropout(dropout, rngs=rngs), nnx.BatchNorm(sizes[0], rngs=rngs)
        self.hooks_pre = nnx.List([HookPoint() for _ in self.layers])
        self.points = nnx.Dict(out=HookPoint())
        self.setup()

    def __call__(self, x):
        x = self.dropout(self.norm(x))
        for layer, hook_pre in zip(self.layers, self.hooks_pre, strict=True):
            x = jax.nn.relu(hook_pre(layer(x)))
        return self.points["out"](x)


# --- the transformer that ARENA's readers write, with the weights of GPT-2


class LayerNorm(nnx.Module):
    def __init__(self, cfg, weights):
        self.w, self.b, self.eps = nnx.Param(weights["w"]), nnx.Param(weights["b"]), cfg.eps
        self.hook_scale, self.hook_normalized = HookPoint(), HookPoint()

    def __call__(self, x):
        x = x - x.mean(-1, keepdims=True)
        scale = self.hook_scale(jnp.sqrt((x**2).mean(-1, keepdims=True) + self.eps))
        return self.hook_normalized(x / scale) * self.w + self.b


class Attention(nnx.Module):
    def __init__(self, cfg, weights):
        self.weights = nnx.Dict({name: nnx.Param(weights[name]) for name in weights})
        self.scale = cfg.attn_scale
        for name in ("q", "k", "v", "z", "attn_scores", "pattern"):
            setattr(self, f"hook_{name}", HookPoint())

    def __call__(self, x):
        W = self.weights
        q, k, v = (
            point(jnp.einsum("bpd,ndh->bpnh", x, W[f"W_{name}"][...]) + W[f"b_{name}"])
            for name, point in (("Q", self.hook_q), ("K", self.hook_k), ("V", self.hook_v))
        )
        scores = jnp.einsum("bpnh,bsnh->bnps", q, k) / self.scale
        visible = jnp.tril(jnp.ones(scores.shape[-2:], bool))
        pattern = self.hook_pattern(jax.nn.softmax(self.hook_attn_scores(jnp.where(visible, scores, -jnp.inf)), -1))
        z = self.hook_z(jnp.einsum("bnps,bsnh->bpnh", pattern, v))
        return jnp.einsum("bpnh,nhd->bpd", z, W["W_O"][...]) + W["b_O"]


class MLP(nnx.Module):
    def __init__(self, weights):
        self.weights = nnx.Dict({name: nnx.Param(weights[name]) for name in weights})
        self.hook_pre, self.hook_post = HookPoint(), HookPoint()

    def __call__(self, x):
        W = self.weights
        post = self.hook_post(jax.nn.gelu(self.hook_pre(x @ W["W_in"] + W["b_in"])))
        return post @ W["W_out"] + W["b_out"]


class TransformerBlock(nnx.Module):
    def __init__(self, cfg, weights):
        part = functools.partial(jaxlens.utils.filter_dict_by_prefix, weights)
        self.hook_resid_pre = HookPoint()
        self.ln1, self.attn = LayerNorm(cfg, part("ln1")), Attention(cfg, part("attn"))
        self.hook_attn_out, self.hook_resid_mid = HookPoint(), HookPoint()
        self.ln2, self.mlp = LayerNorm(cfg, part("ln2")), MLP(part("mlp"))
        self.hook_mlp_out, self.hook_resid_post = HookPoint(), HookPoint()

    def __call__(self, resid):
        resid = self.hook_resid_pre(resid)
        resid = self.hook_resid_mid(resid + self.hook_attn_out(self.attn(self.ln1(resid))))
        return self.hook_resid_post(resid + self.hook_mlp_out(self.mlp(self.ln2(resid))))


class DemoTransformer(HookedRootModule):
    def __init__(self, theirs):
        weights = {name: w for name, w in theirs.state_dict().items() if not name.endswith(("mask", "IGNORE"))}
        part = functools.partial(jaxlens.utils.filter_dict_by_prefix, weights)
        self.W_E, self.W_pos = nnx.Param(weights["embed.W_E"]), nnx.Param(weights["pos_embed.W_pos"])
        self.hook_embed, self.hook_pos_embed = HookPoint(), HookPoint()
        self.blocks = nnx.List([TransformerBlock(theirs.cfg, part(f"blocks.{n}")) for n in range(theirs.cfg.n_layers)])
        self.ln_final = LayerNorm(theirs.cfg, part("ln_final"))
        self.W_U, self.b_U = nnx.Param(weights["unembed.W_U"]), nnx.Param(weights["unembed.b_U"])
        self.setup()

    def __call__(self, tokens, return_type="logits"):
        position = self.hook_pos_embed(jnp.broadcast_to(self.W_pos[: tokens.shape[1]], (*tokens.shape, 14)))
        resid = self.hook_embed(self.W_E[tokens]) + position
        for block in self.blocks:
            resid = block(resid)
        logits = self.ln_final(resid) @ self.W_U + self.b_U
        return logits if return_type == "logits" else jaxlens.lm_cross_entropy_loss(logits, tokens)


@functools.cache
def gpt2():
    return model("gpt2")


@pytest.fixture
def scratch():
    return DemoTransformer(gpt2())


def zero(value, hook):
    return value * 0


# --- names, hooks, caches


def test_the_modules_of_the_demo_behave_as_they_do_there():
    two = TwoLayerModel()
    out, cache = two.run_with_cache(jnp.array(5.0))
    assert out == 780.0
    assert {name: float(value) for name, value in cache.items()} == {
        "hook_in": 5.0, "layer1.hook_square": 25.0, "hook_mid": 28.0, "layer2.hook_square": 784.0, "hook_out": 780.0
    }  # fmt: skip
    hooks = [("layer2.hook_square", lambda value, hook: jnp.array(0.0))]
    assert two.run_with_hooks(jnp.array(5.0), fwd_hooks=hooks) == -4.0
    assert two(jnp.array(5.0)) == 780.0
    assert sorted(two.mod_dict) == sorted(["layer1", "layer2", *two.hook_dict])
    assert [point.name for point in two.hook_points()] == list(two.hook_dict)


def test_a_transformer_from_scratch_has_the_activations_of_gpt2(scratch):
    logits, cache = scratch.run_with_cache(tokens())
    expected, theirs = gpt2().run_with_cache(tokens(), names_filter=list(cache))
    close(logits, expected)
    assert len(cache) == 4 * 17 + 4 and set(cache) == set(scratch.hook_dict)
    for name, value in cache.items():
        close(jnp.where(jnp.isfinite(value), value, 0), jnp.where(jnp.isfinite(theirs[name]), theirs[name], 0))


@pytest.mark.parametrize("name", ["blocks.1.attn.hook_z", "blocks.*.hook_mlp_out", lambda name: name.endswith("_q")])
def test_hooks_edit_it_as_they_edit_gpt2(scratch, name):
    def halve(value, hook):
        return value / 2

    expected = gpt2().run_with_hooks(tokens(), fwd_hooks=[(name, halve)])
    close(scratch.run_with_hooks(tokens(), fwd_hooks=[(name, halve)]), expected)
    data = jaxlens.hook(lambda value, hook, by: value * by, by=0.5)
    close(scratch.run_with_hooks(tokens(), fwd_hooks=[(name, data)]), expected)
    assert not scratch.list_hooks()


def test_its_gradients_are_those_of_gpt2(scratch):
    names = ["blocks.1.attn.hook_pattern", "blocks.2.hook_resid_pre", "hook_embed"]
    loss, cache = scratch.run_with_cache(tokens(), return_type="loss", names_filter=names, incl_bwd=True)
    expected, theirs = gpt2().run_with_cache(tokens(), return_type="loss", names_filter=names, incl_bwd=True)
    close(loss, expected)
    assert list(cache) == ["hook_embed", *names[:2], *(f"{name}_grad" for name in (names[1], names[0], names[2]))]
    for name, value in cache.items():
        close(value, theirs[name])


def test_a_hook_knows_its_point(scratch):
    seen = []
    scratch.add_hook(lambda name: "resid_pre" in name, lambda value, hook: seen.append((hook.name, hook.layer())))
    scratch(tokens())
    assert seen == [(f"blocks.{layer}.hook_resid_pre", layer) for layer in range(4)]
    assert repr(scratch.blocks[0].hook_resid_pre) == "HookPoint(name='blocks.0.hook_resid_pre', 1 fwd)"
    assert repr(HookPoint()) == "HookPoint()" and HookPoint("a").name == "a"
    assert isinstance(gpt2(), HookedRootModule) and isinstance(gpt2().blocks[0].hook_resid_pre, HookPoint)
    assert "hook_resid_pre=HookPoint" in repr(scratch)


def test_a_point_without_a_name_works_alone():
    point = HookPoint()
    point.add_hook(lambda value, hook: hook.ctx.setdefault("seen", value) + 1)
    assert point(jnp.array(1.0)) == 2.0 and point.ctx["seen"] == 1.0
    point.add_hook(zero, prepend=True)
    assert point.forward(jnp.array(5.0)) == 1.0 + 1.0
    point.clear_context()
    assert not point.ctx and point.enable_reshape() is None
    assert jax.grad(lambda x: HookPoint()(x) ** 2)(3.0) == 6.0
    assert HookPoint()({"any": 1}) == {"any": 1}


def test_hooks_are_listed_and_removed(scratch):
    scratch.add_perma_hook("hook_embed", zero)
    with scratch.hooks(fwd_hooks=[("hook_embed", zero)], bwd_hooks=[("blocks.*.hook_mlp_out", zero)]) as same:
        assert same is scratch
        with scratch.hooks(fwd_hooks=[("hook_embed", zero)]):
            assert [handle.context_level for handle in scratch.hook_embed.fwd_hooks] == [None, 1, 2]
        assert {name: len(hooks) for name, hooks in scratch.list_hooks().items()} == {
            "hook_embed": 2, **{f"blocks.{layer}.hook_mlp_out": 1 for layer in range(4)}
        }  # fmt: skip
        assert list(scratch.list_hooks(dir="fwd", including_permanent=False)) == ["hook_embed"]
        assert scratch.hook_embed.has_hooks(level=1) and not scratch.hook_embed.has_hooks("bwd")
    assert [handle.is_permanent for handle in scratch.hook_embed.fwd_hooks] == [True]
    assert scratch.hook_embed.fwd_hooks[0].user_hook is zero and not scratch.blocks[0].hook_mlp_out.bwd_hooks
    with scratch.hooks(fwd_hooks=[("hook_embed", zero)], reset_hooks_end=False):
        scratch.hook_embed.ctx["kept"] = True
    scratch.reset_hooks(clear_contexts=False)
    assert len(scratch.list_hooks()["hook_embed"]) == 1 and scratch.hook_embed.ctx
    scratch.reset_hooks(including_permanent=True)
    assert not scratch.list_hooks() and not scratch.hook_embed.ctx
    scratch.hook_embed.add_perma_hook(zero, dir="bwd")
    scratch.hook_embed.remove_hooks("both", including_permanent=True)
    assert not scratch.list_hooks()


def test_hooks_can_be_refused_by_a_subclass():
    class Careful(TwoLayerModel):
        def check_hooks_to_add(self, hook_point, hook_point_name, hook, **options):
            if hook_point_name == "hook_in":
                raise ValueError("not here")

        def check_and_add_hook(self, *args, **kwargs):
            super().check_and_add_hook(*args, **kwargs)
            self.added = True

    careful = Careful()
    careful.add_hook("hook_out", zero)
    assert careful.added and careful(jnp.array(5.0)) == 0


def test_hooks_on_gradients_act_when_a_call_is_differentiated(scratch):
    resid = gpt2().run_with_cache(tokens())[1]["blocks.0.hook_resid_pre"]

    def loss(resid):
        return scratch.blocks[0](resid).sum()

    plain = jax.grad(loss)(resid)
    seen = []
    hooks = [("blocks.0.hook_attn_out", lambda g, hook: seen.append(g)), ("blocks.0.hook_mlp_out", zero)]
    with scratch.hooks(bwd_hooks=hooks):
        changed = jax.grad(loss)(resid)
        assert not np.allclose(jax.jit(jax.grad(lambda s, r: s.blocks[0](r).sum(), 1))(scratch, resid), plain)
    close(changed, jnp.ones_like(resid) + jax.vjp(lambda r: scratch.blocks[0].attn(scratch.blocks[0].ln1(r)), resid)[1](
        jnp.ones_like(resid))[0])  # fmt: skip
    close(seen[0], jnp.ones_like(resid))
    close(jax.grad(loss)(resid), plain)


def test_caching_hooks_store_values_and_gradients(scratch):
    cache, forward, backward = scratch.get_caching_hooks(["hook_embed", "blocks.1.hook_mlp_out"], incl_bwd=True)
    with scratch.hooks(forward, backward):
        nnx.grad(lambda the_model: the_model(tokens(), return_type="loss"))(scratch)
    _, expected = scratch.run_with_cache(
        tokens(), return_type="loss", names_filter=["hook_embed", "blocks.1.hook_mlp_out"], incl_bwd=True
    )
    assert set(cache) == set(expected) and len(cache) == 4
    for name, value in cache.items():
        close(value, expected[name])
    cache = scratch.add_caching_hooks("hook_embed", remove_batch_dim=True)
    scratch(tokens(1))
    close(cache["hook_embed"], scratch.W_E[tokens(1)[0]])


def test_a_cache_is_cut_by_positions(scratch):
    names = ["blocks.0.attn.hook_q", "blocks.0.attn.hook_pattern", "blocks.1.hook_resid_post"]
    _, cache = scratch.run_with_cache(tokens(1), names_filter=names, pos_slice=-1, remove_batch_dim=True, device="cpu")
    assert [value.shape for value in cache.values()] == [(1, 6, 4), (6, 1, 11), (1, 14)]
    scratch.hook_embed.ctx["a"] = 1
    scratch.run_with_cache(tokens(), names_filter="hook_embed", clear_contexts=True)
    assert not scratch.hook_embed.ctx


# --- compiled


COMPILERS = {"jax": jax.jit, "nnx": nnx.jit}


@pytest.mark.parametrize("jit", COMPILERS.values(), ids=COMPILERS)
def test_a_compiled_function_sees_the_hooks_of_its_argument(jit):
    two, x = TwoLayerModel(), jnp.array(5.0)
    traces = []

    @jit
    def run(two, x):
        traces.append(1)
        return two(x)

    def plus(value, hook, by):
        return value + by

    results = [run(two, x)]
    two.add_hook("hook_mid", zero)
    results.append(run(two, x))
    two.reset_hooks()
    results.append(run(two, x))
    assert results == [780.0, -4.0, 780.0] and len(traces) == 2
    for by in (1.0, 2.0):  # the numbers of a data hook are arguments of the program
        with two.hooks(fwd_hooks=[("hook_out", jaxlens.hook(plus, by=by))]):
            assert run(two, x) == 780.0 + by
    assert len(traces) == 3
    two.hook_out.add_hook(lambda value, hook: value * 2)
    assert run(two, x) == 2 * 780.0 and two.hook_out.fwd_hooks and not two.hook_in.has_hooks()


@pytest.mark.parametrize("jit", COMPILERS.values(), ids=COMPILERS)
def test_a_compiled_function_hooks_and_caches(scratch, jit):
    expected, cache = scratch.run_with_cache(tokens(), return_type="loss", incl_bwd=True)

    @jit
    def run(the_model, tokens):
        out = the_model.run_with_hooks(tokens, return_type="loss", fwd_hooks=[("hook_embed", zero)])
        return out, the_model.run_with_cache(tokens, return_type="loss", incl_bwd=True)

    hooked, (out, compiled) = run(scratch, tokens())
    close(out, expected)
    close(hooked, scratch.run_with_hooks(tokens(), return_type="loss", fwd_hooks=[("hook_embed", zero)]))
    for name, value in cache.items():
        close(compiled[name], value)
    assert not scratch.list_hooks()


def test_a_model_that_compiles_itself_can_be_hooked():
    two, x = Compiled(), jnp.array(5.0)
    assert [two.run_with_hooks(x, fwd_hooks=[("hook_mid", zero)]), two(x), len(two.list_hooks())] == [-4.0, 780.0, 0]


def test_hooks_that_a_compiled_function_cannot_see_are_warned_about():
    two, x = TwoLayerModel(), jnp.array(5.0)
    refers = jax.jit(lambda x: two(x))
    refers(x)
    for add in (two.add_hook, lambda name, fn: two.hook_dict[name].add_hook(fn)):
        with pytest.warns(UserWarning, match=r"keeps the hooks that it was compiled with.*as an argument") as warned:
            add("hook_out", zero)
        assert warned[0].filename == __file__
    two.reset_hooks()
    with pytest.warns(UserWarning, match="keeps the hooks"), two.hooks(fwd_hooks=[("hook_out", zero)]):
        refers(x)
    with two.hooks(fwd_hooks=[("hook_out", zero)]):
        assert two(x) == 0  # the hook runs, so there is nothing to warn about
    assert two.run_with_hooks(x, fwd_hooks=[("hook_out", zero)]) == 0


def test_eager_transformations_may_refer_to_the_model():
    two = TwoLayerModel()
    slope = jax.grad(lambda x: two(x))(5.0)
    assert jax.vmap(jax.grad(lambda x: two(x)))(jnp.array([5.0, 5.0])).tolist() == [slope, slope]
    two.add_hook("hook_mid", zero)
    assert jax.grad(lambda x: two(x))(5.0) == 0
    hooked = jax.jit(lambda x: two.run_with_hooks(x, fwd_hooks=[("hook_out", lambda value, hook: value + 1)]))
    assert hooked(5.0) == hooked(jnp.array([5.0]))[0] == -3.0  # hooks of the trace itself: no warning


# --- any model of Flax


def test_modules_in_lists_and_dicts_have_names():
    mlp = HookedMLP()
    assert list(mlp.hook_dict) == ["hooks_pre.0", "hooks_pre.1", "points.out"]
    assert {"layers.0", "layers.1", "dropout", "norm"} < set(mlp.mod_dict)
    mlp.hook_late = HookPoint()
    assert mlp.hook_dict["hook_late"].name == "hook_late", "without another setup()"


def test_a_call_with_gradients_changes_variables_as_a_call_does():
    class Loss(HookedMLP):
        def __call__(self, x):
            return super().__call__(x).sum()

    x = jax.random.normal(jax.random.key(0), (4, 3))
    plain, recorded = Loss(dropout=0.5), Loss(dropout=0.5)
    values = []
    recorded.add_hook("hooks_pre.0", lambda value, hook: hook.ctx.update(seen=float(value.sum())))
    for _ in range(2):
        values.append((plain(x), recorded.run_with_cache(x, incl_bwd=True)[0]))
    close(*map(jnp.stack, zip(*values, strict=True)))
    assert values[0][0] != values[1][0], "dropout has drawn again"
    for one, other in zip(*(jax.tree.leaves(nnx.state(each, nnx.Variable)) for each in (plain, recorded)), strict=True):
        assert jax.dtypes.issubdtype(one.dtype, jax.dtypes.prng_key) or (one == other).all()
    assert recorded.hooks_pre[0].ctx["seen"]


def test_an_optimizer_trains_a_hooked_model():
    optax = pytest.importorskip("optax")
    mlp, x = HookedMLP(), jax.random.normal(jax.random.key(0), (4, 3))
    mlp.add_hook("hooks_pre.0", zero)
    optimizer = nnx.Optimizer(mlp, optax.sgd(0.1), wrt=nnx.Param)
    before = mlp.layers[0].kernel[...]

    @nnx.jit
    def step(mlp, optimizer):
        grads = nnx.grad(lambda mlp: (mlp(x) - 1).sum() ** 2)(mlp)
        optimizer.update(mlp, grads)

    step(mlp, optimizer)
    assert (mlp.layers[0].kernel[...] == before).all()
    mlp.reset_hooks()
    step(mlp, optimizer)
    assert (mlp.layers[0].kernel[...] != before).any()


def test_copies_have_the_hooks_and_their_own_contexts():
    two = TwoLayerModel()
    two.add_hook("hook_mid", zero)
    two.hook_mid.ctx["a"] = 1
    copied = nnx.clone(two)
    copied.reset_hooks()
    assert copied(jnp.array(5.0)) == 780.0 and two(jnp.array(5.0)) == -4.0 and two.hook_mid.ctx == {"a": 1}
    graphdef, state = nnx.split(two)
    assert nnx.merge(graphdef, state)(jnp.array(5.0)) == -4.0
    assert jax.tree.leaves(nnx.state(two, nnx.Param)) == [3.0, -4.0]
    torch = pytest.importorskip("torch")
    assert two.run_with_hooks(jnp.array(5.0), fwd_hooks=[("hook_out", lambda *_, **__: torch.tensor(2.5))]) == 2.5


# --- mistakes


class Scanned(HookedRootModule):
    def __init__(self):
        self.hook_in = HookPoint()

    def __call__(self, x):
        return jax.lax.scan(lambda x, _: (self.hook_in(x) + 1, None), x, None, length=3)[0]


class Compiled(TwoLayerModel):
    @nnx.jit
    def __call__(self, x):
        return self.forward(x)


class Incomplete(HookedRootModule):
    pass


def of_tracers():
    two = TwoLayerModel()
    two.add_caching_hooks("hook_mid")
    return jax.jit(lambda two: two(5.0))(two)


def two():
    return TwoLayerModel()


def of_a_dict():
    point = HookPoint()
    point.add_hook(zero)
    return point({"a": 1})


MISTAKES = [
    Case(lambda: two().add_hook("hook_inn", zero), HookError, "did you mean 'hook_in' or"),
    Case(lambda: two().add_hook("xyz", zero), HookError, "the model has ['layer1.hook_square'"),
    Case(lambda: two().add_hook(lambda name: False, zero), HookError, "none of the model's 5 hook"),
    Case(lambda: two().add_hook(3, zero), HookError, "a hook name is a string or a filter function; got int"),
    Case(lambda: two().run_with_cache(5.0, names_filter=[3]), HookError, "got int"),
    Case(lambda: two().run_with_cache(5.0, names_filter=[]), HookError, "names_filter is an empty list"),
    Case(lambda: two().add_hook("hook_in", 3), HookError, "a hook is a function of (value, hook); got int"),
    Case(lambda: two().add_hook("hook_in", zero, "up"), HookError, 'is "fwd" or "bwd"; got \'up\''),
    Case(lambda: two().reset_hooks(direction="up"), HookError, '"fwd", "bwd" or "both"'),
    Case(
        lambda: two().run_with_hooks(jnp.ones(2), fwd_hooks=[("hook_in", lambda value, hook: value[0])]),
        HookError, 'the hook on "hook_in" changed the shape from (2,) to ()',
    ),
    Case(of_a_dict, HookError, '"(a HookPoint without a name)" has hooks and got a dict; expected an array'),
    Case(lambda: HookPoint("hook_in").layer(), HookError, '"hook_in" has no layer'),
    Case(lambda: Incomplete().run_with_cache(1), TypeError, "define __call__ or forward"),
    Case(lambda: two().run_with_cache(jnp.ones(2), incl_bwd=True), ValueError, "output has shape (2,)"),
    Case(lambda: Scanned().run_with_cache(jnp.ones(2)), HookError, "inside a transformation of the model"),
    Case(lambda: Compiled().run_with_cache(1.0), HookError, 'did not reach the hook point "layer1.hook_square" from'),
    Case(of_tracers, HookError, "caching hooks store concrete values, but the value at 'hook_mid' is traced"),
    Case(lambda: two().run_with_cache(1.0, reset_hooks_end=False), ValueError, "use add_caching_hooks"),
    Case(lambda: HookPoint().enable_reshape(object()), NotImplementedError, "reshape in the hook function"),
]  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES, ids=lambda case: case.text[:40])
def test_mistakes_are_answered(case):
    case.check()


def test_every_error_has_a_case():
    assert not unreached(__file__, MISTAKES)
