"""Harvests: the activations of the tokens of a data set, on disk."""

from jaxlens.batch.harvests.read import Harvest, HiddenStates
from jaxlens.batch.harvests.shard_file import HarvestError
from jaxlens.batch.harvests.write import harvest

__all__ = ["Harvest", "HarvestError", "HiddenStates", "harvest"]
