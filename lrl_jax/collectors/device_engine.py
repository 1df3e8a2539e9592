"""Collecting in gymnax environments: chunks of ticks in one loop on the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrl_jax import buffers, struct
from lrl_jax.collectors.counting import Owed
from lrl_jax.collectors.preprocess import Preprocess, reset_arguments
from lrl_jax.collectors.records import closings, decisions, nonfinite, zeroed
from lrl_jax.collectors.requests import Way
from lrl_jax.collectors.stats import Collected, Dropped, Record
from lrl_jax.collectors.store import add
from lrl_jax.collectors.tick import (
    RolloutCarry,
    Step,
    begun,
    decide_and_step,
    decided,
    full_tick,
    is_traced,
    restarted,
    settle,
)
from lrl_jax.envs.stepping import final_states, reset_all
from lrl_jax.hierarchies import Hierarchy, HierarchyState
from lrl_jax.hierarchies.gating import select
from lrl_jax.randomness import Salt, Stream, key_of


class _Taken(struct.Node):
    """A step of the environments that was taken, [n, ...] each.

    Attributes:
        obs: acted on.
        act: as decided.
        step: what came of it.
        levels: what the levels did, or None.
        bad: whose step is not finite, bool [n]; None without the check.
        frame: state of the first instance's environment after it, before any reset; None where no
            frame is drawn, or it cannot be had.
    """

    obs: Any
    act: Any
    step: Step
    levels: Any
    bad: Any
    frame: Any


def _take(hierarchy, env, way, preprocess, params, carry, mask):
    """First half of a tick: the carry, and the step taken."""
    obs, active = carry.obs, carry.hierarchy.active_level
    frame = None
    if way.frames:
        _, action = decided(hierarchy, carry, mask, way.random)
        keys = carry.stream.instance_keys(carry.n_env_instances, salt=Salt.STEP)
        action = hierarchy.action_space.clip(action)
        frame = final_states(env, keys, carry.env_state, action, params)
        frame = jax.tree.map(lambda x: x[0], frame)
    carry, step, action = decide_and_step(
        hierarchy, env, params, carry, mask, way.random, preprocess
    )
    levels = decisions(active, carry.hierarchy, mask) if way.record == "levels" else None
    bad = None
    if way.checks:
        bad = nonfinite((step.rew, step.signals, step.obs_next, carry.obs))
        bad = bad if mask is None else bad & mask
    return carry, _Taken(obs, action, step, levels, bad, frame)


def _settled(hierarchy, way, owned, owed, taken, mask):
    """Second half: bookkeeping, updates, and the tick's record. `mask` can be of shape []."""
    carry, store = owned
    step, levels = taken.step, taken.levels
    carry, episodes = settle(hierarchy, carry, step, mask, way.random)
    if levels is not None:
        done = step.terminated | step.truncated
        levels = closings(levels, carry.hierarchy.active_level, done, mask)
    metrics = {}
    if way.learn:
        state, metrics = hierarchy.learn(carry.hierarchy)
        carry = carry.replace(hierarchy=state)
    valid = None if mask is None else jnp.broadcast_to(mask, step.rew.shape)
    transitions = step.recorded(taken.obs, taken.act, valid)
    if store is not None:
        store = add(store, transitions)
    out = Record(
        episodes=episodes,
        reward=transitions.rew.sum(),
        steps=transitions.valid.sum(dtype=jnp.int32),
        metrics=metrics,
        transitions=transitions if way.record else None,
        levels=levels,
        obs_next=transitions.obs_next if way.capacity == 1 else None,
        frame=taken.frame,
    )
    return (carry, store), owed.after(way.mode, episodes.finished), out


