"""What a user brings: a level, and an environment that is registered nowhere."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from gymnax.environments import environment, spaces

from lrl_jax.levels import Decision, Level
from lrl_jax.spaces import Discrete
from lrl_jax.training import TrainConfig


@dataclasses.dataclass(frozen=True)
class Bandit(Level):
    """Picks the direction that paid best on average; in training, at random now and then."""

    epsilon: float = 0.3
    buffer_size: int = 512
    update_interval: int = 16
    n_updates: int = 1

    def init_learner(self, key, spec):
        settings = {"epsilon": jnp.float32(self.epsilon)}
        return {"value": jnp.zeros(spec.action_space.n), "settings": settings}

    def act(self, learner, memory, obs, ctx):
        coin, arm = jax.random.split(ctx.key)
        explore = ctx.explores & (jax.random.uniform(coin) < learner["settings"]["epsilon"])
        some = jax.random.randint(arm, (), 0, len(learner["value"]))
        return Decision(jnp.where(explore, some, jnp.argmax(learner["value"])), memory)

    def learn(self, learner, replay, ctx):
        rows = replay.sample(ctx.key, 64)
        chosen = jax.nn.one_hot(rows.act, len(learner["value"]))
        mean = (chosen * rows.rew[:, None]).sum(0) / jnp.maximum(chosen.sum(0), 1)
        return {**learner, "value": mean}, {"best": mean.max()}


@dataclasses.dataclass(frozen=True)
class Push(Level):
    """Pushes towards one of four sides for some steps."""

    control_interval: int = 5

    def input_space(self):
        return Discrete(4)

    def act(self, learner, memory, obs, ctx):
        sides = jnp.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
        return Decision(sides[ctx.level_input], memory)


@struct.dataclass
class State(environment.EnvState):
    """Of one point."""

    time: Any
    position: Any
    velocity: Any


@struct.dataclass
class Params(environment.EnvParams):
    """How a point moves."""

    max_steps_in_episode: int = 20
    drag: float = 0.1


class Point(environment.Environment[State, Params]):
    """A point with inertia that is to go right: success beyond 0.5."""

    @property
    def default_params(self):
        return Params()

    def step_env(self, key, state, action, params):
        velocity = (1 - params.drag) * state.velocity + 0.05 * jnp.clip(action, -1, 1)
        position = state.position + 0.1 * velocity
        state = state.replace(time=state.time + 1, position=position, velocity=velocity)
        won = position[0] > 0.25
        return self.get_obs(state), state, position[0], jnp.zeros((), bool), {"success": won}

    def reset_env(self, key, params):
        start = jax.random.uniform(key, (2,), minval=-0.1, maxval=0.1)
        state = State(time=jnp.zeros((), jnp.int32), position=start, velocity=jnp.zeros(2))
        return self.get_obs(state), state

    def get_obs(self, state, params=None, key=None):
        return jnp.concatenate([state.position, state.velocity])

    def action_space(self, params=None):
        return spaces.Box(-1.0, 1.0, (2,), jnp.float32)

    def observation_space(self, params=None):
        return spaces.Box(-10.0, 10.0, (4,), jnp.float32)


def config(total_steps: int = 4000) -> TrainConfig:
    """A bandit over pushes."""
    return TrainConfig(
        (Bandit(), Push()),
        Point(),
        env_params={"drag": 0.05},
        n_env_instances=4,
        round_ticks=5,
        total_steps=total_steps,
        test_interval=400,
        test_episodes=4,
        final_test_episodes=4,
    )
