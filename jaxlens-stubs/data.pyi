from jaxlens.training.data import *
