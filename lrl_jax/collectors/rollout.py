"""Rollouts and evaluation of a hierarchy in gymnax environments, each one jitted loop."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from lrl_jax import devices, struct
from lrl_jax.collectors.records import Episodes, LevelTransitions, Transitions, nonfinite
from lrl_jax.collectors.stats import mean_over_updates
from lrl_jax.collectors.tick import (
    RolloutCarry,
    Step,
    begun,
    decide_and_step,
    full_tick,
    is_traced,
    names_env_once,
    settle,
    specs,
    traced_env,
)
from lrl_jax.exact import Sum
from lrl_jax.hierarchies import Hierarchy, HierarchyState
from lrl_jax.hierarchies.gating import select
from lrl_jax.settings import check_flag, check_int


class RolloutOutput(struct.Node):
    """Result of a rollout.

    Attributes:
        metrics: n_episodes, return_sum, length_sum, success_sum, reward_mean and level{i}/...,
            scalars; 0 without episodes or updates.
        transitions: Transitions, leaves [ticks, n, ...], or None if not recorded.
        levels: one LevelTransitions per level, leaves [ticks, n, ...], or None if not recorded.
    """

    metrics: dict[str, jax.Array]
    transitions: Transitions | None
    levels: tuple[LevelTransitions, ...] | None = None


def check_record(name: str, record: Any) -> bool | str:
    """Return what is to be recorded: False, True (transitions) or "levels" (also each level)."""
    if isinstance(record, str):
        if record != "levels":
            raise ValueError(f'{name}={record!r} is unknown: use True, False or "levels".')
        return record
    return check_flag(name, record)


def check_learn(hierarchy: Hierarchy, learn: Any) -> bool:
    """Return whether updates are made; ValueError where the hierarchy's mode allows none."""
    if check_flag("learn", learn) and not hierarchy.training:
        raise ValueError(
            "learn=True, but the hierarchy is in eval mode, which stores nothing to learn from: "
            "pass hierarchy.train()."
        )
    return learn


class _Fault(struct.Node):
    """The first step of a rollout that was not finite; int32 [] each, -1 where there is none.

    Attributes:
        tick: of the rollout.
        instance: the lowest-numbered.
        now: tick that is looked at next.
    """

    tick: jax.Array
    instance: jax.Array
    now: jax.Array

    @classmethod
    def none(cls) -> _Fault:
        """Before the first tick."""
        return cls(jnp.int32(-1), jnp.int32(-1), jnp.int32(0))

    @property
    def is_sound(self) -> jax.Array:
        """Whether all steps so far were finite, bool []."""
        return self.tick < 0

    def after(self, step: Step, obs: jax.Array, counts: jax.Array | bool) -> _Fault:
        """After a step that led to `obs`, if it `counts`."""
        bad = nonfinite((step.rew, step.signals, step.obs_next, obs))
        new = self.is_sound & bad.any() & counts
        return _Fault(
            jnp.where(new, self.now, self.tick),
            jnp.where(new, jnp.argmax(bad).astype(jnp.int32), self.instance),
            self.now + jnp.asarray(counts, jnp.int32),
        )


def _ticks(hierarchy, env, params, record, unroll, stops, carry, sums, fault, n_ticks):
    """Scan over ticks, each settling the step of the one before.

    What passes through the carry is computed once; used within its own iteration, a step would be
    computed again in every loop that XLA makes of the bookkeeping (`benchmarks/throughput.py`: a
    third of the time). Where levels are recorded too, each tick settles its own step.
    """

    def whole(scanned, _):
        carry, transitions, episodes, levels = full_tick(
            hierarchy, env, params, scanned[0], levels=True
        )
        return (carry, _add(scanned[1], transitions.rew, episodes)), (transitions, levels)

    def settled(carry, sums, fault, step, mask):
        if stops:
            fault = fault.after(step, carry.obs, True if mask is None else mask)
            mask = fault.is_sound if mask is None else mask & fault.is_sound
        carry, episodes = settle(hierarchy, carry, step, mask)
        rew = step.rew if mask is None else jnp.where(mask, step.rew, 0.0)
        return carry, _add(sums, rew, episodes), fault

    def later(scanned, _):
        carry, sums, fault, step, is_pending = scanned
        carry, sums, fault = settled(carry, sums, fault, step, is_pending)
        obs = carry.obs
        carry, step, action = decide_and_step(hierarchy, env, params, carry)
        carry = devices.pin(carry, specs)
        out = step.recorded(obs, action, None) if record else None
        return (carry, sums, fault, step, jnp.ones((), bool)), (out, None)

    if record == "levels":
        (carry, sums), out = jax.lax.scan(whole, (carry, sums), length=n_ticks)
        return carry, sums, fault, out
    start = (carry, sums, fault, Step.none(carry.obs, hierarchy.signals), jnp.zeros((), bool))
    (carry, sums, fault, step, _), out = jax.lax.scan(later, start, length=n_ticks, unroll=unroll)
    return *settled(carry, sums, fault, step, None), out


