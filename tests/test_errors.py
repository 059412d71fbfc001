"""Bad input: what is said of it, and that nothing is left half done.

Every case is one mistake a user can make. The last law of the project is here too: no `raise` in the package is without
a case that reaches it. (Reading and writing checkpoints and text have cases of their own, beside their other tests.)
"""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxlens.train import HookedTransformerTrainConfig, optimizer_of
from support.mistakes import CASES_OF, Case, answer, unreached
from support.models import CONFIGS, model, tokens
from test_text import TEMPLATE, word_tokenizer

import jaxlens
from jaxlens import ActivationNotFound, Config, HookedTransformer, HookError, Slice, Tokenizer, hook
from jaxlens.config import LongRope, Rotary
from jaxlens.nn.parameters import parameter_shapes
from jaxlens.weights import center_unembed

Z, RESID_PRE = "blocks.1.attn.hook_z", "blocks.1.hook_resid_pre"
POST = "blocks.*.mlp.hook_post"


def keep(value, hook):
    return value


def in_place(value, hook):
    value += 1.0


def run(name="gpt2", given=None, **how):
    return model(name)(tokens() if given is None else given, **how)


def hooked(where, fn=keep, name="gpt2", **how):
    return model(name).run_with_hooks(tokens(), fwd_hooks=[(where, fn)], **how)


def cached(names_filter=None, **how):
    return model("gpt2").run_with_cache(tokens(), names_filter=names_filter, **how)


def config(**changes):
    sizes = {"n_layers": 2, "d_model": 8, "n_heads": 4, "d_head": 4, "d_vocab": 9, "n_ctx": 8}
    return Config(**{**sizes, **changes})


def rotary(*layers):
    return config(positional_embedding_type="rotary", rotary=layers)


def reading():
    """A model that has a tokenizer."""
    twin = model("gpt2").with_params(model("gpt2").params)
    twin.set_tokenizer(Tokenizer(word_tokenizer(), bos_token="<s>", pad_token="<pad>"))
    return twin


def chatting(messages):
    the_model = reading()
    the_model.tokenizer.chat_template = TEMPLATE
    return the_model.to_chat(messages)


@functools.cache
def small_cache():
    return cached([RESID_PRE, Z])[1]


def unrandomised(name):
    """A model that is looked at and not run."""
    params = {weight: jax.device_put(np.zeros(of.shape)) for weight, of in parameter_shapes(CONFIGS[name]).items()}
    return HookedTransformer(CONFIGS[name], params=params)


def with_params(**changes):
    """The model with some parameters replaced, or left out (None)."""
    params = {**model("gpt2").params, **changes}
    return model("gpt2").with_params({name: value for name, value in params.items() if value is not None})


HOOK_NAMES = {
    "a typing error": Case(
        lambda: hooked("blocks.0.attn.hook_patern"), HookError,
        'no hook point "blocks.0.attn.hook_patern"; did you mean "blocks.0.attn.hook_pattern"',
    ),
    "a data hook that closes over what is differentiated": Case(
        lambda: jax.grad(lambda w: model("llama")(
            tokens(1, 5), return_type="loss", hooks=[("blocks.1.hook_mlp_out", hook(lambda v, hook: v * w))])
        )(1.3), HookError, "pass the value as data, as in hook(fn, w=w)",
    ),
    "a data hook that closes over what is differentiated, at a single token": Case(
        lambda: jax.grad(lambda w: model("llama")(
            tokens(1, 1), hooks=[("blocks.1.hook_mlp_out", hook(lambda v, hook: v * w))])[0, 0, 0]
        )(1.3), HookError, "pass the value as data, as in hook(fn, w=w)",
    ),
    "a short name": Case(lambda: hooked("z"), HookError, 'no hook point "z"; did you mean "blocks.0.attn.hook_z"'),
    "a typing error in a wildcard": Case(
        lambda: hooked("blocks.*.atn.hook_z"), HookError, 'did you mean "blocks.*.attn.hook_z"'
    ),
    "a name like no other": Case(lambda: hooked("xyzzy"), HookError, "`model.hook_dict` lists them"),
    "a layer too many": Case(
        lambda: hooked("blocks.4.hook_resid_pre"), HookError, "the model has layers 0 to 3"
    ),
    "a part that this model lacks": Case(
        lambda: hooked("blocks.0.attn.hook_rot_q"), HookError, "in this model: its config leaves that module out"
    ),
    "a part that no layer has": Case(
        lambda: hooked("blocks.*.mlp.hook_pre_linear"), HookError, "in this model: its config leaves that module out"
    ),
    "a position embedding that this model lacks": Case(
        lambda: hooked("hook_pos_embed", name="qwen3"), HookError, "its config leaves that module out"
    ),
    "an input of all heads in a grouped model": Case(
        lambda: hooked("blocks.0.hook_attn_in", name="qwen3"), HookError, "its config leaves that module out"
    ),
    "a filter that matches nothing": Case(
        lambda: hooked(lambda name: "hook_nothing" in name), HookError,
        "the filter '<lambda>' matches none of the model's 107 hook points",
    ),
    "a number for a name": Case(lambda: hooked(3), HookError, "a hook name is a string or a filter function"),
    "a cache of nothing": Case(lambda: cached([]), HookError, "names_filter is an empty list; give at least one name"),
    "a cache of what does not exist": Case(
        lambda: cached(["hook_embed", "blocks.1.hook_resid_prae"]), HookError, 'did you mean "blocks.1.hook_resid_pre"'
    ),
    "a cache of what is not reached": Case(
        lambda: cached(["hook_embed", "blocks.2.hook_resid_pre"], stop_at_layer=2), HookError,
        '"blocks.2.hook_resid_pre" is never reached: this run covers layers 0 to 1',
    ),
    "a cache of the embedding of a residual stream": Case(
        lambda: model("gpt2").run_with_cache(jnp.zeros((1, 3, 14)), start_at_layer=0, names_filter="hook_embed"),
        HookError, '"hook_embed" is never reached',
    ),
    "a hook that is not reached": Case(
        lambda: hooked("blocks.2.hook_resid_pre", stop_at_layer=1), HookError,
        '"blocks.2.hook_resid_pre" is never reached: this run covers layers 0 to 0',
    ),
    "a hook of the call that is not reached": Case(
        lambda: run(hooks=[("unembed.hook_in", keep)], stop_at_layer=0), HookError,
        '"unembed.hook_in" is never reached: this run covers no layer',
    ),
    "a hook of a cached run that is not reached": Case(
        lambda: cached("hook_embed", hooks=[("unembed.hook_in", keep)], stop_at_layer=1), HookError,
        '"unembed.hook_in" is never reached',
    ),
}  # fmt: skip

