"""The bookkeeping of a hierarchy: who decides, and whose transition ends."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from lrl_jax import buffers, devices, struct
from lrl_jax.buffers import Control, Replay, Row, rows
from lrl_jax.hierarchies import checks
from lrl_jax.hierarchies.gating import chunk_of, gated, max_over_batch, select
from lrl_jax.hierarchies.state import HierarchyState, LevelState
from lrl_jax.levels.base import Context, Decision, Level, Neighbour, discount_of
from lrl_jax.randomness import Salt

# What never overflows: more updates could not be made anyway.
_MOST = 2**30
#: Rows over all instances that statistics are updated with at a time.
STATISTICS_ROWS = 256


def no_input(n: int) -> jax.Array:
    """What a level without an input gets, [n, 0]."""
    return jnp.zeros((n, 0), jnp.float32)


def context(levels: Sequence[Level], state: HierarchyState, i: int, **fields: Any) -> Context:
    """What level i may know, except what belongs to an instance."""

    def neighbour(j):
        return Neighbour(state.levels[j].learner, levels[j]) if 0 <= j < len(levels) else None

    fields = {"env_steps": state.n_total_env_steps.as_float(), "key": None, **fields}
    return Context(above=neighbour(i - 1), below=neighbour(i + 1), **fields)


# ------------------------------------------------------------------- deciding


def get_action(
    levels, maps, training: Sequence[bool], state, obs, mask
) -> tuple[HierarchyState, jax.Array]:
    """Descend from the active level of each instance to the last; see Hierarchy.get_action.

    `training` is the mode of each level: those that are frozen act as in evaluation.
    """
    n, last = state.n_env_instances, len(levels) - 1
    active = state.active_level
    explores = jnp.full(n, any(training))
    new_levels: list[LevelState] = []
    for i, (level, level_state) in enumerate(zip(levels, state.levels, strict=True)):
        # Whoever is unmasked reaches the last level, so its mask is the caller's.
        decides = mask if i == last else (active == i if mask is None else (active == i) & mask)
        mapped = maps[i](obs).astype(level_state.obs.dtype)
        level_input, control = no_input(n), None
        if i:
            above = new_levels[-1]
            level_input = above.action
            seen = maps[i - 1](obs).astype(above.obs.dtype)
            control = Control(level_state.n_steps_in_control, above.obs, seen)
            if level_state.above_obs is not None:
                kept = select(decides, seen, level_state.above_obs)
                level_state = level_state.replace(above_obs=kept)
        if level_state.first_child is not None:
            below = state.levels[i + 1].buffer
            first = select(decides, below.per_ring("count"), level_state.first_child)
            level_state = level_state.replace(first_child=first)
        # As data: a draft and what follows it get the same key, which JAX could not distinguish
        # from a key that is used twice by mistake.
        keys = jax.random.key_data(state.stream.instance_keys(n, Salt.DECIDE + i))
        args = (mapped, level_input, keys, explores & training[i], control)
        ticks = math.prod(below.control_interval or 1 for below in levels[i + 1 :])
        decide = functools.partial(_decide, level, ticks, jax.random.key_impl(state.stream.key))
        row = devices.by_instance(n)
        kept = (level_state.action, level_state.store, level_state.greedy)
        shared = (level_state.learner, context(levels, state, i, training=training[i]))
        (action, store, greedy), memory = devices.each(decide, (P(), row), row)(
            shared, (decides, kept, level_state.memory, args)
        )
        new_levels.append(
            level_state.replace(
                action=action,
                store=store,
                greedy=greedy,
                memory=memory,
                obs=select(decides, mapped, level_state.obs),
            )
        )
        if greedy is not None:
            explores = explores & ~greedy
        if i < last:
            active = select(decides, jnp.full_like(active, i + 1), active)
    active = select(mask, jnp.full_like(active, last), active)
    state = state.replace(
        levels=tuple(new_levels), active_level=active, stream=state.stream.advance()
    )
    return state, new_levels[-1].action


def _decide(level, ticks, key_impl, shared, rows):
    """Let one level decide, on each device for its own instances."""
    learner, ctx = shared
    decides, kept, memory, args = rows
    asks = kept[2] is not None

    def outcome(decision: Decision):
        was = {k: jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for k, x in kept[1].items()}
        checks.same_store(f"{type(level).__name__}.act", decision.store, was)
        greedy = jnp.asarray(decision.greedy_below, bool) if asks else None
        return (decision.action, decision.store, greedy), decision.memory

    def of_instance(key, level_input, explores, control):
        key = jax.random.wrap_key_data(key, impl=key_impl)
        return ctx.replace(key=key, level_input=level_input, explores=explores, control=control)

    def act(memory, obs, level_input, key, explores, control):
        one = of_instance(key, level_input, explores, control)
        return outcome(level.act(learner, memory, obs, one))

    def draft(memory, obs, level_input, key, explores, control):
        one = of_instance(key, level_input, explores, control)
        decision, for_act, needs = level.draft(learner, memory, obs, one)
        return *outcome(decision), for_act, needs

    first = jax.vmap(draft) if level.draft is not None else None
    return gated(jax.vmap(act), first, chunk_of(level), decides, kept, memory, args, ticks)


# ------------------------------------------------------------- closing of rows


def make_row(levels, maps, state: HierarchyState, i: int, obs_next, terminated, truncated) -> Row:
    """The transition that level i would close now; leaves [n, ...]. `obs_next` is not mapped."""
    s = state.levels[i]
    done = terminated | truncated
    row = Row(
        obs=s.obs,
        level_input=state.levels[i - 1].action if i else no_input(state.n_env_instances),
        act=s.action,
        rew=s.cum_reward,
        obs_next=maps[i](obs_next).astype(s.obs.dtype),
        terminated=terminated,
        truncated=truncated,
        elapsed_env_steps=s.elapsed_env_steps,
        n_steps_in_control=s.n_steps_in_control + 1,
        hands_back=done,
        signals=s.signals,
        stored=s.store,
    )
    if s.discounted_return is not None:
        discount = levels[i].row_discount(s.learner, s.elapsed_env_steps)
        row = row.replace(discounted_return=s.cum_reward + discount * s.discounted_return)
    if s.above_obs is None:
        return row
    above = state.levels[i - 1].obs
    seen = maps[i - 1](obs_next).astype(above.dtype)
    return row.replace(control=Control(s.n_steps_in_control, above, s.above_obs, seen))


def _answer(level, learner, ctx, memory, row, key, explores, control):
    one = ctx.replace(key=key, level_input=row.level_input, explores=explores, control=control)
    return close(level, learner, one, memory, row)


def close(level: Level, learner: Any, ctx: Context, memory: Any, row: Row) -> tuple[Any, Row]:
    """The level's answer to one finished row of one instance: memory, and the row as stored."""
    out = level.after_transition(learner, memory, row, ctx)
    memory, hand_back = out[:2]
    own = out[2] if len(out) == 3 else {}
    hand_back = jnp.asarray(hand_back, bool) | row.done
    return memory, row.replace(hands_back=hand_back, stored={**row.stored, **own})


