from jaxlens.checkpoints import *
