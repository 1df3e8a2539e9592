"""What agents are built from: settings by name, schedules, predictors of goals."""

from __future__ import annotations

from typing import Any

from lrl_jax import envs
from lrl_jax.models import ProbabilisticEnsemble
from lrl_jax.nets import RewardFunction
from lrl_jax.predictors import (
    IndexEncoder,
    Partial,
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


def goal_encoder(env: Any) -> dict[str, Any]:
    """Arguments of an encoder to the achieved goal, in the context of the desired one."""
    indices = envs.goal_indices(env)
    return {"state": tuple(indices["achieved_goal"]), "context": tuple(indices["desired_goal"])}


def predictor_factory(
    encoder: dict[str, Any], model: dict[str, Any], rate: Any, **predictor: Any
) -> PredictorFactory:
    """A learned model and reward of states that are parts of the observation.

    Args:
        encoder: arguments of the IndexEncoder.
        model: settings of the ensemble; hidden layers and periods are also the reward's.
        rate: learning rate of both.
        predictor: further settings of the RewardPredictor.
    """
    predictor |= {"learn_encoder": False, "encoder_warm_up": 0, "model_lr": rate, "reward_lr": rate}
    reward = {name: model[name] for name in ("hidden", "periods")}
    model = {"learn_termination": False, **model}
    return PredictorFactory(
        partial_model=Partial(ProbabilisticEnsemble, keywords=model),
        partial_val_func=None,
        partial_rew_func=Partial(RewardFunction, keywords=reward),
        partial_encoder=Partial(IndexEncoder, keywords=encoder),
        partial_predictor=Partial(RewardPredictor, keywords=predictor),
    )
