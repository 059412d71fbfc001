"""ActivationCache's decompositions: their terms add up to the residual stream in every architecture, in every form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.mistakes import Case, unreached
from support.models import CONFIGS, SIZES, model, randomised, tokens, with_neurons
from support.programs import compilations
from test_memory import arrays_within
from test_models import close
from test_text import word_tokenizer

from jaxlens import ActivationCache, ActivationNotFound, Config, HookedTransformer, Slice, Tokenizer, weights
from jaxlens.nn.module import arrays
from jaxlens.nn.moe import choose, of_all
from jaxlens.nn.norm import Norm

# The caches are of padded rows, and the padding is compared too.
pytestmark = pytest.mark.filterwarnings("ignore:pos_slice=.* counts from the end")

MORE = {
    "norms after, centred": Config(**SIZES, act_fn="gelu", norm_placement="both"),
    "no norm": Config(**SIZES, act_fn="relu", normalization_type=None, positional_embedding_type="none"),
}
EVERY = {**CONFIGS, **MORE}
every_config = pytest.mark.parametrize("name", EVERY)
some_configs = pytest.mark.parametrize("name", ["gpt2", "gemma", "moe"])
two_configs = pytest.mark.parametrize("name", ["norms after, centred", "moe"])
MASK = np.ones((2, 11), int)
MASK[0, :3] = MASK[1, 9:] = 0  # padding on the left of one prompt, and on the right of the other


@functools.cache
def made(name: str, seed: int = 0) -> HookedTransformer:
    return model(name, seed) if name in CONFIGS else randomised(MORE[name], seed)


@functools.cache
def late(number: int) -> jax.Array:
    """A number that a device is still computing."""
    large = jnp.ones((1500, 1500))
    return (large @ large @ large)[0, 0].astype(jnp.int32) * 0 + number


def ran(name: str, seed: int = 0) -> ActivationCache:
    """A run of two padded prompts; whoever would change it takes a copy."""
    the_model, given = made(name, seed), tokens(seed=seed)
    return the_model.run_with_cache(given, names_filter=with_neurons(the_model.cfg), attention_mask=MASK)[1]


def stations(cfg: Config) -> list[tuple[int | None, bool]]:
    """What methods are asked for: (layer, mlp_input)."""
    return [(None, False), (2, False) if cfg.attn_only else (1, True)]


def stream(cache: ActivationCache, layer: int | None, mlp_input: bool) -> jax.Array:
    """The residual stream that a layer reads, straight from the cache."""
    if layer is None:
        return cache["resid_post", -1]
    return cache["resid_mid" if mlp_input and not cache.cfg.parallel_attn_mlp else "resid_pre", layer]


def block_of(the_model: HookedTransformer, layer: int):
    """A layer of the model, as the part that it runs."""
    stack, row = next((i, layers.index(layer)) for i, layers in enumerate(the_model.cfg.stacks) if layer in layers)
    return jax.tree.map(lambda w: w[row], arrays(the_model.modules.stacks[stack]))


def norm_in_front(cache: ActivationCache, layer: int | None, mlp_input: bool):
    """The norm of the model that reads that stream, or None, and what it makes of the stream."""
    if layer is None:
        norm, made_of_it = arrays(cache.model.modules.ln_final), "ln_final.hook_normalized"
    else:
        place = "ln2" if mlp_input and not cache.cfg.shared_norm else "ln1"
        norm, made_of_it = getattr(block_of(cache.model, layer), place), f"blocks.{layer}.{place}.hook_normalized"
    if not isinstance(norm, Norm):
        return None, stream(cache, layer, mlp_input)
    return norm, cache[made_of_it] * weight_of(norm)


def weight_of(norm: Norm) -> jax.Array:
    return 1.0 if norm.w is None else 1 + norm.w if norm.cfg.rmsnorm_uses_offset else norm.w


def decompositions(cache: ActivationCache, layer: int | None, mlp_input: bool, **how):
    """Every method that gives a whole sum: its stack, which has as many labels as rows."""
    methods = [
        functools.partial(cache.decompose_resid, layer, mlp_input),
        functools.partial(cache.get_full_resid_decomposition, layer, mlp_input),
        functools.partial(cache.get_full_resid_decomposition, layer, mlp_input, expand_neurons=False),
    ]
    if not mlp_input:
        methods.append(functools.partial(cache.stack_head_results, layer, incl_remainder=True))
    if not cache.cfg.attn_only:
        methods.append(functools.partial(cache.stack_neuron_results, layer, incl_remainder=True, mlp_input=mlp_input))
    for method in methods:
        stack, labels = method(return_labels=True, **how)
        assert len(stack) == len(labels)
        yield np.asarray(stack)


# --- sums


@pytest.mark.parametrize("has_gate", [True, False])
def test_the_output_bias_of_a_shared_expert_is_a_component(has_gate):
    cfg = CONFIGS["deepseek"].replace(shared_expert_gate=has_gate, biases=("b_choice", "b_out"))
    _, cache = randomised(cfg).run_with_cache(tokens(), names_filter=with_neurons(cfg))
    for layer in (2, None):
        for stack in decompositions(cache, layer, mlp_input=False):
            close(stack.sum(0), stream(cache, layer, mlp_input=False))
    _, labels = cache.stack_neuron_results(-1, return_labels=True)
    assert [label for label in labels if label.endswith("Sbias")] == ["L1Sbias", "L2Sbias"]


@every_config
@pytest.mark.parametrize("seed", [0, 1])
def test_components_add_up_to_the_residual_stream(name, seed):
    cache = ran(name, seed)
    for layer, mlp_input in stations(cache.cfg):
        for stack in decompositions(cache, layer, mlp_input):
            close(stack.sum(0), stream(cache, layer, mlp_input))


@pytest.mark.parametrize("name", ["norms after, centred", "moe", "original"])
def test_components_add_up_in_front_of_every_layer(name):
    cache = ran(name)
    for layer in range(cache.cfg.n_layers):
        for stack in decompositions(cache, layer, False, project_output_onto=np.eye(14)[:, :2]):
            close(stack.sum(0), stream(cache, layer, False)[..., :2])


@every_config
def test_normalised_components_add_up_to_what_the_norm_makes_of_the_stream(name):
    cache = ran(name)
    layer, mlp_input = stations(cache.cfg)[-1]
    _, whole = norm_in_front(cache, layer, mlp_input)
    for stack in decompositions(cache, layer, mlp_input, apply_ln=True):
        close(stack.sum(0), whole)


@every_config
def test_a_projection_is_the_stack_times_it(name):
    cache = ran(name)
    along_two = np.random.default_rng(0).normal(size=(14, 2)).astype(np.float32)
    projected = decompositions(cache, *stations(cache.cfg)[-1], apply_ln=True, project_output_onto=along_two)
    for plain, stack in zip(decompositions(cache, *stations(cache.cfg)[-1], apply_ln=True), projected, strict=True):
        close(stack, plain @ along_two)


@two_configs
def test_directions_may_be_one_or_others_for_every_row(name):
    cache, random = ran(name), np.random.default_rng(1)
    one, others = random.normal(size=14).astype(np.float32), random.normal(size=(2, 1, 14, 1)).astype(np.float32)
    plain = list(decompositions(cache, None, False))
    for whole, stack in zip(plain, decompositions(cache, None, False, project_output_onto=one), strict=True):
        close(stack, whole @ one)
    for whole, stack in zip(plain, decompositions(cache, None, False, project_output_onto=others), strict=True):
        close(stack[..., 0], (whole * others[..., 0]).sum(-1))


@every_config
def test_attributions_add_up_to_logits_before_the_soft_cap(name):
    cache = ran(name)
    the_model, answers, wrong = cache.model, jnp.array([3, 30]), jnp.array([7, 7])
    logits = cache["unembed.hook_in"] @ the_model.W_U + the_model.b_U
    b = getattr(the_model.modules.ln_final, "b", None)
    constants = the_model.b_U + (0 if b is None else b @ the_model.W_U)
    for stack in (cache.get_full_resid_decomposition(), cache.decompose_resid()):
        single = cache.logit_attrs(stack, 5)
        close(single.sum(0) + constants[5], logits[..., 5], 1e-5)
        of_each = cache.logit_attrs(stack, answers, wrong)
        expected = logits[jnp.arange(2), :, answers] - logits[..., 7] - (constants[answers] - constants[7])[:, None]
        close(of_each.sum(0), expected, 1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma", "moe", "shared_norm", "norms after, centred"])
def test_raw_and_folded_weights_give_the_same_attributions(name):
    raw, (params, cfg) = made(name), weights.fold_ln(made(name).params, made(name).cfg)
    _, cache = raw.run_with_cache(tokens())
    folded = HookedTransformer(cfg, params=params).run_with_cache(tokens())[1]
    assert raw.modules.ln_final.w is not None
    assert folded.model.modules.ln_final.w is None
    ours, theirs = (each.get_full_resid_decomposition(expand_neurons=False) for each in (cache, folded))
    close(cache.logit_attrs(ours, 3, 8), folded.logit_attrs(theirs, 3, 8), 1e-5)
    # rows of W_U are centred by the folding, which takes the same from every logit
    reads = [each.apply_ln_to_stack(stack) @ each.model.W_U for each, stack in ((cache, ours), (folded, theirs))]
    ours, theirs = (logits - logits.mean(-1, keepdims=True) for logits in reads)
    close(ours, theirs, 1e-5)


# --- what the rows are


@every_config
def test_heads_are_what_each_writes_through_the_norm_after_it(name):
    cache = ran(name)
    stack = cache.stack_head_results().reshape(cache.cfg.n_layers, -1, 2, 11, 14)
    for layer in (0, cache.cfg.n_layers - 1):
        block, z = block_of(cache.model, layer), cache["z", layer]
        for head in (0, 5):
            written = z[:, :, head] @ block.attn.updated("W_O")[head] * cache.cfg.residual_scale
            written = through(cache, block.ln1_post, f"blocks.{layer}.ln1_post", written)
            for later in range(layer, cache.cfg.n_layers):
                for place in ("ln1_sum", "ln2_sum"):
                    norm = getattr(block_of(cache.model, later), place)
                    written = through(cache, norm, f"blocks.{later}.{place}", written)
            close(stack[layer, head], written)


@every_config
def test_neurons_are_what_each_writes_through_the_norm_after_it(name):
    cache = ran(name)
    for layer in () if cache.cfg.attn_only else (0, 1):
        block, post = block_of(cache.model, layer), cache["post", layer]
        W_out = (block.mlp.W_out if post.ndim == 4 else block.mlp.updated("W_out")).reshape(-1, 14)
        if post.ndim == 4:
            weights = cache[f"blocks.{layer}.mlp.hook_expert_weights"]
            chosen = of_all(*choose(weights, block.mlp.b_choice, cache.cfg), cache.cfg.num_experts)
            assert ((chosen > 0).sum(-1) == 2).all()
            post = (post * chosen[..., None]).reshape(2, 11, -1)
        results = cache.get_neuron_results(layer - cache.cfg.n_layers)  # a negative layer counts from the end
        for neuron in (0, 4, len(W_out) - 1):
            written = post[..., neuron, None] * W_out[neuron] * cache.cfg.residual_scale
            close(results[..., neuron, :], through(cache, block.ln2_post, f"blocks.{layer}.ln2_post", written))


def through(cache, norm, place, x):
    """A norm after attention or MLP at its cached scale, without its bias, by definition."""
    if not isinstance(norm, Norm):
        return x
    centred = x - x.mean(-1, keepdims=True) if norm.kind == "LN" else x
    return centred / cache[f"{place}.hook_scale"] * weight_of(norm)


def test_rows_are_named_and_ordered_as_in_transformer_lens():
    cfg = Config(n_layers=2, d_model=6, n_heads=2, d_head=3, d_mlp=3, d_vocab=9, n_ctx=8)
    _, cache = HookedTransformer(cfg).run_with_cache([[1, 2, 3]])
    labels = {
        "accumulated": cache.accumulated_resid(incl_mid=True, return_labels=True),
        "before an MLP": cache.accumulated_resid(1, mlp_input=True, return_labels=True),
        "components": cache.decompose_resid(return_labels=True),
        "attention": cache.decompose_resid(mode="attn", return_labels=True),
        "mlps": cache.decompose_resid(1, mlp_input=True, mode="mlp", incl_embeds=False, return_labels=True),
        "in between": cache.decompose_resid(1, mlp_input=True, return_labels=True),
        "heads": cache.stack_head_results(1, return_labels=True, incl_remainder=True),
        "neurons": cache.stack_neuron_results(-1, neuron_slice=[0, 2], return_labels=True),
        "full": cache.get_full_resid_decomposition(1, mlp_input=True, return_labels=True),
        "mlps whole": cache.get_full_resid_decomposition(1, expand_neurons=False, return_labels=True),
        "nothing": cache.stack_head_results(0, return_labels=True),
    }
    for stack, names in labels.values():
        assert stack.shape == (len(names), 1, 3, 6)
    assert {key: names for key, (_, names) in labels.items()} == {
        "accumulated": ["0_pre", "0_mid", "1_pre", "1_mid", "final_post"],
        "before an MLP": ["0_pre", "1_pre", "1_mid"],
        "components": ["embed", "pos_embed", "0_attn_out", "0_mlp_out", "1_attn_out", "1_mlp_out"],
        "attention": ["embed", "pos_embed", "0_attn_out", "1_attn_out"],
        "mlps": ["0_mlp_out"],
        "in between": ["embed", "pos_embed", "0_attn_out", "0_mlp_out", "1_attn_out"],
        "heads": ["L0H0", "L0H1", "remainder"],
        "neurons": ["L0N0", "L0N2", "L1N0", "L1N2"],
        "full": ["L0H0", "L0H1", "L1H0", "L1H1", "L0N0", "L0N1", "L0N2", "embed", "pos_embed", "bias"],
        "mlps whole": ["L0H0", "L0H1", "0_mlp_out", "embed", "pos_embed", "bias"],
        "nothing": [],
    }


def test_neurons_of_experts_are_named_by_expert_and_layer():
    stack, labels = ran("moe").stack_neuron_results(3, neuron_slice=[1, -1], return_labels=True)
    assert labels == ["L0N1", "L0N21", "L1E0N1", "L1E4N21", "L2E0N1", "L2E4N21"]
    close(stack[3], ran("moe").get_neuron_results(1)[..., -1, :])
    close(stack[4], ran("moe").get_neuron_results(2)[..., 1, :])


@every_config
def test_the_accumulated_stream_is_what_each_layer_reads(name):
    cache, cfg = ran(name), EVERY[name]
    stack, labels = cache.accumulated_resid(return_labels=True)
    assert labels == [*(f"{layer}_pre" for layer in range(cfg.n_layers)), "final_post"]
    for layer in range(cfg.n_layers):
        close(stack[layer], cache["resid_pre", layer])
    close(stack[-1], cache["resid_post", -1])
    close(cache.accumulated_resid(-2), stack[:-1])
    logits = cache.accumulated_resid(apply_ln=True)[-1] @ cache.model.W_U + cache.model.b_U
    close(logits, cache["unembed.hook_in"] @ cache.model.W_U + cache.model.b_U)
    if not cfg.attn_only and not cfg.parallel_attn_mlp:
        both = cache.accumulated_resid(2, incl_mid=True, mlp_input=True)
        for row, key in enumerate(("resid_pre0", "resid_mid0", "resid_pre1", "resid_mid1", "resid_pre2", "resid_mid2")):
            close(both[row], cache[key])
        _, whole = norm_in_front(cache, 2, True)
        close(cache.accumulated_resid(2, mlp_input=True, apply_ln=True)[-1], whole)


@some_configs
def test_one_row_is_normalised_by_itself_if_asked(name):
    cache = ran(name)
    stack = cache.decompose_resid(pos_slice=4)
    for layer in (None, 1):
        norm, _ = norm_in_front(cache, layer, False)
        by_itself = cache.apply_ln_to_stack(stack, layer, pos_slice=4, recompute_ln=True)
        centred = stack - stack.mean(-1, keepdims=True) if norm.kind == "LN" else stack
        scale = jnp.sqrt((centred**2).mean(-1, keepdims=True) + norm.cfg.eps)
        close(by_itself, centred / scale * weight_of(norm) + (0 if norm.b is None else norm.b))


def test_biases_are_those_of_the_weights():
    cache, the_model = ran("gpt2"), made("gpt2")
    for layer, mlp_input in ((4, False), (2, True), (0, False)):
        stack = cache.get_full_resid_decomposition(layer, mlp_input)
        close(stack[-1], jnp.broadcast_to(the_model.accumulated_bias(layer, mlp_input), (2, 11, 14)))


def test_results_that_a_hook_changed_are_the_ones_that_count():
    edit = [("blocks.1.attn.hook_result", lambda result, hook: result.at[:, :, 2].multiply(3.0))]
    names = lambda name: name.endswith(("hook_result", "hook_z", "resid_post", "hook_attn_out"))  # noqa: E731
    _, cache = made("gpt2").run_with_cache(tokens(), names_filter=names, hooks=edit)
    stack = cache.stack_head_results().reshape(4, 6, 2, 11, 14)
    close(stack.sum(1) + made("gpt2").b_O[:, None, None], cache["blocks.*.hook_attn_out"])
    close(stack[1, 2], 3 * cache["z", 1][:, :, 2] @ made("gpt2").W_O[1, 2])


def test_neurons_can_be_chosen():
    cache, direction = ran("gpt2"), jnp.arange(14.0)
    everything = cache.get_neuron_results(2)
    for which in (3, -1, (2, 9), [1, 5], slice(0, 20, 7)):
        chosen = Slice(which)
        close(cache.get_neuron_results(2, which), chosen.apply(everything, -2))
        close(cache.get_neuron_results(2, which, -1, direction), chosen.apply(everything, -2)[:, -1] @ direction)
    close(cache.stack_neuron_results(2, neuron_slice=3)[1], cache.get_neuron_results(1, 3))


# --- slices


@two_configs
@pytest.mark.parametrize("where", [4, (1, 9, 3), [0, 10, 5]], ids=str)
def test_positions_are_cut_in_every_method(name, where):
    cache, cut = ran(name), Slice(where)
    of_both = (decompositions(cache, None, False, apply_ln=True, pos_slice=positions) for positions in (where, None))
    for stack, whole in zip(*of_both, strict=True):
        close(stack, cut.apply(whole, -2))
    stack = cache.decompose_resid(pos_slice=where)
    close(cache.logit_attrs(stack, 3, pos_slice=where), cut.apply(cache.logit_attrs(cache.decompose_resid(), 3), -1))
    whole = cache.accumulated_resid(2, apply_ln=True)
    close(cache.accumulated_resid(2, pos_slice=where, apply_ln=True), cut.apply(whole, -2))


@pytest.mark.parametrize("which", [0, -1, (0, 1), [1, 0], slice(None)], ids=str)
def test_prompts_are_cut_from_stacks_and_scales(which):
    cache, cut = ran("gpt2"), Slice(which)
    stack = cache.decompose_resid()
    close(cache.apply_ln_to_stack(stack, batch_slice=which), cut.apply(cache.apply_ln_to_stack(stack), 1))
    attributions = cache.logit_attrs(stack, 4, 9, batch_slice=which)
    close(attributions, cut.apply(cache.logit_attrs(stack, 4, 9), 1))
    if cut.mode == "int":  # a stack that is cut already
        bare = cache.apply_ln_to_stack(stack[:, which], 1, batch_slice=which, has_batch_dim=False)
        close(bare, cache.apply_ln_to_stack(stack, 1)[:, which])
        part = cache.apply_slice_to_batch_dim(which)
        close(part.logit_attrs(part.decompose_resid(), 4, 9, has_batch_dim=False), attributions)


def test_tokens_are_one_or_one_for_each_prompt_or_position():
    cache = ran("gpt2")
    stack, every = cache.decompose_resid(), jnp.asarray(tokens(seed=5))
    whole = jnp.stack([cache.logit_attrs(stack, token) for token in range(37)])  # [v c b p]
    close(cache.logit_attrs(stack, every), jnp.take_along_axis(whole, every[None, None], 0)[0])
    close(cache.logit_attrs(stack, every[:, 0])[:, 1], whole[every[1, 0], :, 1])
    close(cache.logit_attrs(stack, every[1])[:, 0, 7], whole[every[1, 7], :, 0, 7])
    close(cache.logit_attrs(stack[:, :, -1], every[:, 0], pos_slice=-1)[:, 1], whole[every[1, 0], :, 1, -1])
    close(cache.logit_attrs(stack, jnp.array([6])), whole[6])
    speaking = made("gpt2").with_params(made("gpt2").params)
    speaking.set_tokenizer(Tokenizer(word_tokenizer(), bos_token="<s>", pad_token="<pad>"))
    word = speaking.to_single_str_token(9)
    close(cache.with_model(speaking).logit_attrs(stack, word, speaking.to_single_str_token(11)), whole[9] - whole[11])


# --- the logit lens


@every_config
def test_the_last_entry_of_the_lens_is_the_model(name):
    cache = ran(name)
    lens = cache.logit_lens(positions=None)
    close(lens.values[-1], cache["unembed.hook_out"])
    close(jnp.exp(cache.logit_lens(return_type="log_probs").values), jax.nn.softmax(lens.values[:, :, -1]))
    assert lens.labels == (*(f"{layer}_pre" for layer in range(cache.cfg.n_layers)), "final_post")


def test_the_lens_keeps_what_is_asked_for():
    cache = ran("gpt2")
    logits = cache.logit_lens(positions=None).values
    probabilities, order = jax.nn.softmax(logits), jnp.argsort(-logits, axis=-1)
    top = cache.logit_lens(positions=None, top_k=3, return_type="probs")
    assert jnp.array_equal(top.tokens, order[..., :3])
    close(top.values, jnp.take_along_axis(probabilities, top.tokens, -1))
    close(top.entropy, -(probabilities * jnp.log(probabilities)).sum(-1))
    some = cache.logit_lens(positions=None, vocab=[3, 30], layers=[-1, 0], batch_slice=1)
    close(some.values, logits[jnp.array([-1, 0]), 1][..., jnp.array([3, 30])])
    assert some.labels == ("final_post", "0_pre")
    shared = cache.logit_lens(positions=None, targets=7)
    assert jnp.array_equal(jnp.argmax(order == 7, -1), shared.ranks[..., 0])
    each = cache.logit_lens(targets=np.array([7, 9]))
    close(each.values[..., 0], logits[:, jnp.arange(2), -1, jnp.array([7, 9])])
    assert jnp.array_equal(each.ranks[:, 0, 0], shared.ranks[:, 0, -1, 0])
    turned = cache.logit_lens(positions=None, lens=lambda entry, index: entry * (index + 1), apply_ln=False)
    plain = cache.logit_lens(positions=None, apply_ln=False)
    close(turned.values[2] - made("gpt2").b_U, 3 * (plain.values[2] - made("gpt2").b_U))


def test_the_lens_tells_tokens_as_strings():
    speaking = made("gpt2").with_params(made("gpt2").params)
    speaking.set_tokenizer(Tokenizer(word_tokenizer(), bos_token="<s>", pad_token="<pad>"))
    lens = ran("gpt2").with_model(speaking).logit_lens(vocab=[9, 11], positions=(0, 2))
    words = [speaking.to_single_str_token(9), speaking.to_single_str_token(11)]
    assert lens.top_tokens(speaking)["2_pre"] == [[words] * 2] * 2
    assert repr(lens) == "LogitLensResult(0_pre to final_post, 2 tokens: (5, 2, 2, 2))"


# --- caches in every form


def alike(cache: ActivationCache, plain: ActivationCache, cut=lambda stack: stack):
    of_both = (decompositions(each, None, False, apply_ln=True) for each in (cache, plain))
    for stack, expected in zip(*of_both, strict=True):
        close(stack, cut(expected))


@two_configs
def test_a_cache_without_batch_axis_or_of_one_position(name):
    plain = ran(name)
    last = made(name)
    _, last = last.run_with_cache(
        tokens(), names_filter=with_neurons(last.cfg), attention_mask=MASK, pos_slice=Slice(-1)
    )
    ends = [np.flatnonzero(row)[-1] for row in np.asarray(MASK)]  # the last token of each row
    alike(last, plain, lambda stack: stack[:, np.arange(len(ends)), np.array(ends)])
    alike(last.apply_slice_to_batch_dim(0), plain, lambda stack: stack[:, 0, ends[0]])


@pytest.mark.parametrize("name", ["gemma", "moe"])
def test_a_cache_of_single_arrays(name):
    plain = ran(name)
    single = ActivationCache({key: plain[key] for key in plain}, plain.model)
    alike(single, plain)
    close(single.stack_activation("attn_out", 3), plain.stack_activation("attn_out", 3))
    single.compute_head_results()
    close(single["result", 2], jnp.einsum("bpnh,nhd->bpnd", plain["z", 2], block_of(plain.model, 2).attn.W_O))


@pytest.mark.parametrize("name", ["gpt2", "moe"])
def test_a_cache_out_of_a_transformation_needs_its_model(name):
    plain, the_model = ran(name), made(name)
    returned = jax.jit(lambda cache: cache)(plain)
    with pytest.raises(ValueError, match=r"cache.with_model\(model\)"):
        returned.stack_head_results()
    alike(returned.with_model(the_model), plain)
    close(returned.accumulated_resid(2), plain.accumulated_resid(2))  # reads no weights


def test_methods_work_under_jit_vmap_and_grad():
    plain, the_model = ran("gemma"), made("gemma")

    def attributions(model, cache):
        return cache.with_model(model).logit_attrs(cache.with_model(model).stack_head_results(), 3, 9)

    expected = attributions(the_model, plain)
    close(jax.jit(attributions)(the_model, plain), expected)
    pairs = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), plain)  # as a vmap would return them
    assert jax.vmap(attributions, (None, 0))(the_model, pairs).shape == (2, *expected.shape)
    close(jax.vmap(attributions, (None, 0))(the_model, pairs)[0], expected)

    def total(z):
        cache = ActivationCache({**dict(plain.items()), "blocks.1.attn.hook_z": z}, the_model)
        return cache.logit_attrs(cache.stack_head_results(), 3, 9).sum()

    gradient = jax.grad(total)(plain["z", 1])
    close((gradient * plain["z", 1]).sum(), expected.reshape(3, 6, 2, 11)[1].sum())  # it is linear in z


def test_a_cache_out_of_a_vmap_has_the_new_axis_in_front_of_batch_and_position():
    the_model, plain = made("gpt2"), made("gpt2").run_with_cache(tokens())[1]
    many = jax.vmap(lambda m, t: m.run_with_cache(t[None])[1], in_axes=(None, 0))(the_model, tokens())
    for stack, expected in zip(
        decompositions(many.with_model(the_model), 2, False), decompositions(plain, 2, False), strict=True
    ):
        close(stack[:, :, 0], expected)
    results = many.with_model(the_model)
    results.compute_head_results()
    close(results["result", 1][:, 0], plain.stack_head_results(2).reshape(2, 6, 2, 11, 14)[1].transpose(1, 2, 0, 3))


@pytest.mark.parametrize("name", ["gpt2", "moe", "gemma"])
def test_head_results_are_added_to_the_cache(name):
    names = ["blocks.*.attn.hook_z", "blocks.*.attn.hook_result", "blocks.*.hook_attn_out"]
    _, wanted = made(name).run_with_cache(tokens(), names_filter=names)
    _, cache = made(name).run_with_cache(tokens(), names_filter=[names[0], names[2]])
    twin = cache.with_model(made(name))
    assert cache.compute_head_results() is None
    cache.compute_head_results()  # again, which adds nothing
    close(cache["blocks.*.attn.hook_result"], wanted["blocks.*.attn.hook_result"])
    assert ("result", 1) in cache
    assert ("result", 1) not in twin
    assert len(cache) == len(wanted)


def test_a_cache_goes_to_a_device_in_place_and_may_be_read_as_a_dict():
    _, cache = made("gpt2").run_with_cache(tokens(), names_filter="blocks.*.hook_resid_post")
    before = cache["resid_post", 1]
    for device in ("cpu", "cpu:0", jax.devices()[0]):
        assert cache.to(device) is cache
    assert jnp.array_equal(cache["resid_post", 1], before)
    assert list(cache.cache_dict) == list(cache)
    assert jnp.array_equal(cache.cache_dict["blocks.1.hook_resid_post"], before)
    with pytest.raises(TypeError):
        cache.cache_dict["blocks.1.hook_resid_post"] = before
    assert cache.toggle_autodiff(False) is None


# --- programs


def test_another_position_or_layer_of_the_same_shape_compiles_nothing():
    cache, direction = ran("gpt2"), jnp.ones(14)

    def everything(pos, layer, token):
        cache.stack_head_results(pos_slice=pos, apply_ln=True)
        cache.get_neuron_results(layer, pos_slice=pos)
        cache.logit_attrs(cache.decompose_resid(pos_slice=pos), token, token + 1, pos_slice=pos)
        cache.apply_ln_to_stack(cache.decompose_resid(pos_slice=pos), layer, pos_slice=pos)
        cache.get_full_resid_decomposition(pos_slice=pos, project_output_onto=token * direction)
        cache.logit_lens(positions=pos, vocab=token)

    everything(3, 1, 4)
    with compilations() as again:
        everything(7, 2, 11)
    assert again == []


def test_a_projection_never_makes_the_vectors_of_all_neurons():
    read = ("mlp.hook_post", "ln2_post.hook_scale", "hook_resid_post", "ln_final.hook_scale")
    names = lambda name: name.endswith(read)  # noqa: E731
    _, cache = made("gemma").run_with_cache(tokens(), names_filter=names)

    def largest(direction):
        def run(cache, model, direction):
            cache = cache.with_model(model)
            return cache.stack_neuron_results(-1, None, None, False, True, apply_ln=True, project_output_onto=direction)

        return max(each.size for each in arrays_within(jax.make_jaxpr(run)(cache, made("gemma"), direction)))

    rows, n_neurons = 2 * 11, 3 * 22
    assert largest(None) == (n_neurons + 1) * rows * 14
    assert largest(jnp.ones((2, 1, 14, 1))) == largest(jnp.ones((14, 1))) == (n_neurons + 1) * rows


# --- mistakes


def cache_of(*names, **how):
    return made("gpt2").run_with_cache(tokens(), names_filter=list(names) or None, **how)[1]


ERRORS = {
    "no such layer": Case(lambda: ran("gpt2").decompose_resid(5), ValueError, "layer is 5"),
    "far from the end": Case(lambda: ran("gpt2").stack_head_results(-6), ValueError, "layer is -6"),
    "nothing to stack": Case(lambda: ran("gpt2").stack_activation("z", 0), ValueError, "layer is 0"),
    "the MLP of the unembedding": Case(
        lambda: ran("gpt2").accumulated_resid(mlp_input=True), ValueError,
        "mlp_input needs a layer with an MLP, 0 to 3; layer is None",
    ),
    "an MLP of attention only": Case(
        lambda: ran("attn_only").decompose_resid(1, mlp_input=True), ValueError, "this model has attention only"
    ),
    "neurons of attention only": Case(
        lambda: ran("attn_only").stack_neuron_results(1), ValueError, "this model has attention only, and no neurons"
    ),
    "a neuron of attention only": Case(
        lambda: ran("attn_only").get_neuron_results(1), ValueError, "this model has attention only, and no neurons"
    ),
    "neurons of no layer": Case(
        lambda: ran("gpt2").get_neuron_results(4), ValueError, "layer is 4"
    ),
    "the middle of a parallel block": Case(
        lambda: ran("parallel").accumulated_resid(incl_mid=True), ValueError, "incl_mid needs blocks with a residual"
    ),
    "an unknown mode": Case(
        lambda: ran("gpt2").decompose_resid(mode="heads"), ValueError, "mode is 'heads'"
    ),
    "what was not kept": Case(
        lambda: cache_of("hook_embed").stack_head_results(), ActivationNotFound,
        'this needs "blocks.*.attn.hook_z", which the cache does not hold; add it to the run\'s names_filter',
    ),
    "a layer that was not kept": Case(
        lambda: cache_of("hook_embed", "hook_pos_embed", "blocks.0.hook_attn_out").decompose_resid(2, mode="attn"),
        ActivationNotFound, 'this needs "blocks.1.hook_attn_out"',
    ),
    "one of two that was not kept": Case(
        lambda: cache_of("hook_embed").accumulated_resid(2), ActivationNotFound, 'this needs "blocks.0.hook_resid_pre"'
    ),
    "a scale that was not kept": Case(
        lambda: cache_of("hook_embed").apply_ln_to_stack(jnp.ones((3, 2, 11, 14))), ActivationNotFound,
        'this needs "ln_final.hook_scale", which',
    ),
    "neither of two names": Case(
        lambda: cache_of("hook_embed").stack_head_results(1, incl_remainder=True), ActivationNotFound, "hook_z"
    ),
    "head results without z": Case(
        lambda: cache_of("hook_embed").compute_head_results(), ActivationNotFound, 'the cache holds no'
    ),
    "positions of one position": Case(
        lambda: cache_of(pos_slice=Slice(-1)).decompose_resid(pos_slice=-1), ValueError,
        "the cache has no position axis to select -1 from; use pos_slice=None",
    ),
    "a direction of another length": Case(
        lambda: ran("gpt2").get_neuron_results(1, project_output_onto=jnp.ones((13, 2))), ValueError,
        "project_output_onto has shape (13, 2)",
    ),
    "tokens that do not fit": Case(
        lambda: ran("gpt2").logit_attrs(ran("gpt2").decompose_resid(), jnp.arange(3)), ValueError,
        "tokens have shape (3,), which does not fit batch and position (2, 11)",
    ),
    "a token out of the vocabulary": Case(
        lambda: ran("gpt2").logit_lens(vocab=[3, 37]), ValueError, "token 37 is out of the vocabulary; tokens are 0"
    ),
    "a token out of the vocabulary that is still computed": Case(
        lambda: model("gpt2").tokens_to_residual_directions(late(37)), ValueError, "token 37 is out"
    ),
    "a stack of one position without its pos_slice": Case(
        lambda: ran("gpt2").logit_attrs(ran("gpt2").decompose_resid(pos_slice=-1), 7), ValueError,
        'the stack has rows (2,), and the scale of "ln_final" (2, 11) (batch, position); pass the pos_slice',
    ),
    "a pos_slice for a stack of all positions": Case(
        lambda: ran("gpt2").apply_ln_to_stack(ran("gpt2").decompose_resid(), pos_slice=[3]), ValueError,
        'the stack has rows (2, 11), and the scale of "ln_final" (2, 1) (batch, position); pass the pos_slice',
    ),
    "fewer incorrect tokens": Case(
        lambda: ran("gpt2").logit_attrs(ran("gpt2").decompose_resid(), jnp.arange(2), 3), ValueError,
        "tokens and incorrect_tokens must have the same shape; got (2,) and ()",
    ),
    "another model": Case(
        lambda: ran("gpt2").with_model(made("neo")), ValueError, "the cache belongs to a model with Config(n_layers=4"
    ),
    "no model": Case(
        lambda: jax.tree.map(jnp.ones_like, ran("gpt2")).logit_lens(), ValueError, "this needs the model's weights, but"
    ),
    "no such device": Case(lambda: cache_of("hook_embed").to("abacus"), ValueError, "there is no device 'abacus'"),
    "no such number of a device": Case(lambda: cache_of("hook_embed").to("cpu:99"), ValueError, "no device 'cpu:99'"),
    "layers of two shapes": Case(
        lambda: ran("moe").stack_activation("post"), ValueError, "mlp.hook_post differs in shape between layers, [(2"
    ),
    "a lens with two choices": Case(
        lambda: ran("gpt2").logit_lens(top_k=3, vocab=[1]), ValueError, "vocab and top_k each select tokens"
    ),
    "a lens on nothing": Case(
        lambda: ran("gpt2").logit_lens(positions=slice(3, 3)), ValueError, "pos_slice=slice(3, 3, None) selects no"
    ),
    "a lens on no token": Case(lambda: ran("gpt2").logit_lens(vocab=[]), ValueError, "the list of tokens is empty"),
    "a lens on no layer": Case(lambda: ran("gpt2").logit_lens(layers=[]), ValueError, "layers=[], positions=-1"),
    "a lens of something else": Case(
        lambda: ran("gpt2").logit_lens(return_type="loss"), ValueError, "return_type is 'loss'"
    ),
    "targets of other rows": Case(
        lambda: ran("gpt2").logit_lens(targets=np.arange(3)), ValueError, "targets have shape (3,)"
    ),
    "the whole vocabulary as strings": Case(
        lambda: ran("gpt2").logit_lens().top_tokens(None), ValueError, "the lens kept the whole vocabulary"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS.values(), ids=ERRORS)
def test_a_mistake_is_answered_with_what_was_wanted(case):
    case.check()


def test_every_error_is_reached_by_a_case():
    assert unreached(__file__, ERRORS.values()) == []
