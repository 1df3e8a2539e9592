"""Deep Q-learning as a level."""

from __future__ import annotations

import dataclasses

from lrl_jax.algorithms import DQN
from lrl_jax.levels.learner_level import LearnerLevel


@dataclasses.dataclass(frozen=True)
class DQNLevel(LearnerLevel):
    """Decides in a Discrete space and learns with deep Q-learning (Mnih et al. 2015).

    With one level it is flat DQN; under a level that sends `level_input_space` its network takes
    the input beside the observation, and it may itself choose among the inputs of a level below.
    See `LearnerLevel` for the other settings.

    Attributes:
        algorithm: settings of DQN.
    """

    algorithm: DQN = DQN()

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.algorithm, DQN):
            raise TypeError(f"algorithm must be a DQN, got {self.algorithm!r}.")
