"""Learning algorithms as pure functions, without a place in a hierarchy."""

from lrl_jax.algorithms.base import Batch, Features
from lrl_jax.algorithms.hindsight import Hindsight
from lrl_jax.algorithms.sac import SAC, SACState

__all__ = ["SAC", "Batch", "Features", "Hindsight", "SACState"]
