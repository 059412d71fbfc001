from jaxlens.training.evals import *
