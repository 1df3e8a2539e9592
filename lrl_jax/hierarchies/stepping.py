"""The bookkeeping of a hierarchy: who decides, and whose transition ends."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from lrl_jax import buffers, devices
from lrl_jax.hierarchies.gating import masked_act, max_over_batch, select
from lrl_jax.hierarchies.state import HierarchyState, LevelState
from lrl_jax.levels.base import Control, Level, Row

LEARN = 128  # salts from here on are for updates, those below for decisions


class BatchAct:
    """A level's decision mapped over instances."""

    def __init__(self, level: Level, learner: Any, parent: Any, training: bool):
        self._call = functools.partial(level.act, parent=parent, training=training)
        self._learner = learner
        self.prepare = None
        if level.prepare is not None:
            cheap = functools.partial(level.prepare, parent=parent, training=training)
            self.prepare = functools.partial(_over_instances, cheap, learner)

    def __call__(self, memory, obs, level_input, key, *control):
        """Decisions of a batch: leaves [B, ...] to (actions, memory)."""
        return _over_instances(self._call, self._learner, memory, obs, level_input, key, *control)


def _over_instances(act, learner, memory, obs, level_input, key, control=None):
    """Map over instances; `control` is passed on where there is one."""

    def one(memory, obs, level_input, key, *control):
        more = {"control": control[0]} if control else {}
        return act(learner, memory, obs, level_input, key, **more)

    more = () if control is None else (control,)
    return jax.vmap(one)(memory, obs, level_input, key, *more)


def no_input(n: int) -> jax.Array:
    """What a level without an input gets, [n, 0]."""
    return jnp.zeros((n, 0), jnp.float32)


def parent_learner(state: HierarchyState, i: int) -> Any:
    """Learner of the level above, None for level 0."""
    return state.levels[i - 1].learner if i else None


def get_action(levels, maps, training, state, obs, mask) -> tuple[HierarchyState, jax.Array]:
    """Descend from the active level of each instance to the last; see Hierarchy.get_action."""
    n, last = state.n_env_instances, len(levels) - 1
    active = state.active_level
    new_levels: list[LevelState] = []
    for i, (level, level_state) in enumerate(zip(levels, state.levels, strict=True)):
        # Whoever is unmasked reaches the last level, so its mask is the caller's.
        decides = mask if i == last else (active == i if mask is None else (active == i) & mask)
        mapped = maps[i](obs).astype(level_state.obs.dtype)
        level_input = new_levels[-1].action if i else no_input(n)
        args = (mapped, level_input, state.stream.instance_keys(n, salt=i))
        if level.uses_parent_obs:
            seen = maps[i - 1](obs).astype(level_state.obs.dtype)
            level_state = level_state.replace(
                parent_obs=select(decides, seen, level_state.parent_obs)
            )
            args += (_control(level_state, new_levels[-1]),)
        ticks = math.prod(below.control_interval or 1 for below in levels[i + 1 :])
        decide = functools.partial(_decide, level, training, ticks)
        row = devices.by_instance(n)
        action, memory = devices.each(decide, (P(), row), row)(
            (level_state.learner, parent_learner(state, i)),
            (decides, level_state.action, level_state.memory, args),
        )
        action = action.astype(level_state.action.dtype)
        new_levels.append(
            level_state.replace(
                action=action, memory=memory, obs=select(decides, mapped, level_state.obs)
            )
        )
        if i < last:
            active = jnp.where(decides, i + 1, active)
    active = select(mask, jnp.full_like(active, last), active)
    state = state.replace(
        levels=tuple(new_levels), active_level=active, stream=state.stream.advance()
    )
    return state, new_levels[-1].action


def _decide(level, training, ticks, learners, rows):
    """Let one level decide, on each device for its own instances."""
    return masked_act(level, BatchAct(level, *learners, training), *rows, ticks)


def _control(level_state: LevelState, above: LevelState) -> Control:
    """Where the instances of a level are in their stretch of control."""
    return Control(
        n_steps=level_state.n_steps_in_control,
        start_obs=above.obs,
        parent_obs=level_state.parent_obs,
    )


def make_row(levels, maps, state: HierarchyState, i: int, obs_next, terminated, truncated) -> Row:
    """The transition that level i would close now; leaves [n, ...]. `obs_next` is not mapped."""
    level_state = state.levels[i]
    n = state.n_env_instances
    row = Row(
        obs=level_state.obs,
        level_input=state.levels[i - 1].action if i else no_input(n),
        act=level_state.action,
        rew=level_state.cum_reward,
        obs_next=maps[i](obs_next).astype(level_state.obs.dtype),
        terminated=terminated,
        truncated=truncated,
        elapsed_env_steps=level_state.elapsed_env_steps,
        n_steps_in_control=level_state.n_steps_in_control + 1,
    )
    if not levels[i].uses_parent_obs:
        return row
    return row.replace(
        control=_control(level_state, state.levels[i - 1]),
        parent_obs_next=maps[i - 1](obs_next).astype(level_state.obs.dtype),
    )


def stored_fields(level: Level, memory: Any, row: Row) -> dict[str, jax.Array]:
    """What the buffer keeps of a row: one instance in, one row out."""
    own = level.row_fields(memory, row)
    return {
        "obs": row.obs,
        "level_input": row.level_input,
        "act": row.act,
        "rew": row.rew,
        "obs_next": row.obs_next,
        "terminated": row.terminated,
        "truncated": row.truncated,
        "elapsed_env_steps": row.elapsed_env_steps,
        **own,
    }


