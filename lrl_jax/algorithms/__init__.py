"""Learning algorithms as pure functions, without a place in a hierarchy."""

from lrl_jax.algorithms.base import Batch, Features
from lrl_jax.algorithms.dqn import DQN, DQNState
from lrl_jax.algorithms.hindsight import Hindsight
from lrl_jax.algorithms.sac import SAC, SACState

__all__ = ["DQN", "SAC", "Batch", "DQNState", "Features", "Hindsight", "SACState"]
