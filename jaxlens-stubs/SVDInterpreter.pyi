from jaxlens.analysis.svd import *
