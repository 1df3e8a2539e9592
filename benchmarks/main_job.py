"""Environment steps per second, learning included, of the main preset."""

from __future__ import annotations

import dataclasses

import jax

from benchmarks import Row
from lrl_jax import benchmark
from lrl_jax.training import PRESETS, TrainConfig, Trainer

PRESET = "maze2d-medium-planner"
CHUNK_STEPS = 6_400


def measure(config: TrainConfig, name: str, repeats: int) -> list[Row]:
    """Time a chunk that begins after the random actions of the start."""
    trainer = Trainer.build(config)
    chunk = jax.jit(trainer.chunk)
    carry = trainer.init(jax.random.key(config.seed))
    while int(carry.hierarchy.n_total_env_steps) < config.agent.warm_up_steps:
        carry, _ = chunk(carry)
    timing = benchmark.compare({name: (trainer.chunk, (carry,))}, repeats)[name]
    steps = config.rounds_per_chunk * config.round_steps
    case = f"{name}, {config.n_env_instances} instances, chunk of {steps} steps after warm up"
    return [Row(case, timing, steps, "steps", note="learning included, tests not.")]


def run(quick: bool = False) -> list[Row]:
    """The main preset in short chunks; `quick` cuts its start and its chunks."""
    _, config = PRESETS[PRESET]
    if not quick:
        return measure(dataclasses.replace(config, test_interval=CHUNK_STEPS), PRESET, 3)
    steps = config.round_steps
    agent = dataclasses.replace(config.agent, warm_up_steps=steps)
    quick_config = dataclasses.replace(config, agent=agent, test_interval=steps)
    return measure(quick_config, PRESET, 3)
