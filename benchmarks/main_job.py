"""Environment steps per second, learning included, of the main presets."""

from __future__ import annotations

import functools

import jax

from benchmarks import Row
from lrl_jax import benchmark, setting_trees
from lrl_jax.training import TrainConfig, Trainer, preset, with_settings

MAIN = ("maze2d-medium-splates", "maze2d-medium-planner")
CHUNK_STEPS = 6_400


def measure(config: TrainConfig, name: str, begin: int, repeats: int) -> list[Row]:
    """Time a chunk that starts after `begin` environment steps."""
    trainer = Trainer.build(config)
    n_rounds = trainer.config.chunks[0]
    chunk = functools.partial(trainer.chunk, n_rounds=n_rounds)
    jitted = jax.jit(chunk)
    carry = trainer.init(jax.random.key(config.seed))
    while int(carry.hierarchy.n_total_env_steps) < begin:
        carry, _ = jitted(carry)
    timing = benchmark.compare({name: (chunk, (carry,))}, repeats)[name]
    steps = n_rounds * config.round_steps
    case = f"{name}, {config.n_env_instances} instances, chunk of {steps} steps after {begin:,}"
    return [Row(case, timing, steps, "steps", note="learning included, tests not.")]


def run(quick: bool = False) -> list[Row]:
    """Both presets in short chunks, once they plan; `quick` starts and ends sooner."""
    rows = []
    for name in MAIN:
        config = preset(name)
        steps = config.round_steps if quick else CHUNK_STEPS
        starts = {
            path: steps
            for path, steps in setting_trees.walk(config)
            if path.endswith(("warm_up_steps", "no_planning_steps")) and steps
        }
        begin = max(starts.values())
        if quick:
            config = with_settings(config, dict.fromkeys(starts, 1))
            begin = 2 * steps
        config = with_settings(config, {"test_interval": steps})
        rows += measure(config, name, int(begin), 3)
    return rows
