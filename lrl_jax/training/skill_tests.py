"""What skills do in a maze: where they end, how well that is predicted, how distinct ends are."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrl_jax import struct
from lrl_jax.collectors.tick import begun, full_tick, names_env_once, own_env
from lrl_jax.envs import Maze2D
from lrl_jax.hierarchies import Hierarchy, HierarchyState
from lrl_jax.levels import SkillLevel
from lrl_jax.spaces import Discrete


class SkillPaths(struct.Node):
    """N skills, each followed from its own start.

    Attributes:
        positions: [K + 1, N, 2].
        skills: [N, *shape of a skill].
        predicted: ends that the model of the level above predicts from the starts, [N, 2]: the
            mean of its mixture or the heaviest mode, as the planner has it.
    """

    positions: jax.Array
    skills: jax.Array
    predicted: jax.Array


def skill_place(hierarchy: Hierarchy) -> int:
    """Index of the level that learns skills.

    Raises:
        TypeError: if there is none.
    """
    for i, level in enumerate(hierarchy.levels):
        if isinstance(level, SkillLevel):
            return i
    raise TypeError("none of the hierarchy's levels is a SPlaTESLevel or a DADSLevel.")


@names_env_once
def follow_skills(
    hierarchy: Hierarchy,
    state: HierarchyState,
    starts: Any,
    skills: Any,
    key: jax.Array,
    n_steps: int | None = None,
    push: tuple[int, Any] | None = None,
    *,
    env: Maze2D | None = None,
    env_params: Any = None,
) -> SkillPaths:
    """Follow skills from given starts in eval mode; consumes `key`.

    Args:
        hierarchy: with a skill level, which acts on the environment, below a planner.
        state: of any number of instances; its learners are used.
        starts: positions, [N, 2].
        skills: [N, *shape of a skill].
        n_steps: environment steps that a skill is held for; the skill level's control interval
            if None. Predictions iterate the model where that is longer than the interval.
        push: (t, by): `by` [N, 2] is added to the positions after step t.
        key: typed key.
        env, env_params: a maze; the hierarchy's if None.

    Returns:
        SkillPaths with K = `n_steps`.
    """
    env, params = own_env(hierarchy, env, env_params)
    if not isinstance(env, Maze2D):
        raise TypeError(f"skills can be started anywhere only in a Maze2D, not in {env!r}.")
    place = skill_place(hierarchy)
    if place != hierarchy.n_levels - 1 or place == 0:
        raise ValueError("the skill level must be the last, below a level with a model.")
    interval = hierarchy.levels[place].control_interval
    n_steps = interval if n_steps is None else n_steps
    if n_steps % interval:
        raise ValueError(f"n_steps={n_steps} is not a multiple of a skill's {interval} steps.")
    starts = jnp.asarray(starts, jnp.float32)
    skills = jnp.asarray(skills)
    when, by = (-1, jnp.zeros_like(starts)) if push is None else (push[0], jnp.asarray(push[1]))
    run = hierarchy.eval().jitted(_follow, env, place, n_steps, when)
    return run(params, state, starts, skills, by, key)


def _follow(hierarchy, env, place, n_steps, when, params, state, starts, skills, by, key):
    n = starts.shape[0]
    test_key, carry_key = jax.random.split(key)
    test_state = hierarchy.for_testing(state, test_key, n)
    carry = begun(hierarchy, env, params, carry_key, n, test_state)
    carry = _moved(env, carry, starts)
    first_obs = hierarchy.see(place - 1, carry.obs)

    def step(carry, t):
        # The level above decides for the same skill again where one has ended.
        inner = carry.hierarchy
        above = inner.levels[place - 1]
        begins = t % hierarchy.levels[place].control_interval == 0
        seen = jnp.where(begins, hierarchy.see(place - 1, carry.obs), above.obs)
        above = above.replace(action=skills.astype(above.action.dtype), obs=seen)
        inner = inner.replace(
            levels=(*inner.levels[: place - 1], above, *inner.levels[place:]),
            active_level=jnp.full_like(inner.active_level, place),
        )
        carry = carry.replace(hierarchy=inner)
        carry, transitions, _, _ = full_tick(hierarchy, env, params, carry)
        position = transitions.obs_next[:, :2] + jnp.where(t == when, by, 0.0)
        return _moved(env, carry, position), position

    _, positions = jax.lax.scan(step, carry, jnp.arange(n_steps))
    learner, level = test_state.levels[place - 1].learner, hierarchy.levels[place - 1]
    predictor, ps = learner.predictor, learner.ps
    s, c = learner.latent(first_obs)
    times = n_steps // hierarchy.levels[place].control_interval
    plans = jnp.repeat(skills[:, None], times, axis=1)
    rollout = predictor.rollout_latent(
        ps, s, c, plans, key=None, deterministic=True, mode=level.mode,
        with_value=False, with_termination=False,
    )  # fmt: skip
    return SkillPaths(
        positions=jnp.concatenate([starts[None], positions]),
        skills=skills,
        predicted=rollout.state[:, :, :, -1].mean((1, 2)),
    )


def _observations(hierarchy, positions):
    """Observations [N, 6] at positions [N, 2], with any goal."""
    env, params = own_env(hierarchy)
    _, env_state = env.reset(jax.random.key(0), params)
    return jax.vmap(lambda p: env.get_obs(env_state.replace(position=p)))(positions)


def _moved(env, carry, positions):
    """The carry with the bodies at other positions."""
    env_state = carry.env_state.replace(position=positions)
    obs = jax.vmap(env.get_obs)(env_state)
    return carry.replace(env_state=env_state, obs=obs.astype(carry.obs.dtype))


@names_env_once
def skill_quality(
    hierarchy: Hierarchy,
    state: HierarchyState,
    starts: Any,
    key: jax.Array,
    n_alternatives: int = 100,
    n_steps: int | None = None,
) -> dict[str, jax.Array]:
    """Potential, reach and predictability of skills; can be traced. Consumes `key`.

    Args:
        hierarchy, state: see `follow_skills`.
        starts: positions [N, 2], such as `env.free_positions(key, N)`; each gets a skill from the
            prior.
        key: typed key.
        n_alternatives: skills L that the potential compares with; its ceiling is log(L + 1).
        n_steps: see `follow_skills`.

    Returns:
        Means over the skills, float32 []: `phi`, the potential by the learned model of where one
        skill ends (one step of DADS, also where `n_steps` is more); `abs_delta_0` and
        `abs_delta_1`, |s_K - s_0| along each axis; `model_error`, the distance between predicted
        and reached end.
    """
    place = skill_place(hierarchy)
    level: SkillLevel = hierarchy.levels[place]
    keys = jax.random.split(key, 3)
    n = len(starts)
    skills = level.draw_skills(keys[0], n)
    paths = follow_skills(hierarchy, state, starts, skills, keys[1], n_steps)
    learned, parent = (state.levels[i].learner for i in (place, place - 1))
    parent = parent.at(state.n_total_env_steps.as_float())
    alternatives = learned.skills.alternatives
    if not isinstance(level.skill_space, Discrete):
        alternatives = level.draw_skills(keys[2], n_alternatives)
    settings = {**learned.skills.settings, "least_potential": jnp.float32(-jnp.inf)}
    compared = learned.skills.replace(alternatives=alternatives, settings=settings)
    first, last = paths.positions[0], paths.positions[-1]
    # The model is one of single skills, also where skills are held for longer.
    end = paths.positions[level.control_interval]
    obs = _observations(hierarchy, jnp.concatenate([first, end]))
    s, c = parent.latent(hierarchy.see(place - 1, obs))
    (phi,) = level.potential(compared, parent, s[:n], c[:n], skills, s[n:])
    delta = jnp.abs(last - first).mean(0)
    return {
        "phi": phi.mean(),
        "abs_delta_0": delta[0],
        "abs_delta_1": delta[1],
        "model_error": jnp.linalg.norm(paths.predicted - last, axis=-1).mean(),
    }


@names_env_once
def push_error(
    hierarchy: Hierarchy,
    state: HierarchyState,
    key: jax.Array,
    n_skills: int = 2048,
    n_steps: int = 10,
    push: float = 0.3,
    push_after: int = 5,
    largest: float = 0.5,
    margin: float = 1.2,
) -> tuple[float, float]:
    """How far from its prediction a skill ends with a push on its way, and without; in free space.

    The error of the end over |s_K - s_0|, means of both over the skills. Consumes `key`.

    Args:
        hierarchy, state: see `follow_skills`.
        key: typed key.
        n_skills: skills drawn, with |z| <= `largest`.
        n_steps: environment steps; a shorter skill is held.
        push: length of the push, in a random direction.
        push_after: steps before it.
        largest: largest norm of a skill.
        margin: starts are at least this far from walls, in addition to the body's radius.

    Returns:
        Relative error with the push, and without.
    """
    keys = jax.random.split(key, 4)
    level = hierarchy.levels[skill_place(hierarchy)]
    dim = level.skill_space.dim
    starts = hierarchy.env.free_positions(keys[0], n_skills, margin)
    direction = jax.random.normal(keys[1], (n_skills, dim))
    radius = largest * jax.random.uniform(keys[2], (n_skills, 1)) ** (1 / dim)
    skills = radius * direction / jnp.linalg.norm(direction, axis=-1, keepdims=True)
    angle = jax.random.uniform(keys[3], (n_skills,), maxval=2 * np.pi)
    by = push * jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1)

    def error(by):
        pushed = (push_after - 1, by)
        paths = follow_skills(hierarchy, state, starts, skills, key, n_steps, pushed)
        end = paths.positions[-1]
        off = jnp.linalg.norm(paths.predicted - end, axis=-1).mean()
        return float(off / jnp.linalg.norm(end - starts, axis=-1).mean())

    return error(by), error(jnp.zeros_like(by))
