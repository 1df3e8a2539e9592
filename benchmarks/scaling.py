"""Scaling: collection workers against one in this process, and meshes of devices.

Virtual devices of one CPU share its cores, so meshes are no faster here; what is shown is their
cost, and that each device holds its share of the replay.
"""

from __future__ import annotations

import time
from typing import Any

import gymnasium
import jax
import numpy as np

import lrl_jax as lrl
from benchmarks import Row, slower
from lrl_jax import benchmark
from lrl_jax.collectors import CollectionSettings, CWorker, CWorkerSet, init_carry, rollout, shard
from lrl_jax.levels import SACLevel

STEP_SECONDS = 1e-3


class Costly(gymnasium.Env):
    """A step sleeps, or computes, for a number of seconds."""

    observation_space = gymnasium.spaces.Box(-1, 1, (3,))
    action_space = gymnasium.spaces.Box(-1, 1, (1,))

    def __init__(self, sleeps: bool):
        self.sleeps, self.steps = sleeps, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(3, np.float32), {}

    def step(self, action):
        if self.sleeps:
            time.sleep(STEP_SECONDS)
        else:
            began = time.thread_time()
            while time.thread_time() - began < STEP_SECONDS:
                pass
        self.steps += 1
        return np.zeros(3, np.float32), 0.0, False, self.steps == 200, {}


class Factories:
    """Of a worker that draws at random in a costly environment."""

    def __init__(self, sleeps: bool, samples: int):
        self.sleeps, self.samples = sleeps, samples

    def arguments(self) -> dict[str, Any]:
        """Arguments of workers and sets."""
        return {
            "algo_factory": self.settings,
            "actor_factory": self.actor,
            "storage_factory": self.storage,
            "train_envs_factory": self.envs,
        }

    def settings(self, device, actor):
        return CollectionSettings(update_every=self.samples)

    def actor(self, device):
        return lrl.RandomHierarchy(Costly(True))

    def storage(self, device, actor, algo):
        return None

    def envs(self, device, index_worker, index_parent, mode):
        return Costly(self.sleeps)


def workers(sleeps: bool, samples: int, repeats: int) -> list[Row]:
    """One worker in this process, one and two remote ones, each with one environment."""
    factories = Factories(sleeps, samples).arguments()
    local = CWorker(0, 0, **factories)
    factories["worker_remote_config"] = {"num_cpus": 0.5}  # three of them, on two cores
    with CWorkerSet(1, 0, **factories) as one, CWorkerSet(2, 0, **factories) as two:
        names = ("in this process", "1 remote worker", "2 remote workers")
        calls = dict(zip(names, (local.collect_data, one.collect, two.collect), strict=True))
        runs = {name: ((lambda f=f: f()[1]["NumberSamples"]), ()) for name, f in calls.items()}
        timings = benchmark.compare(runs, repeats, jit=False)
    local.stop()
    kind = "sleeps 1 ms" if sleeps else "computes for 1 ms"
    rows = []
    for name, timing in timings.items():
        n = 2 if name == names[2] else 1
        against = {names[1]: names[0], names[2]: names[1]}.get(name)
        ratio = None if against is None else n / slower(timings, name, against)
        rows.append(
            Row(
                case=f"an environment that {kind} a step, {name}",
                timing=timing,
                work=n * samples,
                unit="steps",
                ratio=ratio,
                against="" if against is None else f"steps/s over those {against}",
                bar=1.8 if sleeps and n == 2 else None,
                at_most=False,
            )
        )
    return rows


def meshes(n_instances: int, ticks: int, repeats: int) -> list[Row]:
    """Rollouts that learn, of SAC in a maze, on meshes of this machine's devices."""
    env, params = lrl.make("Maze2D-Medium-v0")
    level = SACLevel(buffer_size=100_000, update_interval=64, warm_up_steps=0)
    hierarchy = lrl.Hierarchy([level], env, params)
    sizes = [n for n in (1, 2, 4, 8) if n <= jax.device_count()]
    carry = init_carry(hierarchy, jax.random.key(0), n_instances)
    cases, notes = {}, {}
    for n in sizes:
        placed = carry if n == 1 else shard(carry, lrl.make_mesh(n))
        buffer = placed.hierarchy.levels[0].buffer
        assert buffer is not None
        rows = jax.tree.leaves((buffer.words, buffer.columns))
        share = sum(x.addressable_shards[0].data.nbytes for x in rows)
        name = f"{n} device{'s' if n > 1 else ''}"
        notes[name] = f"{share:,} bytes of replay a device"

        def run(placed=placed):
            carry, _ = rollout(hierarchy, placed, ticks, learn=True, learn_interval=ticks)
            return carry.sums

        cases[name] = (run, ())
    timings = benchmark.compare(cases, repeats, jit=False)
    one = "1 device"
    return [
        Row(
            case=f"SAC that learns, {n_instances} instances on {name}",
            timing=timing,
            work=n_instances * ticks,
            unit="steps",
            ratio=None if name == one else slower(timings, name, one),
            against="" if name == one else "times as long as on 1 device",
            note=notes[name],
        )
        for name, timing in timings.items()
    ]


def run(quick: bool) -> list[Row]:
    """All rows of the benchmark."""
    samples, repeats = (200, 3) if quick else (1000, 7)
    rows = workers(True, samples, repeats) + workers(False, samples, repeats)
    return rows + meshes(64, 16 if quick else 64, repeats)
