"""Laws of the forward for every config: the residual stream adds up, hook points fire, all ways of running agree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.models import CONFIGS, model, tokens

from jaxlens import hook
from jaxlens.hooks.names import split_name
from jaxlens.hooks.table import sites
from jaxlens.hooks.tap import Tap

TOLERANCE = 1e-5  # of the largest value compared, everywhere


def close(a, b, tolerance=TOLERANCE):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert a.shape == b.shape
    finite = np.isfinite(b)
    assert (np.isfinite(a) == finite).all()
    scale = np.abs(b[finite]).max() if finite.any() else 1.0
    assert np.abs(a[finite] - b[finite]).max(initial=0) <= tolerance * max(scale, 1.0)


def keep(value, hook):
    """An identity hook."""
    return value


def scaled(value, hook, by):
    return value * by


def bent(value, hook, by):
    """An edit that no norm undoes: scaled, and turned by one position of its last axis."""
    return value * by if value.ndim == 4 and value.shape[-1] == value.shape[-2] else jnp.roll(value, 1, -1) * by


every_config = pytest.mark.parametrize("name", CONFIGS)
some_configs = pytest.mark.parametrize("name", ["gpt2", "neo", "gemma", "moe", "solu_ln", "long"])


@every_config
def test_the_residual_stream_adds_up_exactly(name):
    cfg = CONFIGS[name]
    _, cache = model(name).run_with_cache(tokens())
    norms_sums = cfg.norm_placement == "sum"

    def same(a, b):
        close(a, b) if norms_sums else close(a, b, tolerance=0)

    def after_sum(layer, norm, x):
        block = jax.tree.map(lambda w: w[layer], model(name).modules.stacks[0]) if norms_sums else None
        return getattr(block, norm)(x, Tap(())) if norms_sums else x

    for layer in range(cfg.n_layers):
        pre, post = cache["resid_pre", layer], cache["resid_post", layer]
        if cfg.attn_only:
            assert jnp.array_equal(pre + cache["attn_out", layer], post)
        elif cfg.parallel_attn_mlp:
            assert jnp.array_equal(pre + cache["attn_out", layer] + cache["mlp_out", layer], post)
        else:
            mid = cache["resid_mid", layer]
            same(after_sum(layer, "ln1_sum", pre + cache["attn_out", layer]), mid)
            same(after_sum(layer, "ln2_sum", mid + cache["mlp_out", layer]), post)
        if layer:
            assert jnp.array_equal(cache["resid_post", layer - 1], pre)


@every_config
def test_every_hook_point_fires_once_and_is_in_the_full_cache(name):
    cfg, fired = CONFIGS[name], []
    _, cache = model(name).run_with_cache(tokens(), names_filter=list(sites(CONFIGS[name])))
    assert list(cache) == list(sites(cfg))
    for full, site in sites(cfg).items():
        assert cache[full].ndim == len(site.axes.split()), full
    # a split norm cannot be edited as one, so the points before it are asked for apart
    split = ("hook_attn_in", "hook_q_input", "hook_k_input", "hook_v_input")
    for some in ([n for n in sites(cfg) if n.endswith(split) == is_split] for is_split in (False, True)):
        listening = [(some.__contains__, lambda value, hook: fired.append(hook.name))] if some else []
        model(name).run_with_hooks(tokens(), fwd_hooks=listening)
    assert sorted(fired) == sorted(sites(cfg))


@every_config
def test_identity_hooks_eager_compiled_and_traced_agree(name):
    the_model, given = model(name), tokens()
    plain = the_model(given)
    everywhere = lambda n: "_in" not in n and "input" not in n  # noqa: E731
    close(the_model.run_with_hooks(given, fwd_hooks=[(everywhere, keep)]), plain)
    close(the_model.run_with_hooks(given, fwd_hooks=[("blocks.*.hook_resid_pre", hook(scaled, by=1.0))]), plain)
    close(jax.jit(lambda m, t: m(t))(the_model, given), plain)
    close(the_model.run_with_cache(given)[0], plain)
    hooks = [("blocks.1.attn.hook_z", keep)]
    close(jax.jit(lambda m, t: m.run_with_hooks(t, fwd_hooks=hooks))(the_model, given), plain)


@some_configs
@pytest.mark.parametrize("site", ["attn.hook_z", "attn.hook_attn_scores", "hook_resid_post", "attn.hook_k"])
def test_an_edit_is_the_same_however_it_runs(name, site):
    the_model, given, full = model(name), tokens(), f"blocks.2.{site}"
    plain = the_model.run_with_hooks(given, fwd_hooks=[(full, lambda value, hook: bent(value, hook, 0.5))])
    as_data = the_model.run_with_hooks(given, fwd_hooks=[(full, hook(bent, by=0.5))])
    traced = jax.jit(lambda m, t: m.run_with_hooks(t, fwd_hooks=[(full, lambda value, hook: bent(value, hook, 0.5))]))
    close(as_data, plain)
    close(traced(the_model, given), plain)
    assert not np.allclose(plain, the_model(given), atol=1e-4)


@every_config
def test_the_cache_is_the_same_however_it_is_taken(name):
    the_model, given = model(name), tokens()
    _, cache = the_model.run_with_cache(given)
    traced = jax.jit(lambda m, t: m.run_with_cache(t)[1])(the_model, given)
    with the_model.hooks(fwd_hooks=[("blocks.1.hook_attn_out", keep)]):
        _, around = the_model.run_with_cache(given)
    assert list(traced) == list(cache) == list(around)
    for full in cache:
        close(traced[full], cache[full])
        close(around[full], cache[full])


@every_config
def test_start_and_stop_at_layer_make_up_the_whole(name):
    the_model, given = model(name), tokens()
    n = CONFIGS[name].n_layers
    whole = the_model(given)
    for layer in (0, 1, n - 1, -1, n):
        middle = the_model(given, stop_at_layer=layer)
        if CONFIGS[name].positional_embedding_type == "shortformer" or middle.shape == ():
            continue
        close(the_model(middle, start_at_layer=layer), whole)
    _, cache = the_model.run_with_cache(given)
    close(the_model(given, stop_at_layer=1), cache["resid_post", 0])
    _, part = the_model.run_with_cache(cache["resid_pre", 1], start_at_layer=1, stop_at_layer=3)
    assert {split_name(full)[1] for full in part} == {1, 2}


@every_config
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(name, side):
    the_model, long, short = model(name), tokens(1, 11, seed=1), tokens(1, 7, seed=2)
    pad = [(0, 0), (4, 0) if side == "left" else (0, 4)]
    batch = jnp.concatenate((long, jnp.pad(short, pad)))
    mask = jnp.concatenate((jnp.ones_like(long), jnp.pad(jnp.ones_like(short), pad)))
    logits, cache = the_model.run_with_cache(batch, attention_mask=mask)
    real = slice(4, None) if side == "left" else slice(None, 7)
    alone, lone_cache = the_model.run_with_cache(short)
    lone = the_model(long)
    if any(type(r.scaling).__name__ in ("Dynamic", "LongRope") for r in CONFIGS[name].rotary if r and r.scaling):
        alone = None  # these scalings look at the longest row of the batch
    close(logits[:1], lone)
    if alone is not None:
        close(logits[1:, real], alone)
        close(cache["pattern", 0][1:, :, real, real], lone_cache["pattern", 0])
        close(cache["resid_mid" if "blocks.0.hook_resid_mid" in cache else "resid_post", 1][1:, real],
              lone_cache["resid_mid" if "blocks.0.hook_resid_mid" in cache else "resid_post", 1])  # fmt: skip
    loss = the_model(batch, return_type="loss", attention_mask=mask, loss_per_token=True)
    padding = slice(3) if side == "left" else slice(7, None)
    assert not np.asarray(loss)[1, padding].any()


@some_configs
def test_long_sequences_attend_blockwise_and_agree(name):
    cfg = CONFIGS[name].replace(attn_block=4)
    blockwise = type(model(name))(cfg, params=model(name).params)
    given = tokens(2, 19)
    mask = jnp.ones_like(given).at[0, :3].set(0)
    explicit = model(name)(given, attention_mask=mask)
    close(blockwise(given, attention_mask=mask)[0, 3:], explicit[0, 3:])
    close(blockwise(given, attention_mask=mask)[1], explicit[1])
    watched = blockwise.run_with_cache(given, attention_mask=mask, names_filter="blocks.1.attn.hook_pattern")[0]
    close(watched[1], explicit[1])

    def loss(params, the_model):
        return the_model.with_params(params)(given, attention_mask=mask, return_type="loss")

    expected = jax.jit(jax.grad(lambda p: loss(p, model(name))))(model(name).params)
    got = jax.jit(jax.grad(lambda p: loss(p, blockwise)))(model(name).params)
    for key in expected:
        close(got[key], expected[key])


@some_configs
def test_gradients_are_derivatives(name):
    """The gradient at a hook point is the derivative of the loss by an addition there; by finite differences in x64."""
    with jax.enable_x64(True):
        cfg = CONFIGS[name].replace(dtype="float64")
        params = {key: jnp.asarray(value, jnp.float64) for key, value in model(name).params.items()}
        the_model = type(model(name))(cfg, params=params)
        given = tokens()
        _, cache = the_model.run_with_cache(given, return_type="loss", incl_bwd=True)
        for full in ("blocks.1.attn.hook_v", "blocks.2.hook_attn_out", "hook_embed"):
            gradient = cache[f"{full}_grad"]
            assert gradient.shape == cache[full].shape
            direction = jnp.asarray(np.random.default_rng(0).normal(size=gradient.shape))

            def moved(step, full=full, direction=direction):
                return the_model.run_with_hooks(
                    given, return_type="loss", fwd_hooks=[(full, lambda v, hook: v + step * direction)]
                )

            numeric = (moved(1e-6) - moved(-1e-6)) / 2e-6
            assert abs(numeric - jnp.sum(gradient * direction)) <= 1e-6 * max(1.0, abs(numeric))