def _new(rew: jax.Array, episodes: Episodes) -> dict[str, jax.Array]:
    """What a tick adds to the sums of each instance, [n]."""
    done = episodes.finished
    return {
        "n_episodes": done.astype(jnp.int32),
        "return_sum": jnp.where(done, episodes.episode_return, 0.0),
        "length_sum": jnp.where(done, episodes.length, 0),
        "success_sum": (done & episodes.success).astype(jnp.int32),
        "reward_sum": rew,
    }


def _add(sums: dict[str, Any], rew: jax.Array, episodes: Episodes) -> dict[str, Any]:
    new = _new(rew, episodes)
    return {k: s.plus(new[k]) if isinstance(s, Sum) else s + new[k] for k, s in sums.items()}


def _no_sums(n: int) -> dict[str, Any]:
    """Sums of each instance before the first tick, [n]."""
    none, zeros = jnp.zeros(n, jnp.int32), jnp.zeros(n, jnp.float32)
    sums: dict[str, Any] = dict.fromkeys(("n_episodes", "length_sum", "success_sum"), none)
    return sums | {"return_sum": Sum(zeros, zeros), "reward_sum": Sum(zeros, zeros)}


def _rollout(hierarchy, env, n_steps, learn_interval, record, unroll, stops, params, carry):
    """See `rollout`; learns every `learn_interval` ticks, not at all if it is None."""
    ticks = functools.partial(_ticks, hierarchy, env, params, record, unroll, stops)

    def round_of(n_ticks, scanned, _):
        carry, sums, fault = scanned
        carry, sums, fault, recorded = ticks(carry, sums, fault, n_ticks)
        state, metrics = hierarchy.learn(carry.hierarchy)
        return (carry.replace(hierarchy=state), sums, fault), (recorded, metrics)

    n = carry.n_env_instances
    recorded: Any
    sums, metrics = _no_sums(n), {}
    fault = _Fault.none() if stops else None
    if learn_interval is None:
        carry, sums, fault, recorded = ticks(carry, sums, fault, n_steps)
    else:
        n_rounds, rest = divmod(n_steps, learn_interval)
        whole = functools.partial(round_of, learn_interval)
        scanned, (recorded, metrics) = jax.lax.scan(whole, (carry, sums, fault), length=n_rounds)
        recorded = jax.tree.map(
            lambda x: x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]), recorded
        )
        if rest:
            scanned, (last, last_metrics) = round_of(rest, scanned, None)
            join = functools.partial(jax.tree.map, lambda a, b: jnp.concatenate([a, b]))
            recorded = join(recorded, last)
            metrics = join(metrics, jax.tree.map(lambda x: x[None], last_metrics))
        carry, sums, fault = scanned
        metrics = mean_over_updates(metrics)
    carry = devices.pin(carry, specs)
    # Gathered first, so that sums are rounded the same for any number of devices.
    sums = {k: s.value if isinstance(s, Sum) else s for k, s in sums.items()}
    sums = devices.pin(sums, lambda sums: dict.fromkeys(sums, P()))
    totals = {name: value.sum() for name, value in sums.items()}
    totals["reward_mean"] = totals.pop("reward_sum") / (n_steps * n)
    if fault is not None:
        totals |= {"nonfinite_tick": fault.tick, "nonfinite_instance": fault.instance}
    return carry, RolloutOutput(totals | metrics, *recorded)


