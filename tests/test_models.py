"""Probabilistic ensemble, delta standardizer, running std, symmetry-breaking start."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrl_jax import spaces
from lrl_jax.models import (
    ModelStats,
    ProbabilisticEnsemble,
    init_running_std,
    masked_covariance,
    mixture,
    standardizer_loss,
    update_running_std,
)
from lrl_jax.models.standardizer import inverse
from lrl_jax.models.symmetry import init_directions, network_share

BOX = spaces.Box(-1, 1, (2,))


def model(**changes):
    settings = {"action_space": BOX, "hidden": (8,), "n_modes": 4, **changes}
    return ProbabilisticEnsemble(3, 2, **settings)


def stats(sigma_d=(1.0, 2.0, 0.5), steps=0.0, settings=None):
    directions = (settings or model()).init_directions(jax.random.key(5))
    w = jnp.array([[2.0, 0.5, 0.0], [0.5, 1.0, 0.2], [0.0, 0.2, 1.5]])
    return ModelStats(jnp.array(sigma_d), w, directions, jnp.float32(steps))


def rows(n, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(n, d)).astype(np.float32) for d in (3, 2, 2, 3)]


def log_mixture(x, log_weight, mean, std):
    """Float64 oracle of one mixture's log density."""
    x, log_weight, mean, std = (np.asarray(v, np.float64) for v in (x, log_weight, mean, std))
    per_mode = (
        np.log(1.0 / (np.sqrt(2 * np.pi) * std)) - 0.5 * ((x[..., None, :] - mean) / std) ** 2
    )
    per_mode = log_weight + per_mode.sum(-1)
    top = per_mode.max(-1, keepdims=True)
    return np.log(np.exp(per_mode - top).sum(-1)) + top[..., 0]


def test_mixture_log_prob():
    rng = np.random.default_rng(0)
    x, mean, log_std = (
        rng.normal(size=(20, 3)),
        rng.normal(size=(20, 4, 3)),
        rng.normal(size=(20, 4, 3)),
    )
    weight = np.log(rng.dirichlet(np.ones(4), 20))
    args = [np.float32(v) for v in (x, weight, mean, log_std)]
    np.testing.assert_allclose(
        mixture.log_prob(*args), log_mixture(x, weight, mean, np.exp(log_std)), rtol=1e-4, atol=1e-4
    )
    np.testing.assert_allclose(
        mixture.fixed_std_log_prob(*args[:3], 0.7),
        log_mixture(x, weight, mean, np.full_like(mean, 0.7)),
        rtol=1e-4,
        atol=1e-4,
    )


def test_moments_agree_with_samples():
    rng = np.random.default_rng(0)
    weight, mean = np.array([0.2, 0.8]), np.array([[0.0, 1.0], [2.0, -1.0]])
    std = np.array([[0.5, 1.0], [1.0, 0.1]])
    choice = rng.choice(2, 200_000, p=weight)
    draws = mean[choice] + std[choice] * rng.normal(size=(200_000, 2))
    got = mixture.moments(np.log(weight), mean, std)
    np.testing.assert_allclose(got[0], draws.mean(0), atol=0.02)
    np.testing.assert_allclose(got[1], draws.var(0), atol=0.03)


def test_pick_follows_the_choice():
    values = jnp.arange(12.0).reshape(2, 3, 2)
    choice = mixture.one_hot_choice(jnp.array([[0.0, 2.0, 2.0], [1.0, 0.0, -1.0]]))
    np.testing.assert_array_equal(mixture.pick(choice, values), [[2, 3], [6, 7]])


@pytest.mark.parametrize("n_models, partition", [(1, False), (3, False), (3, True)])
def test_loss_is_the_negative_log_likelihood(n_models, partition):
    settings = model(n_models=n_models, partition_batch=partition)
    params = jax.jit(settings.init)(jax.random.key(0))
    s, c, a, s2 = rows(12)
    rng = np.random.default_rng(1)
    terminated, mask = rng.uniform(size=(2, 12)) < 0.5
    sigma = np.array([1.0, 2.0, 0.5], np.float32)
    bad = np.where(mask[:, None], s2, np.nan)  # rows outside the mask may hold anything
    loss, info = jax.jit(settings.loss)(params, jnp.array(sigma), s, c, a, bad, terminated, mask)
    out = jax.jit(settings.heads)(params, s[None], c[None], a[None])
    nll, bce, count = 0.0, 0.0, 0
    for m in range(n_models):
        share = slice(4 * m, 4 * m + 4) if partition else slice(None)
        log_q = log_mixture(
            s2 - s, out["log_weight"][m], out["mean"][m] * sigma, np.exp(out["log_std"][m]) * sigma
        )
        prob = 1 / (1 + np.exp(-np.asarray(out["term_logit"][m], np.float64)))
        entropy = -np.log(np.where(terminated, prob, 1 - prob))
        nll -= (log_q * mask)[share].sum()
        bce += (entropy * mask)[share].sum()
        count += mask[share].sum()
    np.testing.assert_allclose(info["nll"], nll / count, rtol=1e-4)
    np.testing.assert_allclose(info["termination_loss"], bce / count, rtol=1e-4)
    np.testing.assert_allclose(loss, (nll + bce) / count, rtol=1e-4)


