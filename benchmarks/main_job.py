"""Environment steps per second, learning included, of the main presets."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from benchmarks import Row
from lrl_jax import benchmark
from lrl_jax.training import PRESETS, TrainConfig, Trainer

MAIN = ("maze2d-medium-splates", "maze2d-medium-planner")
CHUNK_STEPS = 6_400


def measure(config: TrainConfig, name: str, begin: int, repeats: int) -> list[Row]:
    """Time a chunk that starts after `begin` environment steps."""
    trainer = Trainer.build(config)
    chunk = jax.jit(trainer.chunk)
    carry = trainer.init(jax.random.key(config.seed))
    while int(carry.hierarchy.n_total_env_steps) < begin:
        carry, _ = chunk(carry)
    timing = benchmark.compare({name: (trainer.chunk, (carry,))}, repeats)[name]
    steps = config.rounds_per_chunk * config.round_steps
    case = f"{name}, {config.n_env_instances} instances, chunk of {steps} steps after {begin:,}"
    return [Row(case, timing, steps, "steps", note="learning included, tests not.")]


def run(quick: bool = False) -> list[Row]:
    """Both presets in short chunks, once they plan; `quick` starts and ends sooner."""
    rows = []
    for name in MAIN:
        config = PRESETS[name][1]
        steps = config.round_steps if quick else CHUNK_STEPS
        agent: Any = config.agent
        begin = getattr(agent, "no_planning_steps", None) or agent.warm_up_steps
        if quick:
            starts = ("warm_up_steps", "no_planning_steps", "planner_warm_up", "skill_warm_up")
            early = {field: 1 for field in starts if hasattr(agent, field)}
            config = dataclasses.replace(config, agent=dataclasses.replace(agent, **early))
            begin = 2 * steps
        config = dataclasses.replace(config, test_interval=steps)
        rows += measure(config, name, int(begin), 3)
    return rows
