"""What sampling, targets and updates of a predictor cost beyond its networks' passes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import Row, slower
from lrl_jax import benchmark, buffers, spaces
from lrl_jax.models import ProbabilisticEnsemble, mixture, standardizer_loss
from lrl_jax.nets import RewardFunction, ValueFunction
from lrl_jax.predictors import IndexEncoder, PredictorFactory, RewardPredictor

LATENT, CONTEXT, ACTION, MODES = 4, 2, 2, 4
SPACE = spaces.Box(-1, 1, (ACTION,))
BAR = 1.5
TARGET_NOTE = "targets: bare is the value network on the K points of each sampled trajectory."
UPDATE_NOTE = (
    "update: bare is the gradient of the same losses on one fixed batch, without sampling, "
    "targets, clipping, Adam and soft updates."
)


def build(hidden: tuple[int, ...] = (128, 128), k_steps: int = 3, n_steps: int = 3) -> Any:
    """The predictor of the sizes measured."""
    factory = PredictorFactory(
        ProbabilisticEnsemble(hidden=hidden, n_modes=MODES, learn_termination=False),
        ValueFunction(hidden=hidden),
        RewardFunction(hidden=hidden),
        IndexEncoder(state=(0, LATENT), context=(LATENT, LATENT + CONTEXT)),
        RewardPredictor(k_steps=k_steps, n_steps=n_steps, encoder_warm_up=0, learn_encoder=False),
    )
    return factory((LATENT + CONTEXT,), SPACE)


def fill(n: int = 64, rows_each: int = 500) -> buffers.Buffer:
    """Replay of a linear system with episodes of 50 rows or so."""

    def field(shape, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(shape, dtype)

    example = {
        "obs": field((LATENT + CONTEXT,)),
        "act": field((ACTION,)),
        "rew": field(()),
        "obs_next": field((LATENT + CONTEXT,)),
        "terminated": field((), bool),
        "truncated": field((), bool),
        "elapsed_env_steps": field((), jnp.int32),
    }

    def step(carry, key):
        buffer, obs = carry
        key_act, key_end, key_reset = jax.random.split(key, 3)
        act = jax.random.uniform(key_act, (n, ACTION), minval=-1.0)
        obs_next = obs.at[:, :ACTION].add(0.3 * act)
        ends = jax.random.uniform(key_end, (n,)) < 0.02
        row = {
            "obs": obs,
            "act": act,
            "rew": obs[:, 0] - act[:, 0],
            "obs_next": obs_next,
            "terminated": ends,
            "truncated": jnp.zeros(n, bool),
            "elapsed_env_steps": jnp.full(n, 10, jnp.int32),
        }
        buffer = buffers.add(buffer, row)
        obs = jnp.where(ends[:, None], jax.random.normal(key_reset, obs.shape), obs_next)
        return (buffer, obs), None

    start = buffers.create(example, n, n * rows_each), jnp.zeros((n, LATENT + CONTEXT))
    keys = jax.random.split(jax.random.key(0), rows_each)
    return jax.jit(lambda: jax.lax.scan(step, start, keys)[0][0])()


def targets(predictor, batch: int, k: int, n_steps: int, n_calls: int, repeats: int) -> list[Row]:
    """compute_targets against the value network on the points it needs."""
    ps, buffer = predictor.init(jax.random.key(0)), fill()
    points = jax.random.normal(jax.random.key(1), (batch * k, LATENT + CONTEXT))

    # What a call returns passes through the loop's carry, so that all of it is computed.
    def ours(ps, buffer, key):
        def one(key):
            return predictor.compute_targets(ps, buffer, batch, k, n_steps, key=key)

        start = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(one, key))
        return jax.lax.scan(lambda _, key: (one(key), None), start, jax.random.split(key, n_calls))

    def bare(params, points):
        def step(value, _):
            # The points differ from call to call, else the loop's body would move out of it.
            s, c = jnp.split(points + 1e-6 * value[0], [LATENT], -1)
            return predictor.val_func.apply({"params": params}, s, c), None

        return jax.lax.scan(step, jnp.zeros(batch * k), length=n_calls)[0]

    functions = {
        "bare": (bare, (ps.target_value, points)),
        "ours": (ours, (ps, buffer, jax.random.key(2))),
    }
    timings = benchmark.compare(functions, repeats, min_seconds=0.02)
    case = f"compute_targets, batch {batch}, k {k}, n {n_steps}, {n_calls} in a loop"
    rows = _pair(timings, case, f"value network, {batch * k} points", n_calls, TARGET_NOTE)
    call = {"call": (predictor.compute_targets, (ps, buffer, batch, k, n_steps))}
    single = benchmark.compare(call, repeats, min_seconds=0.02, jit=False)["call"]
    return [*rows, Row("compute_targets, one call from Python", single, 1, "targets")]


def bare_loss(predictor, params, batch, rows, shift):
    """The losses of an update by hand, on batches whose inputs are moved by `shift`."""
    s, c, a = (x + shift for x in (batch["state"], batch["context"], batch["act"]))
    reward = predictor.rew_func.apply({"params": params["reward"]}, s, c, a)
    value = predictor.val_func.apply({"params": params["value"]}, s, c)
    x = jnp.concatenate([rows["state"], rows["act"]], -1) + shift
    out = predictor.model.network.apply({"params": params["model"]}, x)
    log_q = mixture.log_prob(rows["delta"], out["log_weight"], out["mean"], out["log_std"])
    covariance = jnp.cov(rows["delta"].T)
    return (
        jnp.square(reward - batch["rew"]).mean()
        + jnp.square(value - batch["value"]).mean()
        - log_q.mean()
        + standardizer_loss(params["standardizer"], covariance)
    )


def updates(predictor, batch: int, model_batch: int, n_updates: int, repeats: int) -> list[Row]:
    """Updates of all parts against bare gradients."""
    ps, buffer = predictor.init(jax.random.key(0)), fill()
    points = (batch, predictor.k_steps)
    keys = iter(jax.random.split(jax.random.key(1), 8))

    def draw(*shape):
        return jax.random.normal(next(keys), shape)

    fixed = {
        "state": draw(*points, LATENT),
        "context": draw(*points, CONTEXT),
        "act": draw(*points, ACTION),
        "rew": draw(*points),
        "value": draw(*points),
    }
    rows = {
        "state": draw(model_batch, LATENT),
        "act": draw(model_batch, ACTION),
        "delta": draw(model_batch, LATENT),
    }

    def ours(ps, buffer):
        return predictor.learn(ps, buffer, n_updates, batch, model_batch, np.float32(1e5))

    def bare(params, fixed, rows):
        def step(carry, _):
            # As above; the gradients pass through the carry, so that all of them are computed.
            loss, _ = carry

            def loss_fn(params):
                return bare_loss(predictor, params, fixed, rows, 1e-9 * loss)

            return jax.value_and_grad(loss_fn)(params), None

        start = jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)
        return jax.lax.scan(step, start, length=n_updates)[0]

    functions = {"bare": (bare, (ps.params, fixed, rows)), "ours": (ours, (ps, buffer))}
    timings = benchmark.compare(functions, repeats)
    case = f"update, batch {batch}, model batch {model_batch}, {n_updates} in a loop"
    return _pair(timings, case, "gradients of the same losses", n_updates, UPDATE_NOTE)


def _pair(timings, ours: str, bare: str, work: int, note: str) -> list[Row]:
    ratio = slower(timings, "ours", "bare")
    return [
        Row(f"bare: {bare}", timings["bare"], work, "bare passes"),
        Row(ours, timings["ours"], work, "of ours", ratio, "time over bare", BAR, note=note),
    ]


def run(quick: bool = False) -> list[Row]:
    """Targets and updates."""
    predictor = build()
    n_calls, repeats = (5, 3) if quick else (20, 9)
    return [
        *targets(predictor, 256, 3, 3, n_calls, repeats),
        *updates(predictor, 256, 1024, n_calls, repeats),
    ]