def process_transition(
    levels,
    maps,
    training: Sequence[bool],
    state,
    obs_next,
    rew,
    terminated,
    truncated,
    mask,
    signals,
) -> HierarchyState:
    """Ascend from the last level, closing rows; see Hierarchy.process_transition."""
    n = state.n_env_instances
    done = terminated | truncated
    everyone = jnp.ones(n, bool) if mask is None else jnp.broadcast_to(mask, (n,))
    state = state.replace(
        levels=tuple(
            _accumulated(level, s, rew, signals, None if mask is None else everyone)
            for level, s in zip(levels, state.levels, strict=True)
        )
    )
    if any(training):
        total = state.n_total_env_steps.add(everyone.sum(dtype=jnp.int32))
        state = state.replace(n_total_env_steps=total)
    active, explores = state.active_level, _explores(state, training)
    for i in reversed(range(len(levels))):
        closes = (active == i) & everyone
        row = make_row(levels, maps, state, i, obs_next, terminated, truncated)
        control = None
        if i:
            above = state.levels[i - 1].obs
            seen = maps[i - 1](obs_next).astype(above.dtype)
            control = Control(row.n_steps_in_control - 1, above, seen)
        ctx = context(levels, state, i, training=training[i])
        keys = state.stream.instance_keys(n, Salt.AFTER_TRANSITION + i)

        answer = functools.partial(_answer, levels[i], state.levels[i].learner, ctx)
        memory, row = jax.vmap(answer)(state.levels[i].memory, row, keys, explores[i], control)
        s = _store(levels[i], state, i, row, closes, everyone, mask, any(training))
        s = _begun_anew(levels[i], s, memory, row, closes, done)
        state = state.replace(levels=(*state.levels[:i], s, *state.levels[i + 1 :]))
        if i:
            active = jnp.where(closes & row.hands_back, i - 1, active)
    return state.replace(active_level=active)


