"""Resets and steps of n JAX environments, with older protocols and parameters per instance."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from lrl_jax.env_spec import params_axes

_TIMES, _LIMITS = ("time", "timestep"), ("max_steps_in_episode", "max_timesteps")


def reset_all(env: Any, keys: jax.Array, params: Any) -> tuple[jax.Array, Any]:
    """Observations and states [n, ...] of n environments that begin; consumes the keys [n]."""
    axes = params_axes(env, params, keys.shape[0])
    return jax.vmap(env.reset, in_axes=(0, axes))(keys, params)


def step_all(env: Any, keys: jax.Array, env_state: Any, action: jax.Array, params: Any) -> Any:
    """A step of n environments, which reset themselves; consumes the keys [n].

    Steps of five values, as in gymnax before 1.0, are completed. Where an episode of theirs ends
    at the time limit it counts as truncated.

    Args:
        env: JAX environment.
        keys: typed, [n].
        env_state, action: of n instances.
        params: shared by all, leaves with a further leading axis [n, ...] aside.

    Returns:
        (obs, env_state, rew, terminated, truncated, info), info with `final_observation`.

    Raises:
        ValueError: where the final observation of an episode cannot be had.
    """

    def step(key, state, action, params):
        return _step(env, key, state, action, params)

    axes = params_axes(env, params, keys.shape[0])
    return jax.vmap(step, in_axes=(0, 0, 0, axes))(keys, env_state, action, params)


def _step(env: Any, key: jax.Array, state: Any, action: jax.Array, params: Any) -> Any:
    """A step of one instance."""
    out = env.step(key, state, action, params)
    if len(out) not in (5, 6):
        raise ValueError(f"{_name(env)}.step returns {len(out)} values: six are expected.")
    info = out[-1]
    if "final_observation" in info:
        if len(out) == 6:
            return out
        obs, state_next, rew, done, info = out
    elif len(out) == 5 and _is_older(env):
        obs, state_next, rew, done, info = _older_step(env, key, state, action, params)
    else:
        raise ValueError(
            f"{_name(env)}.step returns {len(out)} values, and its info has no "
            f"'final_observation': the observation at the end of an episode cannot be told from "
            f"that after the reset. Return (obs, state, reward, terminated, truncated, info) as "
            f"gymnax 1.x does, with info['final_observation']."
        )
    ended = {name: jnp.asarray(info[name], bool) for name in _ENDS if name in info}
    done = jnp.asarray(done, bool)
    truncated = ended.get("truncated", done & ~ended.get("terminated", ~_at_limit(state, params)))
    terminated = ended.get("terminated", done & ~truncated)
    return obs, state_next, rew, terminated, truncated, info


def final_states(env: Any, keys: jax.Array, env_state: Any, action: jax.Array, params: Any) -> Any:
    """States [n, ...] in which the step of `step_all` ends, before any reset, for pictures.

    Args:
        env, keys, env_state, action, params: those of the step.

    Returns:
        The states; None where the environment's `step` is not that of gymnax.
    """
    if not _is_older(env):
        return None

    def step(key, state, action, params):
        return env.step_env(jax.random.split(key)[0], state, action, params)[1]

    axes = params_axes(env, params, keys.shape[0])
    return jax.vmap(step, in_axes=(0, 0, 0, axes))(keys, env_state, action, params)


_ENDS = ("terminated", "truncated")


def _is_older(env: Any) -> bool:
    """Whether `step` is that of a base class and does nothing but `step_env` and `reset_env`.

    Where a wrapper or subclass overrides `step`, they would leave out what it adds.
    """
    owner = next((cls for cls in type(env).__mro__ if "step" in vars(cls)), object)
    return {"step_env", "reset_env"} <= set(vars(owner))


def _older_step(env: Any, key: jax.Array, state: Any, action: jax.Array, params: Any) -> Any:
    """What `step` of gymnax before 1.0 does, and the final observation."""
    key, reset_key = jax.random.split(key)
    final, state_next, rew, done, info = env.step_env(key, state, action, params)
    start = env.reset_env(reset_key, params)
    obs, state_next = jax.tree.map(
        lambda new, old: jnp.where(done, new, old).astype(jnp.asarray(old).dtype),
        start,
        (final, state_next),
    )
    return obs, state_next, rew, done, {**info, "final_observation": final}


def _at_limit(state: Any, params: Any) -> jax.Array:
    """Whether the step from this state is the last that the time limit allows."""
    times = [getattr(state, name) for name in _TIMES if hasattr(state, name)]
    limits = [getattr(params, name) for name in _LIMITS if hasattr(params, name)]
    if not times or not limits:
        return jnp.zeros((), bool)
    return jnp.asarray(times[0] + 1 >= limits[0])


def _name(env: Any) -> str:
    return type(env).__name__


def success_of(info: Any, n: int) -> tuple[jax.Array, jax.Array]:
    """Success in the info of a step, and whether the info reports it, bool [n] each.

    It is `is_success` or `success`, one flag per instance, 0 or 1; dicts, several flags and other
    numbers do not count as a report.
    """
    for name in ("is_success", "success"):
        value = info.get(name)
        if getattr(value, "size", None) == n:
            value = jnp.asarray(value).reshape(n).astype(jnp.float32)
            return value == 1.0, (value == 0.0) | (value == 1.0)
    return jnp.zeros(n, bool), jnp.zeros(n, bool)