def _chunk(hierarchy, env, way, preprocess, params, owned, owed, n_ticks):
    """Up to `n_ticks` ticks, their number traced, so that any number compiles once.

    Where steps are checked, one that is not finite ends the chunk before the bookkeeping of that
    tick. A mask of shape [] keeps it out, as the lowest level's rings are written as
    one (`Hierarchy.aligned`) as long as no instance is masked alone.

    Returns what is owned, what is still owed, the ticks taken, what was recorded, leaves
    [capacity, ...], zero after the ticks taken, and the last step, (_Taken,), () without checks.
    """
    everyone = way.mode == "n_steps"

    def step(owned, owed):
        mask = None if everyone else owed.active
        carry, taken = _take(hierarchy, env, way, preprocess, params, owned[0], mask)
        owned = carry, owned[1]
        if not way.checks:
            return *_settled(hierarchy, way, owned, owed, taken, mask), ()
        sound = ~taken.bad.any()
        mask = sound if mask is None else mask & sound
        owned, left, out = _settled(hierarchy, way, owned, owed, taken, mask)
        left = jax.tree.map(lambda x, y: jnp.where(sound, x, y), left, owed)
        return owned, left, out, (taken,)

    def is_sound(last):
        return ~last[0].bad.any() if way.checks else jnp.ones((), bool)

    def goes_on(loop):
        i, _, owed, _, last = loop
        return (i < n_ticks) & owed.active.any() & is_sound(last)

    def body(loop):
        i, owned, owed, out, _ = loop
        owned, owed, new, last = step(owned, owed)
        out = jax.tree.map(
            lambda all_, x: jax.lax.dynamic_update_index_in_dim(all_, x, i, 0), out, new
        )
        return i + is_sound(last), owned, owed, out, last

    _, _, shapes, last = jax.eval_shape(step, owned, owed)
    out = jax.tree.map(lambda s: jnp.zeros((way.capacity, *s.shape), s.dtype), shapes)
    last = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), last)
    i, owned, owed, out, last = jax.lax.while_loop(
        goes_on, body, (jnp.int32(0), owned, owed, out, last)
    )
    return owned, owed, i, out, last


def _without_bad(hierarchy, env, way, preprocess, params, owned, owed, taken):
    """Settle a step without the instances whose step is not finite; these are reset.

    Returns what is owned, what is still owed, and the tick's record.
    """
    bad, n = taken.bad, taken.bad.shape[0]
    good = ~bad if way.mode == "n_steps" else owed.active & ~bad
    taken = taken.replace(step=zeroed(taken.step, ~bad))
    (carry, store), owed, out = _settled(hierarchy, way, owned, owed, taken, good)
    keys = carry.stream.instance_keys(n, salt=Salt.NONFINITE)
    obs, env_state = reset_all(env, keys, params)
    if preprocess is not None:
        obs = preprocess.on_reset(obs, jnp.arange(n))
    # Should that bring another NaN, at least nothing else becomes one.
    obs = jnp.nan_to_num(obs, posinf=0.0, neginf=0.0)
    again = jax.tree.map(
        lambda x, y: x.astype(y.dtype), (obs, env_state), (carry.obs, carry.env_state)
    )
    obs, env_state = select(bad, again, (carry.obs, carry.env_state))
    carry = carry.replace(
        env_state=env_state,
        obs=obs,
        hierarchy=hierarchy.reset(carry.hierarchy, bad),
        sums=zeroed(carry.sums, ~bad),
    )
    return (carry, store if store is None else buffers.cut(store, bad)), owed, out


def _recorded_ticks(hierarchy, env, n_ticks, params, carry):
    """Transitions and episodes, leaves [n_ticks, n, ...], for gradients."""

    def step(carry, _):
        carry, transitions, episodes, _ = full_tick(hierarchy, env, params, carry)
        return carry, (transitions, episodes)

    return jax.lax.scan(step, carry, length=n_ticks)[1]


def _ticks_of(out: Record, n_ticks: int) -> Record:
    """The record of the first ticks."""
    record: Record = jax.tree.map(lambda x: x[:n_ticks], out)
    last = jax.tree.map(lambda x: x[-1], (record.obs_next, record.frame))
    return record.replace(obs_next=last[0], frame=last[1])


