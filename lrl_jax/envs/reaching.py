"""Base of environments in which a body in the plane has to reach a goal."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from gymnax.environments import environment, spaces

from lrl_jax.settings import check_flag, check_int

GOAL_RADIUS = 0.3


class Reaching(environment.Environment[Any, Any]):
    """Abstract: two controls in [-1, 1], a position and a goal.

    States have `position`, `goal` and `time`. Instances are hashable and equal if their settings
    are, so jitted functions that take one as a static argument do not trace again for another with
    the same settings.

    Args:
        settings: of the subclass, hashable and without strings: hashes are the same in every
            process.
        scale: distance that a dense reward of -1 stands for.
        dense_reward: whether the reward is the negative distance, or sparse: 1 within 0.3 of the
            goal and else 0.
        max_steps: steps after which an episode is truncated.
        terminate_at_goal: whether an episode terminates where it succeeds.

    Raises:
        ValueError, TypeError: for settings out of range or of another kind.
    """

    def __init__(
        self,
        settings: tuple[Any, ...],
        scale: float,
        dense_reward: bool,
        max_steps: int,
        terminate_at_goal: bool,
    ):
        super().__init__()
        self.dense_reward = check_flag("dense_reward", dense_reward)
        self.max_steps = check_int("max_steps", max_steps, 1)
        self.terminate_at_goal = check_flag("terminate_at_goal", terminate_at_goal)
        self._scale = scale
        self._settings = (*settings, self.dense_reward, self.max_steps, self.terminate_at_goal)
        self._hash = hash(self._settings)

    def __eq__(self, other: object) -> bool:
        return (
            type(other) is type(self)
            and other._settings == self._settings
            and other.transition_gradients_enabled == self.transition_gradients_enabled
        )

    def __hash__(self) -> int:
        return self._hash

    @property
    def num_actions(self) -> int:
        """Size of an action."""
        return 2

    @property
    def default_params(self) -> Any:
        """Parameters with the `max_steps` of the constructor."""
        return environment.EnvParams(max_steps_in_episode=self.max_steps)

    def action_space(self, params: Any = None) -> spaces.Box:
        """Controls, [-1, 1]^2."""
        del params
        return spaces.Box(-1.0, 1.0, (2,), jnp.float32)

    @functools.partial(jax.jit, static_argnames=("self",))
    def step(
        self, key: jax.Array, state: Any, action: Any, params: Any = None
    ) -> tuple[jax.Array, Any, jax.Array, jax.Array, jax.Array, dict[str, jax.Array]]:
        """Step, and reset where the episode ended.

        The same as gymnax's, but `key` is not split: the move draws nothing, so all of it is the
        reset's, which saves a tenth to almost half of a step's time. A subclass whose `step_env`
        draws must split it.

        Args:
            key: consumed by the reset.
            state: of one instance.
            action: `[2]`.
            params: None stands for the default ones.

        Returns:
            obs and state (both of the new episode where one ended), reward, terminated, truncated,
            and info with is_success, terminated, truncated and final_observation, the observation
            before any reset.
        """
        params = self.default_params if params is None else params
        final_obs, moved, reward, terminated, info = self.step_env(key, state, action, params)
        truncated = self.is_truncated(moved, params)
        done = terminated | truncated
        fresh_obs, fresh = self.reset_env(key, params)
        state = jax.tree.map(lambda new, old: jnp.where(done, new, old), fresh, moved)
        obs = jnp.where(done, fresh_obs, final_obs)
        info |= {"terminated": terminated, "truncated": truncated, "final_observation": final_obs}
        return obs, state, reward, terminated, truncated, info

    def outcome(self, state: Any) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        """Reward float32 `[]`, terminated bool `[]`, and info with is_success, of a new state."""
        distance = _distance(state.position, state.goal)
        success = distance < GOAL_RADIUS
        terminated = success if self.terminate_at_goal else jnp.zeros((), bool)
        return self._reward(distance), terminated, {"is_success": success}

    def compute_reward(
        self, achieved_goal: jax.Array, desired_goal: jax.Array, info: Any = None
    ) -> jax.Array:
        """Reward [...] of achieving [..., 2] where [..., 2] is desired; `info` is not used."""
        del info
        return self._reward(_distance(achieved_goal, desired_goal))

    def compute_terminated(
        self, achieved_goal: jax.Array, desired_goal: jax.Array, info: Any = None
    ) -> jax.Array:
        """Whether achieving [..., 2] where [..., 2] is desired terminates; `info` is not used."""
        del info
        return (_distance(achieved_goal, desired_goal) < GOAL_RADIUS) & self.terminate_at_goal

    def is_terminated(self, state: Any, params: Any) -> jax.Array:
        """Whether the body is at a goal that terminates."""
        del params
        return self.compute_terminated(state.position, state.goal)

    def get_obs(self, state: Any, params: Any = None, key: Any = None) -> jax.Array:
        """Observation of a state."""
        return self.observe(key, state, None, params)

    def _reward(self, distance: jax.Array) -> jax.Array:
        if self.dense_reward:
            return -distance / self._scale
        return (distance < GOAL_RADIUS).astype(jnp.float32)


def _distance(a: jax.Array, b: jax.Array) -> jax.Array:
    # Components apart: arrays of [n] vectorise, arrays of [n, 2] hardly do.
    dx, dy = a[..., 0] - b[..., 0], a[..., 1] - b[..., 1]
    return jnp.sqrt(dx * dx + dy * dy)
