"""Physics on the device, and whether it agrees with the CPU."""

from __future__ import annotations

import functools
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

import lrl_jax as lrl
from benchmarks.accelerator import Found, Job, Sizes
from benchmarks.accelerator.rollouts import config_of, level_row
from benchmarks.throughput import bare_case, level_case
from lrl_jax import benchmark
from lrl_jax.algorithms import SAC
from lrl_jax.levels import ActionRepeatLevel, RandomLevel, SACLevel
from lrl_jax.training import Trainer

PHYSICS = {"brax/ant": "brax", "playground/CheetahRun": "mujoco_playground"}
TICKS = 50
TESTS_SECONDS = 150
ROOT = Path(__file__).parents[2]


def physics(env_id: str, sizes: Sizes) -> Found:
    """An environment bare, under a random level, and with SAC learning from it."""
    package = PHYSICS[env_id]
    if importlib.util.find_spec(package) is None:
        return Found(facts={"skipped": f"{package} is not installed"})
    env, params = lrl.make(env_id, **({"backend": "spring"} if package == "brax" else {}))
    n, ticks = sizes.physics_instances, sizes.physics_ticks
    hidden = (16,) if sizes.small else (256, 256)
    level = SACLevel(
        SAC(hidden=hidden), buffer_size=100 * n, update_interval=n, n_updates=8, warm_up_steps=n
    )
    hierarchy = lrl.Hierarchy([level], env, params)
    carry = lrl.init_carry(hierarchy, jax.random.key(0), n)

    def learning(carry: Any) -> Any:
        carry, out = lrl.rollout(hierarchy, carry, ticks, learn=True)
        return carry, out.metrics

    functions: dict[str, Any] = {
        "bare scan": bare_case(env, params, n, ticks),
        "random level": level_case(env, params, [RandomLevel()], n, ticks),
        "SAC, 8 updates a tick": (learning, (carry,)),
    }
    timings = benchmark.compare(functions, sizes.repeats)
    return Found(
        tuple(level_row(f"{env_id}, {n} instances, {k}", k, timings, n * ticks) for k in timings)
    )


def random_rollouts(sizes: Sizes) -> Found:
    """Draws, actions and counters of random rollouts, equal to the CPU's, and positions."""
    del sizes

    def played() -> Any:
        env, params = lrl.make("Maze2D-Medium-v0")
        hierarchy = lrl.Hierarchy([RandomLevel(), ActionRepeatLevel(4)], env, params)
        carry = lrl.init_carry(hierarchy, jax.random.key(0), 64)
        carry, out = lrl.rollout(hierarchy, carry, TICKS, record=True)
        return jax.device_get((out.transitions, out.metrics, carry.hierarchy.n_total_env_steps))

    here = played()
    with jax.default_device(jax.devices("cpu")[0]):
        there = played()
    exact, largest, different = 0, 0.0, []
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(here), jax.tree.leaves(there), strict=True
    ):
        a, b = np.asarray(a), np.asarray(b)
        if a.tobytes() == b.tobytes():
            exact += 1
        elif np.issubdtype(a.dtype, np.floating):
            largest = max(largest, float(np.abs(a - b).max()))
        else:
            different.append(jax.tree_util.keystr(path))
    return Found(
        facts={
            "arrays_equal_to_the_bit": exact,
            "largest_difference_of_floats": largest,
            "whole_numbers_that_differ": different,
            "holds": not different and largest <= 1e-5,
        }
    )


def precision(sizes: Sizes) -> Found:
    """Plans with products in `highest` precision against the device's default, and the CPU's."""
    trainer = Trainer.build(config_of("maze2d-medium-planner", sizes))

    def plans(precision: str | None) -> Any:
        with jax.default_matmul_precision(precision or "default"):
            hierarchy = trainer.hierarchy.eval()
            carry = lrl.init_carry(hierarchy, jax.random.key(0), 16)
            _, out = lrl.rollout(hierarchy, carry, 10, record=True)
            assert out.transitions is not None  # recorded
            return jax.device_get(out.transitions.act)

    highest, default = plans("highest"), plans(None)
    with jax.default_device(jax.devices("cpu")[0]):
        cpu = plans("highest")
    return Found(
        facts={
            "actions_highest_and_default_differ_by": float(np.abs(highest - default).max()),
            "actions_highest_and_cpu_differ_by": float(np.abs(highest - cpu).max()),
        }
    )


def semantics(sizes: Sizes) -> Found:
    """The project's tests of semantics on this device."""
    if not sizes.tests:
        return Found(facts={"skipped": "a rehearsal"})
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *sizes.tests]
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=TESTS_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as late:
        said = late.stdout.decode() if isinstance(late.stdout, bytes) else late.stdout or ""
        return Found(facts={"finished": False, "seconds": TESTS_SECONDS, "said": said[-300:]})
    return Found(facts={"status": done.returncode, "said": done.stdout[-300:]})


JOBS = (
    *(Job(f"physics: {name}", 3, functools.partial(physics, name)) for name in PHYSICS),
    Job("agreement: random rollouts", 3, random_rollouts),
    Job("agreement: precision", 3, precision),
    Job("agreement: tests", 3, semantics),
)
