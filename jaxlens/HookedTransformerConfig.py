"""TransformerLens's module of this name: `jaxlens.compat.config`."""

from jaxlens.compat.config import HookedTransformerConfig as HookedTransformerConfig
