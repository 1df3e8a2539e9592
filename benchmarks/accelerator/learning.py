"""Training: seconds to a success, seeds side by side, updates and plans a second."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import Row
from benchmarks.accelerator import Found, Job, Sizes
from benchmarks.accelerator.rollouts import config_of
from benchmarks.flops import product_flops
from benchmarks.ppo import ROLLOUT, cases
from lrl_jax import benchmark, setting_trees, spaces
from lrl_jax.algorithms import SAC, TDMPC2, Batch
from lrl_jax.training import Trainer, with_settings

SUCCESS = 0.9
PPO_FLOPS = 216_000  # of the products, a step of PureJaxRL's settings
OBS, ACTION = 24, 6  # of an update's batch, as in a locomotion task


# ------------------------------------------------------------ seconds to a success


def to_success(name: str, sizes: Sizes, **changes: Any) -> Found:
    """Train until a test inside the same program has a success of 0.9."""
    changes = {"total_steps": sizes.most_steps, "test_interval": sizes.test_interval} | changes
    trainer = Trainer.build(config_of(name, sizes, **changes))
    config = trainer.config
    chunk = chunk_and_test(trainer)
    # Leaves may share arrays; what is donated must not.
    carry = jax.tree.map(jnp.copy, trainer.init(jax.random.key(config.seed)))
    start = time.perf_counter()
    rounds = config.chunks[0]
    compiled = jax.jit(functools.partial(chunk, rounds), donate_argnums=0).lower(carry, 0).compile()
    compile_seconds = time.perf_counter() - start
    curve: list[dict[str, float]] = []
    start = time.perf_counter()
    for i in range(config.total_steps // (rounds * config.round_steps)):
        carry, tested = compiled(carry, i)
        any_step, at_end = (float(tested[k]) for k in ("test_success", "test_success_at_end"))
        steps = int(carry.hierarchy.n_total_env_steps)
        seconds = round(time.perf_counter() - start, 2)
        curve.append(
            {"env_steps": steps, "seconds": seconds, "success": any_step, "success_at_end": at_end}
        )
        if any_step >= SUCCESS:
            break
    reached = bool(curve) and curve[-1]["success"] >= SUCCESS
    facts = {"reached": reached, "compile_seconds": round(compile_seconds, 1), "curve": curve}
    return Found(facts=facts)


def chunk_and_test(trainer: Trainer) -> Callable:
    """A chunk of rounds and the test behind it as one function."""

    def run(rounds: int, carry: Any, i: Any) -> Any:
        carry, _ = trainer.chunk(carry, rounds)
        return carry, trainer.test_metrics(carry.hierarchy, i)

    return run


# -------------------------------------------------------------- seeds side by side


def seeds(n: int, sizes: Sizes) -> Found:
    """Seconds of a chunk of vmapped agents, planning and learning."""
    config = config_of(
        "maze2d-medium-splates",
        sizes,
        total_steps=sizes.chunk_steps,
        test_interval=sizes.chunk_steps,
    )
    starts = {
        path: 1.0
        for path, value in setting_trees.walk(config)
        if path.endswith(("warm_up_steps", "no_planning_steps")) and value
    }
    trainer = Trainer.build(with_settings(config, starts))
    rounds = trainer.config.chunks[0]
    carry = jax.jit(jax.vmap(trainer.init))(jax.random.split(jax.random.key(0), n))
    chunk = jax.vmap(functools.partial(trainer.chunk, n_rounds=rounds))
    name = f"SPlaTES, chunk of {rounds * config.round_steps} steps, {n} seeds"
    start = time.perf_counter()
    compiled = jax.jit(chunk).lower(carry).compile()
    seconds = time.perf_counter() - start
    carry, _ = compiled(carry)
    timing = benchmark.compare({name: (compiled, (carry,))}, 1, jit=False)[name]
    timing = dataclasses.replace(timing, compile_seconds=seconds)
    return Found((Row(name, timing, n * rounds * config.round_steps, "steps"),))


# ----------------------------------------------------------------- updates a second


def _batch(lead: tuple[int, ...]) -> Batch:
    normal = jax.random.normal(jax.random.key(1), (*lead, 2 * OBS + ACTION + 1))
    return Batch(
        obs=normal[..., :OBS],
        condition=jnp.zeros((*lead, 0)),
        act=jnp.tanh(normal[..., -ACTION:]),
        rew=normal[..., 2 * OBS],
        obs_next=normal[..., OBS : 2 * OBS],
        condition_next=jnp.zeros((*lead, 0)),
        terminated=jnp.zeros(lead, bool),
        elapsed_env_steps=jnp.ones(lead, jnp.int32),
        mask=jnp.ones(lead, bool),
    )


def updates(name: str, n: int, batch_size: int, sizes: Sizes) -> Found:
    """Updates of one or several vmapped seeds of an algorithm in a loop."""
    algorithm: Any = SAC(hidden=(256, 256)) if name == "SAC" else TDMPC2()
    if sizes.small:
        algorithm = SAC(hidden=(16,)) if name == "SAC" else TDMPC2.small(latent_dim=8, hidden=(16,))
    space = spaces.Box(-1, 1, (ACTION,))
    lead = (batch_size,) if name == "SAC" else (algorithm.sequence_length, batch_size)
    batch = _batch(lead)
    states = jax.vmap(lambda key: algorithm.init(key, OBS, 0, space))(
        jax.random.split(jax.random.key(0), n)
    )

    def one(state: Any, key: jax.Array) -> Any:
        return algorithm.update(state, batch, key)[0]

    def many(states: Any) -> Any:
        def step(states: Any, key: jax.Array) -> Any:
            return jax.vmap(one)(states, jax.random.split(key, n)), None

        keys = jax.random.split(jax.random.key(2), sizes.updates)
        return jax.lax.scan(step, states, keys)[0]

    case = f"{name}, {n} seeds, batch {batch_size}"
    timing = benchmark.compare({case: (many, (states,))}, sizes.repeats)[case]
    flops = product_flops(jax.vmap(one), states, jax.random.split(jax.random.key(3), n))
    row = Row(case, timing, n * sizes.updates, "updates")
    return Found((row,), {"products_per_second": flops * sizes.updates / timing.median})


def ppo(n: int, sizes: Sizes) -> Found:
    """Steps a second of PPO with PureJaxRL's settings, learning included."""
    case = f"PPO, {n} instances, learning included"
    function, args = cases(n, 1 if sizes.small else 32, 2)["learning"]
    timing = benchmark.compare({case: (function, args)}, sizes.repeats)[case]
    rate = 2 * n * ROLLOUT / timing.median
    return Found(
        (Row(case, timing, 2 * n * ROLLOUT, "steps"),), {"products_per_second": rate * PPO_FLOPS}
    )


