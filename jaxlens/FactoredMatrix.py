"""TransformerLens's module of this name: `jaxlens.factored_matrix`."""

from jaxlens.factored_matrix import FactoredMatrix as FactoredMatrix
