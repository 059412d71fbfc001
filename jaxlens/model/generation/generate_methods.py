"""Methods of HookedTransformer that generate text."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxlens.config import Config
from jaxlens.hooks.names import HookName
from jaxlens.hooks.plan import HookSpec
from jaxlens.model.generation.generate import SEGMENT, Generated, Generation
from jaxlens.model.generation.options import new_generation
from jaxlens.model.generation.prompt import embedded
from jaxlens.model.generation.stream import TextStream
from jaxlens.nn.kv_cache import KVCache
from jaxlens.text.tokenizer import Tokenizer

Side = Literal["left", "right"]
ReturnType = Literal["input", "str", "tokens", "embeds"]


class GenerateMethods:
    """Mixin of HookedTransformer: text generation."""

    cfg: Config
    tokenizer: Tokenizer | None

    def generate(
        self, input: Any = "", max_new_tokens: int = 10, stop_at_eos: bool = True,
        eos_token_id: int | list[int] | None = None, do_sample: bool = True, top_k: int | None = None,
        top_p: float | None = None, temperature: float = 1.0, freq_penalty: float = 0.0,
        use_past_kv_cache: bool = True, prepend_bos: bool | None = None, padding_side: Side | None = None,
        return_type: ReturnType = "input", verbose: bool = True, *, fwd_hooks: Sequence[HookSpec] | None = None,
        min_p: float | None = None, repetition_penalty: float = 1.0, stop_strings: str | list[str] | None = None,
        num_return_sequences: int = 1, seed: int | None = None, key: jax.Array | None = None,
        output_logits: bool = False, return_cache: bool = False,
        names_filter: HookName | list[HookName] | None = None, attention_mask: Any = None,
        past_kv_cache: KVCache | None = None, prefill_chunk: int | None = None, **transformerlens: Any,
    ) -> Any:  # fmt: skip
        """Generates text after a prompt: a string, a list of strings, tokens [b p], or embeddings [b p d].

        The loop over tokens is one compiled program, with a KV cache of fixed size. The hooks of the model and
        `fwd_hooks` act on the prompt and on every new token. In a hook function, `hook.positions` are the positions of
        the columns of the value, and `hook.step` is 0 on the prompt, then 1, 2, …; `jaxlens.steer` makes common hooks.
        A data hook with new data compiles nothing. A plain Python hook runs between compiled steps. `return_type` is
        that of the result, which contains the prompt (not for embeddings as text or tokens).

        Args:
            max_new_tokens: At most so many tokens are generated. Together with the prompt they must fit into `n_ctx`.
            stop_at_eos: Finish a row at `eos_token_id`, one id or several (None: those of the checkpoint's
                generation_config.json, or else that of the tokenizer). A finished row is filled with EOS, or pad tokens
                if there is no EOS. The generation ends when all rows are finished.
            do_sample: Sample; otherwise choose the likeliest token, like `temperature=0`. `top_k`, `top_p`, `min_p`,
                `temperature`, `freq_penalty` and `repetition_penalty` are those of `utils.sample_logits`. Penalties
                count the tokens of the prompt too, but not padding.
            use_past_kv_cache: Otherwise every step runs the whole text again, and hooks receive all of it.
            stop_strings: Finish a row after the token that completes one of these strings in its new text.
            num_return_sequences: Rows for each row of the prompt.
            seed: Makes the samples reproducible; `key` is a JAX random key instead. By default they depend on numpy's
                global generator.
            output_logits: Return a `Generated`, with the logits that each token was chosen from.
            return_cache: Return `(result, cache)`, with the activations of the prompt and of all new tokens that
                `names_filter` selects. They are gathered while the text is generated.
            past_kv_cache: A KV cache, after whose tokens the prompt follows. It is not changed.
            prefill_chunk: Run the prompt in pieces of so many tokens, which bounds memory.

        Raises:
            ValueError: An argument is out of range, or the text would be longer than `n_ctx`.
            HookError: A hook name or `names_filter` matches nothing.

        Example:
            >>> import jaxlens
            >>> model = jaxlens.HookedTransformer(
            ...     jaxlens.Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_vocab=10, n_ctx=8, attn_only=True))
            >>> model.generate([[1, 2, 3]], max_new_tokens=4, stop_at_eos=False, seed=0).shape
            (1, 7)
        """
        if names_filter is not None and not return_cache:
            raise ValueError("names_filter selects the activations of return_cache=True, which is not set")
        generation = new_generation(
            self, input, max_new_tokens=max_new_tokens, stop_at_eos=stop_at_eos, eos_token_id=eos_token_id,
            do_sample=do_sample, top_k=top_k, top_p=top_p, temperature=temperature, freq_penalty=freq_penalty,
            use_past_kv_cache=use_past_kv_cache, prepend_bos=prepend_bos, padding_side=padding_side,
            fwd_hooks=fwd_hooks, min_p=min_p, repetition_penalty=repetition_penalty, stop_strings=stop_strings,
            num_return_sequences=num_return_sequences, seed=seed, key=key, attention_mask=attention_mask,
            past_kv_cache=past_kv_cache, prefill_chunk=prefill_chunk, output_logits=output_logits,
            names_filter=names_filter, return_cache=return_cache, return_type=return_type,
            **transformerlens,
        )  # fmt: skip
        from tqdm import tqdm  # a model that generates nothing needs no progress bar

        size = SEGMENT if verbose or stop_strings else max_new_tokens
        size = 1 if stop_strings and (return_cache or output_logits) else size  # what follows a stop string is not run
        with tqdm(total=max_new_tokens, desc="generating", unit="token", disable=None if verbose else True) as progress:
            for new in generation.segments(size):
                progress.update(new.shape[1])
        result = generation.output(return_type)
        result = Generated(result, generation.logits()) if output_logits else result
        return (result, generation.cache()) if return_cache else result

    def generate_stream(
        self, input: Any = "", max_new_tokens: int = 10, max_tokens_per_yield: int = 1, *, return_type: str = "input",
        **options: Any,
    ) -> Iterator[Any]:  # fmt: skip
        """Generates text, and yields the new part after every `max_tokens_per_yield` tokens.

        A string yields strings, a list of strings yields lists with a string for each row, and tokens yield tokens
        [b n]. A character of several tokens comes whole. The prompt is not yielded. `options` are those of `generate`,
        except `output_logits`, `return_cache` and `names_filter`. The generation runs while the iterator is read;
        leaving it early changes nothing of the model.

        Example:
            >>> import jaxlens
            >>> model = jaxlens.HookedTransformer(
            ...     jaxlens.Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_vocab=10, n_ctx=8, attn_only=True))
            >>> stream = model.generate_stream([[1, 2, 3]], 4, max_tokens_per_yield=2, stop_at_eos=False, seed=0)
            >>> [new.shape for new in stream]
            [(1, 2), (1, 2)]
        """
        if not isinstance(max_tokens_per_yield, int) or max_tokens_per_yield < 1:
            raise ValueError(f"max_tokens_per_yield is {max_tokens_per_yield!r}; expected a positive integer")
        for name in ("output_logits", "return_cache", "names_filter"):
            if options.get(name):
                raise ValueError(f"{name} is {options[name]!r}, but a stream yields only text or tokens; use generate")
        options.pop("verbose", None)
        generation = new_generation(self, input, max_new_tokens=max_new_tokens, return_type=return_type, **options)
        kind = generation.prompt.kind if return_type == "input" else return_type
        return _streamed(self, generation, kind, max_tokens_per_yield)


def _streamed(model: GenerateMethods, generation: Generation, kind: str, size: int) -> Iterator[Any]:
    if kind in ("tokens", "embeds"):
        for new in generation.segments(size):
            yield embedded(model, new) if kind == "embeds" else jnp.asarray(new)
        return
    prompt = generation.prompt.model_input.tokens
    rows = [[] for _ in generation.tokens] if prompt is None else np.asarray(prompt).tolist()
    rows, n_before = [TextStream(model.tokenizer, row) for row in rows], 0
    for new in generation.segments(size):
        texts = [row.add(ids[n_before:]) for row, ids in zip(rows, generation.rows(), strict=True)]
        n_before += new.shape[1]
        if any(texts):
            yield texts[0] if generation.returns_one else texts
    texts = [row.add(np.zeros(0, np.int32), is_last=True) for row in rows]
    if any(texts):
        yield texts[0] if generation.returns_one else texts
