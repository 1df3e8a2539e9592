"""Rollouts of the dynamics model in latent space."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from lrl_jax.models import mixture
from lrl_jax.models.ensemble import MODES
from lrl_jax.predictors.types import LatentRollout, PredictorState, Rollout

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


def _term_prob(model, stats, logit):
    share = model.network_share(stats) if model.sb_start_duration else 1.0
    return share * jax.nn.sigmoid(logit)


def _sample_step(model, params, stats, linear_map, key, s, c, a):
    """Sampled change of state, and the prediction it was drawn from."""
    out = model.predict(params, stats, s, c, a, linear_map)
    key_mode, key_noise = jax.random.split(key)
    gumbel = jax.random.gumbel(key_mode, out.log_weight.shape)
    choice = mixture.one_hot_choice(out.log_weight + gumbel)
    mean, std = mixture.pick(choice, out.mean), mixture.pick(choice, out.std)
    return mean + std * jax.random.normal(key_noise, mean.shape), out


def _lay_out(x: jax.Array, n_models: int, n_particles: int, batch: int) -> jax.Array:
    """[T, M, B * P, ...] to [B, M, P, T, ...]."""
    x = x.reshape(x.shape[0], n_models, batch, n_particles, *x.shape[3:])
    rest = tuple(range(4, x.ndim))
    return x.transpose(2, 1, 3, 0, *rest)


def rollout_latent(
    predictor: Predictor,
    ps: PredictorState,
    s: jax.Array,
    c: jax.Array,
    act: jax.Array,
    key: jax.Array | None,
    deterministic: bool,
    mode: str | None,
    with_value: bool,
    with_termination: bool | None,
    n_particles: int | None,
) -> LatentRollout:
    """See `Predictor.rollout_latent`."""
    model, params, stats = predictor.model, ps.params["model"], ps.stats
    mode = model.deterministic_mode if mode is None else mode
    if mode not in MODES:
        raise ValueError(f"mode is one of {MODES}, got {mode!r}.")
    if with_termination is None:
        with_termination = model.learn_termination
    action = model.encode_action(act)
    n_p = check_rollout(predictor, s, c, action, key, deterministic, n_particles)
    batch, horizon = action.shape[:2]
    n_m = model.n_models
    linear_map = model.linear_map(stats)

    def spread(x):  # [B, ...] to [1, B * P, ...], the same for all members
        return (x if n_p == 1 else jnp.repeat(x, n_p, axis=0))[None]

    start = jnp.broadcast_to(spread(s), (n_m, batch * n_p, s.shape[-1]))
    context = spread(c)
    keys = None if deterministic or key is None else jax.random.split(key, horizon)

    def step(s, inputs):
        a, k = inputs
        if n_p > 1:
            a = jnp.repeat(a, n_p, axis=0)
        a = a[None]
        reward = predictor.reward(
            ps,
            s,
            jnp.broadcast_to(context, (*s.shape[:2], c.shape[-1])),
            jnp.broadcast_to(a, (*s.shape[:2], a.shape[-1])),
        )
        if deterministic:
            delta, logit = _deterministic_step(
                model, params, stats, linear_map, mode, s, context, a
            )
            term = None
            if with_termination and logit is not None:
                term = _term_prob(model, stats, logit)
        else:
            delta, out = _sample_step(model, params, stats, linear_map, k, s, context, a)
            term = out.term_prob
        if not with_termination:
            term = None
        elif term is None:
            term = jnp.zeros(s.shape[:-1])
        return s + delta, (s + delta, reward, term)

    last, (states, reward, term) = jax.lax.scan(step, start, (jnp.swapaxes(action, 0, 1), keys))
    states = jnp.concatenate([start[None], states])
    value = None
    if with_value:
        contexts = jnp.broadcast_to(context, (*last.shape[:-1], c.shape[-1]))
        value = predictor.value(ps, last, contexts)
        value = value.reshape(n_m, batch, n_p).transpose(1, 0, 2)
    return LatentRollout(
        state=_lay_out(states, n_m, n_p, batch),
        rew=_lay_out(reward, n_m, n_p, batch),
        term_prob=None if term is None else _lay_out(term, n_m, n_p, batch),
        value=value,
    )


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
    action = model.encode_action(act)
    n_p = check_rollout(predictor, s, c, action, key, deterministic, n_particles)
    batch, horizon = action.shape[:2]
    n_m, dim = model.n_models, predictor.latent_state_dim
    linear_map = model.linear_map(stats)
    context = jnp.repeat(c, n_p, axis=0)[None]
    start = jnp.broadcast_to(jnp.repeat(s, n_p, axis=0)[None], (n_m, batch * n_p, dim))
    keys = None if deterministic or key is None else jax.random.split(key, horizon)

    def step(s, inputs):
        a, k = inputs
        a = jnp.repeat(a, n_p, axis=0)[None]
        full = (n_m, batch * n_p)
        reward = predictor.reward(
            ps,
            s,
            jnp.broadcast_to(context, (*full, c.shape[-1])),
            jnp.broadcast_to(a, (*full, a.shape[-1])),
        )
        if deterministic:
            mode = model.deterministic_mode
            out = model.predict(params, stats, s, context, a, linear_map)
            delta, _ = _deterministic_step(model, params, stats, linear_map, mode, s, context, a)
        else:
            delta, out = _sample_step(model, params, stats, linear_map, k, s, context, a)
        mean, variance = mixture.moments(out.log_weight, out.mean, out.std)
        shape = (n_m, batch, n_p, dim)
        means, variance = (s + mean).reshape(shape), variance.reshape(shape)
        over_particles = means.mean(2)  # [M, B, D]
        aleatoric = (variance.mean(2) + means.var(2)).mean(0)
        return s + delta, (
            s + delta,
            reward,
            out.term_prob,
            over_particles,
            over_particles.var(0),
            aleatoric,
        )

    _, (states, reward, term, mean, epistemic, aleatoric) = jax.lax.scan(
        step, start, (jnp.swapaxes(action, 0, 1), keys)
    )
    states = jnp.concatenate([start[None], states])
    first = jnp.broadcast_to(s[:, None, None], (batch, n_m, 1, dim))
    zero = jnp.zeros((batch, 1, dim))
    return Rollout(
        state=_lay_out(states, n_m, n_p, batch),
        state_mean=jnp.concatenate([first, mean.transpose(2, 1, 0, 3)], 2),
        state_epistemic_var=jnp.concatenate([zero, jnp.swapaxes(epistemic, 0, 1)], 1),
        state_aleatoric_var=jnp.concatenate([zero, jnp.swapaxes(aleatoric, 0, 1)], 1),
        term_prob=_lay_out(term, n_m, n_p, batch),
        rew=_lay_out(reward, n_m, n_p, batch),
    )
