"""What a planner costs whose instances have drifted apart, and what vmapped seeds cost."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp

import lrl_jax as lrl
from benchmarks import Row, slower
from lrl_jax import benchmark, buffers
from lrl_jax.collectors import RolloutCarry
from lrl_jax.hierarchies import Hierarchy
from lrl_jax.training import preset, with_settings

PRESET = preset("maze2d-medium-planner")
HOLD = 10
N_SEEDS = 4
SIZES = {"num_samples": 128, "n_iterations": 4, "horizon": 15, "elite_ratio": 0.1}


def build(
    n: int, hidden: tuple[int, ...] | None = None, **search: Any
) -> tuple[Hierarchy, RolloutCarry]:
    """A planner over held actions that plans from the first decision on and never learns.

    Args:
        n: number of instances.
        hidden: layers of model and reward, in place of the preset's.
        search: settings of the optimizer, in place of the preset's.
    """
    env, params = lrl.make(PRESET.env)
    changes = {
        **{f"levels.0.optimizer.{name}": value for name, value in search.items()},
        "levels.0.chunk_size": None,
        # The preset explores between plans; here every decision is a plan.
        "levels.0.alternate_with_noise": False,
        "levels.0.warm_up_steps": 0,
        "levels.0.n_updates": 0,
        "levels.0.buffer_size": 64 * n,
    }
    if hidden is not None:
        factory = "levels.0.predictor_factory"
        changes[f"{factory}.partial_model.hidden"] = hidden
        changes[f"{factory}.partial_rew_func.hidden"] = hidden
    levels = with_settings(PRESET, changes).resolved().levels
    hierarchy = lrl.Hierarchy(levels, env, params)
    carry = lrl.init_carry(hierarchy, jax.random.key(0), n)
    return hierarchy, carry


def held(hierarchy: Hierarchy, carry: RolloutCarry, spread: bool) -> RolloutCarry:
    """Take all instances through one hold, then, if asked, to different points of the next one.

    The first hold is over in both cases, as the very first decision may be a random one. Then
    instance i takes i % HOLD + 1 steps, so that as many decide in every tick. The environments
    stand still meanwhile.
    """
    state, n = carry.hierarchy, carry.n_env_instances
    no = jnp.zeros(n, bool)
    all_of_them = [jnp.ones(n, bool)] * HOLD
    some = [jnp.arange(n) % HOLD >= k for k in range(HOLD)] if spread else []
    for mask in (*all_of_them, *some):
        state, _ = hierarchy.get_action(state, carry.obs, mask)
        state = hierarchy.process_transition(state, carry.obs, jnp.zeros(n), no, no, mask)
    return carry.replace(hierarchy=state)


def n_planned(carry: RolloutCarry) -> int:
    """Closed rows of the planner whose action was planned, not random."""
    return int(buffers.stored(carry.hierarchy.levels[0].buffer)["planning_mode"].sum())


def phases(n: int, n_ticks: int, repeats: int, **search: Any) -> list[Row]:
    """Rollouts with all instances in phase against phases spread evenly."""
    hierarchy, carry = build(n, **search)

    def run(carry):
        return lrl.rollout(hierarchy, carry, n_steps=n_ticks)

    planner: Any = hierarchy.levels[0]
    # One program for both: it is the state that differs.
    start = time.perf_counter()
    compiled = jax.jit(run).lower(carry).compile()
    seconds = time.perf_counter() - start
    cases = {name: held(hierarchy, carry, name == "spread") for name in ("in phase", "spread")}
    timings = benchmark.compare(
        {name: (compiled, (c,)) for name, c in cases.items()}, repeats, jit=False
    )
    rows = []
    for name, timing in timings.items():
        spread = name == "spread"
        plans = n_planned(compiled(cases[name])[0]) - n_planned(cases[name])
        rows.append(
            Row(
                case=(
                    f"{n} instances {name}, {plans} plans of {planner.optimizer.num_samples} "
                    f"samples in {n_ticks} ticks, chunks of {planner.chunk_size}"
                ),
                timing=dataclasses.replace(timing, compile_seconds=seconds),
                work=plans,
                unit="plans",
                ratio=slower(timings, name, "in phase") if spread else None,
                against="time over that of instances in phase" if spread else "",
                bar=1.3 if spread else None,
            )
        )
    return rows


def seeds(n: int, n_ticks: int, repeats: int, **search: Any) -> list[Row]:
    """Vmapped seeds against one."""
    hierarchy, carry = build(n, **search)

    def init(key):
        return lrl.init_carry(hierarchy, key, n)

    def run(carry):
        return lrl.rollout(hierarchy, carry, n_steps=n_ticks)

    keys = jax.random.split(jax.random.key(1), N_SEEDS)
    carry = held(hierarchy, carry, False)
    each = [held(hierarchy, init(key), False) for key in keys]
    carries = jax.tree.map(lambda *x: jnp.stack(x), *each)
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
    # A quick look searches less, but with as many samples: they set how many plan at a time.
    search = SIZES | ({"n_iterations": 1, "horizon": 4} if quick else {})
    repeats, n_ticks = 3, 40 if quick else 100
    rows = []
    for n in (64, 256):
        rows += phases(n, n_ticks, repeats, **search)
    rows += phases(64, n_ticks, repeats)  # the main preset's own sizes
    return rows + seeds(32 if quick else 64, 20, repeats, **search)