HOOK_FUNCTIONS = {
    "positions without a run": Case(
        lambda: model("gpt2").hook_dict[Z].positions, HookError, f'positions and step of "{Z}" are known only while'
    ),
    "a changed shape": Case(
        lambda: hooked(Z, lambda z, hook: z[:1]), HookError,
        f'the hook on "{Z}" changed the shape from (2, 11, 6, 4) to (1, 11, 6, 4)',
    ),
    "a changed shape of a data hook": Case(
        lambda: hooked("blocks.*.attn.hook_z", hook(lambda z, hook: z.sum(-1))), HookError,
        'the hook on "blocks.*.attn.hook_z" changed the shape from (2, 11, 6, 4) to (2, 11, 6)',
    ),
    "a changed dtype": Case(
        lambda: hooked(Z, lambda z, hook: z.astype(jnp.bfloat16)), HookError,
        "changed the dtype from float32 to bfloat16; return `.astype(value.dtype)`",
    ),
    "a number for an array": Case(
        lambda: hooked(Z, lambda z, hook: 0.0), HookError, f'the hook on "{Z}" returned float; expected an array or'
    ),
    "a list for an array": Case(
        lambda: hooked("hook_embed", lambda x, hook: [x]), HookError, 'the hook on "hook_embed" returned list'
    ),
    "no function": Case(lambda: hooked(Z, 0.5), HookError, "a hook is a function of (value, hook); got float for"),
    "no function in a data hook": Case(lambda: hook(0.5, by=1), HookError, "hook(fn, **data) needs a function as its"),
    "a string as data": Case(
        lambda: hook(keep, mode="zero"), HookError, "hook(fn, mode=...) holds a str, but data must be arrays and"
    ),
    "a function deep in data": Case(lambda: hook(keep, terms=[1, {"f": keep}]), HookError, "hook(fn, terms=...) holds"),
    "a pair instead of a list of pairs": Case(
        lambda: model("gpt2").run_with_hooks(tokens(), fwd_hooks=(Z, keep)), HookError,
        "hooks are a list of (name or filter function, function) pairs; got",
    ),
    "names without functions": Case(lambda: run(hooks=[Z]), HookError, "hooks are a list of (name or filter function,"),
    "a direction that does not exist": Case(
        lambda: model("gpt2").add_hook(Z, keep, dir="both"), HookError, 'the direction of a hook is "fwd" or "bwd"'
    ),
    "the layer of what is in no layer": Case(
        lambda: hooked("hook_embed", lambda x, hook: x * hook.layer()), HookError, '"hook_embed" is outside the blocks'
    ),
}  # fmt: skip

