"""Models of what is seen: the probabilistic ensemble, and running statistics."""

from lrl_jax.models.ensemble import MixturePrediction, ModelStats, ProbabilisticEnsemble
from lrl_jax.models.running_statistics import RunningMoments, RunningStatistics
from lrl_jax.models.running_std import RunningStd, init_running_std, update_running_std
from lrl_jax.models.standardizer import init_standardizer, masked_covariance, standardizer_loss

__all__ = [
    "MixturePrediction",
    "ModelStats",
    "ProbabilisticEnsemble",
    "RunningMoments",
    "RunningStatistics",
    "RunningStd",
    "init_running_std",
    "init_standardizer",
    "masked_covariance",
    "standardizer_loss",
    "update_running_std",
]
