"""Runs over data sets: any reduction of logits and activations, scores, means, top activations, and harvests."""

from jaxlens.batch.scores import Scores, score, token_scores
from jaxlens.batch.statistics import Means, TopActivations, mean_activations, top_activations
from jaxlens.batch.stream import run

__all__ = ["Means", "Scores", "TopActivations", "mean_activations", "run", "score", "token_scores", "top_activations"]