INPUTS = {
    "logits of a model without an unembedding": Case(
        lambda: HookedTransformer(config(output_head=None))([[1, 2]]), ValueError,
        "this model has no unembedding, so it computes no logits and no loss; pass return_type=None",
    ),
    "a loss of labels": Case(
        lambda: HookedTransformer(config(output_head="token_labels", d_vocab_out=3))([[1, 2]], return_type="loss"),
        ValueError, "the outputs of this model are scores of labels (3); compute it from the logits",
    ),
    "a token past the vocabulary": Case(
        lambda: run(given=[[1, 37]]), ValueError, "token 37 is out of the vocabulary; tokens are 0 to 36"
    ),
    "a negative token": Case(lambda: run(given=np.array([[1, -1]])), ValueError, "token -1 is out of the vocabulary"),
    "fractions for tokens": Case(
        lambda: run(given=jnp.ones((1, 3))), TypeError, "tokens must be integers"
    ),
    "truth values for tokens": Case(lambda: run(given=np.ones((1, 3), bool)), TypeError, "got dtype bool"),
    "tokens and text together": Case(
        lambda: run(given=[1, "two"]), TypeError, "tokens must be integers"
    ),
    "rows of different lengths": Case(
        lambda: run(given=[[1, 2], [3]]), ValueError, "tokens must be rectangular, [batch, pos]; pad rows"
    ),
    "tokens with three axes": Case(
        lambda: run(given=jnp.ones((1, 2, 3), int)), ValueError, "must be [batch, pos] or [pos]; got shape (1, 2, 3)"
    ),
    "a single number": Case(lambda: run(given=5), ValueError, "must be [batch, pos] or [pos]; got shape ()"),
    "an empty list": Case(lambda: run(given=[]), ValueError, "the input is empty (shape (0,))"),
    "an empty array": Case(lambda: run(given=np.ones((2, 0), int)), ValueError, "the input is empty (shape (2, 0))"),
    "an empty string": Case(
        lambda: reading()("", prepend_bos=False), ValueError, "the input is empty: '' has no tokens, and no BOS"
    ),
    "nothing": Case(
        lambda: model("gpt2")(None), TypeError, "a string, a list of strings or tokens [batch, pos]; got NoneType"
    ),
    "bytes": Case(lambda: run(given=b"text"), TypeError, "tokens [batch, pos]; got bytes"),
    "too long a prompt": Case(
        lambda: run(given=tokens(1, 33)), ValueError, "33 positions, more than the model's n_ctx = 32; shorten it"
    ),
    "too long a residual stream": Case(
        lambda: run(given=jnp.zeros((1, 33, 14)), start_at_layer=1), ValueError,
        "33 positions, more than the model's n_ctx",
    ),
    "a residual stream of the wrong width": Case(
        lambda: run(given=jnp.zeros((1, 3, 13)), start_at_layer=1), ValueError,
        "a residual stream [batch, pos, d_model = 14]; got shape (1, 3, 13)",
    ),
    "tokens where a residual stream was wanted": Case(
        lambda: run(start_at_layer=1), ValueError, "with start_at_layer the input is a residual stream"
    ),
    "a residual stream of the wrong dtype": Case(
        lambda: run(given=jnp.zeros((1, 3, 14), jnp.bfloat16), start_at_layer=1), TypeError,
        "the residual stream is bfloat16",
    ),
    "a residual stream alone has no loss": Case(
        lambda: run(given=jnp.zeros((1, 3, 14)), start_at_layer=1, return_type="loss"), ValueError,
        "the loss needs tokens",
    ),
    "a start past the last layer": Case(
        lambda: run(given=jnp.zeros((1, 3, 14)), start_at_layer=5), ValueError,
        "start_at_layer is 5",
    ),
    "a stop before the first layer": Case(
        lambda: run(stop_at_layer=-5), ValueError, "stop_at_layer is -5"
    ),
    "half a layer": Case(lambda: run(stop_at_layer=1.5), ValueError, "stop_at_layer is 1.5"),
    "an unknown return_type": Case(
        lambda: run(return_type="logit"), ValueError,
        "return_type is 'logit'",
    ),
    "a mask of the wrong shape": Case(
        lambda: run(attention_mask=np.ones((2, 10))), ValueError,
        "attention_mask has shape (2, 10)",
    ),
    "gradients of many numbers": Case(
        lambda: cached(Z, incl_bwd=True), ValueError, "incl_bwd needs a scalar to differentiate"
    ),
    "gradients of a residual stream": Case(
        lambda: cached(Z, incl_bwd=True, stop_at_layer=2, return_type="loss"), ValueError, "incl_bwd needs a scalar to"
    ),
    "a position that is not there": Case(
        lambda: cached(Z, pos_slice=11), IndexError, "index 11 is out of range for an axis of length 11"
    ),
    "a position before the first token of a row": Case(
        lambda: cached(Z, pos_slice=-7, attention_mask=[[1, 0] * 5 + [1]] * 2), IndexError,
        "position -7 is out of range: row 0 has 6 tokens",
    ),
    "an unknown argument": Case(lambda: cached(Z, returns="loss"), TypeError, "there is no argument 'returns'"),
}  # fmt: skip

def larger():
    twin = reading()
    twin.set_tokenizer(word_tokenizer(tuple(f"word{i}" for i in range(38))))
    return twin


