"""Environment steps per second of learners, and how close an update of SAC comes to its products.

The presets with learning at their update ratio (one update an environment step for
Pendulum), for 1 and 64 instances and 1 and 16 seeds in one vmapped call.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import Row, slower
from lrl_jax import benchmark, spaces
from lrl_jax.algorithms import SAC, Batch
from lrl_jax.training import TrainConfig, Trainer, preset, with_settings

PRESETS_MEASURED = ("pendulum-sac", "cartpole-dqn", "pendulum-tdmpc2")
INSTANCES, SEEDS = (1, 64), (1, 16)
STEPS_PER_CALL = 128  # of one seed
SIZE = 256
BAR = 0.8
NOTE = "learning included, tests not; steps of all seeds together."
PRODUCT_NOTE = (
    f"rate: FLOPs of all matrix products of the update over its time; ratio: against products of "
    f"{SIZE} x {SIZE} x {SIZE} float32 matrices in a loop."
)


def learning(config: TrainConfig, name: str, seeds: int, repeats: int) -> Row:
    """Time chunks after the warm up."""
    trainer = Trainer.build(config)
    n_rounds = trainer.config.chunks[0]
    keys = jax.random.split(jax.random.key(0), seeds)
    chunk = functools.partial(trainer.chunk, n_rounds=n_rounds)
    chunk = chunk if seeds == 1 else jax.vmap(chunk)
    carry = trainer.init(keys[0]) if seeds == 1 else jax.jit(jax.vmap(trainer.init))(keys)
    start = time.perf_counter()
    compiled = jax.jit(chunk).lower(carry).compile()
    seconds = time.perf_counter() - start
    # Rows to learn from, and a policy that has begun to move.
    carry, _ = compiled(carry)
    timing = benchmark.compare({name: (compiled, (carry,))}, repeats, jit=False)[name]
    timing = dataclasses.replace(timing, compile_seconds=seconds)
    steps = seeds * n_rounds * config.round_steps
    case = f"{name}, {config.n_env_instances} instances, {seeds} seeds"
    return Row(case, timing, steps, "steps", note=NOTE)


def preset_rows(name: str, quick: bool) -> list[Row]:
    """One preset at all numbers of instances and seeds."""
    config = with_settings(preset(name), {"levels.0.warm_up_steps": 0})
    rows = []
    for n in INSTANCES[:1] if quick else INSTANCES:
        for seeds in SEEDS[:1] if quick else SEEDS:
            round_steps = n * config.round_ticks
            wanted = 8 if quick else STEPS_PER_CALL if seeds == 1 else STEPS_PER_CALL // 2
            steps = max(1, wanted // round_steps) * round_steps
            small = dataclasses.replace(
                config,
                n_env_instances=n,
                total_steps=steps,
                test_interval=steps,
            )
            rows.append(learning(small, name, seeds, 5 if seeds == 1 and not quick else 3))
    return rows


def sac_flops(size: int, batch: int, obs: int, action: int, critics: int = 2) -> int:
    """Floating point operations of the products of an update, 2 for each multiply and add.

    Passes through a network: forward 1; backward 1 for the gradient of the weights, and 1 for that
    of the inputs, which the first layer needs only where it is asked for.
    """
    actor = (obs * size, size * size, size * 2 * action)
    critic = ((obs + action) * size, size * size, size)
    forward_actor, forward_critic = sum(actor), sum(critic)
    backward_actor = 2 * forward_actor - actor[0]
    backward_critic = 2 * forward_critic - critic[0]
    targets = forward_actor + critics * forward_critic
    fit_critics = critics * (forward_critic + backward_critic)
    # The actor's loss passes through the critics to their inputs; their weights are constant.
    fit_actor = forward_actor + backward_actor + critics * 2 * forward_critic
    return 2 * batch * (targets + fit_critics + fit_actor)


def sac_update(n_calls: int, repeats: int) -> list[Row]:
    """An update of SAC, 256 x 256, batch 256, against products of matrices of that size."""
    obs, action = 4, 2
    sac = SAC(hidden=(SIZE, SIZE))
    state = sac.init(jax.random.key(0), obs, 0, spaces.Box(-1, 1, (action,)))
    normal = jax.random.normal(jax.random.key(1), (SIZE, 2 * obs + action + 1))
    batch = Batch(
        obs=normal[:, :obs],
        condition=jnp.zeros((SIZE, 0)),
        act=jnp.tanh(normal[:, -action:]),
        rew=normal[:, 2 * obs],
        obs_next=normal[:, obs : 2 * obs],
        condition_next=jnp.zeros((SIZE, 0)),
        terminated=jnp.zeros(SIZE, bool),
        elapsed_env_steps=jnp.ones(SIZE, jnp.int32),
        mask=jnp.ones(SIZE, bool),
    )
    keys = jax.random.split(jax.random.key(2), n_calls)

    def updates(state: Any, keys: jax.Array):
        return jax.lax.scan(lambda s, key: (sac.update(s, batch, key)[0], None), state, keys)[0]

    n_products = 16 * n_calls

    def products(a: jax.Array, b: jax.Array):
        return jax.lax.fori_loop(0, n_products, lambda _, x: x @ b, a)

    square = jax.random.orthogonal(jax.random.key(3), SIZE)
    timings = benchmark.compare(
        {"update": (updates, (state, keys)), "products": (products, (square, square))}, repeats
    )
    flops = n_calls * sac_flops(SIZE, SIZE, obs, action)
    bare_flops = n_products * 2 * SIZE**3
    ratio = flops / bare_flops / slower(timings, "update", "products")
    case = f"SAC update, {SIZE} x {SIZE}, batch {SIZE}, {n_calls} in a loop"
    return [
        Row(
            case,
            timings["update"],
            flops,
            "FLOP",
            ratio,
            "rate of the products",
            BAR,
            at_most=False,
            note=PRODUCT_NOTE,
        ),
        Row(f"{n_products} products", timings["products"], bare_flops, "FLOP", note=PRODUCT_NOTE),
    ]


def run(quick: bool = False) -> list[Row]:
    """Speeds of all learners; `quick` takes one instance, one seed, few steps."""
    rows = sac_update(4 if quick else 100, 3 if quick else 9)
    for name in PRESETS_MEASURED:
        rows += preset_rows(name, quick)
    return rows
