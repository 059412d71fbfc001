"""TransformerLens's module of this name: `jaxlens.analysis.svd`."""

from jaxlens.analysis.svd import SVDInterpreter as SVDInterpreter
