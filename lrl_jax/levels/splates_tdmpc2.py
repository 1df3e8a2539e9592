"""SPlaTES on TD-MPC2: a separate head gives the value after a skill's end, also for plans.

Functions take the `SPlaTESLevel` they are of.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from lrl_jax import struct
from lrl_jax.algorithms import TDMPC2, Batch, Scale, SkillValue, SkillValueState
from lrl_jax.algorithms.base import from_unit, present_settings
from lrl_jax.buffers import Row
from lrl_jax.levels.learner_levels import AlgorithmLearner, as_batch
from lrl_jax.levels.planner_level import PlannerLearner
from lrl_jax.nets.tdmpc2 import pick_heads
from lrl_jax.spaces import Box

#: Latent states of the level above that the networks see: the start.
STATES = 1


class OnTDMPC2(struct.Node):
    """What the level's learner holds in addition.

    Attributes:
        start: how latent states of the level above become features.
        skill_value: state of the averaged value and the converter.
    """

    start: Scale
    skill_value: SkillValueState


def heads_of(algorithm: TDMPC2, start_dim: int) -> SkillValue:
    """The two heads on latent states."""
    return SkillValue(start_dim, algorithm.hidden, algorithm.two_hot, algorithm.compute_dtype)


def init(algorithm: TDMPC2, key: jax.Array, latent: Box) -> OnTDMPC2:
    """Create the heads; consumes `key`."""
    heads = heads_of(algorithm, latent.dim)
    return OnTDMPC2(Scale.of(latent), heads.init(key, algorithm.latent_dim))


def more_conditions(backbone: OnTDMPC2, start: jax.Array, state: jax.Array) -> list[jax.Array]:
    """Nothing besides the start."""
    del backbone, start, state
    return []


def decide(level: Any, learner, memory, obs, ctx, k, start, state, explores):
    """The policy's action, or that of a plan; consumes the key. Returns (action, memory)."""
    algorithm, x = level.algorithm, learner.see(obs)
    if level.act_by == "mppi":
        return _plan(level, learner, memory, x, ctx, k, start, explores)
    c = level.conditions(learner, ctx.level_input, k, start, state)
    space = learner.action_space
    noise = jnp.where(explores, jax.random.normal(ctx.key, (space.dim,), jnp.float32), 0.0)
    latent = algorithm.encode(learner.state.params, x)
    unit, _ = algorithm.policy(learner.state.params, latent, c, noise)
    return from_unit(space, unit), memory


def _plan(level: Any, learner, memory, x, ctx, k, start, explores):
    """Plan to the end of the skill, and bootstrap there with the averaged value."""
    algorithm, state, skill = level.algorithm, learner.state, ctx.level_input
    horizon, last = algorithm.planner.horizon, level.control_interval
    steps = jnp.minimum(k + jnp.arange(horizon + 1), last - 1)
    skills = jnp.broadcast_to(skill, (horizon + 1, *skill.shape))
    starts = jnp.broadcast_to(start, (horizon + 1, *start.shape))
    c = level.conditions(learner, skills, steps, starts, starts)
    n_steps = jnp.minimum(horizon, last - k)
    heads = heads_of(algorithm, start.shape[-1])
    params = learner.skills.backbone.skill_value.params

    def terminal_value(latents, q):
        starts = heads.convert(params, latents)
        if level.averaged_value:
            _, value = heads.value(params, latents, starts)
        else:  # the same skill again, from there
            z = jnp.broadcast_to(learner.hear(skill, ()), (len(starts), level.skill_space.dim))
            again = jnp.concatenate([z, -jnp.ones((len(starts), 1), jnp.float32), starts], -1)
            noise = jnp.zeros((len(starts), state.action_space.dim), jnp.float32)
            unit, _ = algorithm.policy(state.params, latents, again, noise)
            value = algorithm.q_values(state.params["q"], latents, unit, again)[1].mean(0)
        return jnp.where(k + n_steps >= last, value, q)

    latent = algorithm.encode(state.params, x)
    return algorithm.plan(
        state,
        memory,
        latent,
        c,
        ctx.key,
        explores,
        n_steps=n_steps,
        terminal_value=terminal_value,
    )


def targets(
    level: Any,
    learner: AlgorithmLearner,
    model: PlannerLearner,
    rows: Row,
    batch: Batch,
    key: jax.Array,
) -> tuple[Batch, jax.Array]:
    """Conditions after the rows, and values that the critics learn; consumes `key`.

    Args:
        level: with its settings.
        learner: of this level.
        model: learner of the level above.
        rows: leading axes [T, B].
        batch: of these rows.
        key: typed key.

    Returns:
        The batch with `condition_next`, and the targets [T, B].
    """
    assert rows.control is not None
    key_skills, key_value = jax.random.split(key)
    algorithm, state = level.algorithm, learner.state
    skills = level.draw_skills(key_skills, 1, *batch.mask.shape)
    following = level.next_conditions(learner, model, rows, skills)[0]
    batch = batch.replace(condition_next=following)
    latents = algorithm.encode(state.params, batch.obs_next)
    values = algorithm.td_targets(state, batch, latents, key_value)
    if level.averaged_value:
        backbone = learner.skills.backbone
        start = backbone.start(model.latent(rows.control.above_obs_next)[0])
        heads = heads_of(algorithm, start.shape[-1])
        _, value = heads.value(backbone.skill_value.params, latents, start)
        discount = batch.discount(present_settings(state)["gamma"], algorithm.smdp_discount)
        averaged = batch.rew + discount * value
        values = jnp.where(level.is_last(rows.control.steps), averaged, values)
    return batch, values


def update(level: Any, learner, model: PlannerLearner, rows: Row, mask, key_next, key_update):
    """One update; consumes the keys. Returns learner and metrics."""
    assert rows.control is not None
    algorithm = level.algorithm
    key_next, key_skills, key_noise, key_heads = jax.random.split(key_next, 4)
    condition = level.row_conditions(learner, model, rows)
    batch = as_batch(learner, rows, mask, condition, condition)
    batch, values = targets(level, learner, model, rows, batch, key_next)
    state, metrics = algorithm.update(learner.state, batch, key_update, values)
    # Any state may be the start of a skill: its value is that of a fresh one.
    now, _ = model.latent(rows.control.above_obs)
    skills = level.draw_skills(key_skills, *mask.shape)
    condition = level.conditions(learner, skills, jnp.zeros_like(rows.control.steps), now, now)
    latents = algorithm.encode(state.params, batch.obs)
    noise = jax.random.normal(key_noise, (*mask.shape, learner.action_space.dim), jnp.float32)
    critics = pick_heads(state.target_q, key_heads)
    value = algorithm.next_value(state, critics, latents, condition, noise)
    backbone = learner.skills.backbone
    start = backbone.start(now)
    rate = present_settings(state)["learning_rate"]
    skill_value, more = heads_of(algorithm, start.shape[-1]).update(
        backbone.skill_value, latents, start, value, mask, rate
    )
    skills_ = learner.skills.replace(backbone=backbone.replace(skill_value=skill_value))
    return learner.replace(state=state, skills=skills_), {**metrics, **more}
