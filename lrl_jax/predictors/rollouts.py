"""Rollouts of the dynamics model in latent space."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from lrl_jax.models import mixture
from lrl_jax.models.ensemble import MODES
from lrl_jax.planners import Rollout as LatentRollout
from lrl_jax.predictors.types import PredictorState, Rollout
from lrl_jax.settings import check_bound

if TYPE_CHECKING:
    from lrl_jax.predictors.base import Predictor


def check_rollout(predictor: Predictor, s, c, act, key, deterministic, n_particles) -> int:
    """Check the arguments of a rollout and return the number of particles.

    Raises:
        ValueError: for shapes that do not fit, or a stochastic rollout without a key.
    """
    model = predictor.model
    if s.ndim != 2 or s.shape[-1] != predictor.latent_state_dim or s.shape[0] != act.shape[0]:
        raise ValueError(
            f"states must be [B, {predictor.latent_state_dim}] with as many rows as actions, got "
            f"{s.shape} and {act.shape}."
        )
    if c.shape != (s.shape[0], predictor.context_dim):
        raise ValueError(f"contexts must be {(s.shape[0], predictor.context_dim)}, got {c.shape}.")
    if act.ndim != 3 or act.shape[-1] != model.action_dim:
        raise ValueError(
            f"encoded actions must be [B, H, {model.action_dim}], got {act.shape}: actions are "
            f"[B, H, *{model.action_space.shape}]."
        )
    if deterministic:
        return 1
    if key is None:
        raise ValueError("a stochastic rollout needs key=..., or deterministic=True.")
    n_particles = model.n_particles if n_particles is None else n_particles
    if n_particles < 1:
        raise ValueError(f"n_particles must be at least 1, got {n_particles}.")
    return n_particles


def _deterministic_step(model, params, stats, linear_map, mode, s, c, a):
    """Change of state and termination logit of one step, in as few operations as possible."""
    out = model.heads(params, s, c, a)
    if mode == "heaviest":
        choice = mixture.one_hot_choice(out["log_weight"])
    else:
        choice = jnp.exp(out["log_weight"])
    delta = mixture.pick(choice, out["mean"]) * stats.sigma_d
    if linear_map is not None:
        share = model.network_share(stats)
        linear = model.linear_mean(linear_map, a)
        delta = jnp.where(share > 0, share * delta, 0.0) + (1.0 - share) * linear
    return delta, out["term_logit"]


def _sample_step(model, params, stats, linear_map, key, s, c, a):
    """Sampled change of state, and the prediction it was drawn from."""
    out = model.predict(params, stats, s, c, a, linear_map)
    key_mode, key_noise = jax.random.split(key)
    gumbel = jax.random.gumbel(key_mode, out.log_weight.shape, jnp.float32)
    choice = mixture.one_hot_choice(out.log_weight + gumbel)
    mean, std = mixture.pick(choice, out.mean), mixture.pick(choice, out.std)
    return mean + std * jax.random.normal(key_noise, mean.shape, jnp.float32), out


def _lay_out(x: jax.Array, n_models: int, n_particles: int, batch: int) -> jax.Array:
    """[T, M, B * P, ...] to [B, M, P, T, ...]."""
    x = x.reshape(x.shape[0], n_models, batch, n_particles, *x.shape[3:])
    rest = tuple(range(4, x.ndim))
    return x.transpose(2, 1, 3, 0, *rest)


def _scan(predictor, ps, s, c, act, key, deterministic, n_particles, change):
    """Step all particles through the model.

    `change(s, context, a, key)` gives the change of state and what else is kept of a step.

    Returns:
        The last states [M, B * P, D], contexts [1, B * P, C], the states [B, M, P, H + 1, D] and
        rewards [B, M, P, H], and what was kept, stacked over steps.
    """
    model = predictor.model
    action = model.encode_action(act)
    n_p = check_rollout(predictor, s, c, action, key, deterministic, n_particles)
    n_m, (batch, horizon) = model.n_models, action.shape[:2]

    def spread(x):  # [B, ...] to [1, B * P, ...], the same for all members
        return (x if n_p == 1 else jnp.repeat(x, n_p, axis=0))[None]

    context = spread(c)
    start = jnp.broadcast_to(spread(s), (n_m, batch * n_p, s.shape[-1]))
    keys = None if deterministic or key is None else jax.random.split(key, horizon)

    def step(s, inputs):
        a, k = spread(inputs[0]), inputs[1]
        wide = (jnp.broadcast_to(x, (*s.shape[:2], x.shape[-1])) for x in (context, a))
        reward = predictor.reward(ps, s, *wide)
        delta, kept = change(s, context, a, k)
        return s + delta, (s + delta, reward, kept)

    last, (states, reward, kept) = jax.lax.scan(step, start, (jnp.swapaxes(action, 0, 1), keys))
    states = jnp.concatenate([start[None], states])
    return last, context, *(_lay_out(x, n_m, n_p, batch) for x in (states, reward)), kept


def rollout_latent(
    predictor: Predictor,
    ps: PredictorState,
    s: jax.Array,
    c: jax.Array,
    act: jax.Array,
    *,
    key: jax.Array | None = None,
    deterministic: bool = True,
    mode: str | None = None,
    with_value: bool = False,
    with_termination: bool | None = None,
    n_particles: int | None = None,
) -> LatentRollout:
    """Roll the model out from latent states: the fast path of planners.

    Meant to be called inside jitted code. Under a vmap over instances each layer is one matrix
    product over all instances, plans and particles.

    Args:
        ps: state.
        s, c: latent states [B, D] and contexts [B, C].
        act: [B, H, *action shape].
        key: consumed by a stochastic rollout, which needs it.
        deterministic: follow one mode with one particle, else sample.
        mode: "heaviest" or "mean"; the model's `deterministic_mode` by default.
        with_value: also the value of the last state.
        with_termination: also the termination probabilities; by default if the model learns
            them.
        n_particles: of a stochastic rollout; the model's by default.
    """
    check_bound(predictor, "model", "encoder")
    model, params, stats = predictor.model, ps.params["model"], ps.stats
    mode = model.deterministic_mode if mode is None else mode
    if mode not in MODES:
        raise ValueError(f"mode is one of {MODES}, got {mode!r}.")
    if with_termination is None:
        with_termination = model.learn_termination
    linear_map = model.linear_map(stats)

    def change(s, context, a, k):
        if not deterministic:
            delta, out = _sample_step(model, params, stats, linear_map, k, s, context, a)
            return delta, out.term_prob if with_termination else None
        delta, logit = _deterministic_step(model, params, stats, linear_map, mode, s, context, a)
        if not with_termination:
            return delta, None
        if logit is None:
            return delta, jnp.zeros(s.shape[:-1], jnp.float32)
        share = model.network_share(stats) if model.sb_start_duration else 1.0
        return delta, share * jax.nn.sigmoid(logit)

    last, context, states, reward, term = _scan(
        predictor, ps, s, c, act, key, deterministic, n_particles, change
    )
    n_m, n_p, batch = model.n_models, states.shape[2], s.shape[0]
    value = None
    if with_value:
        contexts = jnp.broadcast_to(context, (*last.shape[:-1], c.shape[-1]))
        value = predictor.value(ps, last, contexts)
        value = value.reshape(n_m, batch, n_p).transpose(1, 0, 2)
    term_prob = None if term is None else _lay_out(term, n_m, n_p, batch)
    return LatentRollout(state=states, rew=reward, term_prob=term_prob, value=value)


def rollout(
    predictor: Predictor,
    ps: PredictorState,
    s: jax.Array,
    c: jax.Array,
    act: jax.Array,
    deterministic: bool,
    key: jax.Array | None,
    n_particles: int | None,
) -> Rollout:
    """Rollout with uncertainty, from latent states; see `Predictor.rollout`."""
    model, params, stats = predictor.model, ps.params["model"], ps.stats
    n_m, batch, dim = model.n_models, len(s), s.shape[-1]
    linear_map = model.linear_map(stats)

    def change(s, context, a, k):
        if deterministic:
            mode = model.deterministic_mode
            out = model.predict(params, stats, s, context, a, linear_map)
            delta, _ = _deterministic_step(model, params, stats, linear_map, mode, s, context, a)
        else:
            delta, out = _sample_step(model, params, stats, linear_map, k, s, context, a)
        mean, variance = mixture.moments(out.log_weight, out.mean, out.std)
        means, variance = (x.reshape(n_m, batch, -1, dim) for x in (s + mean, variance))
        over_particles = means.mean(2)  # [M, B, D]
        aleatoric = (variance.mean(2) + means.var(2)).mean(0)
        return delta, (out.term_prob, over_particles, over_particles.var(0), aleatoric)

    _, _, states, reward, (term, mean, epistemic, aleatoric) = _scan(
        predictor, ps, s, c, act, key, deterministic, n_particles, change
    )
    first = jnp.broadcast_to(s[:, None, None], (batch, n_m, 1, dim))
    zero = jnp.zeros((batch, 1, dim), jnp.float32)
    return Rollout(
        state=states,
        state_mean=jnp.concatenate([first, mean.transpose(2, 1, 0, 3)], 2),
        state_epistemic_var=jnp.concatenate([zero, jnp.swapaxes(epistemic, 0, 1)], 1),
        state_aleatoric_var=jnp.concatenate([zero, jnp.swapaxes(aleatoric, 0, 1)], 1),
        term_prob=_lay_out(term, n_m, states.shape[2], batch),
        rew=reward,
    )
