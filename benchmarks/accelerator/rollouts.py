"""Rollouts against a bare scan, and the kernels of a tick."""

from __future__ import annotations

import functools
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import jax

import lrl_jax as lrl
from benchmarks import Row, slower
from benchmarks.accelerator import Found, Job, Sizes
from benchmarks.throughput import bare_case, hierarchies, level_case
from lrl_jax import benchmark
from lrl_jax.training import TrainConfig, Trainer, preset, with_settings

ENV = "Maze2D-Medium-v0"
AGENTS = ("maze2d-medium-planner", "maze2d-medium-splates")
BAR = 50e6  # steps/s of two levels at 65,536 instances


def config_of(name: str, sizes: Sizes, **changes: Any) -> TrainConfig:
    """A preset, with networks and searches of a rehearsal where that is wanted."""
    config = preset(name)
    if (sizes.small and "planner" in name) or ("splates" in name and sizes.small):
        changes = {
            "levels.0.optimizer.num_samples": 16,
            "levels.0.optimizer.n_iterations": 2,
            "levels.0.optimizer.elite_ratio": 0.25,
            "levels.0.optimizer.horizon": 3,
            "levels.0.n_updates": 2,
            "n_env_instances": 8,
            "round_ticks": 10,
            "test_episodes": 4,
        } | changes
    return with_settings(config, changes) if changes else config


def cheap(n: int, sizes: Sizes) -> Found:
    """One, two and three cheap levels."""
    env, params = lrl.make(ENV)
    functions: dict[str, Any] = {"bare scan": bare_case(env, params, n, sizes.ticks)}
    for name, levels in hierarchies().items():
        functions[name] = level_case(env, params, levels, n, sizes.ticks)
    timings = benchmark.compare(functions, sizes.repeats)
    return Found(
        tuple(level_row(f"{n} instances, {k}", k, timings, n * sizes.ticks) for k in timings)
    )


def planned(n: int, sizes: Sizes) -> Found:
    """A planner and SPlaTES in evaluation."""
    env, params = lrl.make(ENV)
    ticks = sizes.planned_ticks
    functions: dict[str, Any] = {"bare scan": bare_case(env, params, n, ticks)}
    for name in AGENTS:
        hierarchy = Trainer.build(config_of(name, sizes)).hierarchy.eval()
        carry = lrl.init_carry(hierarchy, jax.random.key(0), n)
        run = functools.partial(_rollout, hierarchy, ticks)
        functions[name] = (run, (carry,))
    timings = benchmark.compare(functions, sizes.repeats)
    rows = (
        level_row(f"{n} instances in evaluation, {k}", k, timings, n * ticks)
        for k in timings
        if k != "bare scan"
    )
    return Found(tuple(rows))


def _rollout(hierarchy: Any, ticks: int, carry: Any) -> Any:
    return lrl.rollout(hierarchy, carry, n_steps=ticks)


def level_row(case: str, name: str, timings: Any, steps: int) -> Row:
    ratio = None if name == "bare scan" else 1.0 / slower(timings, name, "bare scan")
    against = "" if ratio is None else "steps/s over those of the bare scan"
    return Row(case, timings[name], steps, "steps", ratio, against)


def kernels(sizes: Sizes) -> Found:
    """What the profiler saw on the device in a tick of each hierarchy, the most frequent first.

    Of CPUs it tells no kernels.
    """
    env, params = lrl.make(ENV)
    n, found = sizes.instances[0], {}
    for name, levels in hierarchies().items():
        many, one = (_kernels(env, params, levels, n, ticks) for ticks in (sizes.ticks, 1))
        rest = max(1, sizes.ticks - 1)
        per_tick = {k: (many[k] - one[k]) / rest for k in many if many[k] > one[k]}
        common = sorted(per_tick.items(), key=lambda kv: -kv[1])[:8]
        found[name] = {"kernels_per_tick": sum(per_tick.values()), "most": dict(common)}
    return Found(facts=found)


def _kernels(env: Any, params: Any, levels: Any, n: int, ticks: int) -> Counter[str]:
    """How often each kernel ran in a rollout."""
    run, args = level_case(env, params, levels, n, ticks)
    compiled = jax.jit(run).lower(*args).compile()
    jax.block_until_ready(compiled(*args))
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(compiled(*args))
        (path,) = Path(folder).rglob("*.xplane.pb")
        data = jax.profiler.ProfileData.from_file(str(path))
    return Counter(
        event.name
        for plane in data.planes
        if plane.name.startswith("/device:")
        for line in plane.lines
        if line.name.startswith("Stream") or line.name == "XLA Ops"
        for event in line.events
    )


def jobs(sizes: Sizes) -> list[Job]:
    """Rollouts at all numbers of instances."""
    most = sizes.instances
    return [
        *(Job(f"rollouts: {n} instances", 1, functools.partial(cheap, n)) for n in most),
        *(Job(f"planning: {n} instances", 1, functools.partial(planned, n)) for n in most),
        Job("rollouts: kernels of a tick", 1, kernels),
    ]
