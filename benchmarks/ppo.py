"""Environment steps per second of PPO, learning included, against a bare scan.

PureJaxRL's settings (luchris429/purejaxrl, ppo.py), so that the rates can be compared with its own:
CartPole-v1, rollouts of 128 steps, 4 epochs, tanh 64 x 64 actor and critic, the learning rate
annealed. It is not a dependency: run it on the same machine, and take it for the ratio.
"""

from __future__ import annotations

import dataclasses

import jax

import lrl_jax as lrl
from benchmarks import Row, slower
from benchmarks.throughput import bare_case
from lrl_jax import benchmark
from lrl_jax.algorithms import PPO
from lrl_jax.levels import PPOLevel
from lrl_jax.schedules import RampSchedule

ROLLOUT = 128
# Instances, minibatches, updates of a call.
SIZES = ((4, 4, 50), (64, 8, 10), (1024, 32, 2))
NOTE = (
    "learning: rollouts and updates; storing: rollouts alone; ratio: steps/s against the bare scan "
    "with random actions."
)


def cases(n: int, n_minibatches: int, n_updates: int):
    """Functions to time, by name, with their arguments; all make as many steps."""
    env, params = lrl.make("CartPole-v1")
    n_ticks = n_updates * ROLLOUT
    algorithm = PPO(
        n_minibatches=n_minibatches,
        entropy_coefficient=0.01,
        value_clip=0.2,
        learning_rate=RampSchedule(2.5e-4, 0.0, n_ticks * n),
    )
    hierarchy = lrl.Hierarchy([PPOLevel(algorithm, rollout_length=ROLLOUT)], env, params)
    carry = lrl.init_carry(hierarchy, jax.random.key(0), n)

    def rollout(learn):
        def run(carry):
            carry, out = lrl.rollout(hierarchy, carry, n_ticks, learn=learn, learn_interval=ROLLOUT)
            return carry, out.metrics

        return run, (carry,)

    return {
        "bare scan": bare_case(env, params, n, n_ticks),
        "storing": rollout(False),
        "learning": rollout(True),
    }


def rows_of(n: int, n_minibatches: int, n_updates: int, repeats: int) -> list[Row]:
    """One number of instances."""
    timings = benchmark.compare(cases(n, n_minibatches, n_updates), repeats)
    rows = []
    for name, timing in timings.items():
        case = f"CartPole-v1, {n} instances, {n_minibatches} minibatches, {name}"
        row = Row(case, timing, n * n_updates * ROLLOUT, "steps", note=NOTE)
        if name != "bare scan":
            ratio = 1.0 / slower(timings, name, "bare scan")
            row = dataclasses.replace(row, ratio=ratio, against="bare scan", at_most=False)
        rows.append(row)
    return rows


def run(quick: bool = False) -> list[Row]:
    """All numbers of instances; `quick` takes the least, one update, few repeats."""
    sizes = [(4, 4, 2)] if quick else SIZES
    return [row for size in sizes for row in rows_of(*size, 3 if quick else 7)]