def process_transition(
    levels, maps, training, state, obs_next, rew, terminated, truncated, mask
) -> HierarchyState:
    """Ascend from the last level, closing rows; see Hierarchy.process_transition."""
    done = terminated | truncated
    ones = jnp.ones_like(state.active_level) if mask is None else mask.astype(jnp.int32)
    reward = rew if mask is None else jnp.where(mask, rew, 0.0)
    state = state.replace(
        levels=tuple(
            s.replace(
                cum_reward=s.cum_reward + reward, elapsed_env_steps=s.elapsed_env_steps + ones
            )
            for s in state.levels
        )
    )
    if training:
        state = state.replace(n_total_env_steps=state.n_total_env_steps.add(ones.sum()))
    active = state.active_level
    new_levels = list(state.levels)
    for i in reversed(range(len(levels))):
        closes = active == i if mask is None else (active == i) & mask
        row = make_row(levels, maps, state, i, obs_next, terminated, truncated)
        new_levels[i], hand_back = _close_rows(
            levels[i], state.levels[i], row, closes, done, training
        )
        if training:
            learner = levels[i].observe_env_steps(
                new_levels[i].learner, state.n_total_env_steps.as_float()
            )
            new_levels[i] = new_levels[i].replace(learner=learner)
        if i:
            active = jnp.where(closes & hand_back, i - 1, active)
    return state.replace(levels=tuple(new_levels), active_level=active)


def _close_rows(level, level_state, row, closes, done, training):
    """Close the rows of one level where `closes`; returns its state and who hands back."""
    memory = level_state.memory
    after = functools.partial(level.after_transition, level_state.learner)
    new_memory, hand_back = jax.vmap(after)(memory, row)
    hand_back = hand_back | done
    buffer, seam, new_rows = level_state.buffer, level_state.seam, level_state.new_rows
    if buffer is not None and training:
        fields = jax.vmap(functools.partial(stored_fields, level))(memory, row)
        buffer = buffers.add(buffer, fields, closes, first=seam)
        seam = jnp.where(closes, done, seam)
        # Saturates: more could not be paid for anyway, and the count must not wrap.
        new_rows = jnp.minimum(new_rows + closes.sum(dtype=jnp.int32), 2**30)
    elif buffer is not None:
        seam = seam | closes
    fresh = jax.tree.map(
        lambda x, y: jnp.broadcast_to(x, y.shape), level.init_memory(level_state.learner), memory
    )
    memory = select(closes, select(done, fresh, new_memory), memory)
    in_control = jnp.where(hand_back, 0, level_state.n_steps_in_control + 1)
    new_state = level_state.replace(
        memory=memory,
        buffer=buffer,
        seam=seam,
        new_rows=new_rows,
        cum_reward=jnp.where(closes, 0.0, level_state.cum_reward),
        elapsed_env_steps=jnp.where(closes, 0, level_state.elapsed_env_steps),
        n_steps_in_control=jnp.where(closes, in_control, level_state.n_steps_in_control),
    )
    return new_state, hand_back


def learn(levels, state: HierarchyState) -> tuple[HierarchyState, dict[str, jax.Array]]:
    """Make the updates owed; see Hierarchy.learn."""
    metrics: dict[str, jax.Array] = {}
    for i, level in enumerate(levels):
        if state.levels[i].buffer is None or not level.n_updates:
            continue
        level_state, level_metrics = _learn_level(level, state, i, state.stream.tick_key(LEARN + i))
        new_levels = (*state.levels[:i], level_state, *state.levels[i + 1 :])
        state = state.replace(levels=new_levels)
        metrics |= {f"level{i}/{name}": value for name, value in level_metrics.items()}
    # Two calls within one tick must not draw the same batches.
    return state.replace(stream=state.stream.advance()), metrics


def _learn_level(level, state: HierarchyState, i: int, key: jax.Array):
    level_state, parent = state.levels[i], parent_learner(state, i)
    owed = level_state.new_rows // level.update_interval
    ready = jnp.asarray(level.ready(level_state.learner), jnp.int32)
    # More than an int32 counts could not be made anyway.
    n_updates = jnp.minimum(owed, (2**31 - 1) // level.n_updates) * ready * level.n_updates

    def update(learner, update_key):
        return level.learn(learner, level_state.buffer, update_key, parent=parent)

    _, shapes = jax.eval_shape(update, level_state.learner, key)
    sums = jax.tree.map(lambda s: jnp.zeros(s.shape, jnp.float32), dict(shapes))

    def body(j, carry):
        learner, sums = carry
        new, metrics = update(learner, jax.random.fold_in(key, j))
        # Under vmap the loop runs as often as any copy needs: the others keep what they have.
        mine = j < n_updates
        new = select(mine, new, learner)
        sums = jax.tree.map(
            lambda s, m: s + jnp.where(mine, m, 0.0).astype(s.dtype), sums, dict(metrics)
        )
        return devices.pin(new, devices.of_learner), sums

    learner, sums = jax.lax.fori_loop(
        0, max_over_batch(n_updates), body, (level_state.learner, sums)
    )
    means = jax.tree.map(lambda s: s / jnp.maximum(n_updates, 1), sums)
    level_state = level_state.replace(
        learner=learner, new_rows=level_state.new_rows - owed * level.update_interval
    )
    return level_state, {**means, "n_updates": n_updates.astype(jnp.float32)}
