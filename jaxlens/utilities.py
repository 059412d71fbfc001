"""TransformerLens's newer name of `jaxlens.utils`."""

from jaxlens.utils import *  # noqa: F403
from jaxlens.utils import __getattr__ as __getattr__  # says what to use instead of what is not here
