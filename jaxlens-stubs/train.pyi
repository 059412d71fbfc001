from jaxlens.training.train import *
