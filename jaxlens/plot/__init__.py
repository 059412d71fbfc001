"""Pictures of model internals for a browser, a notebook, a paper or a terminal.

Every function takes arrays and returns a `Picture`. Some functions also take an `ActivationCache`. Functions that exist
in CircuitsVis have the same module and argument names here: `plot.attention.attention_patterns`,
`plot.tokens.colored_tokens`, `plot.logits.token_log_probs`.
"""

from jaxlens.plot import attention, logits, tokens
from jaxlens.plot.attention import attention_heads, attention_pattern, attention_patterns
from jaxlens.plot.charts import bars, lines
from jaxlens.plot.heatmaps import heatmap
from jaxlens.plot.logits import logit_lens, token_log_probs
from jaxlens.plot.picture import Picture, together
from jaxlens.plot.tokens import colored_tokens

__all__ = [
    "Picture", "attention", "attention_heads", "attention_pattern", "attention_patterns", "bars", "colored_tokens",
    "heatmap", "lines", "logit_lens", "logits", "together", "token_log_probs", "tokens",
]  # fmt: skip
