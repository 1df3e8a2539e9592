"""TD-MPC2 as a level."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from lrl_jax.algorithms import TDMPC2
from lrl_jax.levels.learner_level import LearnerLevel
from lrl_jax.planners.common import check_int

# Rows of candidates that fill the matrix products of two cores.
ROWS_PER_CHUNK = 1024


@dataclasses.dataclass(frozen=True)
class TDMPC2Level(LearnerLevel):
    """Decides in a bounded Box by planning in a learned latent space (Hansen et al. 2024).

    Learns from pieces of trajectories of the horizon's length, which may cross the end of a stretch
    of control but never that of an episode. The kept plan starts anew with every episode and every
    stretch of control. See `LearnerLevel` for the other settings.

    Attributes:
        algorithm: settings of TD-MPC2; `TDMPC2.small()` is meant for CPUs.
        chunk_size: instances that plan at a time; None becomes the least number that has 1,024
            candidates together.
    """

    algorithm: TDMPC2 = TDMPC2()
    chunk_size: int | None = None

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.algorithm, TDMPC2):
            raise TypeError(f"algorithm must be a TDMPC2, got {self.algorithm!r}.")
        size = self.chunk_size
        if size is None:
            size = math.ceil(ROWS_PER_CHUNK / self.algorithm.planner.num_samples)
        object.__setattr__(self, "chunk_size", check_int("chunk_size", size, 1))

    def prepare(
        self, learner, memory, obs, level_input, key, *, parent, training
    ) -> tuple[jax.Array, Any, jax.Array]:
        """Draw a random action during the warm up; `act` is needed only after it.

        Returns:
            The action, the memory, and whether the instance plans, bool [].
        """
        del obs, level_input, parent
        space = learner.action_space
        if not training or not self.warm_up_steps:
            return jnp.zeros(space.shape, space.dtype), memory, jnp.ones((), bool)
        return space.sample(key), memory, learner.is_warm

    def act(self, learner, memory, obs, level_input, key, *, parent, training):
        del parent
        x, c = self.features(learner, obs, level_input)
        return self.algorithm.act(learner.state, memory, x, c, key, training)
