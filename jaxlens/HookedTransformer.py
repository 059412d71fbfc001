"""TransformerLens's module of this name: `jaxlens.transformer`."""

from jaxlens.transformer import HookedTransformer as HookedTransformer
from jaxlens.transformer import Output as Output
