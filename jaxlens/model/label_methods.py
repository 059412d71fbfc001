"""The scores of labels, in models for classification.

Axes: b batch, p position, o label.
"""

from collections.abc import Sequence
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlens.hooks.plan import HookSpec


class LabelMethods:
    """The part of HookedTransformer that models for classification need."""

    def label_scores(
        self, input: Any, prepend_bos: bool | None = None, padding_side: Literal["left", "right"] | None = None,
        attention_mask: Any = None, hooks: Sequence[HookSpec] | None = None,
    ) -> Float[Array, "b o"]:  # fmt: skip
        """The score of each label for each row of the input: `model(input)` at the last token of the row.

        These are the `logits` of transformers' models for sequence classification. A reward model has one label. The
        arguments are those of calling the model. Without an `attention_mask`, the last token of a row of tokens is the
        last that is not the `pad_token_id` of the checkpoint, as in transformers.

        Raises:
            ValueError: The outputs of the model are not labels of a sequence.

        Example:
            >>> from jaxlens import Config, HookedTransformer
            >>> sizes = {"n_layers": 1, "d_model": 8, "n_heads": 2, "d_head": 4, "d_vocab": 10, "n_ctx": 8}
            >>> model = HookedTransformer(Config(**sizes, d_vocab_out=3, output_head="sequence_labels"))
            >>> model([[1, 2, 3]]).shape, model.label_scores([[1, 2, 3]]).shape
            ((1, 3, 3), (1, 3))
        """
        if self.cfg.output_head != "sequence_labels":
            problem = f'label_scores needs output_head="sequence_labels"; this model has {self.cfg.output_head!r}'
            raise ValueError(f"{problem}; its outputs for each token are `model(input)`")
        read = self.read_input(input, prepend_bos, padding_side, attention_mask)
        scores = self(read.tokens, attention_mask=read.mask, hooks=hooks)
        is_token, padding = read.mask, (self.source or {}).get("pad_token_id")
        if attention_mask is None and isinstance(padding, int):
            is_token = is_token & (read.tokens != padding)
        last = jnp.max(jnp.where(is_token, np.arange(is_token.shape[1]), 0), axis=1)
        return jnp.take_along_axis(scores, last[:, None, None], axis=1)[:, 0]