def test_no_valid_row_gives_zero_loss_and_finite_gradients():
    settings = model()
    params = jax.jit(settings.init)(jax.random.key(0))
    s, c, a, s2 = rows(4)
    no = np.zeros(4, bool)

    def loss(params):
        return settings.loss(params, jnp.ones(3), s, c, a, s2 * np.nan, no, no)[0]

    value, grads = jax.jit(jax.value_and_grad(loss))(params)
    assert value == 0
    assert all(np.all(g == 0) for g in jax.tree.leaves(grads))


def test_members_are_independent_networks():
    settings = model(n_models=3)
    params = jax.jit(settings.init)(jax.random.key(0))
    s, c, a, _ = rows(5)
    together = settings.heads(params, s[None], c[None], a[None])
    single = dataclasses.replace(settings, n_models=1)
    for m in range(3):
        alone = single.heads(jax.tree.map(lambda x: x[m], params), s[None], c[None], a[None])  # noqa: B023
        np.testing.assert_allclose(together["mean"][m], alone["mean"][0], rtol=1e-4, atol=1e-5)
    own = settings.heads(params, np.stack([s, s + 1, s]), c[None], a[None])
    np.testing.assert_allclose(own["mean"][2], together["mean"][2], rtol=1e-4, atol=1e-5)
    assert np.abs(own["mean"][1] - together["mean"][1]).max() > 1e-3


def test_context_is_ignored_unless_asked_for():
    s, c, a, _ = rows(5)
    for use in (False, True):
        settings = model(use_context=use)
        params = jax.jit(settings.init)(jax.random.key(0))
        one, two = (settings.heads(params, s[None], x[None], a[None])["mean"] for x in (c, c + 1))
        assert np.array_equal(one, two) != use


def test_actions_are_encoded():
    discrete = model(action_space=spaces.Discrete(4))
    np.testing.assert_array_equal(discrete.encode_action(jnp.array([2, 0])), np.eye(4)[[2, 0]])
    once = discrete.encode_action(jnp.array([2, 0]))
    np.testing.assert_array_equal(discrete.encode_action(once), once)
    wide = model(action_space=spaces.Box(-1, 3, (2, 2)))
    encoded = wide.encode_action(np.full((5, 2, 2), 3.0))
    np.testing.assert_array_equal(wide.normalize_action(encoded), np.ones((5, 4)))


def test_standardizer_whitens():
    mixing = np.array([[1.0, 0.3], [0.0, 0.5]])
    delta = (np.random.default_rng(0).normal(size=(500, 2)) @ mixing + 3.0).astype(np.float32)
    mask = np.arange(500) % 2 == 0
    covariance = masked_covariance(np.where(mask[:, None], delta, np.nan), mask)
    np.testing.assert_allclose(covariance, np.cov(delta[mask].T, bias=True), rtol=1e-4, atol=1e-5)

    def step(_, w):
        return w - 0.02 * jax.grad(standardizer_loss)(w, covariance)

    w = jax.jit(lambda: jax.lax.fori_loop(0, 3000, step, jnp.eye(2)))()
    np.testing.assert_array_equal(w, w.T)
    whitened = delta[mask] @ np.asarray(w)
    np.testing.assert_allclose(np.cov(whitened.T, bias=True), np.eye(2), atol=0.1)
    assert np.isfinite(jax.grad(standardizer_loss)(jnp.eye(2), jnp.eye(2))).all()


def test_inverse():
    w = stats().w
    np.testing.assert_allclose(inverse(w) @ w, np.eye(3), atol=1e-5)
    assert np.isfinite(inverse(jnp.zeros((3, 3)))).all()


