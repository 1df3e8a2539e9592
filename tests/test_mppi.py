"""MPPI against a NumPy reference, and its memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrl_jax.planners.mppi import MPPI

SMALL = MPPI(num_samples=12, num_policy_samples=3, num_elites=4, n_iterations=3)


def oracle_fit(plans, values, planner, temperature):
    order = np.argsort(-values, kind="stable")[: planner.num_elites]
    elites, top = plans[order], values[order]
    weight = np.exp(temperature * (top - top.max()))
    weight /= weight.sum()
    mean = np.einsum("e,eha->ha", weight, elites)
    var = np.einsum("e,eha->ha", weight, (elites - mean) ** 2)
    return mean, np.clip(np.sqrt(var), planner.min_std, planner.max_std), elites


def draws(planner=SMALL, dim=2, seed=0):
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(planner.n_iterations, planner.num_drawn, planner.horizon, dim))
    policy = rng.uniform(-1, 1, (planner.num_policy_samples, planner.horizon, dim))
    return noise.astype(np.float32), policy.astype(np.float32)


def quadratic(plans):
    return -((plans - 0.4) ** 2).sum((1, 2)) * 3.0


def close(actual, desired, atol=1e-6):
    np.testing.assert_allclose(actual, desired, rtol=1e-5, atol=atol)


def test_one_refinement_matches_the_oracle():
    noise, policy = draws()
    mean = np.full((3, 2), 0.2, np.float32)
    std = np.full((3, 2), 0.7, np.float32)
    fit = SMALL.refine(mean, std, policy, noise[0], quadratic, 0.5)
    drawn = np.clip(mean.astype(np.float64) + std.astype(np.float64) * noise[0], -1, 1)
    plans = np.concatenate([policy, drawn])
    wanted_mean, wanted_std, elites = oracle_fit(plans, quadratic(plans), SMALL, 0.5)
    close(fit.mean, wanted_mean)
    close(fit.std, wanted_std)
    close(fit.elites, elites)


def test_the_std_is_clipped():
    plans = np.zeros((12, 3, 2), np.float32)
    fit = SMALL.fit(plans, np.zeros(12, np.float32), 0.5)
    close(fit.std, np.full((3, 2), 0.05))
    narrow = MPPI(**{**SMALL.__dict__, "max_std": 0.1})
    plans = np.where(np.arange(12)[:, None, None] % 2, 1.0, -1.0) * np.ones((12, 3, 2))
    close(narrow.fit(plans, np.zeros(12), 0.5).std, np.full((3, 2), 0.1))


def test_the_search_matches_the_oracle_over_iterations_and_decisions():
    noise, policy = draws()
    memory = SMALL.init(2)
    start = np.zeros((3, 2))
    for decision in range(2):
        fit, memory = SMALL.search(memory, policy, noise, quadratic)
        mean, std = start, np.full((3, 2), 2.0)
        for i in range(3):
            plans = np.concatenate([policy, np.clip(mean + std * noise[i], -1, 1)])
            mean, std, elites = oracle_fit(plans, quadratic(plans), SMALL, 0.5)
        close(fit.mean, mean)
        close(fit.std, std)
        close(memory.mean, mean)
        close(SMALL.exploit(fit), elites[0, 0])
        assert not memory.fresh, decision
        start = np.concatenate([mean[1:], np.zeros((1, 2))])


def test_a_fresh_memory_starts_anew():
    noise, policy = draws()
    _, memory = SMALL.search(SMALL.init(2), policy, noise, quadratic)
    again = memory.replace(fresh=jnp.ones((), bool))
    assert np.abs(SMALL.start(memory)).max() > 0
    np.testing.assert_array_equal(SMALL.start(again), 0)


def test_values_that_are_not_finite_never_win():
    noise, policy = draws()
    plans = np.concatenate([policy, np.clip(noise[0], -1, 1)])
    values = quadratic(plans)
    bad = values.copy()
    bad[[0, 5]] = np.nan, np.inf
    good = values.copy()
    good[[0, 5]] = -1e20
    jax.tree.map(
        np.testing.assert_array_equal, SMALL.fit(plans, bad, 0.5), SMALL.fit(plans, good, 0.5)
    )
    nothing = SMALL.fit(plans, np.full(12, np.nan), 0.5)
    assert np.isfinite(nothing.mean).all() and np.isfinite(nothing.std).all()


def test_exploring_draws_elites_by_their_weight():
    plans = np.linspace(-0.8, 0.8, 12, dtype=np.float32).reshape(12, 1, 1) * np.ones((1, 3, 1))
    values = np.arange(12.0, dtype=np.float32)
    fit = SMALL.fit(plans, values, 0.5)
    gumbel = jax.random.gumbel(jax.random.key(0), (4000, 4))
    actions = jax.vmap(lambda g: SMALL.explore(fit, g, jnp.zeros(1)))(gumbel)
    weight = np.exp(0.5 * -np.arange(4.0))
    weight /= weight.sum()
    shares = [(np.abs(actions - plans[11 - i, 0, 0]) < 1e-6).mean() for i in range(4)]
    np.testing.assert_allclose(shares, weight, atol=0.03)
    noisy = SMALL.explore(fit, gumbel[0], jnp.ones(1))
    close(noisy, np.clip(actions[0] + fit.std[0], -1, 1))
    assert SMALL.explore(fit, gumbel[0], jnp.full(1, 1e3)) == 1.0


def test_the_temperature_may_be_traced():
    noise, policy = draws()
    run = jax.vmap(lambda t: SMALL.search(SMALL.init(2), policy, noise, quadratic, t)[0].mean)
    means = run(jnp.array([0.5, 5.0]))
    close(means[0], SMALL.search(SMALL.init(2), policy, noise, quadratic)[0].mean)
    assert np.abs(means[0] - means[1]).max() > 1e-3


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        (dict(horizon=0), ValueError, "horizon must be .* at least 1"),
        (dict(num_samples=8, num_policy_samples=8, num_elites=2), ValueError, "leaves none"),
        (dict(num_samples=32), ValueError, "num_elites=64 is above num_samples=32"),
        (dict(min_std=3.0), ValueError, "above max_std"),
        (dict(temperature="hot"), ValueError, "temperature must be a finite number"),
    ],
)
def test_settings_are_checked(settings, error, text):
    with pytest.raises(error, match=text):
        MPPI(**settings)


def test_shapes_are_checked():
    noise, policy = draws()
    with pytest.raises(ValueError, match="expected 3 policy plans"):
        SMALL.search(SMALL.init(2), policy[:2], noise, quadratic)