TEXT = {
    "text without a tokenizer": Case(
        lambda: run(given="text"), ValueError,
        "this model has no tokenizer; give tokens, or a tokenizer with model.set_",
    ),
    "texts without a tokenizer": Case(lambda: run(given=["a", "b"]), ValueError, "this model has no tokenizer"),
    "a vocabulary larger than the model's": Case(
        lambda: larger()("word37"), ValueError, "is out of the vocabulary; tokens are 0 to 36"
    ),
    "a field that is assigned": Case(
        lambda: setattr(CONFIGS["gpt2"], "eps", 1.0), dataclasses.FrozenInstanceError,
        "a Config cannot be changed; write cfg = cfg.replace(eps=...)",
    ),
    "a name that is not there": Case(
        lambda: jaxlens.hooks.nothing, AttributeError, "module 'jaxlens.hooks' has no attribute 'nothing'"
    ),
    "a vocabulary of nothing": Case(
        lambda: HookedTransformer({"n_layers": 1, "d_model": 4, "d_head": 4, "n_ctx": 4, "act_fn": "relu"}), ValueError,
        "d_vocab is missing, and there is no tokenizer to read it from; pass d_vocab= or a tokenizer",
    ),
    "a conversation that is a text": Case(
        lambda: reading().to_chat("mary"), TypeError, "messages is 'mary'; expected a list of messages, such as {"
    ),
    "messages without a role": Case(
        lambda: reading().to_chat([{"content": "mary"}]), TypeError, "messages is [{'content': 'mary'}]; expected a"
    ),
    "a conversation among messages": Case(
        lambda: chatting([[{"role": "john", "content": "mary"}], {"role": "john", "content": "mary"}]), TypeError,
        "expected a list of messages",
    ),
    "a conversation without messages": Case(lambda: chatting([]), ValueError, "a conversation is empty; give at least"),
    "no chat template": Case(
        lambda: reading().to_chat([{"role": "john", "content": "mary"}]), ValueError,
        "the tokenizer has no chat template; set model.tokenizer.chat_template",
    ),
    "a conversation that the template refuses": Case(
        lambda: chatting([{"role": "mary", "content": "mary"}]), ValueError,
        "the chat template refuses the conversation: no mary",
    ),
    "too long a text": Case(lambda: reading()("mary " * 40), ValueError, "41 positions, more than the model's n_ctx"),
    "text and a number": Case(
        lambda: reading()(["mary", 1]), TypeError, "expected a string or a list of strings"
    ),
    "the direction of two words": Case(
        lambda: reading().tokens_to_residual_directions("mary went"), ValueError, "'mary went' is 2 tokens, not one"
    ),
    "the direction of no token": Case(
        lambda: model("gpt2").tokens_to_residual_directions([3, 37]), ValueError, "token 37 is out of the vocabulary"
    ),
    "directions of an empty list": Case(
        lambda: model("gpt2").tokens_to_residual_directions([]), ValueError, "there are no token ids (shape (0,)); give"
    ),
    "directions of rows of different lengths": Case(
        lambda: model("gpt2").tokens_to_residual_directions([[3], [4, 5]]), ValueError,
        "token ids must be rectangular; got lists of different lengths",
    ),
}  # fmt: skip

CACHES = {
    "an activation that is not there": Case(
        lambda: small_cache()["blocks.1.hook_resid_post"], ActivationNotFound,
        'the cache holds no "blocks.1.hook_resid_post"; did you mean "blocks.1.hook_resid_pre"',
    ),
    "a layer that is not there": Case(
        lambda: small_cache()["z", 3], ActivationNotFound,
        'no "blocks.3.attn.hook_z"; did you mean "blocks.1.attn.hook_z"',
    ),
    "a layer before the first": Case(lambda: small_cache()["z", -5], ActivationNotFound, 'no "blocks.-1.attn.hook_z"'),
    "an activation like no other": Case(
        lambda: small_cache()["xyzzy"], ActivationNotFound, 'the cache holds no "hook_xyzzy"'
    ),
    "a wildcard that holds nothing": Case(
        lambda: small_cache()["blocks.*.hook_mlp_out"], ActivationNotFound, 'no "blocks.*.hook_mlp_out" in any layer'
    ),
    "an activation that is cached only on request": Case(
        lambda: model("moe").run_with_cache(tokens(1, 3))[1]["post", 1], ActivationNotFound,
        'no "blocks.1.mlp.hook_post"; it is cached only on request, with names_filter="blocks.1.mlp.hook_post"',
    ),
    "a key that is no name": Case(
        lambda: small_cache()[3], TypeError, 'the name of an activation is "name" or ("name", layer, "sublayer")'
    ),
    "a key with a layer that is no number": Case(
        lambda: small_cache()["z", 1.5], TypeError, "a layer is a number; got 1.5"
    ),
    "two prompts without a batch axis": Case(
        lambda: small_cache().remove_batch_dim(), ValueError, "the batch has 2 prompts"
    ),
    "two prompts run without a batch axis": Case(
        lambda: cached([RESID_PRE, Z], remove_batch_dim=True), ValueError, "the batch has 2 prompts"
    ),
    "a prompt of a cache without a batch axis": Case(
        lambda: small_cache().apply_slice_to_batch_dim(0).apply_slice_to_batch_dim(0), ValueError,
        "the cache has no batch axis, so there is nothing to slice",
    ),
    "a prompt that is not there": Case(
        lambda: small_cache().apply_slice_to_batch_dim([0, 2]), IndexError,
        "index 2 is out of range for an axis of length 2",
    ),
    "more layers stacked than there are": Case(
        lambda: small_cache().stack_activation("z", 5), ValueError, "layer is 5"
    ),
}  # fmt: skip

