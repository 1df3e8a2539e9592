"""Flat agents: one level that learns a policy."""

from __future__ import annotations

import dataclasses
from typing import Any

from lrl_jax.algorithms import DQN, SAC, TDMPC2, Hindsight
from lrl_jax.levels import DQNLevel, SACLevel, TDMPC2Level
from lrl_jax.predictors import RampSchedule
from lrl_jax.training.agents.parts import decayed, named

EXPERIENCE = ("batch_size", "update_interval", "n_updates", "warm_up_steps", "buffer_size")


@dataclasses.dataclass(frozen=True)
class SACAgent:
    """Soft actor-critic on the environment's own actions.

    Attributes:
        hidden: layers of actor and critics.
        gamma, tau: discount, and rate of the target critics.
        learning_rate: of actor and critics.
        temperature, temperature_learning_rate: weight of the entropy at the start, and how fast it
            is fitted.
        batch_size: rows of an update.
        update_interval, n_updates: updates for so many new rows.
        warm_up_steps: environment steps with random actions and without updates.
        buffer_size: rows of the replay.
        hindsight_ratio: fraction of rows that hindsight relabels; 0 for none. Needs a goal-based
            environment.
    """

    hidden: tuple[int, ...] = (128, 128)
    gamma: float = 0.99
    tau: float = 0.005
    learning_rate: float = 3e-4
    temperature: float = 0.1
    temperature_learning_rate: float = 1e-3
    batch_size: int = 256
    update_interval: int = 1
    n_updates: int = 1
    warm_up_steps: int = 1000
    buffer_size: int = 100_000
    hindsight_ratio: float = 0.0

    def __post_init__(self):
        object.__setattr__(self, "hidden", tuple(self.hidden))

    def levels(self, env: Any, total_steps: int) -> list[Any]:
        """The level for `env`."""
        del total_steps
        rates = ("learning_rate", "temperature", "temperature_learning_rate")
        algorithm = SAC(**named(self, "hidden", "gamma", "tau", *rates))
        return [SACLevel(algorithm, **named(self, *EXPERIENCE), hindsight=_hindsight(self, env))]


@dataclasses.dataclass(frozen=True)
class DQNAgent:
    """Deep Q-learning on the environment's own actions.

    Attributes:
        hidden: layers of the network.
        double, dueling: see `lrl_jax.algorithms.DQN`.
        gamma, tau, target_interval: discount, and how the target network follows.
        learning_rate, final_learning_rate: constant over the first 30% of the run, then log-linear
            to the last. The decay settles the policy, which else falls back now and then.
        epsilon_start, epsilon_end, epsilon_steps: of random actions, linear over so many steps.
        batch_size: rows of an update.
        update_interval, n_updates: updates for so many new rows.
        warm_up_steps: environment steps with random actions and without updates.
        buffer_size: rows of the replay.
    """

    hidden: tuple[int, ...] = (64, 64)
    double: bool = True
    dueling: bool = False
    gamma: float = 0.99
    tau: float = 0.01
    target_interval: int = 1
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-5
    epsilon_start: float = 1.0
    epsilon_end: float = 0.02
    epsilon_steps: int = 10_000
    batch_size: int = 256
    update_interval: int = 1
    n_updates: int = 1
    warm_up_steps: int = 1000
    buffer_size: int = 100_000

    def __post_init__(self):
        object.__setattr__(self, "hidden", tuple(self.hidden))

    def levels(self, env: Any, total_steps: int) -> list[Any]:
        """The level, for a run of `total_steps` environment steps."""
        del env
        algorithm = DQN(
            **named(self, "hidden", "double", "dueling", "gamma", "tau", "target_interval"),
            learning_rate=decayed(self.learning_rate, self.final_learning_rate, total_steps, 0.3),
            epsilon=RampSchedule(self.epsilon_start, self.epsilon_end, self.epsilon_steps),
        )
        return [DQNLevel(algorithm, **named(self, *EXPERIENCE))]


@dataclasses.dataclass(frozen=True)
class TDMPC2Agent:
    """TD-MPC2 on the environment's own actions.

    Attributes:
        small: the small networks and few candidates that a CPU can do; else the paper's.
        gamma: discount.
        learning_rate: of model and policy.
        batch_size: pieces of trajectories of an update.
        update_interval, n_updates: updates for so many new rows.
        warm_up_steps: environment steps with random actions and without updates.
        buffer_size: rows of the replay.
        hindsight_ratio: fraction of pieces that hindsight relabels; 0 for none. Needs a goal-based
            environment.
    """

    small: bool = True
    gamma: float = 0.99
    learning_rate: float = 3e-4
    batch_size: int = 128
    update_interval: int = 2
    n_updates: int = 1
    warm_up_steps: int = 1000
    buffer_size: int = 100_000
    hindsight_ratio: float = 0.0

    def levels(self, env: Any, total_steps: int) -> list[Any]:
        """The level for `env`."""
        del total_steps
        build, rate = TDMPC2.small if self.small else TDMPC2, self.learning_rate
        algorithm = build(gamma=self.gamma, learning_rate=rate, policy_learning_rate=rate)
        return [TDMPC2Level(algorithm, **named(self, *EXPERIENCE), hindsight=_hindsight(self, env))]


def _hindsight(agent: Any, env: Any) -> Hindsight | None:
    return Hindsight.of_env(env, agent.hindsight_ratio) if agent.hindsight_ratio else None