@names_env_once
def rollout(
    hierarchy: Hierarchy,
    carry: RolloutCarry,
    n_steps: int,
    learn: bool = False,
    record: bool | str = False,
    *,
    env: Any = None,
    env_params: Any = None,
    learn_interval: int | None = None,
    unroll: int = 1,
    stop_at_nan: bool = False,
) -> tuple[RolloutCarry, RolloutOutput]:
    """Step all instances `n_steps` times in one `lax.scan`. Pure, jittable, donates nothing.

    Args:
        hierarchy: acts; in train mode it explores, stores and counts.
        carry: from `init_carry` or an earlier rollout, n instances.
        n_steps: ticks.
        learn: make the updates owed every `learn_interval` ticks and at the end.
        record: True returns the transitions; "levels" also what each level did.
        env, env_params: see `init_carry`.
        learn_interval: ticks between updates; if an on-policy level learns more often, a divisor
            of both. None: 1, or if only on-policy levels learn, their interval. Their updates are
            on time if `n_steps` stays the same from call to call.
        unroll: ticks per iteration of the loop.
        stop_at_nan: from the first NaN or infinite reward, observation or signal on, nothing is
            stored, counted or learned from, so that replay and learners stay sound; the rest of
            the carry does not. The metrics `nonfinite_tick` and `nonfinite_instance` then say
            where it was, -1 without one, see `check_finite`. Training and collectors always
            check; here the check is off, as a pure function cannot raise.

    Returns:
        The carry and a RolloutOutput.

    Raises:
        ValueError, TypeError: for numbers out of range, an environment that does not fit, or a
            carry that is not from `init_carry`.
    """
    n_steps = check_int("n_steps", n_steps, 1)
    if learn_interval is not None:
        learn_interval = check_int("learn_interval", learn_interval, 1)
    if not isinstance(carry, RolloutCarry):
        raise TypeError(f"carry must come from init_carry, got {type(carry).__name__}.")
    env, params = traced_env(hierarchy, env, env_params)
    record, learn = check_record("record", record), check_learn(hierarchy, learn)
    unroll = check_int("unroll", unroll, 1)
    # Updates on-policy fall due at fixed ticks; 0 divides nothing.
    others = any(x.n_updates and x.rollout_length is None for x in hierarchy.levels)
    asked = learn_interval or (1 if others else 0)
    due = hierarchy.learn_ticks or 0
    learn_interval = math.gcd(asked, due, n_steps if due else 0) or 1
    interval = learn_interval if learn else None
    stops = bool(stop_at_nan)
    if stops and record == "levels":
        raise ValueError('stop_at_nan=True with record="levels": record True, or use a Collector.')
    run = hierarchy.jitted(_rollout, env, n_steps, interval, record, unroll, stops)
    with devices.use(devices.mesh_of(carry)):
        return run(params, carry)


def _evaluate(hierarchy, env, n, max_steps, params, state, key) -> Episodes:
    state_key, carry_key = jax.random.split(key)
    test_state = hierarchy.for_testing(state, state_key, n)
    carry = begun(hierarchy, env, params, carry_key, n, test_state)

    def step(loop, _):
        carry, seen = loop
        carry, _, episodes, _ = full_tick(hierarchy, env, params, carry)
        return (carry, select(seen.finished, seen, episodes)), None

    return jax.lax.scan(step, (carry, carry.sums.episodes()), length=max_steps)[0][1]


@names_env_once
def evaluate(
    hierarchy: Hierarchy,
    state: HierarchyState,
    key: jax.Array,
    n_episodes: int,
    *,
    env: Any = None,
    env_params: Any = None,
    max_steps: int | None = None,
) -> Episodes:
    """Run one episode in each of `n_episodes` instances. Pure; can be traced.

    One complete episode per instance, so that short ones are not favoured. Compiled once per
    `n_episodes` and `max_steps`.

    Args:
        hierarchy: evaluated in eval mode.
        state: its learners are evaluated; of any number of instances.
        key: typed random key, consumed.
        n_episodes: number of episodes, n.
        env, env_params: see `init_carry`.
        max_steps: ticks; an episode that has not ended by then is reported as not finished. The
            environment's own limit, `env_params.max_steps_in_episode`, if None.

    Returns:
        Episodes, leaves [n].

    Raises:
        ValueError: without `max_steps`, if the environment's limit is not known.
    """
    n = check_int("n_episodes", n_episodes, 1)
    env, params = traced_env(hierarchy, env, env_params)
    if max_steps is None:
        max_steps = getattr(params, "max_steps_in_episode", None)
        if max_steps is None or is_traced(max_steps):
            raise ValueError(
                f"the parameters of {type(env).__name__} have no max_steps_in_episode"
                f"{'' if max_steps is None else ' that is known while they are traced'}: give "
                f"max_steps, the ticks after which an episode is given up."
            )
        max_steps = int(np.max(max_steps))
    max_steps = check_int("max_steps", max_steps, 1)
    run = hierarchy.eval().jitted(_evaluate, env, n, max_steps)
    return run(params, state, key)
