"""Environments of Brax, MuJoCo Playground, XLand-MiniGrid and Craftax.

The libraries are extras, imported when one of their environments is made.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrl_jax.envs.adapted import AdaptedEnvironment, imported, with_own
from lrl_jax.spaces import Box, Discrete


class BraxEnvironment(AdaptedEnvironment):
    """A Brax environment. Its metrics are in the info; `success` of them is success.

    Args:
        env: Brax's name, such as "ant", or an environment of your own.
        max_steps: steps after which an episode is truncated.
        goal_indices: see `AdaptedEnvironment`.
        **settings: of Brax's constructor, such as backend="spring".

    Raises:
        ImportError: where Brax is not installed.
        ValueError: for a name that Brax does not know, or max_steps below 1.
        TypeError: for an environment whose observations are not a vector.
    """

    def __init__(self, env: Any, max_steps: int = 1000, goal_indices: Any = None, **settings: Any):
        name = f"brax/{env if isinstance(env, str) else type(env).__name__}"
        if isinstance(env, str):
            brax = imported("brax.envs", name, "brax")
            try:
                env = brax.get_environment(env, **settings)
            except KeyError as error:
                raise ValueError(f"Brax has no environment {name!r}.") from error
        self.env = env
        size = env.observation_size
        if not isinstance(size, int):
            raise TypeError(f"{name} has dict observations: only vectors are supported.")
        spaces = Box(-1, 1, (env.action_size,)), Box(-np.inf, np.inf, (size,))
        super().__init__(name, *spaces, max_steps, goal_indices=goal_indices)

    def begin(self, key: jax.Array, own: Any) -> Any:
        """See the base."""
        inner = self.env.reset(key)
        return inner.obs, inner

    def advance(self, key: jax.Array, inner: Any, action: jax.Array, own: Any) -> Any:
        """See the base; Brax keeps its own key."""
        inner = self.env.step(inner, jnp.clip(action, -1.0, 1.0))
        info = dict(inner.metrics)
        if "success" in info:
            info["is_success"] = info["success"] > 0.5
        return inner.obs, inner, inner.reward, inner.done > 0.5, info


class PlaygroundEnvironment(AdaptedEnvironment):
    """An environment of MuJoCo Playground, in MJX. Its metrics are in the info.

    Args:
        name: Playground's name, such as "CartpoleBalance".
        max_steps: steps after which an episode is truncated; the environment's own if None.
        goal_indices: see `AdaptedEnvironment`.
        obs_key: part of dict observations that is observed.
        **settings: overrides of the environment's config.

    Raises:
        ImportError: where Playground is not installed.
        ValueError: for a name that it does not know, or max_steps below 1.
        TypeError: for names that its config does not have, or observations that are not a vector.
    """

    def __init__(
        self,
        name: str,
        max_steps: int | None = None,
        goal_indices: Any = None,
        obs_key: str = "state",
        **settings: Any,
    ):
        env_id = f"playground/{name}"
        registry = imported("mujoco_playground", env_id, "playground").registry
        if name not in registry.ALL_ENVS:
            raise ValueError(f"Playground has no environment {name!r}.")
        config = registry.get_default_config(name)
        unknown = sorted(k for k in settings if k.split(".")[0] not in config)
        if unknown:
            raise TypeError(
                f"{env_id} got an unexpected keyword argument {unknown[0]!r}: its config has "
                f"{', '.join(sorted(config))}."
            )
        # JAX's own MJX, which runs on every platform and can be vmapped at no cost.
        overrides = {"impl": "jax"} if "impl" in config else {}
        self.env = registry.load(name, config_overrides={**overrides, **settings})
        self.obs_key = obs_key
        size = self.env.observation_size
        size = size[obs_key] if isinstance(size, dict) else size
        shape = (size,) if isinstance(size, int) else tuple(size)
        if len(shape) != 1:
            raise TypeError(f"{env_id} has observations of shape {shape}, no vector.")
        spaces = Box(-1, 1, (self.env.action_size,)), Box(-np.inf, np.inf, shape)
        super().__init__(
            env_id, *spaces, max_steps or config.episode_length, goal_indices=goal_indices
        )

    def _seen(self, inner: Any) -> jax.Array:
        return inner.obs[self.obs_key] if isinstance(inner.obs, dict) else inner.obs

    def begin(self, key: jax.Array, own: Any) -> Any:
        """See the base."""
        inner = self.env.reset(key)
        return self._seen(inner), inner

    def advance(self, key: jax.Array, inner: Any, action: jax.Array, own: Any) -> Any:
        """See the base; Playground keeps its own key."""
        inner = self.env.step(inner, jnp.clip(action, -1.0, 1.0))
        return self._seen(inner), inner, inner.reward, inner.done > 0.5, dict(inner.metrics)


class MiniGridEnvironment(AdaptedEnvironment):
    """An environment of XLand-MiniGrid: what the agent sees, [view, view, 2] of tiles and colours.

    Args:
        name: such as "MiniGrid-Empty-5x5".
        max_steps: steps after which an episode is truncated; the environment's own if None.
        **settings: fields of its parameters, such as `ruleset`.

    Raises:
        ImportError: where the library is not installed.
        ValueError: for a name that it does not know, or max_steps below 1.
        TypeError: for names that its parameters do not have, or observations other than the view.
    """

    def __init__(self, name: str, max_steps: int | None = None, **settings: Any):
        env_id = f"xminigrid/{name}"
        xminigrid = imported("xminigrid", env_id, "xminigrid")
        constants = imported("xminigrid.core.constants", env_id, "xminigrid")
        if name not in xminigrid.registered_environments():
            raise ValueError(f"XLand-MiniGrid has no environment {name!r}.")
        self.env, own = xminigrid.make(name)
        settings |= {} if max_steps is None else {"max_steps": int(max_steps)}
        own = with_own(env_id, own, settings)
        shape = self.env.observation_shape(own)
        if not isinstance(shape, tuple):
            raise TypeError(f"{env_id} has dict observations: only its view is supported.")
        most = max(constants.NUM_TILES, constants.NUM_COLORS) - 1
        spaces = Discrete(self.env.num_actions(own)), Box(0, most, shape, "uint8")
        super().__init__(env_id, *spaces, own.max_steps, own)

    def begin(self, key: jax.Array, own: Any) -> Any:
        """See the base."""
        inner = self.env.reset(own, key)
        return inner.observation, inner

    def advance(self, key: jax.Array, inner: Any, action: jax.Array, own: Any) -> Any:
        """See the base; the library keeps its own key. Reaching the goal is success."""
        inner = self.env.step(own, inner, action)
        terminated = inner.last() & (inner.discount == 0.0)
        return inner.observation, inner, inner.reward, terminated, {"is_success": terminated}


class CraftaxEnvironment(AdaptedEnvironment):
    """Craftax or Craftax-Classic. Its achievements are in the info.

    Args:
        name: such as "Craftax-Classic-Symbolic-v1".
        max_steps: steps after which an episode is truncated; the environment's own if None.
        **settings: fields of its parameters, such as `zombie_health`.

    Raises:
        ImportError: where Craftax is not installed.
        ValueError: for a name that it does not know, or max_steps below 1.
        TypeError: for names that its parameters do not have.
    """

    def __init__(self, name: str, max_steps: int | None = None, **settings: Any):
        env_id = f"craftax/{name}"
        made = imported("craftax.craftax_env", env_id, "craftax")
        self.env = made.make_craftax_env_from_name(name, auto_reset=False)
        settings |= {} if max_steps is None else {"max_timesteps": int(max_steps)}
        own = with_own(env_id, self.env.default_params, settings)
        spaces = self.env.action_space(own), self.env.observation_space(own)
        super().__init__(env_id, *spaces, int(own.max_timesteps), own)

    def begin(self, key: jax.Array, own: Any) -> Any:
        """See the base."""
        return self.env.reset_env(key, own)

    def advance(self, key: jax.Array, inner: Any, action: jax.Array, own: Any) -> Any:
        """See the base; Craftax counts its time limit as an end."""
        obs, inner, rew, done, info = self.env.step_env(key, inner, action, own)
        return obs, inner, rew, done & (inner.timestep < own.max_timesteps), info


LIBRARIES = {
    "brax": BraxEnvironment,
    "playground": PlaygroundEnvironment,
    "xminigrid": MiniGridEnvironment,
    "craftax": CraftaxEnvironment,
}
"""Prefixes of the ids of adapted environments, before a slash; also the names of extras."""
