"""Methods of HookedTransformer: weight processing and state dicts, under TransformerLens's names."""

from collections.abc import Mapping
from typing import Any

import jax

from jaxlens.config import Config
from jaxlens.model.state_dict import from_state_dict, to_state_dict
from jaxlens.nn.parameters import Params
from jaxlens.nn.transformer import Modules
from jaxlens.weights import Processing, process_weights


class WeightMethods:
    """Mixin of HookedTransformer: the passes of `jaxlens.weights`. `model.processing` reports which were applied."""

    cfg: Config
    modules: Modules
    processing: tuple[Processing, ...]

    def processed(self, **passes: bool) -> Any:
        """A new model with processed weights. Unchanged weights are shared with this one.

        The arguments are those of `jaxlens.weights.process_weights`.

        Example:
            >>> import jaxlens
            >>> model = jaxlens.HookedTransformer(jaxlens.Config(
            ...     n_layers=2, d_model=8, n_heads=2, d_head=4, d_vocab=10, n_ctx=8))
            >>> folded = model.processed(center_unembed=False)
            >>> folded.cfg.normalization_type, model.cfg.normalization_type
            ('LNPre', 'LN')
        """
        twin = self._copy(self.modules)
        twin._set_processed(*process_weights(self.params, self.cfg, **passes))
        return twin

    def process_weights_(
        self, fold_ln: bool = True, center_writing_weights: bool = True, center_unembed: bool = True,
        refactor_factored_attn_matrices: bool = False, *, fold_value_biases: bool = True,
    ) -> None:  # fmt: skip
        """Processes this model's weights in place. Each weight is released as soon as it is processed.

        An interruption leaves the model without weights. `processed` keeps this model and takes twice the memory.
        """
        params = self.params
        del self.modules
        processed = process_weights(
            params, self.cfg, fold_ln, center_writing_weights, center_unembed, fold_value_biases,
            refactor_factored_attn_matrices, consume=True,
        )  # fmt: skip
        self._set_processed(*processed)

    def state_dict(self) -> dict[str, jax.Array]:
        """Every weight by its TransformerLens name, an array per layer. (`params` holds them stacked.)"""
        return to_state_dict(self.params, self.cfg)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> None:
        """Replaces this model's weights with those of a state dict.

        Without `strict`, missing weights keep their values, and unknown entries are ignored.

        Raises:
            ValueError: A weight is missing, unknown or of the wrong shape. The model is unchanged.
        """
        if not strict:
            own = self.state_dict()
            state_dict = own | {name: state_dict[name] for name in own if name in state_dict}
        self.load_and_process_state_dict(state_dict, False, False, False, False)

    def load_and_process_state_dict(
        self, state_dict: Mapping[str, Any], fold_ln: bool = True, center_writing_weights: bool = True,
        center_unembed: bool = True, fold_value_biases: bool = True, refactor_factored_attn_matrices: bool = False,
    ) -> None:  # fmt: skip
        """Replaces this model's weights with the processed weights of a state dict. Errors: see `load_state_dict`."""
        params, cfg = from_state_dict(state_dict, self.cfg)
        processed = process_weights(
            params, cfg, fold_ln, center_writing_weights, center_unembed, fold_value_biases,
            refactor_factored_attn_matrices, consume=True,
        )  # fmt: skip
        self.processing = ()
        self._set_processed(*processed)

    def _set_processed(self, params: Params, cfg: Config, report: tuple[Processing, ...]) -> None:
        """Replaces weights and config, and updates `processing`: a pass applied earlier keeps its report entry."""
        before = {entry.name: entry for entry in self.processing}
        now = {entry.name: entry for entry in report if entry.applied or entry.name not in before}
        self.processing = tuple((before | now).values())
        self.set_params(params, cfg)
