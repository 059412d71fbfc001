"""How HookedTransformer runs on checked arguments: embedding, layers, logits, with a KV cache or without.

Axes: b batch, p position, v vocabulary.
"""

from typing import Any

import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from jaxlens._jax import full_precision
from jaxlens.config import Config
from jaxlens.hooks.plan import HookPlan, RegisteredHook, SiteHook
from jaxlens.hooks.table import EMBED_NAMES, FINAL_NAMES
from jaxlens.model.automatic_axes import with_automatic_axes
from jaxlens.model.engine import Captured, Mode, run_layers, run_stage
from jaxlens.model.finite import warn_if_not_finite
from jaxlens.model.generation.past import TransformerLensKeyValueCache, run_after
from jaxlens.model.lengths import at_last_token, cut, on_mesh, padded
from jaxlens.model.loss import Output, lm_cross_entropy_loss
from jaxlens.model.request import ModelInput, RunRequest
from jaxlens.nn.kv_cache import KVCache
from jaxlens.nn.transformer import Modules

Result = Array | Output | None


class RunMethods:
    """Mixin of HookedTransformer: runs on checked arguments."""

    cfg: Config
    modules: Modules

    def _run_padded(
        self, model_input: ModelInput, request: RunRequest, hooks: tuple[RegisteredHook, ...], run: Any = None,
        past: TransformerLensKeyValueCache | None = None,
    ) -> tuple[Result, list[Captured], int | None]:  # fmt: skip
        """`run` at the length of a program. Returns the output at the length of the input, the captured activations,
        and the length to which they remain to be cut (None: they have it).
        """
        request.check_output(self.cfg, model_input)
        if past is not None:
            return run_after(past, self, model_input, request, hooks, run)

        def run_at_program_length(model, model_input, request, hooks):
            at_program_length = padded(model, model_input, hooks)
            output, captured = (run or RunMethods.run)(model, at_program_length, request, hooks)
            return cut(output, at_program_length), captured, at_program_length.length

        placed = on_mesh(self, model_input, hooks)
        result = with_automatic_axes(run_at_program_length, self, placed, request, hooks)
        warn_if_not_finite(self, result[0], model_input, request, hooks)
        return result

    def run(
        self, model_input: ModelInput, request: RunRequest, hooks: tuple[RegisteredHook, ...],
        probes: tuple[SiteHook, ...] = (),
    ) -> tuple[Result, list[Captured]]:  # fmt: skip
        """Runs the model on checked arguments. Returns the requested output and the captured activations."""
        output, captured, _ = self.run_on(None, model_input, request, hooks, probes)
        return output, captured

    def run_on(
        self, cache: KVCache | None, model_input: ModelInput, request: RunRequest, hooks: tuple[RegisteredHook, ...],
        probes: tuple[SiteHook, ...] = (),
    ) -> tuple[Result, list[Captured], KVCache | None]:  # fmt: skip
        """`run` that continues a KV cache, if any, and also returns the longer cache. The given one is used up."""
        plan = HookPlan.of(
            self.cfg, hooks, request.wanted, request.positions, self._points, probes, model_input.length
        )  # fmt: skip
        past = () if cache is None else (cache.slots, np.int32(model_input.n_positions))
        tokens, mask = model_input.tokens, model_input.mask
        with full_precision(self.cfg.dtype):
            outer = self.modules.without_blocks()
            if model_input.residual is None:
                (x, info), first = run_stage(Modules.embed_tokens, outer, (tokens, mask, *past), plan, EMBED_NAMES)
            else:
                x, info, first = model_input.residual, outer.sequence_info(mask, tokens, *past), []
            layers, memory = request.layers, None if cache is None else (cache.keys, cache.values)
            mode = None if request.has_derivative else Mode.EAGER
            run = self.modules.stacks, x, info, layers.start, layers.stop, plan, memory, mode
            x, captured, memory = run_layers(*run)
            cache = None if cache is None else KVCache(*memory, info.slots)
            if not layers.unembeds:
                return x, first + captured, cache
            (positions, step, steps), sees_all = info.columns, plan.touches(FINAL_NAMES)
            if request.last_only and not sees_all:
                x, positions, steps = (at_last_token(value, mask) for value in (x, positions, steps))
            logits, last = run_stage(Modules.logits, outer, (x, (positions, step, steps)), plan, FINAL_NAMES)
            if request.last_only and sees_all:
                logits = at_last_token(logits, mask)
            return self._output(logits, model_input, request), first + captured + last, cache

    def _output(self, logits, model_input: ModelInput, request: RunRequest) -> Result:
        if request.return_type in ("logits", None):
            return logits if request.return_type else None
        loss = self.loss_fn(logits, model_input.tokens, model_input.loss_mask, request.loss_per_token)
        return Output(logits, loss) if request.return_type == "both" else loss

    def loss_fn(
        self, logits: Float[Array, "b p v"], tokens: Int[ArrayLike, "b p"], attention_mask: Any = None,
        per_token: bool = False,
    ) -> Array:  # fmt: skip
        """`lm_cross_entropy_loss` of these logits."""
        return lm_cross_entropy_loss(logits, tokens, attention_mask, per_token)
