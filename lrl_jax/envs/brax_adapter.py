"""Brax environments as gymnax ones. Brax is an extra, imported when one is made."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from gymnax.environments import environment, spaces


@struct.dataclass
class BraxEnvState(environment.EnvState):
    """State: brax's own (`inner`), and the steps since the reset, int32 `[]`."""

    inner: Any
    time: jax.Array  # pyright: ignore[reportIncompatibleVariableOverride]  # gymnax: int


class BraxEnvironment(environment.Environment[BraxEnvState, environment.EnvParams]):
    """A brax environment with gymnax's `reset` and six-value `step`.

    Brax's `done` is termination; truncation is counted here, as brax does it in a wrapper that
    does not tell the two apart.

    Args:
        name: brax's name, such as "ant".
        max_steps: steps after which an episode is truncated.
        **settings: of the brax environment, such as backend="spring".

    Raises:
        ImportError: where brax is not installed.
        ValueError: for a name that brax does not know, or max_steps below 1.
        TypeError: for an environment whose observations are not a vector.
    """

    def __init__(self, name: str, max_steps: int = 1000, **settings: Any):
        try:
            from brax import envs as brax_envs
        except ImportError as error:
            raise ImportError(
                f"brax/{name} needs brax, which cannot be imported ({error}): "
                f"pip install 'lrl_jax[brax]'."
            ) from error
        if max_steps < 1:
            raise ValueError(f"max_steps is {max_steps}: an episode has at least 1 step.")
        try:
            self.brax_env = brax_envs.get_environment(name, **settings)
        except KeyError as error:
            raise ValueError(f"brax has no environment {name!r}.") from error
        self._name, self.max_steps = f"brax/{name}", int(max_steps)
        if not isinstance(self.brax_env.observation_size, int):
            raise TypeError(f"{self._name} has dict observations: only vectors are supported.")

    @property
    def name(self) -> str:
        """Id of the environment."""
        return self._name

    @property
    def num_actions(self) -> int:
        """Size of an action."""
        return self.brax_env.action_size

    @property
    def default_params(self) -> environment.EnvParams:
        """Parameters with the `max_steps` of the constructor."""
        return environment.EnvParams(max_steps_in_episode=self.max_steps)

    def action_space(self, params: Any = None) -> spaces.Box:
        """[-1, 1]^A."""
        return spaces.Box(-1.0, 1.0, (self.brax_env.action_size,), jnp.float32)

    def observation_space(self, params: Any = None) -> spaces.Box:
        """Unbounded vectors `[O]`."""
        return spaces.Box(-jnp.inf, jnp.inf, (self.brax_env.observation_size,), jnp.float32)

    def reset_env(self, key: jax.Array, params: Any) -> tuple[jax.Array, BraxEnvState]:
        """Reset; consumes `key`."""
        inner = self.brax_env.reset(key)
        return inner.obs, BraxEnvState(inner=inner, time=jnp.zeros((), jnp.int32))

    def step_env(self, key: jax.Array, state: BraxEnvState, action: float | jax.Array, params: Any):
        """Step without a reset; `key` is not used, brax keeps its own."""
        inner = self.brax_env.step(state.inner, jnp.clip(action, -1.0, 1.0))
        metrics = inner.metrics
        info = {"is_success": metrics["success"] > 0.5} if "success" in metrics else {}
        state = BraxEnvState(inner=inner, time=state.time + 1)
        return inner.obs, state, inner.reward, inner.done > 0.5, info