def _accumulated(level, s: LevelState, rew, signals, mask) -> LevelState:
    """With one more environment step of the running row."""
    discount = discount_of(level, s.learner)
    weight = None
    if not isinstance(discount, float):
        weight = discount ** s.elapsed_env_steps.astype(jnp.float32)

    def plus(total, x):
        x = x if weight is None else weight * x
        return total + (x if mask is None else jnp.where(mask, x, 0.0))

    ones = 1 if mask is None else mask.astype(jnp.int32)
    return s.replace(
        cum_reward=plus(s.cum_reward, rew),
        signals={name: plus(total, signals[name]) for name, total in s.signals.items()},
        elapsed_env_steps=s.elapsed_env_steps + ones,
    )


def _explores(state: HierarchyState, training: Sequence[bool]) -> list[jax.Array]:
    """Whether each level explores, bool [n] each: no level above has asked for greedy behaviour."""
    explores = [jnp.full(state.n_env_instances, any(training))]
    for s in state.levels[:-1]:
        explores.append(explores[-1] if s.greedy is None else explores[-1] & ~s.greedy)
    return [x & own for x, own in zip(explores, training, strict=True)]


def _store(level, state, i, row: Row, closes, everyone, mask, training) -> LevelState:
    """The level's state with the rows that close now written to its buffer."""
    s = state.levels[i]
    buffer = s.buffer
    if buffer is None:
        return s
    if not training:
        return s.replace(buffer=buffers.cut(buffer, closes))
    if mask is not None and mask.ndim:
        buffer = buffers.unalign(buffer)
    # Aligned rings are of a level that closes a row in every instance at every tick.
    written = mask if buffer.aligned else closes
    fields = rows.to_fields(row)
    if s.first_child is not None:
        n_children = state.levels[i + 1].buffer.per_ring("count") - s.first_child
        fields |= {rows.FIRST_CHILD: s.first_child, rows.N_CHILDREN: n_children.astype(jnp.int32)}
    # On-policy updates go by environment steps, which nothing that was drawn decides.
    counted = closes if level.rollout_length is None else everyone
    new = counted.sum(dtype=jnp.int32)
    return s.replace(
        buffer=buffers.add(buffer, fields, written), owed=jnp.minimum(s.owed + new, _MOST)
    )


def _begun_anew(level, s: LevelState, memory, row: Row, closes, done) -> LevelState:
    """After a row has closed: the next one begins at 0, and an episode with fresh memory."""
    fresh = jax.tree.map(
        lambda x, y: jnp.broadcast_to(x, y.shape), level.init_memory(s.learner), s.memory
    )
    in_control = jnp.where(row.hands_back, 0, s.n_steps_in_control + 1)
    if s.discounted_return is not None:
        total = jnp.where(done, 0.0, row.discounted_return)
        s = s.replace(discounted_return=jnp.where(closes, total, s.discounted_return))
    return s.replace(
        memory=select(closes, select(done, fresh, memory), s.memory),
        greedy=None if s.greedy is None else s.greedy & ~closes,
        cum_reward=jnp.where(closes, 0.0, s.cum_reward),
        signals={name: jnp.where(closes, 0.0, x) for name, x in s.signals.items()},
        elapsed_env_steps=jnp.where(closes, 0, s.elapsed_env_steps),
        n_steps_in_control=jnp.where(closes, in_control, s.n_steps_in_control),
    )


# ------------------------------------------------------------------- learning


class Rewards(struct.Node):
    """A level's `reward` as a view applies it."""

    learner: Any
    ctx: Context
    level: Any = struct.field(pytree_node=False)

    def __call__(self, found: Row, key: jax.Array | None) -> jax.Array:
        """Rewards [B] of rows [B]; consumes `key`, if there is one."""
        rew = self.level.reward(self.learner, found, self.ctx.replace(key=key))
        name = f"{type(self.level).__name__}.reward"
        return checks.shaped(name, rew, found.terminated.shape).astype(jnp.float32)


def replay_of(levels: Sequence[Level], state: HierarchyState, i: int, ctx: Context) -> Replay:
    """Level i's view of its rows, with rewards as it has them now."""
    level, s = levels[i], state.levels[i]
    own = type(level).reward is not Level.reward
    rewards = Rewards(s.learner, ctx.replace(key=None), level) if own else None
    below = state.levels[i + 1].buffer if i + 1 < len(levels) else None
    return Replay(s.buffer, below if "children" in level.needs else None, rewards)


