"""What a planner costs whose instances have drifted apart, and what vmapped seeds cost."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp

import lrl_jax as lrl
from benchmarks import Row, slower
from lrl_jax import benchmark
from lrl_jax.collectors import RolloutCarry
from lrl_jax.hierarchies import Hierarchy
from lrl_jax.training import PlannerAgent

ENV = "Maze2D-Medium-v0"
HOLD = 10
N_SEEDS = 4


def build(n: int, **agent: Any) -> tuple[Hierarchy, Any, Any, RolloutCarry]:
    """A planner over held actions that plans from the first decision on and never learns."""
    env, params = lrl.make(ENV)
    settings = {
        "action_repeat": HOLD,
        "warm_up_steps": 0,
        "n_updates": 0,
        "buffer_size": 64 * n,
        **agent,
    }
    levels = PlannerAgent(**settings).levels(env, total_steps=100_000)
    hierarchy = lrl.Hierarchy(levels, env, params)
    carry = lrl.collectors.init_carry(hierarchy, env, params, jax.random.key(0), n)
    return hierarchy, env, params, carry


def spread_phases(hierarchy: Hierarchy, carry: RolloutCarry) -> RolloutCarry:
    """Put instances at different points of their hold, so that as many decide in every tick.

    Instance i takes i % HOLD + 1 steps; the environments stand still meanwhile.
    """
    state, n = carry.hierarchy, carry.episode_length.shape[0]
    no = jnp.zeros(n, bool)
    for k in range(HOLD):
        mask = jnp.arange(n) % HOLD >= k
        state, _ = hierarchy.get_action(state, carry.obs, mask)
        state = hierarchy.process_transition(state, carry.obs, jnp.zeros(n), no, no, mask)
    return carry.replace(hierarchy=state)


def phases(n: int, n_ticks: int, repeats: int, **agent: Any) -> list[Row]:
    """Rollouts with all instances in phase against phases spread evenly."""
    hierarchy, env, params, carry = build(n, **agent)

    def run(carry):
        return lrl.rollout(hierarchy, env, params, carry, n_steps=n_ticks)

    # One program for both: it is the state that differs.
    start = time.perf_counter()
    compiled = jax.jit(run).lower(carry).compile()
    seconds = time.perf_counter() - start
    cases = {"in phase": carry, "spread": spread_phases(hierarchy, carry)}
    timings = benchmark.compare(
        {name: (compiled, (c,)) for name, c in cases.items()}, repeats, jit=False
    )
    rows = []
    for name, timing in timings.items():
        spread = name == "spread"
        # Of the planner, a row closes for each plan.
        after, _ = compiled(cases[name])
        plans = int(after.hierarchy.levels[0].new_rows - cases[name].hierarchy.levels[0].new_rows)
        rows.append(
            Row(
                case=f"{n} instances {name}, {plans} plans in {n_ticks} ticks",
                timing=dataclasses.replace(timing, compile_seconds=seconds),
                work=plans,
                unit="plans",
                ratio=slower(timings, name, "in phase") if spread else None,
                against="time over that of instances in phase" if spread else "",
                bar=1.3 if spread else None,
            )
        )
    return rows


def seeds(n: int, n_ticks: int, repeats: int, **agent: Any) -> list[Row]:
    """Vmapped seeds against one."""
    hierarchy, env, params, carry = build(n, **agent)

    def init(key):
        return lrl.collectors.init_carry(hierarchy, env, params, key, n)

    def run(carry):
        return lrl.rollout(hierarchy, env, params, carry, n_steps=n_ticks)

    carries = jax.jit(jax.vmap(init))(jax.random.split(jax.random.key(1), N_SEEDS))
    one, many = "one seed", f"{N_SEEDS} vmapped seeds"
    timings = benchmark.compare({one: (run, (carry,)), many: (jax.vmap(run), (carries,))}, repeats)
    return [
        Row(
            case=f"{name} of {n} instances, {n_ticks} ticks",
            timing=timing,
            work=n * n_ticks * (N_SEEDS if name == many else 1),
            unit="steps",
            ratio=slower(timings, many, one) if name == many else None,
            against="time over that of one seed" if name == many else "",
            bar=5.0 if name == many else None,
        )
        for name, timing in timings.items()
    ]


def run(quick: bool = False) -> list[Row]:
    """Both comparisons."""
    # Sizes of the main preset; smaller searches where only a quick look is wanted.
    agent = {"num_samples": 64, "n_iterations": 2, "horizon": 6} if quick else {}
    repeats = 3
    rows = []
    for n in (64, 256):
        rows += phases(n, 40 if quick else 100, repeats, **agent)
    return rows + seeds(32 if quick else 64, 20, repeats, **agent)
