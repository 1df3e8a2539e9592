"""SPlaTES on SAC: fresh skills give the value after a skill's end.

Functions take the `SPlaTESLevel` they are of.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from lrl_jax import struct
from lrl_jax.algorithms import SAC, Batch, Scale
from lrl_jax.algorithms.base import present_settings
from lrl_jax.buffers import Row
from lrl_jax.levels.learner_levels import AlgorithmLearner, as_batch
from lrl_jax.levels.planner_level import PlannerLearner
from lrl_jax.spaces import Box

#: Latent states that the networks see: the start, and the change so far.
STATES = 2


class OnSAC(struct.Node):
    """What the level's learner holds in addition.

    Attributes:
        start: how latent states of the level above become features.
        w: its standardizer W as it was at the last update, [D, D]: what the networks see of the
            change so far does not move once they learn no more.
    """

    start: Scale
    w: jax.Array


def init(algorithm: SAC, key: jax.Array, latent: Box) -> OnSAC:
    """Before the first update."""
    del algorithm, key
    return OnSAC(start=Scale.of(latent), w=jnp.eye(latent.dim, dtype=jnp.float32))


def more_conditions(backbone: OnSAC, start: jax.Array, state: jax.Array) -> list[jax.Array]:
    """The change so far in the units that rewards are made of, [..., D]."""
    return [(state - start) @ backbone.w]


def decide(level: Any, learner, memory, obs, ctx, k, start, state, explores):
    """The policy's action; consumes the key. Returns (action, memory)."""
    c = level.conditions(learner, ctx.level_input, k, start, state)
    return level.algorithm.act(learner.state, memory, learner.see(obs), c, ctx.key, explores)


def targets(
    level: Any,
    learner: AlgorithmLearner,
    model: PlannerLearner,
    rows: Row,
    batch: Batch,
    key: jax.Array,
) -> jax.Array:
    """Values that the critics learn, [B]; consumes `key`.

    r + gamma (1 - terminated) V, with V the value of continuing the skill, or the mean over
    fresh skills after its end.
    """
    key_skills, key_value = jax.random.split(key)
    n, state = level.n_fresh_skills, learner.state
    skills = level.draw_skills(key_skills, n, *batch.mask.shape)
    conditions = level.next_conditions(learner, model, rows, skills)
    obs_next = jnp.broadcast_to(batch.obs_next, (n, *batch.obs_next.shape))
    value = level.algorithm.soft_value(
        state,
        obs_next.reshape(-1, obs_next.shape[-1]),
        conditions.reshape(-1, conditions.shape[-1]),
        key_value,
    )
    value = value.reshape(n, *batch.mask.shape).mean(0)
    discount = batch.discount(present_settings(state)["gamma"], level.algorithm.smdp_discount)
    return batch.rew + discount * value


def update(level: Any, learner, model: PlannerLearner, rows: Row, mask, key_next, key_update):
    """One update; consumes the keys. Returns learner and metrics."""
    backbone = learner.skills.backbone.replace(w=model.ps.W)
    learner = learner.replace(skills=learner.skills.replace(backbone=backbone))
    condition = level.row_conditions(learner, model, rows)
    # `next_conditions` has what follows.
    batch = as_batch(learner, rows, mask, condition, condition)
    values = targets(level, learner, model, rows, batch, key_next)
    state, metrics = level.algorithm.update(learner.state, batch, key_update, values)
    return learner.replace(state=state), metrics
