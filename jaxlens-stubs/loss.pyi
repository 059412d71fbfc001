from jaxlens.model.loss import *
