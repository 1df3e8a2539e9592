"""Predictor that does not learn."""

from __future__ import annotations

import dataclasses

from lrl_jax.predictors.base import Predictor
from lrl_jax.predictors.types import PredictorState


@dataclasses.dataclass(frozen=True)
class StaticPredictor(Predictor):
    """A predictor without training: for parts that are given, or were learned before.

    It takes states of a `RewardPredictor` with the same parts.
    """

    def loss(self, ps, batch=None, model_batch=None, *, params=None):
        """Nothing to lose: 0.0 and {}."""
        return 0.0, {}

    def learn(
        self,
        ps: PredictorState,
        buffer=None,
        n_steps: int = 1,
        batch_size: int = 1,
        model_batch_size: int = 1,
        n_total_env_steps=0,
        *,
        model_mask_fn=None,
    ) -> tuple[PredictorState, tuple[float, dict]]:
        """Return the state unchanged, 0.0 and {}."""
        return ps, (0.0, {})
