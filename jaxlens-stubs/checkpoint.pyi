from jaxlens.checkpoints.converter import *
