from jaxlens.weights.factored_matrix import *