SLICES = {
    "a string": Case(lambda: Slice("first"), TypeError, "a slice is an integer, slice, tuple, list or array"),
    "a truth value": Case(lambda: Slice(True), TypeError, "a slice is an integer, slice, tuple, list or array"),
    "a tuple of four": Case(lambda: Slice((1, 2, 3, 4)), TypeError, "a slice is an integer, slice, tuple, list or"),
    "fractions": Case(lambda: Slice([0.5, 1.5]), TypeError, "a slice given as a list must hold integers"),
    "a matrix": Case(
        lambda: cached(Z, pos_slice=[[0, 1]]), TypeError, "a slice given as a list must hold integers"
    ),
    "indices of an unknown length": Case(lambda: Slice((1, 3)).indices(), ValueError, "Slice(mode='slice', index=(1"),
}  # fmt: skip

CONFIG_FIELDS = {
    "tied labels": Case(
        lambda: config(tie_word_embeddings=True, output_head="token_labels"), ValueError,
        "tie_word_embeddings is True; expected False with output_head='token_labels'",
    ),
    "an adapter of a gate that is not there": Case(
        lambda: config(adapter=("W_Q", "W_gate"), adapter_rank=2), ValueError,
        "adapter contains ['W_gate']; expected weights of this model among ['W_Q', 'W_K', 'W_V', 'W_O', 'W_in',",
    ),
    "an adapter without a rank": Case(
        lambda: config(adapter=("W_Q",)), ValueError, "adapter is ('W_Q',) and adapter_rank is None; pass both, or none"
    ),
    "a private name": Case(lambda: config()._nothing, AttributeError, "Config has no field '_nothing'"),
    "a name that the module lacks": Case(lambda: jaxlens.config.Confg, AttributeError, "has no attribute 'Confg'"),
    "no layers": Case(lambda: config(n_layers=0), ValueError, "n_layers is 0"),
    "a truth value for a size": Case(
        lambda: config(n_heads=True), ValueError, "n_heads is True"
    ),
    "a fraction for a size": Case(lambda: config(d_model=1.5), ValueError, "d_model is 1.5"),
    "an empty d_mlp": Case(lambda: config(d_mlp=0), ValueError, "d_mlp is 0"),
    "an empty attn_block": Case(lambda: config(attn_block=0), ValueError, "attn_block is 0"),
    "heads that do not divide": Case(
        lambda: config(n_key_value_heads=3), ValueError, "n_key_value_heads is 3"
    ),
    "too few windows": Case(
        lambda: config(windows=(1, 2, 3)), ValueError,
        "windows has 3 entries",
    ),
    "an empty window": Case(lambda: config(windows=(None, 0)), ValueError, "windows[1] is 0"),
    "an unknown norm": Case(
        lambda: config(normalization_type="Layer"), ValueError,
        "normalization_type is 'Layer'",
    ),
    "an unknown place of a norm": Case(
        lambda: config(norm_placement="mid"), ValueError, "norm_placement is 'mid'"
    ),
    "an unknown activation": Case(
        lambda: config(act_fn="swish"), ValueError, "act_fn is 'swish'"
    ),
    "unknown positions": Case(
        lambda: config(positional_embedding_type="rope"), ValueError,
        "positional_embedding_type is 'rope'",
    ),
    "an unknown QK-norm": Case(
        lambda: config(qk_norm=True), ValueError, "qk_norm is True"
    ),
    "an unknown init_mode": Case(
        lambda: config(init_mode="muP"), ValueError, "init_mode is 'muP'"
    ),
    "an unknown dtype": Case(
        lambda: config(dtype="int8"), ValueError, "dtype is 'int8'"
    ),
    "an unknown bias": Case(
        lambda: config(biases=("b_Q", "b_q")), ValueError, "biases contains ('b_q',)"
    ),
    "a bias that is no tuple": Case(lambda: config(biases="b_Q"), ValueError, "biases contains 'b_Q'"),
    "rotary with other positions": Case(
        lambda: config(rotary=Rotary()), ValueError,
        'rotary is set, but positional_embedding_type is "standard"',
    ),
    "a norm shared one after the other": Case(
        lambda: config(shared_norm=True), ValueError,
        "shared_norm means one norm for attention and MLP",
    ),
    "a final RMSNorm without a final norm": Case(
        lambda: config(norm_placement="sum", final_rms=True), ValueError,
        "final_rms is True; expected False, or None, with normalization_type='LN' and norm_placement='sum'",
    ),
    "a final LayerNorm after RMSNorms": Case(
        lambda: config(normalization_type="RMS", final_rms=False), ValueError, "final_rms is False; expected True, or",
    ),
    "a norm of sums without two of them": Case(
        lambda: config(norm_placement="sum", attn_only=True), ValueError, 'norm_placement="sum" needs a sequential'
    ),
    "outputs scaled, and then their sums": Case(
        lambda: config(norm_placement="sum", residual_scale=0.5), ValueError, 'norm_placement="sum" needs a sequential'
    ),
    "a shared expert of none": Case(
        lambda: config(d_shared_expert=3), ValueError, "d_shared_expert is 3, which has no effect without num_experts"
    ),
    "groups that experts do not fill": Case(
        lambda: config(num_experts=4, experts_per_token=1, router_groups=(3, 1)), ValueError, "router_groups is (3, 1)"
    ),
    "latents of grouped heads": Case(
        lambda: config(kv_lora_rank=3, n_heads=4, n_key_value_heads=2), ValueError, "kv_lora_rank requires rotary"
    ),
    "half of a gate": Case(lambda: config(act_fn="clamped_swiglu"), ValueError, 'act_fn="clamped_swiglu" needs'),
    "an activation with weights in a gate": Case(
        lambda: config(act_fn="xielu", gated_mlp=True), ValueError, 'act_fn="xielu" needs a plain MLP'
    ),
    "a gate without an MLP": Case(
        lambda: config(attn_only=True, gated_mlp=True), ValueError,
        "an attn_only model has no MLP",
    ),
    "a norm in a gated MLP": Case(
        lambda: config(gated_mlp=True, act_fn="solu_ln"), ValueError,
        "act_fn='solu_ln' has a norm inside the MLP, which a gated MLP does not have",
    ),
    "tied embeddings of two sizes": Case(
        lambda: config(tie_word_embeddings=True, d_vocab_out=3), ValueError,
        "d_vocab_out is 3",
    ),
    "a cap of zero": Case(
        lambda: config(attn_scores_soft_cap=0.0), ValueError,
        "attn_scores_soft_cap is 0.0",
    ),
    "experts nowhere": Case(
        lambda: config(moe_layers=(True, False)), ValueError,
        "moe_layers selects layers with experts, but num_experts is None",
    ),
    "a choice of no experts": Case(
        lambda: config(experts_per_token=2), ValueError,
        "experts_per_token is 2, but num_experts is None",
    ),
    "a choice of too many experts": Case(
        lambda: config(num_experts=2, experts_per_token=3), ValueError,
        "experts_per_token is 3",
    ),
    "layers that turn differently": Case(
        lambda: rotary(Rotary(dim=2), Rotary(dim=4)), ValueError, "all rotary layers must have the same dim and"
    ),
    "an odd rotary dim": Case(
        lambda: rotary(*[Rotary(dim=3)] * 2), ValueError, "rotary dim is 3"
    ),
    "a divisor for each dimension": Case(
        lambda: rotary(*[Rotary(scaling=LongRope((1.0,) * 4, (1.0,) * 2, 8, 1.0))] * 2), ValueError,
        "LongRope short_factor has 4 entries",
    ),
    "more layers than there are": Case(
        lambda: config().first_layers(3), ValueError, "first_n_layers is 3"
    ),
    "an unknown field": Case(
        lambda: Config.from_dict({**config().to_dict(), "d_hidden": 3}), ValueError, "Config has no field ['d_hidden']"
    ),
    "a missing field": Case(
        lambda: Config.from_dict({"n_layers": 2}), ValueError, "Config needs the fields ['d_head',"
    ),
    "an unknown scaling": Case(
        lambda: Config.from_dict({**config().to_dict(), "rotary": [{"scaling": {"kind": "Ntk"}}] * 2}), ValueError,
        "rotary scaling is 'Ntk'",
    ),
}  # fmt: skip

