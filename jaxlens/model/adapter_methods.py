"""Scales an adapter that is not merged into the weights, and merges it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Float

from jaxlens._jax import full_precision
from jaxlens._jax.explicit_axes import on_any_mesh
from jaxlens.nn.module import arrays


class AdapterMethods:
    """The part of HookedTransformer that models with an adapter need (`from_pretrained(..., merge=False)`).

    The updates are parameters, `blocks.*.attn.lora_Q.A`, `.B` and `.scale`, and what each adds to the output of its
    weight is a hook point, `blocks.0.attn.lora_Q.hook_out`. Weights such as `model.W_Q` are those of the base model.
    """

    def with_adapter_scale(self, scale: Float[ArrayLike, "*layer"]) -> Any:
        """A copy of the model whose adapter is multiplied by `scale`: one number, or one for each layer [n_layers].

        With 0 it is the base model, and with 1 the adapter as trained. Modules that the adapter replaces as a whole
        (`modules_to_save`, biases, embeddings of tokens) are replaced at every scale, as in peft. The scale is data,
        which may be traced: another scale compiles nothing. The weights are shared with this model.

        Raises:
            ValueError: The model has no adapter, or the shape of `scale` is wrong.

        Example:
            >>> from jaxlens import Config, HookedTransformer
            >>> sizes = {"n_layers": 2, "d_model": 8, "n_heads": 2, "d_head": 4, "d_vocab": 10, "n_ctx": 8}
            >>> model = HookedTransformer(Config(**sizes, adapter=("W_Q", "W_V"), adapter_rank=3))
            >>> half = model.with_adapter_scale(0.5)
            >>> half.params["blocks.*.attn.lora_Q.scale"].tolist()
            [0.5, 0.5]
            >>> only_last = model.with_adapter_scale([0.0, 1.0])
        """
        self._check_has_adapter()
        scale = scale if isinstance(scale, jax.Array) else np.asarray(scale)
        if scale.shape not in ((), (self.cfg.n_layers,)):
            expected = f"expected one number, or {self.cfg.n_layers}, one for each layer"
            raise ValueError(f"the scale has shape {scale.shape}; {expected}")
        xp = jnp if isinstance(scale, jax.Array) else np
        scale, params = xp.broadcast_to(scale, (self.cfg.n_layers,)), self.params
        for layers, stack in zip(self.cfg.stacks, self.cfg.stack_names, strict=True):
            of_stack = jnp.asarray(scale[np.array(layers)], self.cfg.dtype)
            params |= {name: of_stack for name in params if _is_scale(name, stack)}
        return self.with_params(params)

    @on_any_mesh
    @full_precision()
    def merge_adapter(self) -> Any:
        """A copy of the model whose weights include the adapter, at its scale. It can be exported and processed.

        Raises:
            ValueError: The model has no adapter.
        """
        self._check_has_adapter()
        params = {name: value for name, value in self.params.items() if ".lora_" not in name}
        for stack, name in zip(self.modules.stacks, self.cfg.stack_names, strict=True):
            for module in ("attn", "mlp"):
                block = getattr(arrays(stack), module)
                for of in (of for of in getattr(block, "adaptable", ()) if of in self.cfg.adapter):
                    params[f"blocks.{name}.{module}.{of}"] = block.updated(of)
        twin = self._copy(self.modules)
        twin.set_params(params, self.cfg.replace(adapter=(), adapter_rank=None))
        return twin

    def _check_has_adapter(self) -> None:
        if not self.cfg.adapter:
            load = "from_pretrained(base, adapter=folder, merge=False)"
            raise ValueError(f"this model has no adapter beside its weights; load one with {load}")


def _is_scale(name: str, stack: str) -> bool:
    return name.startswith(f"blocks.{stack}.") and ".lora_" in name and name.endswith(".scale")
