"""What hierarchies of cheap levels cost on top of a bare scan over the environments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

import lrl_jax as lrl
from benchmarks import Row, slower
from lrl_jax import benchmark
from lrl_jax.levels import ActionRepeatLevel, RandomLevel

ENVS = ("Maze2D-Medium-v0", "MountainCarContinuous-v0")
INSTANCES = (1, 64, 1024, 8192)
BARS = {"one level": 0.9, "two levels": 0.8, "three levels": 0.7}
BAR_INSTANCES = 1024
BUFFER_ROWS = 100_000
NOTE = (
    "ratio: steps/s against the bare scan, which calls the same env.step: for Maze2D our own.\n"
    "That spares a split of the step's key, so the bare scan is faster than with gymnax's.\n"
    "A call with stored rows copies the buffers once, which the Collector's own chunks do not."
)


def hierarchies() -> dict[str, list[Any]]:
    """Levels of each case."""
    return {
        "one level": [RandomLevel()],
        "two levels": [RandomLevel(), ActionRepeatLevel(4)],
        "three levels": [RandomLevel(), ActionRepeatLevel(5), ActionRepeatLevel(4)],
        "two levels, both stored": [
            RandomLevel(buffer_size=BUFFER_ROWS),
            ActionRepeatLevel(4, buffer_size=BUFFER_ROWS),
        ],
    }


def bare_scan(env: Any, params: Any, n: int, n_ticks: int):
    """Random steps as one writes them by hand: (key, obs, state) -> the same and the reward."""
    space = env.action_space(params)

    def tick(carry, _):
        key, _, state, total = carry
        key, key_action, key_step = jax.random.split(key, 3)
        action = jax.vmap(space.sample)(jax.random.split(key_action, n))
        obs, state, reward, *_ = jax.vmap(env.step, in_axes=(0, 0, 0, None))(
            jax.random.split(key_step, n), state, action, params
        )
        return (key, obs, state, total + reward), None

    def run(key, obs, state, total):
        return jax.lax.scan(tick, (key, obs, state, total), length=n_ticks)[0]

    return run


def bare_case(env: Any, params: Any, n: int, n_ticks: int):
    """A bare scan and its arguments."""
    key, key_reset = jax.random.split(jax.random.key(0))
    obs, state = jax.vmap(env.reset, in_axes=(0, None))(jax.random.split(key_reset, n), params)
    tick = jax.eval_shape(bare_scan(env, params, n, 1), key, obs, state, jax.numpy.zeros(n))
    # Weak types of Python numbers in a fresh state would change in the first tick.
    args = (key, obs, state, jax.numpy.zeros(n))
    args = jax.tree.map(lambda x, y: jax.lax.convert_element_type(x, y.dtype), args[1:], tick[1:])
    return bare_scan(env, params, n, n_ticks), (key, *args)


def level_case(env, params, levels, n, n_ticks):
    hierarchy = lrl.Hierarchy(levels, env, params)
    carry = lrl.init_carry(hierarchy, jax.random.key(0), n)

    def run(carry):
        return lrl.rollout(hierarchy, carry, n_steps=n_ticks)

    return run, (carry,)


def measure(env_id: str, n: int, n_ticks: int, repeats: int, min_seconds: float = 0.2) -> list[Row]:
    """Rows of all hierarchies in one environment at `n` instances."""
    env, params = lrl.make(env_id)
    functions: dict[str, Any] = {"bare scan": bare_case(env, params, n, n_ticks)}
    for name, levels in hierarchies().items():
        functions[name] = level_case(env, params, levels, n, n_ticks)
    timings = benchmark.compare(functions, repeats, min_seconds=min_seconds)
    rows = []
    for name, timing in timings.items():
        is_bare = name == "bare scan"
        rows.append(
            Row(
                case=f"{env_id}, {n} instances, {name}",
                timing=timing,
                work=n * n_ticks,
                unit="steps",
                ratio=None if is_bare else 1.0 / slower(timings, name, "bare scan"),
                against="" if is_bare else "steps/s over those of the bare scan",
                bar=BARS.get(name) if n == BAR_INSTANCES else None,
                at_most=False,
                note=NOTE,
            )
        )
    return rows


def run(quick: bool = False, instances: Sequence[int] = INSTANCES) -> list[Row]:
    """All environments and numbers of instances."""
    rows = []
    for env_id in ENVS:
        for n in instances:
            n_ticks = max(200, min(4_000, 400_000 // n)) // (8 if quick else 1)
            rows += measure(env_id, n, n_ticks, 3 if quick else 7, 0.02 if quick else 0.2)
    return rows