def test_running_std():
    delta = np.array([[1.0, 0.0], [3.0, 0.0], [np.nan, np.nan]], np.float32)
    mask = np.array([True, True, False])
    fresh = init_running_std(2)
    none = update_running_std(fresh, delta, np.zeros(3, bool), 0.1)
    assert not none.initialised
    np.testing.assert_array_equal(none.std, np.ones(2))
    first = update_running_std(none, delta, mask, 0.1)
    np.testing.assert_allclose(first.std, [np.sqrt(5.0), 1e-6], rtol=1e-6)
    second = update_running_std(first, np.full((3, 2), 2.0), mask, 0.1)
    np.testing.assert_allclose(second.second_moment, [0.9 * 5 + 0.4, 0.4], rtol=1e-6)


@pytest.mark.parametrize(
    "dim, n, discrete", [(1, 3, True), (2, 8, True), (3, 4, True), (3, 5, False)]
)
def test_directions_are_spread(dim, n, discrete):
    columns = np.asarray(
        jax.jit(init_directions, static_argnums=(1, 2, 3))(jax.random.key(0), dim, n, discrete)
    ).T
    assert columns.shape == (n, dim)
    np.testing.assert_allclose(np.linalg.norm(columns, axis=1), 1, rtol=1e-5)
    if dim > 1:
        cosines = columns @ columns.T - 2 * np.eye(n)
        best = {8: np.cos(2 * np.pi / 8), 4: -1 / 3, 5: 0.65}[n]
        assert (np.abs(cosines) if not discrete else cosines)[
            ~np.eye(n, dtype=bool)
        ].max() < best + 0.08


def test_directions_of_few_continuous_actions_are_a_rotation():
    columns = init_directions(jax.random.key(1), 4, 2, False)
    np.testing.assert_allclose(columns.T @ columns, np.eye(2), atol=1e-5)


def test_start_blends_from_the_linear_model_into_the_network():
    settings = model(sb_start_duration=100, action_space=spaces.Box(-2, 2, (2,)))
    params = jax.jit(settings.init)(jax.random.key(0))
    s, c, a, _ = rows(5)
    out = settings.heads(params, s[None], c[None], a[None])
    for steps, share in ((0, 0.0), (50, 0.0), (75, 0.5), (100, 1.0), (1e6, 1.0)):
        assert network_share(steps, 100.0) == share
        now = stats(steps=steps, settings=settings)
        got = settings.predict(params, now, s[None], c[None], a[None])
        w = np.asarray(now.w, np.float64)
        linear = np.sqrt(3) * (0.5 * a) @ (np.linalg.inv(w) @ np.asarray(now.directions)).T
        sigma = np.asarray(now.sigma_d)
        mean = share * np.asarray(out["mean"]) * sigma + (1 - share) * linear[None, :, None]
        std = (share * np.exp(out["log_std"]) + (1 - share) * 0.3) * sigma
        term = share / (1 + np.exp(-np.asarray(out["term_logit"])))
        np.testing.assert_allclose(got.mean, mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(got.std, std, rtol=1e-4)
        np.testing.assert_allclose(got.term_prob, term, rtol=1e-4)


def test_uniform_actions_start_at_the_fixed_point():
    settings = ProbabilisticEnsemble(2, 0, BOX, sb_start_duration=10)
    now = ModelStats(
        jnp.ones(2),
        jnp.diag(jnp.array([0.5, 4.0])),
        settings.init_directions(jax.random.key(0)),
        jnp.float32(0),
    )
    a = jax.random.uniform(jax.random.key(1), (100_000, 2), minval=-1)
    delta = settings.linear_mean(settings.linear_map(now), a)
    np.testing.assert_allclose(np.cov((delta @ now.w).T), np.eye(2), atol=0.02)


@pytest.mark.parametrize(
    "change",
    [
        {"n_models": 0},
        {"n_modes": 1.5},
        {"hidden": (0,)},
        {"activation": "unknown"},
        {"running_std_momentum": float("nan")},
        {"running_std_momentum": 2},
        {"sb_start_duration": -1},
        {"sb_start_factor": float("inf")},
        {"log_std_min": 20},
        {"deterministic_mode": "median"},
    ],
)
def test_bad_settings(change):
    with pytest.raises(ValueError):
        model(**change)


def test_bad_spaces_and_batches():
    with pytest.raises(TypeError, match="not supported"):
        model(action_space=object())
    settings = model(n_models=3, partition_batch=True)
    s, c, a, s2 = rows(2)
    no = np.zeros(2, bool)
    with pytest.raises(ValueError, match="shared among 3"):
        settings.loss(settings.init(jax.random.key(0)), jnp.ones(3), s, c, a, s2, no, no)
