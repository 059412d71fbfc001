"""Methods of HookedTransformer that run new tokens after those in a KV cache."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, Float

from jaxlens._jax import is_traced
from jaxlens.config import Config
from jaxlens.hooks.plan import HookSpec
from jaxlens.model.automatic_axes import with_automatic_axes
from jaxlens.model.generation.decode import decode
from jaxlens.model.request import LayerRange, RunRequest
from jaxlens.nn.kv_cache import KVCache
from jaxlens.sharding import Sharding


class DecodeMethods:
    """Mixin of HookedTransformer: runs that continue a KV cache."""

    cfg: Config
    sharding: Sharding | None

    def init_kv_cache(self, batch_size: int = 1, max_length: int | None = None) -> KVCache:
        """An empty KV cache for this many rows and this many tokens of each row (None: `cfg.n_ctx`), padding included.

        It takes 2 × n_layers × batch_size × max_length × n_key_value_heads × d_head numbers.

        Raises:
            ValueError: A size is not positive, or `max_length` is above `cfg.n_ctx`.
        """
        max_length = self.cfg.n_ctx if max_length is None else max_length
        for name, size in (("batch_size", batch_size), ("max_length", max_length)):
            if not isinstance(size, int | np.integer) or size < 1:
                raise ValueError(f"{name} is {size!r}; expected a positive integer")
        if max_length > self.cfg.n_ctx:
            raise ValueError(f"max_length is {max_length}, more than the model's n_ctx = {self.cfg.n_ctx}")
        sharding = None if self.sharding is None else self.sharding.kv_cache(self.cfg, batch_size)
        return KVCache.new(self.cfg, batch_size, max_length, sharding)

    def decode(
        self, input: Any, cache: KVCache, attention_mask: Any = None, *, fwd_hooks: Sequence[HookSpec] | None = None,
        prefill_chunk: int | None = None,
    ) -> tuple[Float[Array, "b p v"], KVCache]:  # fmt: skip
        """Runs new tokens after those in a cache. Returns their logits, and the cache with the new tokens.

        `input` is tokens [b p] of any number p, or text. BOS is prepended to text only if the cache is empty. The given
        cache is used up: its memory becomes that of the returned one. Pass `cache.copy()` to keep it. Inside jit,
        nothing is used up, the call can be differentiated, and the logits are NaN if the cache is too short.

        Hooks of the model and `fwd_hooks` act on the new tokens. With Dynamic or LongRoPE scaling, the frequencies of
        all tokens depend on the length of the text. If new tokens change them, the earlier tokens run again too, with
        the hooks of this call and without those of earlier calls.

        `prefill_chunk` runs the tokens in pieces of this many columns, which bounds the memory of a long prompt; hooks
        then receive one piece after the other.

        Raises:
            TypeError: `cache` is no KVCache.
            ValueError: The cache is that of another model or batch, it was used up, or it has too few free slots.

        Example:
            >>> import jaxlens
            >>> model = jaxlens.HookedTransformer(
            ...     jaxlens.Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_vocab=10, n_ctx=8, attn_only=True))
            >>> logits, cache = model.decode([[1, 2, 3]], model.init_kv_cache())
            >>> logits, cache = model.decode([[4]], cache)
            >>> bool(abs(logits[0, 0] - model([[1, 2, 3, 4]])[0, 3]).max() < 1e-5)
            True
        """
        if not isinstance(cache, KVCache):
            remedy = "make one with model.init_kv_cache, or pass past_kv_cache= to the model to extend another cache"
            raise TypeError(f"cache is a {type(cache).__name__}; expected a KVCache: {remedy}")
        cache.check_unused()
        is_number = isinstance(prefill_chunk, int | np.integer) and prefill_chunk > 0
        if prefill_chunk is not None and not is_number:
            raise ValueError(f"prefill_chunk is {prefill_chunk!r}; expected a positive number of columns")
        bos = None if cache.slots.is_new else False
        model_input = self.read_input(input, bos, attention_mask=attention_mask)
        request = RunRequest(LayerRange.of(self.cfg, None, None), "logits")
        request.check_output(self.cfg, model_input)
        hooks = self._hooks + self._registered(fwd_hooks, request.layers)

        def run(model, model_input, request, hooks, cache):
            logits, _, longer = decode(model, cache, model_input, request, hooks, prefill_chunk)
            return logits, [], longer

        may_fail = any(hook.is_plain for hook in hooks) and not is_traced(cache)  # then the cache stays as it is
        given = cache.copy() if may_fail else cache
        logits, _, longer = with_automatic_axes(run, self, model_input, request, hooks, given)
        if may_fail and given.keys.is_deleted():
            cache.use_up()
        return logits, longer