class DeviceEngine:
    """Environments, hierarchy and buffer of a collector that live on the device.

    Args:
        env, params: gymnax environment and its parameters.
        n: number of instances.
        preprocess: sees the data first, or None.

    Attributes:
        carry: state of the rollout; None before the first reset.
        store: replay buffer, or None.
        shared: whether the caller may hold the arrays of the carry, too.
    """

    def __init__(self, env: Any, params: Any, n: int, preprocess: Preprocess | None = None):
        self.env, self.params, self.n, self.preprocess = env, params, n, preprocess
        self.carry: Any = None
        self.store: buffers.Buffer | None = None
        self.shared = True
        self._before_trace: RolloutCarry | None = None

    def reset(
        self,
        hierarchy: Hierarchy,
        state: HierarchyState | None,
        seed: int | None,
        reset_kwargs: dict[str, Any] | None = None,
        key: Any = None,
    ) -> None:
        """Reset all environments and put the hierarchy back to level 0.

        Args:
            hierarchy: acts.
            state: of n instances; a new one if None.
            seed: of all random streams; None continues the current ones: the engine's, at
                first those of `state`, without one 0.
            reset_kwargs: only a `seed` has a meaning here.
            key: of the environments, instead of a seed.
        """
        kwargs = reset_arguments(reset_kwargs)
        seed = kwargs.pop("seed", seed)
        kwargs = {name: value for name, value in kwargs.items() if value not in (None, {})}
        if kwargs:
            raise ValueError(
                f"gym_reset_kwargs has {sorted(kwargs)}, but {type(self.env).__name__} is a gymnax "
                f"environment, whose resets take a seed only: use env_params for settings."
            )
        if key is None:
            if seed is None and self.carry is not None:
                key = self.carry.stream.tick_key(Salt.RESTART)
            elif seed is None and state is not None:
                state, key = restarted(state)
            else:
                key = key_of(seed or 0)
        carry = begun(hierarchy, self.env, self.params, key, self.n, state)
        if self.preprocess is not None:
            carry = carry.replace(obs=self.preprocess.on_reset(carry.obs, jnp.arange(self.n)))
        if seed is not None:
            stream = Stream.create(jax.random.fold_in(key, Salt.DECISIONS))
            carry = carry.replace(hierarchy=carry.hierarchy.replace(stream=stream))
        self.carry, self.shared = carry, True
        if self.store is not None:
            self.store = buffers.cut(self.store)

    def state(self) -> HierarchyState:
        """State of the hierarchy. Stays valid when the engine continues."""
        self.shared = True
        return self.carry.hierarchy

    @property
    def n_env_steps(self) -> int:
        """Environment steps that the state has counted; 0 while it is traced."""
        total = self.carry.hierarchy.n_total_env_steps
        return 0 if is_traced(total) else int(total)

    def set_state(self, hierarchy: Hierarchy, state: HierarchyState) -> None:
        """Go on with another state, of n instances."""
        if is_traced(state) and not is_traced(self.carry):
            self._before_trace = self.carry
        self.shared = True
        self.carry = self.carry.replace(hierarchy=state)

    def saved(self) -> dict[str, Any]:
        """All that changes, to be saved."""
        return {"carry": self.carry, "store": self.store}

    def restore(self, hierarchy: Hierarchy, read: Callable[[Any], Any], is_aligned: bool) -> None:
        """Go on, to the bit, with what was saved.

        Args:
            hierarchy: acts.
            read: finds the arrays of a tree of shapes.
            is_aligned: whether the lowest level's rings had one cursor.
        """

        def like():
            carry = begun(hierarchy, self.env, self.params, jax.random.key(0), self.n)
            if not is_aligned:
                carry = carry.replace(hierarchy=hierarchy.unaligned(carry.hierarchy))
            return carry

        saved = read({"carry": jax.eval_shape(like), "store": self.store})
        self.carry, self.store, self.shared = saved["carry"], saved["store"], True

    def _drop_traced(self) -> None:
        """Go back to before a traced state was set, if one was."""
        if is_traced(self.carry):
            self.carry, self.shared = self._before_trace, True

    def begin(
        self, hierarchy: Hierarchy, way: Way, owed: Owed, reset_kwargs: dict[str, Any] | None
    ) -> Owed:
        """Before the first tick of a call."""
        if reset_kwargs:
            raise ValueError(
                f"gym_reset_kwargs={reset_kwargs} has no meaning while collecting in a gymnax "
                f"environment, which resets itself: pass them to reset."
            )
        if is_traced(self.carry):
            self._drop_traced()
            raise ValueError(
                "the state is being differentiated or traced: pass no_grad=False with n_steps and "
                "record_transitions=True, or use lrl_jax.rollout, which is pure."
            )
        # Masks of instances need a cursor for each of the lowest level's rings.
        laid_out = hierarchy.aligned if way.mode == "n_steps" else hierarchy.unaligned
        self.carry = self.carry.replace(hierarchy=laid_out(self.carry.hierarchy))
        return jax.tree.map(jnp.asarray, owed)

    def settle(self, hierarchy: Hierarchy) -> None:
        """Nothing is due here: who sits out is not touched."""

    def run(self, hierarchy: Hierarchy, way: Way, out: Collected, n_ticks: int) -> None:
        """Take up to `n_ticks` ticks; adds their record to `out`, and what is still owed.

        To be held (`lrl_jax.interrupts`): what is donated would be lost.
        """
        run: Callable = hierarchy.jitted(_chunk, self.env, way, self.preprocess, donate=1)
        if self.shared:
            self.carry, self.store = jax.tree.map(jnp.copy, (self.carry, self.store))
            self.shared = False
        owned = (self.carry, self.store)
        ticks = jnp.asarray(n_ticks, jnp.int32)
        owned, out.owed, taken, new, last = run(self.params, owned, out.owed, ticks)
        self.carry, self.store = owned
        taken, new, bad = jax.device_get((taken, new, [step.bad for step in last]))
        if taken:
            out.add(_ticks_of(new, int(taken)))
        if np.any(bad):
            self._drop(hierarchy, way, out, *last)

    def _drop(self, hierarchy: Hierarchy, way: Way, out: Collected, last: _Taken) -> None:
        """Take a tick's step without the instances whose step is not finite."""
        carry = self.carry.replace(hierarchy=hierarchy.unaligned(self.carry.hierarchy))
        drop = hierarchy.jitted(_without_bad, self.env, way, self.preprocess)
        owned, out.owed, new = drop(self.params, (carry, self.store), out.owed, last)
        self.carry, self.store = owned
        new, step, bad = jax.device_get((new, last.step, last.bad))
        out.add(_ticks_of(jax.tree.map(lambda x: x[None], new), 1))
        out.drop(Dropped(out.n_ticks - 1, bad, step.rew, step.obs_next, step.signals))

    def differentiable(self, hierarchy: Hierarchy, n_ticks: int, allowed: bool) -> Any:
        """Transitions that carry gradients, and their Record, None while it is traced."""
        try:
            if not allowed or self.preprocess is not None:
                raise ValueError(
                    "no_grad=False goes with n_steps and record_transitions=True and nothing else, "
                    "without a preprocess_fn: gradients go through a fixed number of ticks to the "
                    "transitions."
                )
            run = hierarchy.jitted(_recorded_ticks, self.env, n_ticks)
            transitions, episodes = run(self.params, self.carry)
        finally:
            self._drop_traced()
        rew, episodes = jax.lax.stop_gradient((transitions.rew, episodes))
        if is_traced((rew, episodes)):
            return transitions, None
        rew, episodes = jax.device_get((rew, episodes))
        return transitions, Record(episodes, rew.sum(1), np.full(n_ticks, self.n), {}, None)

    def frame(self) -> Any:
        """State of the first instance's environment."""
        return jax.tree.map(lambda x: x[0], self.carry.env_state)

    @property
    def first_begins(self) -> bool:
        """Whether the first instance is at the start of an episode."""
        return not int(self.carry.sums.length[0])

    @property
    def obs(self) -> Any:
        """Observations to act on next, [n, ...]."""
        return self.carry.obs