def plans(n: int, sizes: Sizes) -> Found:
    """Decisions of TD-MPC2 by MPPI for n instances at once."""
    algorithm = TDMPC2.small(latent_dim=8, hidden=(16,)) if sizes.small else TDMPC2()
    state = algorithm.init(jax.random.key(0), OBS, 0, spaces.Box(-1, 1, (ACTION,)))
    memory = jax.vmap(lambda _: algorithm.init_memory(state))(jnp.arange(n))
    obs = jax.random.normal(jax.random.key(1), (n, OBS))

    def act(state: Any, memory: Any, obs: jax.Array, key: jax.Array) -> Any:
        return algorithm.act(state, memory, obs, jnp.zeros(0), key, False)

    case = f"MPPI, {n} instances"
    keys = jax.random.split(jax.random.key(2), n)
    function = jax.vmap(act, in_axes=(None, 0, 0, 0))
    args = (state, memory, obs, keys)
    timing = benchmark.compare({case: (function, args)}, sizes.repeats)[case]
    flops = product_flops(function, *args)
    return Found((Row(case, timing, n, "plans"),), {"products_per_second": flops / timing.median})


def jobs(sizes: Sizes) -> list[Job]:
    """Training up to a success, and part 2."""
    partial = functools.partial
    small, large = sizes.batches[0], sizes.batches[-1]
    cases_of_updates = [(1, small), (sizes.update_seeds, small), (1, large)]
    return [
        Job("SPlaTES in Medium to 0.9", 1, partial(to_success, "maze2d-medium-splates")),
        *(Job(f"seeds: {n}", 2, partial(seeds, n)) for n in sizes.seeds),
        *(
            Job(f"updates: {name}, {n} seeds, batch {b}", 2, partial(updates, name, n, b))
            for name in ("TD-MPC2", "SAC")
            for n, b in dict.fromkeys(cases_of_updates)
        ),
        Job("updates: PPO", 2, partial(ppo, sizes.instances[-1])),
        *(Job(f"plans: {n}", 2, partial(plans, n)) for n in sizes.plans),
    ]


def large_jobs() -> list[Job]:
    """Part 4: seconds to a success in Maze2D-Large."""
    large: dict[str, Any] = {"total_steps": 400_000, "test_interval": 25_000}
    horizon = {"levels.0.optimizer.horizon": 25, "levels.0.buffer_size": 100_000}
    runs = {
        "SPlaTES": ("maze2d-large-splates", {}),
        "planner": ("maze2d-medium-planner", {"env": "Maze2D-Large-v0", **horizon}),
        "SAC with hindsight": ("maze2d-medium-sac-her", {"env": "Maze2D-Large-v0"}),
    }
    return [
        Job(f"{who} in Large to 0.9", 4, functools.partial(_to_success_large, name, changes, large))
        for who, (name, changes) in runs.items()
    ]


def _to_success_large(name: str, changes: Any, large: Any, sizes: Sizes) -> Found:
    rest = {} if sizes.small else large
    return to_success(name, sizes, **changes, **rest)
