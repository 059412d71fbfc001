"""Runs over data sets: any reduction of logits and activations, scores, means, top activations, and harvests."""

from jaxlens.batch.harvests.read import Harvest, HiddenStates
from jaxlens.batch.harvests.shard_file import HarvestError
from jaxlens.batch.harvests.write import harvest
from jaxlens.batch.scores import Scores, score, token_scores
from jaxlens.batch.statistics import Means, TopActivations, mean_activations, top_activations
from jaxlens.batch.stream import run

__all__ = [
    "Harvest", "HarvestError", "HiddenStates", "Means", "Scores", "TopActivations", "harvest", "mean_activations",
    "run", "score", "token_scores", "top_activations",
]  # fmt: skip
