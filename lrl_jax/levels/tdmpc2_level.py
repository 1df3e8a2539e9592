"""TD-MPC2 as a level."""

from __future__ import annotations

import dataclasses

from lrl_jax.algorithms import TDMPC2
from lrl_jax.levels.learner_level import LearnerLevel


@dataclasses.dataclass(frozen=True)
class TDMPC2Level(LearnerLevel):
    """Decides in a bounded Box by planning in a learned latent space (Hansen et al. 2024).

    Learns from pieces of trajectories of the horizon's length, which may cross the end of a stretch
    of control but never that of an episode. The kept plan starts anew with every episode and every
    stretch of control. See `LearnerLevel` for the other settings.

    Attributes:
        algorithm: settings of TD-MPC2; `TDMPC2.small()` is meant for CPUs.
    """

    algorithm: TDMPC2 = TDMPC2()

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.algorithm, TDMPC2):
            raise TypeError(f"algorithm must be a TDMPC2, got {self.algorithm!r}.")
