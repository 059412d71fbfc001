"""The arguments of `model.generate`, checked, as a Generation."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxlens._jax import is_traced
from jaxlens.hooks.names import HookName
from jaxlens.hooks.plan import HookSpec
from jaxlens.model.arguments import GENERATING, check_only
from jaxlens.model.automatic_axes import in_layout, layout_of
from jaxlens.model.generation.decode import NEEDS_TOKENS, scalings_by_length
from jaxlens.model.generation.generate import Generation
from jaxlens.model.generation.loop import Loop, Rules
from jaxlens.model.generation.past import kv_cache_of
from jaxlens.model.generation.prompt import Prompt, is_text, read_prompt
from jaxlens.model.generation.sampling import Sampler, random_key
from jaxlens.model.request import LayerRange, RunRequest, required_tokenizer
from jaxlens.nn.embed import check_has_head
from jaxlens.nn.kv_cache import KVCache


def new_generation(
    model: Any, input: Any, *, max_new_tokens: int = 10, stop_at_eos: bool = True,
    eos_token_id: int | list[int] | None = None, do_sample: bool = True, top_k: int | None = None,
    top_p: float | None = None, temperature: float = 1.0, freq_penalty: float = 0.0, use_past_kv_cache: bool = True,
    prepend_bos: bool | None = None, padding_side: str | None = None, fwd_hooks: Sequence[HookSpec] | None = None,
    min_p: float | None = None, repetition_penalty: float = 1.0, stop_strings: str | list[str] | None = None,
    num_return_sequences: int = 1, seed: int | None = None, key: jax.Array | None = None, attention_mask: Any = None,
    past_kv_cache: KVCache | None = None, prefill_chunk: int | None = None, output_logits: bool = False,
    return_cache: bool = False, names_filter: HookName | list[HookName] | None = None, return_type: str = "input",
    **transformerlens: Any,
) -> Generation:  # fmt: skip
    """The generation with these arguments of `model.generate`, before its first step."""
    check_only(transformerlens, GENERATING)
    _check_model(model, input, past_kv_cache)
    if return_type not in ("input", "str", "tokens", "embeds"):
        raise ValueError(f'return_type is {return_type!r}; expected "input", "str", "tokens" or "embeds"')
    _check_positive(max_new_tokens=max_new_tokens, num_return_sequences=num_return_sequences)
    _check_positive(**{} if prefill_chunk is None else {"prefill_chunk": prefill_chunk})
    sampler = Sampler.of(temperature if do_sample else 0, top_k, top_p, min_p, freq_penalty, repetition_penalty)
    if seed is not None and key is not None:
        raise ValueError("seed and key are both given; give one of them")
    key = None if sampler.is_greedy else random_key(seed if key is None else key)
    ends, filler = end_tokens(model, stop_at_eos, eos_token_id)
    stops, past_kv_cache = _stop_strings(model, stop_strings), kv_cache_of(past_kv_cache)
    bos = False if prepend_bos is None and past_kv_cache is not None and not past_kv_cache.slots.is_new else prepend_bos
    prompt = read_prompt(model, input, bos, padding_side, attention_mask).repeated(num_return_sequences)
    past = past_kv_cache
    if past is not None and num_return_sequences > 1:
        past = past.repeat(num_return_sequences)
    _check_length(model, prompt, past, int(max_new_tokens))
    if not use_past_kv_cache:
        _check_runs_again(prompt, past)
    if return_type == "str" or (return_type == "input" and is_text(input)):
        required_tokenizer(model.tokenizer)
    layers = LayerRange.of(model.cfg, None, None)
    wanted = layers.wanted(model.cfg, names_filter) if return_cache else frozenset()
    request = RunRequest(layers, "logits", wanted=wanted, last_only=True, has_derivative=False)
    hooks = model._hooks + model._registered(fwd_hooks, layers)
    runner, given, rules = model, prompt.model_input, Rules(sampler, key, ends, filler)
    if (layout := layout_of(model, given)) is not None:  # a mesh with Explicit axes
        modules, given, past, rules = layout.to_automatic((model.modules, given, past, rules))
        hooks = layout.to_automatic(tuple(in_layout(hook, layout) for hook in hooks))
        runner, prompt = model._copy(modules), dataclasses.replace(prompt, model_input=given)
    loop = Loop(runner, hooks, request, rules, output_logits, not use_past_kv_cache, layout)
    return Generation(loop, model, prompt, int(max_new_tokens), stops, past, prefill_chunk)


def _check_model(model: Any, input: Any, past: Any) -> None:
    """Raises ValueError if the model cannot generate text, or is traced."""
    if is_traced(model, input, past):
        raise ValueError("generate compiles its own loop, so call it outside of jit; inside, use model.decode")
    check_has_head(model.cfg)
    if model.cfg.output_head != "next_token":
        raise ValueError("this model scores labels; it does not predict tokens, so it cannot generate text")


def _check_positive(**numbers: Any) -> None:
    for name, number in numbers.items():
        if not isinstance(number, int | np.integer) or number < 1:
            raise ValueError(f"{name} is {number!r}; expected a positive integer")


def end_tokens(model: Any, stop_at_eos: bool, eos_token_id: int | list[int] | None) -> tuple[np.ndarray, np.int32]:
    """The tokens that finish a row, and the token that fills finished rows."""
    ids = eos_tokens(model) if eos_token_id is None else _given_tokens(model, eos_token_id)
    if not ids and stop_at_eos:
        missing = "the model has no tokenizer" if model.tokenizer is None else "its tokenizer has no EOS token"
        raise ValueError(f"stop_at_eos=True needs an EOS token, but {missing}; pass eos_token_id= or stop_at_eos=False")
    eos, pad = (None, None) if model.tokenizer is None else (model.tokenizer.eos_token_id, model.tokenizer.pad_token_id)
    without_eos = 0 if pad is None or pad >= model.cfg.d_vocab else pad
    filler = eos if eos in ids else ids[0] if ids else without_eos
    return np.array(ids if stop_at_eos else [], np.int32), np.int32(filler)


def eos_tokens(model: Any) -> list[int]:
    """The tokens that end a text: those of the checkpoint's generation_config.json, or else EOS of the tokenizer."""
    ids = (model.cfg.generation_config or {}).get("eos_token_id")
    if ids is None:
        ids = None if model.tokenizer is None else model.tokenizer.eos_token_id
    return [] if ids is None else list(ids) if isinstance(ids, list) else [ids]