WEIGHTS = {
    "a missing parameter": Case(
        lambda: with_params(**{"embed.W_E": None}), ValueError, "do not fit the config: embed.W_E is missing"
    ),
    "an unknown parameter": Case(
        lambda: with_params(**{"embed.W_e": jnp.ones(3)}), ValueError, "these parameters do not fit the config:"
    ),
    "a parameter of the wrong shape": Case(
        lambda: with_params(**{"unembed.b_U": jnp.ones(36)}), ValueError, "these parameters do not fit the config:"
    ),
    "a parameter of another dtype": Case(
        lambda: with_params(**{"unembed.b_U": jnp.ones(37, jnp.bfloat16)}), ValueError,
        "unembed.b_U is bfloat16; the config's dtype is float32",
    ),
    "one token has no loss": Case(
        lambda: run(given=tokens(1, 1), return_type="loss"), ValueError, "each token is compared with the next one"
    ),
    "tokens without neighbours have no loss": Case(
        lambda: run(given=[[1, 2, 3]], return_type="both", attention_mask=[[1, 0, 1]]), ValueError,
        "attention_mask has no two tokens in a row",
    ),
    "gradients of no loss": Case(
        lambda: model("gpt2").run_with_cache(
            [[1, 2, 3]], return_type="loss", attention_mask=[[1, 0, 1]], incl_bwd=True
        ), ValueError, "attention_mask has no two tokens in a row",
    ),
    "a next token without a logit": Case(
        lambda: HookedTransformer(Config(
            n_layers=1, d_model=4, n_heads=1, d_head=4, d_vocab=6, d_vocab_out=5, n_ctx=3, attn_only=True
        ))([[1, 2, 5]], return_type="loss"), ValueError,
        "token 5 has no logit to compute a loss from; logits are of tokens 0 to 4",
    ),
    "the loss of logits without such a token": Case(
        lambda: jaxlens.lm_cross_entropy_loss(jnp.zeros((1, 3, 5)), np.array([[1, 2, 5]])), ValueError,
        "token 5 has no logit to compute a loss from; logits are of tokens 0 to 4",
    ),
    "logits and tokens of different batches": Case(
        lambda: jaxlens.lm_cross_entropy_loss(jnp.zeros((1, 4, 9)), tokens(3, 4)), ValueError,
        "logits have shape (1, 4, 9) and tokens (3, 4); expected [batch, pos, vocabulary] and [batch, pos]",
    ),
    "a mask of other tokens": Case(
        lambda: jaxlens.lm_cross_entropy_loss(jnp.zeros((1, 4, 37)), tokens(1, 4), np.ones((1, 3), bool)), ValueError,
        "attention_mask has shape (1, 3); expected that of tokens, (1, 4)",
    ),
    "one token has no accuracy": Case(
        lambda: jaxlens.lm_accuracy(jnp.zeros((1, 1, 9)), tokens(1, 1)), ValueError,
        "each token is compared with the next one",
    ),
    "an additive mask": Case(
        lambda: run(attention_mask=jnp.zeros((2, 11)).at[0, 0].set(-1e9)), ValueError,
        "attention_mask must hold only 1 (a token) and 0 (padding)",
    ),
    "a layer that is no number": Case(lambda: model("gpt2").blocks["a"], TypeError, "model.blocks is indexed by a"),
    "hooks removed in no direction": Case(
        lambda: model("gpt2").reset_hooks(direction="sideways"), HookError, 'a direction is "fwd", "bwd" or "both"'
    ),
    "float64 without x64": Case(
        lambda: HookedTransformer(config(dtype="float64")), ValueError,
        'needs jax.config.update("jax_enable_x64", True)',
    ),
    "no positions": Case(lambda: cached(pos_slice=[]), TypeError, "a slice given as a list must hold integers"),
    "tokens beside tokens": Case(lambda: run(given=tokens(), tokens=tokens()), ValueError, "tokens= belongs to a"),
    "padding on no side": Case(lambda: run(padding_side="centre"), ValueError, "padding_side is 'centre'"),
    "several parameters at once": Case(
        lambda: with_params(**{"embed.W_E": None, "unembed.b_U": jnp.ones(36)}), ValueError,
        "embed.W_E is missing; unembed.b_U has shape",
    ),
    "positions that were not learned": Case(
        lambda: unrandomised("llama").W_pos, AttributeError, 'a model with positions "rotary" has no W_pos'
    ),
    "positions that were not learned, after the embedding": Case(
        lambda: unrandomised("llama").W_E_pos, AttributeError, 'a model with positions "rotary" has no W_pos'
    ),
    "an MLP that is not there": Case(
        lambda: unrandomised("attn_only").W_in, AttributeError, "an attention-only model has no W_in"
    ),
    "a gate that is not there": Case(
        lambda: HookedTransformer(config(num_experts=2, experts_per_token=1, moe_layers=(True, False))).W_gate,
        AttributeError, "the model has no W_gate; its parameters",
    ),
    "weights of two shapes in one array": Case(
        lambda: unrandomised("moe").W_in, AttributeError,
        "W_in differs in shape between layers: [(5, 14, 22), (14, 22)]",
    ),
    "an unknown attribute": Case(
        lambda: model("gpt2").W_q, AttributeError, "HookedTransformer has no attribute 'W_q'"
    ),
    "a block that is not there": Case(
        lambda: model("gpt2").blocks[4], IndexError, "there is no layer 4; the model has 4"
    ),
    "weight processing that changes what is computed": Case(
        lambda: center_unembed(model("gemma").params, CONFIGS["gemma"]), ValueError,
        "center_unembed would change what this model computes: the logit soft cap is not",
    ),
    "a state dict with other names": Case(
        lambda: unrandomised("gpt2").load_state_dict({"embed.W_e": jnp.ones(3)}), ValueError,
        "the state dict does not fit the config: missing ['blocks.0.attn.W_K',",
    ),
}  # fmt: skip

