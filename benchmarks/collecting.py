"""Collecting in Gymnasium environments against stepping them with precomputed actions."""

from __future__ import annotations

import functools
import time

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import lrl_jax as lrl
from benchmarks import Row, slower
from lrl_jax import benchmark

ENV = "MountainCarContinuous-v0"
SLOW, FAST = 0.05, 0.001  # seconds that a step of an instance sleeps


def host(n: int, n_ticks: int, repeats: int, bar: float | None) -> list[Row]:
    """RandomHierarchy in a SyncVectorEnv of n instances, against the bare environment."""
    bare_env, env = (gymnasium.make_vec(ENV, n, vectorization_mode="sync") for _ in range(2))
    bare_env.reset(seed=0)
    actions = np.random.default_rng(0).uniform(-1, 1, (n_ticks, n, 1)).astype(np.float32)
    collector = lrl.Collector(lrl.RandomHierarchy(env), env)
    collector.reset(seed=0)

    def step():
        for action in actions:
            bare_env.step(action)

    bare, ours = "precomputed actions", "RandomHierarchy and Collector"

    def collect():
        return collector.collect(n_steps=n_ticks).n_collected_steps

    timings = benchmark.compare({bare: (step, ()), ours: (collect, ())}, repeats, jit=False)
    return [
        Row(
            case=f"{ENV}, sync, {n} instances: {name}",
            timing=timing,
            work=n * n_ticks,
            unit="steps",
            ratio=1 / slower(timings, ours, bare) if name == ours else None,
            against="steps/s over those of precomputed actions" if name == ours else "",
            bar=bar if name == ours else None,
            at_most=False,
        )
        for name, timing in timings.items()
    ]


class Sleeping(gymnasium.Env):
    """An environment that waits for something else."""

    observation_space = gymnasium.spaces.Box(-1, 1, (3,))
    action_space = gymnasium.spaces.Box(-1, 1, (1,))

    def __init__(self, seconds: float):
        self.seconds, self.steps = seconds, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(3, np.float32), {}

    def step(self, action):
        time.sleep(self.seconds)
        self.steps += 1
        return np.zeros(3, np.float32), 0.0, False, self.steps == 200, {}


def one_slow(n_steps: int, repeats: int) -> list[Row]:
    """Eight instances one of which is slow: whoever is ready against all together."""
    fns = [functools.partial(Sleeping, SLOW if i == 0 else FAST) for i in range(8)]
    env = SyncVectorEnv(fns, autoreset_mode=AutoresetMode.DISABLED)
    hierarchy = lrl.RandomHierarchy(env)
    together = lrl.Collector(hierarchy, env)
    with lrl.AsyncCollector(hierarchy, fns, wait_num=1) as ready:
        sync, asynchronous = "Collector", "AsyncCollector, wait_num=1"

        def collect(collector):
            return collector.collect(n_total_steps=n_steps).n_collected_steps

        timings = benchmark.compare(
            {sync: (collect, (together,)), asynchronous: (collect, (ready,))}, repeats, jit=False
        )
    return [
        Row(
            case=f"eight instances, a step of one sleeps 50 ms, of the others 1 ms: {name}",
            timing=timing,
            work=n_steps,
            unit="steps",
            ratio=1 / slower(timings, asynchronous, sync) if name == asynchronous else None,
            against="steps/s over those of the Collector" if name == asynchronous else "",
            bar=5.0 if name == asynchronous else None,
            at_most=False,
        )
        for name, timing in timings.items()
    ]


def run(quick: bool = False) -> list[Row]:
    """Both comparisons."""
    rows = []
    for n, n_ticks, bar in ((1, 2000, None), (16, 2000, 0.6), (256, 300, 0.8)):
        rows += host(n, n_ticks // (10 if quick else 1), 3 if quick else 7, bar)
    return rows + one_slow(160 if quick else 800, 3)
