"""A planner with a learned model over held actions."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from lrl_jax.levels import ActionRepeatLevel, PlannerLevel
from lrl_jax.models import ProbabilisticEnsemble
from lrl_jax.planners import ICEM
from lrl_jax.predictors import IndexEncoder
from lrl_jax.training.agents.parts import decayed, named, predictor_factory


@dataclasses.dataclass(frozen=True)
class PlannerAgent:
    """A planner with a learned model and reward over actions that are held.

    For goal-based environments: plans towards the desired goal, in the space of what else is
    observed.

    Attributes:
        state: name of the part of the observation that is planned in, such as "achieved_goal"; None
            for everything but the desired goal.
        action_repeat: environment steps that each planned action is held for.
        horizon: decisions that a plan looks ahead.
        num_samples, n_iterations, elite_ratio, sigma: of iCEM.
        n_models, n_modes, hidden: of the model; `hidden` also of the reward network.
        periods: of the Fourier features of the state, in its units.
        log_std_min: least log std of the model's modes, in units of the changes' std. A floor
            keeps easy regions from drowning the gradients of those near walls.
        mode: prediction of a mixture that plans follow.
        learning_rate, final_learning_rate: constant over the first 40% of the run, then
            log-linear to the last.
        batch_size, model_batch_size: of the reward network and of the model.
        update_interval, n_updates: updates for so many new rows.
        warm_up_steps: environment steps with random actions only.
        switch_planner_prob, switch_random_prob: probabilities, a decision, to go from random
            actions to planning and back. Random actions must go on: where the planner goes is
            where its model is wrong, and planned actions alone do not show what others do there.
        buffer_size: rows of the replay.
    """

    state: str | None = None
    action_repeat: int = 10
    horizon: int = 12
    num_samples: int = 64
    n_iterations: int = 4
    elite_ratio: float = 0.13
    sigma: float = 1.0
    n_models: int = 1
    n_modes: int = 4
    hidden: tuple[int, ...] = (128, 128)
    periods: tuple[float, ...] = (8.0, 4.0, 2.0, 1.0)
    log_std_min: float = -2.0
    mode: Literal["heaviest", "mean"] = "heaviest"
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-4
    batch_size: int = 256
    model_batch_size: int = 512
    update_interval: int = 64
    n_updates: int = 192
    warm_up_steps: int = 10_000
    switch_planner_prob: float = 0.3
    switch_random_prob: float = 0.3
    buffer_size: int = 100_000

    def __post_init__(self):
        for name in ("hidden", "periods"):
            object.__setattr__(self, name, tuple(getattr(self, name)))

    def levels(self, env: Any, total_steps: int) -> list[Any]:
        """The levels for `env`, for a run of `total_steps` environment steps."""
        del env
        names = ("n_models", "n_modes", "hidden", "periods", "log_std_min")
        factory = predictor_factory(
            IndexEncoder(state=self.state, context="desired_goal"),
            ProbabilisticEnsemble(
                **named(self, *names), learn_termination=False, running_std_momentum=0.01
            ),
            decayed(self.learning_rate, self.final_learning_rate, total_steps, 0.4),
            delta_standardizer=False,
        )
        search = named(self, "horizon", "num_samples", "n_iterations", "elite_ratio", "sigma")
        planner = PlannerLevel(
            factory,
            optimizer=ICEM(**search, return_mode="mean"),
            alternate_with_noise=True,
            **named(self, "mode", "buffer_size", "update_interval", "n_updates", "batch_size"),
            **named(self, "model_batch_size", "warm_up_steps"),
            **named(self, "switch_planner_prob", "switch_random_prob"),
        )
        return [planner, ActionRepeatLevel(self.action_repeat)]