ANALYSES = {
    "circuits of latent attention": Case(lambda: model("latent").OV, ValueError, "latent attention has no QK and OV"),
    "the parts of a stream that is no sum": Case(
        lambda: model("original").accumulated_bias(1), ValueError, 'this analysis needs an additive residual stream'
    ),
    "no such composition": Case(lambda: model("gpt2").all_composition_scores("q"), ValueError, "mode is 'q'"),
    "a bias past the last layer": Case(lambda: model("gpt2").accumulated_bias(5), ValueError, "layer is 5"),
    "no such device": Case(lambda: small_cache().to("abacus"), ValueError, "no device 'abacus'"),
    "an edit that is lost": Case(lambda: hooked(Z, in_place), HookError, "Return the new value"),
    "hooks that could stay": Case(lambda: cached(reset_hooks_end=False), ValueError, "add_caching_hooks"),
    "layers of several shapes": Case(
        lambda: model("moe").run_with_cache(tokens(), names_filter=POST)[1].stack_activation("post"),
        ValueError, "differs in shape",
    ),
    "results of heads without z": Case(
        lambda: cached([RESID_PRE])[1].compute_head_results(), ActivationNotFound, 'the cache holds no'
    ),
    "a cache without its model": Case(
        lambda: jax.jit(lambda cache: cache)(small_cache()).require_model(), ValueError, "cache.with_model(model)"
    ),
    "a cache with another model": Case(
        lambda: small_cache().with_model(model("llama")), ValueError, "the cache belongs to a model with"
    ),
    "no such optimizer": Case(
        lambda: optimizer_of(HookedTransformerTrainConfig(1, 2, optimizer_name="Lion")), ValueError, '"AdamW" or "SGD"'
    ),
    "no such analysis": Case(lambda: jaxlens.analysis.patching_sweep, AttributeError, "has no 'patching_sweep'"),
}  # fmt: skip

