from jaxlens.model.transformer import *
