"""ActivationCache: every way of naming, cutting and keeping the activations of a run; and what each activation is."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.models import BEYOND_VERSION_3, CONFIGS, model, tokens
from test_hook_api import few_tokens, small_model
from test_models import close

from jaxlens import ActivationCache, ActivationNotFound, Config, HookedTransformer, Slice, hook
from jaxlens.hooks.names import split_name
from jaxlens.hooks.table import sites
from jaxlens.nn.parameters import parameter_shapes

FEW = ["hook_embed", "blocks.*.attn.hook_pattern", "blocks.*.hook_resid_post"]

SOLU_1L = [
    "hook_embed", "hook_pos_embed",
    *(f"blocks.0.{site}" for site in (
        "hook_resid_pre", "ln1.hook_scale", "ln1.hook_normalized", "attn.hook_q", "attn.hook_k", "attn.hook_v",
        "attn.hook_attn_scores", "attn.hook_pattern", "attn.hook_z", "hook_attn_out", "hook_resid_mid",
        "ln2.hook_scale", "ln2.hook_normalized", "mlp.hook_pre", "mlp.hook_mid", "mlp.ln.hook_scale",
        "mlp.ln.hook_normalized", "mlp.hook_post", "hook_mlp_out", "hook_resid_post",
    )),
    "ln_final.hook_scale", "ln_final.hook_normalized", "unembed.hook_in", "unembed.hook_out",
]  # fmt: skip
"""The keys of the cache of TransformerLens 3.5.1 for solu-1l, in its order."""


def same(a, b) -> bool:
    return bool(jnp.array_equal(a, b))


@pytest.fixture(scope="module")
def cache() -> ActivationCache:
    """Everything that a plain run of two prompts goes through."""
    return model("gpt2").run_with_cache(tokens())[1]


@pytest.fixture(scope="module")
def few() -> ActivationCache:
    """The same, but for a few sites."""
    return model("gpt2").run_with_cache(tokens(), names_filter=FEW)[1]


# --- names


def test_names_and_order_are_those_of_transformer_lens():
    cfg = Config(n_layers=1, d_model=6, n_heads=2, d_head=4, d_mlp=8, d_vocab=13, n_ctx=8, act_fn="solu_ln")
    params = {name: jnp.ones(shape.shape, shape.dtype) for name, shape in parameter_shapes(cfg).items()}
    _, cache = HookedTransformer(cfg, params=params).run_with_cache([[1, 2, 3]])
    assert [name for name in cache if not name.endswith(BEYOND_VERSION_3)] == SOLU_1L
    assert cache.keys() - set(SOLU_1L) == {f"blocks.0.{site}" for site in BEYOND_VERSION_3}


@pytest.mark.parametrize(
    ("key", "full"),
    [
        ("blocks.2.hook_resid_post", "blocks.2.hook_resid_post"),
        (("resid_post", 2), "blocks.2.hook_resid_post"),
        (("resid_post", -1), "blocks.3.hook_resid_post"),
        (("resid_post", np.int64(-4)), "blocks.0.hook_resid_post"),
        (("pattern", 3, "attn"), "blocks.3.attn.hook_pattern"),
        (("pattern", 3, "a"), "blocks.3.attn.hook_pattern"),
        (("attn", 3), "blocks.3.attn.hook_pattern"),
        (("attn_logits", 0), "blocks.0.attn.hook_attn_scores"),
        (("q", 1), "blocks.1.attn.hook_q"),
        (("key", 1), "blocks.1.attn.hook_k"),
        (("post", -2, "mlp"), "blocks.2.mlp.hook_post"),
        (("mlp_out", 0), "blocks.0.hook_mlp_out"),
        (("scale", 3, "ln1"), "blocks.3.ln1.hook_scale"),
        (("normalized", 1, "ln2"), "blocks.1.ln2.hook_normalized"),
        ("k2", "blocks.2.attn.hook_k"),
        ("pre3", "blocks.3.mlp.hook_pre"),
        ("resid_mid1", "blocks.1.hook_resid_mid"),
        ("scale1ln2", "blocks.1.ln2.hook_scale"),
        ("scale", "ln_final.hook_scale"),
        ("embed", "hook_embed"),
        (("pos_embed",), "hook_pos_embed"),
        ("blocks.1.hook_in", "blocks.1.hook_resid_pre"),
        ("blocks.1.hook_out", "blocks.1.hook_resid_post"),
        (("out", 1), "blocks.1.hook_resid_post"),
    ],
    ids=str,
)
def test_an_activation_has_short_packed_and_newer_names(cache, key, full):
    assert key in cache
    assert same(cache[key], cache[full])


def test_a_cache_is_a_mapping_in_the_order_in_which_hook_points_fire(cache):
    asked_for = {name for name, site in sites(model("gpt2").cfg).items() if site.on_request}
    names = [name for name in model("gpt2").hook_dict if name not in asked_for]
    assert list(cache) == list(cache.keys()) == [name for name, _ in cache.items()] == names
    assert len(cache) == len(names) == len(list(cache.values()))
    assert "blocks.0.attn.hook_result" not in cache
    assert ("resid_post", 4) not in cache
    assert 5 not in cache
    assert cache.get("blocks.9.hook_resid_pre") is None
    assert {**cache}.keys() == cache.keys()


def test_a_cache_is_equal_to_itself_only(cache):
    assert cache == cache and cache != copy.copy(cache) and {cache: 1}[cache] == 1


def test_a_wildcard_is_all_layers_stacked(cache):
    stacked = cache["blocks.*.attn.hook_z"]
    assert stacked.shape == (4, 2, 11, 6, 4)
    for layer in range(4):
        assert same(stacked[layer], cache["z", layer])


def test_repr_shows_every_site_with_its_shape_and_layers(cache):
    lines = repr(cache).split("\n")
    assert lines[0] == f"ActivationCache({len(cache)} activations)"
    assert "  hook_embed (2, 11, 14) float32" in lines
    assert "  blocks.0-3.attn.hook_pattern (2, 6, 11, 11) float32" in lines
    assert len(lines) == 1 + len({split_name(name)[0] for name in cache})


def test_repr_of_a_part_says_which_layers_it_holds(few):
    held = {name: few[name] for name in ("hook_embed", "blocks.0.hook_resid_post", "blocks.3.hook_resid_post")}
    part = ActivationCache(held, model("gpt2")).apply_slice_to_batch_dim(0)
    assert repr(part) == (
        "ActivationCache(3 activations, no batch axis)\n"
        "  hook_embed (11, 14) float32\n"
        "  blocks.[0, 3].hook_resid_post (11, 14) float32"
    )


# --- what is kept


@pytest.mark.parametrize(
    "names_filter",
    [
        FEW,
        tuple(FEW),
        set(FEW),
        ["hook_embed", "blocks.*.attn.hook_pattern", "blocks.*.hook_out"],
        lambda name: name.endswith(("hook_embed", "hook_pattern", "resid_post")),
        [lambda name: name.endswith("hook_pattern"), "hook_embed", "blocks.*.hook_resid_post"],
    ],
    ids=["list", "tuple", "set", "newer names", "function", "functions and names"],
)
def test_a_filter_may_be_written_in_many_ways(few, names_filter):
    _, cache = model("gpt2").run_with_cache(tokens(), names_filter=names_filter)
    assert list(cache) == list(few)
    assert len(cache) == 9


def test_a_single_name_is_a_filter_too_and_kept_values_are_the_same(cache):
    _, single = model("gpt2").run_with_cache(tokens(), names_filter="blocks.2.attn.hook_z")
    assert list(single) == ["blocks.2.attn.hook_z"]
    close(single["z", 2], cache["z", 2])


def test_a_run_of_some_layers_keeps_what_it_reaches(cache):
    residual, names = cache["resid_pre", 2], ["blocks.*.hook_resid_post", "blocks.2.hook_attn_out"]
    _, part = model("gpt2").run_with_cache(residual, start_at_layer=2, names_filter=names)
    assert list(part) == ["blocks.2.hook_attn_out", "blocks.2.hook_resid_post", "blocks.3.hook_resid_post"]
    close(part["resid_post", -1], cache["resid_post", -1])


def test_a_plain_dict_on_request(few):
    logits, as_dict = model("gpt2").run_with_cache(tokens(), names_filter=FEW, return_cache_object=False)
    assert type(as_dict) is dict
    assert list(as_dict) == list(few)
    assert all(isinstance(value, jax.Array) for value in as_dict.values())
    assert logits.shape == (2, 11, 37)


def test_a_single_prompt_without_its_batch_axis():
    _, cache = model("gpt2").run_with_cache(tokens(1), names_filter=FEW, remove_batch_dim=True)
    assert not cache.has_batch_dim
    assert (cache["embed"].shape, cache["pattern", 1].shape) == ((11, 14), (6, 11, 11))


@pytest.mark.parametrize("positions", [-1, slice(2, 9, 3), (4, 6), [0, 10, 3]], ids=str)
def test_pos_slice_keeps_some_query_positions(few, positions):
    _, cut = model("gpt2").run_with_cache(tokens(), names_filter=FEW, pos_slice=positions)
    where = Slice.unwrap(positions)  # a number keeps its axis
    for name in few:
        axis = -2  # of the residual stream [b p d] and of the pattern [b n p s] alike
        close(cut[name], where.apply(few[name], axis))
    assert cut["pattern", 0].shape[-1] == 11


# --- other forms of a cache


def test_stack_activation_stacks_the_layers_before_one(cache):
    assert same(cache.stack_activation("z"), cache["blocks.*.attn.hook_z"])
    assert same(cache.stack_activation("z", 2), jnp.stack([cache["z", 0], cache["z", 1]]))
    scales = [cache["scale", layer, "ln1"] for layer in (0, 1)]
    assert same(cache.stack_activation("scale", 2, "ln1"), jnp.stack(scales))


def test_layers_that_python_edited_are_stacked_with_the_others(few):
    halve = [("blocks.1.attn.hook_pattern", lambda pattern, hook: pattern * 0.5)]
    _, edited = model("gpt2").run_with_cache(tokens(), names_filter=FEW, hooks=halve)
    stacked = edited.stack_activation("pattern")
    assert list(edited) == list(few)
    assert same(stacked, edited["blocks.*.attn.hook_pattern"])
    close(stacked[0], few["pattern", 0])
    close(stacked[1], few["pattern", 1] * 0.5)
    assert not np.allclose(stacked[2], few["pattern", 2])


def test_layers_kept_one_by_one_are_stacked_too(few):
    held = {name: few[name] for name in ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post")}
    part = ActivationCache(held, model("gpt2"))
    assert part.stack_activation("resid_post", 2).shape == part["blocks.*.hook_resid_post"].shape == (2, 2, 11, 14)
    with pytest.raises(ActivationNotFound, match=r'no "blocks.2.hook_resid_post"'):
        part.stack_activation("resid_post")


@pytest.mark.parametrize("which", [1, slice(0, 1), (0, 1), (None, None, -1), [1, 0], np.array([1]), Slice(0)], ids=str)
def test_some_prompts_of_a_batch(few, which):
    chosen = few.apply_slice_to_batch_dim(which)
    single = Slice(which).mode == "int"
    assert chosen.has_batch_dim == (not single)
    assert list(chosen) == list(few)
    for name in few:
        assert same(chosen[name], Slice(which).apply(few[name]))
    assert chosen.stack_activation("resid_post").ndim == 4 - single


def test_removing_the_batch_axis_changes_the_cache_and_a_slice_leaves_the_one_it_came_from(few):
    bare = few.apply_slice_to_batch_dim([1])
    cut = bare.apply_slice_to_batch_dim(0)
    assert (bare["pattern", 2].shape, cut["pattern", 2].shape) == ((1, 6, 11, 11), (6, 11, 11))
    bare.remove_batch_dim()
    assert bare["pattern", 2].shape == (6, 11, 11)
    assert same(bare["pattern", 2], few["pattern", 2][1])
    assert same(bare["pattern", 2], cut["pattern", 2])
    assert same(bare.stack_activation("pattern", 3)[2], bare["pattern", 2])
    assert bare.remove_batch_dim() is bare


def test_to_numpy_gives_every_activation_in_host_memory(few):
    on_host = few.to_numpy()
    assert list(on_host) == list(few)
    for name, value in on_host.items():
        assert type(value) is np.ndarray
        assert np.array_equal(value, few[name])


def test_reading_a_layer_copies_nothing():
    """In host memory, if the layers of the stack are as aligned as JAX needs them: 16 positions of 4 bytes."""
    _, cache = model("gpt2").run_with_cache(tokens(1, 16))
    for site in ("hook_resid_post", "attn.hook_pattern"):
        stack = np.asarray(cache[f"blocks.*.{site}"])
        for layer in range(cache.cfg.n_layers):
            value = cache[f"blocks.{layer}.{site}"]
            assert np.shares_memory(np.asarray(value), stack)
            assert jnp.array_equal(jax.jit(lambda x: x * 0 + 7, donate_argnums=0)(value), jnp.full(value.shape, 7.0))
    assert not (np.asarray(cache["blocks.*.hook_resid_post"]) == 7).any()


def test_a_plain_dict_can_be_made_into_a_cache(few):
    again = ActivationCache(few.to_numpy(), model("gpt2"))
    assert list(again) == list(few)
    assert same(again["pattern", -1], few["pattern", -1])
    assert same(again.stack_activation("resid_post"), few.stack_activation("resid_post"))
    one = ActivationCache({"hook_embed": jnp.zeros((11, 14))}, model("gpt2"), has_batch_dim=False)
    assert one.remove_batch_dim() is one


# --- under transformations


def test_a_jitted_function_may_return_a_cache_and_take_one(few):
    returned = jax.jit(lambda m, t: m.run_with_cache(t, names_filter=FEW)[1])(model("gpt2"), tokens())
    assert list(returned) == list(few)
    close(returned["resid_post", -1], few["resid_post", -1])
    close(jax.jit(lambda c: c["resid_post", 1] - c["embed"])(returned), few["resid_post", 1] - few["embed"])
    doubled = jax.tree.map(lambda value: 2 * value, few)
    assert same(doubled["pattern", 2], 2 * few["pattern", 2])


def test_a_cache_out_of_a_vmap_has_the_new_axis_in_front_of_every_activation(few):
    run = jax.vmap(lambda m, t: m.run_with_cache(t[None], names_filter=FEW)[1], in_axes=(None, 0))
    many = run(model("gpt2"), tokens())
    assert list(many) == list(few)
    on_host = many.to_numpy()
    for name in few:
        assert many[name].shape == (2, 1, *few[name].shape[1:])
        close(many[name][:, 0], few[name])
        assert np.array_equal(on_host[name], many[name])
    assert many.stack_activation("pattern", 3).shape == (3, 2, 1, 6, 11, 11)
    close(many.remove_batch_dim()["pattern", 3], few["pattern", 3])
    inside = jax.vmap(lambda c: c["resid_post", 2])(many)
    assert same(inside, many["resid_post", 2])


def test_a_differentiated_function_may_return_a_cache():
    def loss(params):
        return small_model().with_params(params).run_with_cache(few_tokens(), return_type="loss", names_filter=FEW)

    (value, cache), _ = jax.jit(jax.value_and_grad(loss, has_aux=True))(small_model().params)
    plain = small_model().run_with_cache(few_tokens(), names_filter=FEW)[1]
    assert list(cache) == list(plain)
    close(cache["pattern", 1], plain["pattern", 1])
    close(value, small_model()(few_tokens(), return_type="loss"))


def test_gradients_are_filtered_and_cut_like_activations():
    run = {"return_type": "loss", "incl_bwd": True, "names_filter": FEW}
    loss, whole = small_model().run_with_cache(few_tokens(), **run)
    assert loss.shape == ()
    names = [name for name in whole if not name.endswith("_grad")]
    assert len(names) == 9
    assert list(whole) == [*names, *(f"{name}_grad" for name in names)]
    _, cut = small_model().run_with_cache(few_tokens(), pos_slice=(2, 4), **run)
    for name in names:
        assert whole[f"{name}_grad"].shape == whole[name].shape
        for full in (name, f"{name}_grad"):
            close(cut[full], whole[full][..., 2:4, :])
    assert same(whole["blocks.*.hook_resid_post_grad"][2], whole["blocks.2.hook_resid_post_grad"])
    assert same(whole["resid_post_grad", 2], whole["blocks.2.hook_resid_post_grad"])


# --- what the activations are


def test_scores_are_minus_infinity_where_masked_and_their_softmax_is_the_pattern():
    cfg, real = CONFIGS["neo"], np.ones((2, 11), bool)
    real[0, :3] = False
    _, cache = model("neo").run_with_cache(
        tokens(), attention_mask=real, names_filter=["blocks.*.attn.hook_attn_scores", "blocks.*.attn.hook_pattern"]
    )
    query, source = np.arange(11)[:, None], np.arange(11)[None]
    for layer, window in enumerate(cfg.windows):
        seen = (source <= query) & (source > query - (window or 99)) & real[:, None, :]
        scores, pattern = np.asarray(cache["attn_scores", layer]), np.asarray(cache["pattern", layer])
        assert np.array_equal(np.isneginf(scores), np.broadcast_to(~seen[:, None], scores.shape))
        sees = np.broadcast_to(seen.any(-1)[:, None], pattern.shape[:-1])
        close(pattern[sees], jax.nn.softmax(scores[sees], axis=-1))
        assert not pattern[~sees].any()


def test_a_layer_norm_is_centred_divided_by_its_scale_and_then_weighed(cache):
    the_model = model("gpt2")
    for layer in range(4):
        x, block = cache["resid_pre", layer], the_model.blocks[layer]
        centred = x - x.mean(-1, keepdims=True)
        close(cache["scale", layer, "ln1"], jnp.sqrt((centred**2).mean(-1, keepdims=True) + the_model.cfg.eps))
        normalized = cache["normalized", layer, "ln1"]
        close(normalized, centred / cache["scale", layer, "ln1"])
        read = normalized * block.ln1.w + block.ln1.b
        close(cache["q", layer], jnp.einsum("bpd,ndh->bpnh", read, block.attn.W_Q) + block.attn.b_Q)
    close(cache["unembed.hook_in"], cache["normalized"] * the_model.ln_final.w + the_model.ln_final.b)


def test_queries_are_shown_before_their_norm_and_rotated_after_it():
    the_model = model("qwen3")
    sites_shown = ("ln1.hook_normalized", "attn.hook_q", "attn.hook_k", "attn.q_norm.hook_scale", "attn.hook_rot_q")
    _, cache = the_model.run_with_cache(tokens(), names_filter=[f"blocks.*.{site}" for site in sites_shown])
    block, eps = the_model.blocks[2], the_model.cfg.eps
    read = cache["normalized", 2, "ln1"] * block.ln1.w
    q = cache["q", 2]
    close(q, jnp.einsum("bpd,ndh->bpnh", read, block.attn.W_Q))
    close(cache["k", 2], jnp.einsum("bpd,kdh->bpkh", read, block.attn._W_K))
    assert cache["k", 2].shape == (2, 11, 2, 4)
    scale = cache["blocks.2.attn.q_norm.hook_scale"]
    close(scale, jnp.sqrt((q**2).mean(-1, keepdims=True) + eps))
    # a rotation changes directions and not lengths
    close(jnp.linalg.norm(cache["rot_q", 2], axis=-1), jnp.linalg.norm(q / scale * block.attn.q_norm.w, axis=-1))
    close(cache["rot_q", 2][:, 0], (q / scale * block.attn.q_norm.w)[:, 0])


def test_what_the_heads_write_adds_up_to_what_attention_adds():
    names = ["blocks.*.attn.hook_result", "blocks.*.hook_attn_out", "blocks.*.attn.hook_z"]
    _, cache = model("gpt2").run_with_cache(tokens(), names_filter=names)
    result = cache["blocks.*.attn.hook_result"]
    assert result.shape == (4, 2, 11, 6, 14)
    close(result, jnp.einsum("lbpnh,lnhd->lbpnd", cache.stack_activation("z"), model("gpt2").W_O))
    close(result.sum(3) + model("gpt2").b_O[:, None, None], cache.stack_activation("attn_out"))


def changed_heads(site: str, edited: ActivationCache, plain: ActivationCache) -> list[int]:
    """The heads in which an activation of layer 1 differs between two runs."""
    difference = np.abs(np.asarray(edited[site, 1] - plain[site, 1])).max(axis=(0, 1, 3))
    return np.flatnonzero(difference > 1e-4).tolist()


@pytest.mark.parametrize(
    ("name", "split", "expected"),
    [
        ("qwen3", "hook_q_input", {"q": [1], "k": [], "v": []}),
        ("qwen3", "hook_k_input", {"q": [], "k": [1], "v": []}),
        ("qwen3", "hook_v_input", {"q": [], "k": [], "v": [1]}),
        ("gpt2", "hook_attn_in", {"q": [1], "k": [1], "v": [1]}),
    ],
)
def test_the_input_of_one_head_can_be_edited_alone(name, split, expected):
    kept = [f"blocks.1.attn.hook_{site}" for site in expected] + ["blocks.1.hook_resid_pre"]
    one_head = lambda value, hook: value.at[:, :, 1].multiply(jnp.linspace(-1, 1, 14))  # noqa: E731
    _, plain = model(name).run_with_cache(tokens(), names_filter=kept)
    _, edited = model(name).run_with_cache(tokens(), names_filter=kept, hooks=[(f"blocks.1.{split}", one_head)])
    assert {site: changed_heads(site, edited, plain) for site in expected} == expected
    close(edited["resid_pre", 1], plain["resid_pre", 1])


def test_what_the_mlp_reads_can_be_edited_without_touching_the_residual_stream(cache):
    kept = [f"blocks.1.{site}" for site in ("hook_resid_mid", "mlp.hook_pre", "hook_mlp_out", "hook_resid_post")]
    turn = hook(lambda value, hook, by: value * by, by=jnp.linspace(-1, 1, 14))
    _, edited = model("gpt2").run_with_cache(tokens(), names_filter=kept, hooks=[("blocks.1.hook_mlp_in", turn)])
    close(edited["resid_mid", 1], cache["resid_mid", 1])
    assert not np.allclose(edited["pre", 1], cache["pre", 1])
    assert same(edited["resid_mid", 1] + edited["mlp_out", 1], edited["resid_post", 1])