def _given_tokens(model: Any, eos_token_id: int | list[int]) -> list[int]:
    """The argument `eos_token_id` as a list, checked."""
    ids = np.atleast_1d(np.asarray(eos_token_id))
    if not (np.issubdtype(ids.dtype, np.integer) and ((ids >= 0) & (ids < model.cfg.d_vocab_out)).all()):
        raise ValueError(f"eos_token_id is {eos_token_id!r}; expected tokens from 0 to {model.cfg.d_vocab_out - 1}")
    return ids.tolist()


def _stop_strings(model: Any, stop_strings: str | list[str] | None) -> tuple[str, ...]:
    if stop_strings is None:
        return ()
    strings = stop_strings if isinstance(stop_strings, list | tuple | set | frozenset) else [stop_strings]
    if not all(isinstance(string, str) and string for string in strings):
        raise ValueError(f"stop_strings is {stop_strings!r}; expected strings that are not empty")
    required_tokenizer(model.tokenizer)
    return tuple(strings)


def _check_runs_again(prompt: Prompt, past: KVCache | None) -> None:
    """Raises ValueError if not all tokens of the text are given, so that they cannot be run again in every step."""
    found = "the prompt is embeddings" if prompt.kind == "embeds" else "past_kv_cache holds a part of the text"
    if prompt.kind == "embeds" or not (past is None or past.slots.is_new):
        raise ValueError(f"use_past_kv_cache=False runs all tokens again in every step, but {found}; give all tokens")


def _check_length(model: Any, prompt: Prompt, past: KVCache | None, max_new_tokens: int) -> None:
    """Raises ValueError if the text would be longer than the model's context."""
    before, n_columns = 0 if past is None else past.length, prompt.model_input.mask.shape[1]
    if past is not None:
        past.check(model.cfg, len(prompt.model_input.mask), 0)
    length = before + n_columns + max_new_tokens
    holder = "the prompt is" if prompt.kind == "embeds" else "past_kv_cache holds"
    are_known = prompt.kind != "embeds" and (past is None or past.slots.all_known)
    if not are_known and any(length > scaling.original_n_ctx for scaling in scalings_by_length(model.cfg)):
        raise ValueError(f"{holder} embeddings, but {NEEDS_TOKENS}")
    if length > (n_ctx := model.cfg.n_ctx):
        text = f"{before + n_columns} tokens and max_new_tokens = {max_new_tokens} are more than n_ctx = {n_ctx}"
        room = f"at most {n_ctx - before - n_columns} new tokens fit" if n_ctx > before + n_columns else "nothing fits"
        raise ValueError(f"the prompt's {text}; {room}")
