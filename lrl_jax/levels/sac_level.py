"""Soft actor-critic as a level."""

from __future__ import annotations

import dataclasses

from lrl_jax.algorithms import SAC
from lrl_jax.levels.learner_level import LearnerLevel


@dataclasses.dataclass(frozen=True)
class SACLevel(LearnerLevel):
    """Decides in a bounded Box and learns with soft actor-critic (Haarnoja et al. 2018).

    With one level it is flat SAC; under a level that sends `level_input_space` its networks take
    the input beside the observation. See `LearnerLevel` for the other settings.

    Attributes:
        algorithm: settings of SAC.
    """

    algorithm: SAC = SAC()

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.algorithm, SAC):
            raise TypeError(f"algorithm must be a SAC, got {self.algorithm!r}.")