def learn(
    levels, specs, frozen: Sequence[int], state: HierarchyState
) -> tuple[HierarchyState, dict[str, jax.Array]]:
    """Make the updates owed; see Hierarchy.learn."""
    metrics: dict[str, jax.Array] = {}
    for i, level in enumerate(levels):
        if i in frozen or state.levels[i].buffer is None or not level.n_updates:
            continue
        s, of_level = _learn_level(levels, specs[i], state, i)
        state = state.replace(levels=(*state.levels[:i], s, *state.levels[i + 1 :]))
        metrics |= {f"level{i}/{name}": value for name, value in of_level.items()}
    # Two calls within one tick must not draw the same batches.
    return state.replace(stream=state.stream.advance()), metrics


def _with_statistics(levels, state: HierarchyState, i: int, learner, counts):
    """Level i's learner with the statistics of all rows since its last update, if that counts."""
    level, buffer = levels[i], state.levels[i].buffer
    if level.update_statistics is None:
        return learner
    name = f"level {i} ({type(level).__name__}).update_statistics"
    view, ctx = Replay(buffer), context(levels, state, i)
    length = min(max(STATISTICS_ROWS // state.n_env_instances, 1), buffer.capacity)
    n_rows = jnp.minimum(buffer.per_ring("fresh"), buffer.per_ring("size")).max()
    n_pieces = jnp.where(counts, (n_rows + length - 1) // length, 0)

    def body(j, learner):
        rows, mask = view.stored_since(j * length, length)
        out = level.update_statistics(learner, rows, mask, ctx)
        new, _ = checks.learned(name, (out, {}), learner)
        return devices.pin(select(j < n_pieces, new, learner), devices.of_learner)

    return jax.lax.fori_loop(0, max_over_batch(n_pieces), body, learner)


def rollout_ticks(level: Level, spec: Any) -> int:
    """Ticks between updates of an on-policy level."""
    assert level.rollout_length is not None
    return level.rollout_length * (spec.decision_env_steps or 1)


def _learn_level(levels, spec, state: HierarchyState, i: int):
    level, s = levels[i], state.levels[i]
    name = f"level {i} ({type(level).__name__}).learn"
    on_policy = level.rollout_length is not None
    per = level.update_interval
    if on_policy:
        per = rollout_ticks(level, spec) * state.n_env_instances
    due = s.owed // per
    steps = state.n_total_env_steps.as_float()
    within = ((steps >= s.learn_from) & (steps < s.learn_until)).astype(jnp.int32)
    times = jnp.minimum(due, 1 if on_policy else (2**31 - 1) // level.n_updates)
    n_updates = times * within * level.n_updates
    key = state.stream.tick_key(Salt.LEARN + i)

    def update(learner, key):
        own = s.replace(learner=learner)
        present = state.replace(levels=(*state.levels[:i], own, *state.levels[i + 1 :]))
        ctx = context(levels, present, i, key=key)
        out = level.learn(learner, replay_of(levels, present, i, ctx), ctx)
        return checks.learned(name, out, learner)

    _, shapes = jax.eval_shape(update, s.learner, key)
    sums = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), dict(shapes))

    def body(j, carry):
        learner, sums = carry
        new, metrics = update(learner, jax.random.fold_in(key, j))
        # Under vmap the loop runs as often as any copy needs: the others keep what they have.
        mine = j < n_updates
        new = select(mine, new, learner)
        sums = jax.tree.map(
            lambda total, x: total + jnp.where(mine, x, 0.0).astype(total.dtype),
            sums,
            dict(metrics),
        )
        return devices.pin(new, devices.of_learner), sums

    counts = (due > 0) & (steps < s.learn_until)
    learner = s.learner if on_policy else _with_statistics(levels, state, i, s.learner, counts)
    learner, sums = jax.lax.fori_loop(0, max_over_batch(n_updates), body, (learner, sums))
    learner = _with_statistics(levels, state, i, learner, counts) if on_policy else learner
    means = jax.tree.map(lambda total: total / jnp.maximum(n_updates, 1).astype(jnp.float32), sums)
    means["n_updates"] = n_updates.astype(jnp.float32)
    buffer = s.buffer
    settled = due > 0
    if on_policy:
        lost = jnp.maximum(buffer.per_ring("fresh") - buffer.per_ring("size"), 0)
        means["dropped_rows"] = jnp.where(settled, lost.sum(), 0).astype(jnp.float32)
        owed = jnp.where(settled, 0, s.owed)
    else:
        owed = s.owed - due * per
    seen = buffers.seen(buffer)
    buffer = buffer.replace(
        forgotten=seen.forgotten, before=jnp.where(settled, seen.before, buffer.before)
    )
    return s.replace(learner=learner, owed=owed, buffer=buffer), means
