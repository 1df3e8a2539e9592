"""What agents are built from: settings by name, schedules, predictors of goals."""

from __future__ import annotations

from typing import Any

from lrl_jax.models import ProbabilisticEnsemble
from lrl_jax.nets import RewardFunction
from lrl_jax.predictors import (
    IndexEncoder,
    PiecewiseLogLinearSchedule,
    PredictorFactory,
    RewardPredictor,
)


def named(agent: Any, *names: str) -> dict[str, Any]:
    """Settings of an agent by name."""
    return {name: getattr(agent, name) for name in names}


def decayed(first: float, last: float, total_steps: int, share: float = 0.5) -> Any:
    """A rate that is constant over a share of the run, then log-linear to the last."""
    steps = (0.0, share * total_steps, float(total_steps))
    return PiecewiseLogLinearSchedule(steps, (first, first, last))


def predictor_factory(
    encoder: IndexEncoder, model: ProbabilisticEnsemble, rate: Any, **predictor: Any
) -> PredictorFactory:
    """A learned model and reward of states that are parts of the observation.

    Args:
        encoder: what of the observation is the state, and what the context.
        model: the ensemble; its hidden layers and periods are also the reward's.
        rate: learning rate of both.
        predictor: further settings of the RewardPredictor.
    """
    return PredictorFactory(
        partial_model=model,
        partial_val_func=None,
        partial_rew_func=RewardFunction(hidden=model.hidden, periods=model.periods),
        partial_encoder=encoder,
        partial_predictor=RewardPredictor(
            learn_encoder=False, encoder_warm_up=0, model_lr=rate, reward_lr=rate, **predictor
        ),
    )
