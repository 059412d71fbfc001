"""Weight processing and state dicts on a model, under TransformerLens's names."""

from collections.abc import Mapping
from typing import Any

import jax

from jaxlens.config import Config
from jaxlens.parameters import Params, Parts, assemble
from jaxlens.state_dict import from_state_dict, to_state_dict
from jaxlens.weights import Processing, process_weights


class ProcessesWeights:
    """Mixin: the passes of `jaxlens.weights`; `model.processing` says what was applied, what was not, and why."""

    cfg: Config
    parts: Parts
    processing: tuple[Processing, ...]

    def processed(self, **passes: bool) -> Any:
        """A model with processed weights, beside this one; what is not changed they share.

        Takes the arguments of `jaxlens.weights.process_weights`, with their defaults.

        Example:
            >>> import jaxlens
            >>> model = jaxlens.HookedTransformer(jaxlens.Config(
            ...     n_layers=2, d_model=8, n_heads=2, d_head=4, d_vocab=10, n_ctx=8))
            >>> folded = model.processed(center_unembed=False)
            >>> folded.cfg.normalization_type, model.cfg.normalization_type
            ('LNPre', 'LN')
        """
        twin = self._with_parts(self.parts)
        twin._put(*process_weights(self.params, self.cfg, **passes))
        return twin

    def process_weights_(
        self,
        fold_ln: bool = True,
        center_writing_weights: bool = True,
        center_unembed: bool = True,
        refactor_factored_attn_matrices: bool = False,
        *,
        fold_value_biases: bool = True,
    ) -> None:
        """Processes this model's weights in place: each is let go when its successor is made.

        Interrupted, it leaves the model without weights; `processed` leaves it as it is, and takes twice the memory.
        """
        params = self.params
        del self.parts
        processed = process_weights(
            params, self.cfg, fold_ln, center_writing_weights, center_unembed, fold_value_biases,
            refactor_factored_attn_matrices, donate=True,
        )  # fmt: skip
        self._put(*processed)

    def state_dict(self) -> dict[str, jax.Array]:
        """Every weight by TransformerLens's name, one array per layer; `params` holds them as they are."""
        return to_state_dict(self.params, self.cfg)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> None:
        """Replaces this model's weights by those of a state dict.

        Without `strict`, weights that are missing stay as they are, and what belongs to none is passed over.

        Raises:
            ValueError: one is missing, unknown or of the wrong shape; the model keeps those it has.
        """
        if not strict:
            own = self.state_dict()
            state_dict = own | {name: state_dict[name] for name in own if name in state_dict}
        self.load_and_process_state_dict(state_dict, False, False, False, False)

    def load_and_process_state_dict(
        self,
        state_dict: Mapping[str, Any],
        fold_ln: bool = True,
        center_writing_weights: bool = True,
        center_unembed: bool = True,
        fold_value_biases: bool = True,
        refactor_factored_attn_matrices: bool = False,
    ) -> None:
        """Replaces this model's weights by those of a state dict, processed.

        Raises:
            ValueError: one is missing, unknown or of the wrong shape; the model keeps those it has.
        """
        params, cfg = from_state_dict(state_dict, self.cfg)
        processed = process_weights(
            params, cfg, fold_ln, center_writing_weights, center_unembed, fold_value_biases,
            refactor_factored_attn_matrices, donate=True,
        )  # fmt: skip
        self.processing = ()
        self._put(*processed)

    def _put(self, params: Params, cfg: Config, report: tuple[Processing, ...]) -> None:
        """Takes over processed weights. A pass that finds its work done already is told of as it was when it did it."""
        before = {one.name: one for one in self.processing}
        now = {one.name: one for one in report if one.applied or one.name not in before}
        self.cfg, self.parts = cfg, assemble(cfg, params)
        self.processing = tuple((before | now).values())
