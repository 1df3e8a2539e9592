"""What planning with a learned model costs beyond the passes of its networks."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import Row, slower
from benchmarks.predictor import ACTION, CONTEXT, LATENT, MODES, SPACE, build
from lrl_jax import benchmark
from lrl_jax.hierarchies.gating import gated
from lrl_jax.levels import Context, LevelSpec, PlannerLevel
from lrl_jax.nets import MLP
from lrl_jax.planners import ICEM

BAR = 1.3
CHUNK = 4
NOTE = (
    "bare: the model's trunk, its heads of means and weights, and the reward network, at every "
    "step of every iteration, on the same rows in the same chunks; no draws, no sort."
)


def ours(level: PlannerLevel, n: int) -> tuple[Any, tuple]:
    """Plans of `n` instances in chunks, as the hierarchy makes them."""
    spec = LevelSpec(0, (LATENT + CONTEXT,), SPACE)
    learner = level.init_learner(jax.random.key(0), spec)
    memory = jax.vmap(lambda _: level.init_memory(learner))(jnp.arange(n))
    obs = jax.random.normal(jax.random.key(1), (n, LATENT + CONTEXT))
    keys = jax.random.split(jax.random.key(2), n)

    def run(learner, memory, obs, keys):
        def act(memory, obs, key):
            ctx = Context(key, jnp.zeros(()), explores=jnp.zeros((), bool), training=False)
            decision = level.act(learner, memory, obs, ctx)
            return decision.action, decision.memory

        kept = jnp.zeros((n, ACTION))
        return gated(jax.vmap(act), None, level.chunk_size, None, kept, memory, (obs, keys))

    return run, (learner, memory, obs, keys)


def bare(level: PlannerLevel, n: int) -> tuple[Any, tuple]:
    """The passes alone; each step reads what the one before gave, as in a rollout."""
    optimizer = level.optimizer
    chunk = min(n, level.chunk_size or n)
    n_rows = chunk * optimizer.num_samples
    predictor = build()
    params = predictor.init(jax.random.key(0)).params
    hidden = predictor.model.hidden
    trunk, reward = MLP(hidden, None), MLP(hidden, 1)

    def dense(params, x):
        return x @ params["kernel"] + params["bias"]

    def step(params, context, action, carry, _):
        s, total = carry
        model = params["model"]
        h = trunk.apply({"params": model["trunk"]}, jnp.concatenate([s, action], -1))
        mean = dense(model["mean"], h).reshape(n_rows, MODES, LATENT)
        weight = dense(model["logits"], h)
        x = jnp.concatenate([s, context, action], -1)
        r: Any = reward.apply({"params": params["reward"]["MLP_0"]}, x)
        # The least that uses all outputs.
        return (s + 1e-3 * mean.max(1), total + r[..., 0] + weight.max(1)), None

    def run(params, state, context, action):
        def chunk_of(_, rows):
            carry = rows, jnp.zeros(n_rows)
            for_chunk = context, action

            def iteration(carry, _):
                def one(carry, x):
                    return step(params, *for_chunk, carry, x)

                return jax.lax.scan(one, carry, length=optimizer.horizon)[0], None

            return None, jax.lax.scan(iteration, carry, length=optimizer.n_iterations)[0]

        return jax.lax.scan(chunk_of, None, state)[1]

    keys = jax.random.split(jax.random.key(3), 3)
    n_chunks = -(-n // chunk)
    return run, (
        {name: params[name] for name in ("model", "reward")},
        jax.random.normal(keys[0], (n_chunks, n_rows, LATENT)),
        jax.random.normal(keys[1], (n_rows, CONTEXT)),
        jax.random.uniform(keys[2], (n_rows, ACTION), minval=-1.0),
    )


def measure(n: int, repeats: int, **settings: Any) -> list[Row]:
    """Plans of `n` instances against bare passes of the same number and sizes."""
    optimizer = ICEM(
        **{
            "horizon": 15,
            "num_samples": 256,
            "n_iterations": 6,
            "elite_ratio": 0.05,
            **settings,
        }
    )
    level = PlannerLevel(
        lambda shape, space: build(), optimizer=optimizer, chunk_size=CHUNK, warm_up_steps=0
    )
    functions = {"bare": bare(level, n), "ours": ours(level, n)}
    timings = benchmark.compare(functions, repeats)
    case = (
        f"{n} instances: iCEM, {optimizer.num_samples} samples, {optimizer.n_iterations} "
        f"iterations, horizon {optimizer.horizon}"
    )
    ratio = slower(timings, "ours", "bare")
    return [
        Row(f"{n} instances: bare passes", timings["bare"], n, "plans"),
        Row(case, timings["ours"], n, "plans", ratio, "time over bare", BAR, note=NOTE),
    ]


def run(quick: bool = False) -> list[Row]:
    """All numbers of instances."""
    if quick:
        return [*measure(1, 3), *measure(4, 3)]
    return [row for n in (1, 16, 64) for row in measure(n, 9 if n < 64 else 5)]