GROUPS = {
    "hook names": HOOK_NAMES, "hook functions": HOOK_FUNCTIONS, "inputs": INPUTS, "text": TEXT, "caches": CACHES,
    "slices": SLICES, "config": CONFIG_FIELDS, "weights": WEIGHTS,
    "analyses": ANALYSES,
}  # fmt: skip
CASES = {f"{group}: {name}": case for group, cases in GROUPS.items() for name, case in cases.items()}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_mistake_is_answered_with_what_was_wanted(case):
    case.check()


# --- nothing is left half done


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("hook")])
def test_a_failed_run_leaves_no_hook_behind(name):
    answer(CASES[name])
    assert model("gpt2").list_hooks() == model("qwen3").list_hooks() == {}


def test_a_model_runs_on_after_a_failed_run():
    plain = run()
    with pytest.raises(HookError):
        hooked(Z, lambda z, hook: z[:1])
    assert jnp.array_equal(run(), plain)


def test_a_block_whose_second_hook_is_wrong_adds_neither():
    the_model = model("gpt2")
    with pytest.raises(HookError), the_model.hooks(fwd_hooks=[(Z, keep), ("hook_nothing", keep)]):
        pytest.fail("the block was entered")
    with pytest.raises(HookError), the_model.hooks(fwd_hooks=[(Z, keep)], bwd_hooks=[(Z, "no function")]):
        pytest.fail("the block was entered")
    assert the_model.list_hooks() == {}


@pytest.mark.parametrize("bad", [("hook_nothing", keep, "fwd"), (Z, None, "fwd"), (Z, keep, "backward")])
def test_a_hook_that_cannot_be_added_is_not_added(bad):
    the_model = model("gpt2").with_params(model("gpt2").params)
    the_model.add_hook(RESID_PRE, keep)
    with pytest.raises(HookError):
        the_model.add_hook(*bad)
    assert list(the_model.list_hooks()) == [RESID_PRE]


def test_a_failed_hook_leaves_the_hooks_that_were_there():
    the_model = model("gpt2").with_params(model("gpt2").params)
    the_model.add_hook(RESID_PRE, keep)
    with the_model.hooks(fwd_hooks=[(Z, keep)]):
        with pytest.raises(ZeroDivisionError):
            the_model.run_with_hooks(tokens(), fwd_hooks=[("hook_embed", lambda value, hook: value * (1 / 0))])
        assert sorted(the_model.list_hooks()) == sorted([RESID_PRE, Z])
    assert list(the_model.list_hooks()) == [RESID_PRE]


# --- no error without a case


def test_every_error_of_the_package_is_reached_by_a_case():
    assert all((Path(__file__).parent / f"{name}.py").exists() for name in CASES_OF)
    assert unreached(__file__, CASES.values()) == []
