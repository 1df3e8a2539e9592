"""n-step targets against a float64 brute force."""

import itertools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrl_jax.predictors import n_step_targets

GAMMAS = (0.0, 0.5, 0.9, 0.99, 1.0)


def brute_force(reward, terminated, truncated, next_value, gamma, n):
    """Value, validity and sum of absolute terms, row by row in float64."""
    batch, length = reward.shape
    k_steps = length - n + 1
    value, size = np.zeros((batch, k_steps)), np.zeros((batch, k_steps))
    valid = np.zeros((batch, k_steps), bool)
    for b, t in itertools.product(range(batch), range(k_steps)):
        valid[b, t] = not (terminated[b, :t] | truncated[b, :t]).any()
        if not valid[b, t]:
            continue
        for j in range(n):
            value[b, t] += gamma**j * float(reward[b, t + j])
            size[b, t] += gamma**j * abs(float(reward[b, t + j]))
            if terminated[b, t + j] or truncated[b, t + j]:
                break
        if not terminated[b, t + j]:
            value[b, t] += gamma ** (j + 1) * float(next_value[b, t + j])
            size[b, t] += gamma ** (j + 1) * abs(float(next_value[b, t + j]))
    return value, valid, size


targets = jax.jit(n_step_targets, static_argnums=5)


def check(reward, terminated, truncated, next_value, gamma, n):
    value, valid = targets(reward, terminated, truncated, next_value, jnp.float32(gamma), n)
    want, want_valid, size = brute_force(
        reward, terminated, truncated, next_value, float(np.float32(gamma)), n
    )
    assert value.dtype == jnp.float32 and valid.dtype == bool
    np.testing.assert_array_equal(valid, want_valid)
    assert np.isfinite(value).all()
    assert (np.asarray(value)[~want_valid] == 0).all()
    assert (np.abs(value - want) <= 1e-5 * size + 1e-30).all()


def random_rows(rng, batch, length, scale=1e4, rate=0.1):
    reward, value = rng.uniform(-scale, scale, (2, batch, length)).astype(np.float32)
    terminated, truncated = rng.uniform(size=(2, batch, length)) < rate
    return reward, terminated, truncated, value


@pytest.mark.parametrize("k_steps, n", [(1, 1), (3, 3), (128, 32), (128, 1), (1, 32), (7, 5)])
def test_agrees_with_brute_force(k_steps, n):
    rng = np.random.default_rng(k_steps + n)
    for gamma, rate in itertools.product(GAMMAS, (0.0, 0.03)):
        check(*random_rows(rng, 8, k_steps + n - 1, rate=rate), gamma, n)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_every_pattern_of_endings(n):
    length = 4
    patterns = np.array(list(itertools.product(range(4), repeat=length)))
    terminated, truncated = patterns % 2 == 1, patterns // 2 == 1
    rng = np.random.default_rng(0)
    reward, value = rng.normal(size=(2, *patterns.shape)).astype(np.float32)
    for gamma in GAMMAS:
        check(reward, terminated, truncated, value, gamma, n)


@hypothesis.given(
    seed=st.integers(0, 2**20),
    shape=st.sampled_from([(5, 3), (16, 8), (2, 7)]),
    gamma=st.sampled_from(GAMMAS),
    scale=st.sampled_from([1e-3, 1.0, 1e4]),
    rate=st.sampled_from([0.0, 0.1, 0.9]),
)
@hypothesis.settings(max_examples=40, deadline=None)
def test_random_rows(seed, shape, gamma, scale, rate):
    k_steps, n = shape
    rng = np.random.default_rng(seed)
    check(*random_rows(rng, 4, k_steps + n - 1, scale, rate), gamma, n)


def test_what_lies_behind_an_end_does_not_matter():
    reward = np.array([[1.0, 2.0, np.nan, np.inf, np.nan]], np.float32)
    value = np.array([[5.0, np.nan, np.nan, np.inf, np.nan]], np.float32)
    terminated = np.array([[0, 1, 0, 0, 1]], bool)
    got, valid = targets(reward, terminated, np.zeros_like(terminated), value, 0.5, 3)
    np.testing.assert_array_equal(got, [[2.0, 2.0, 0.0]])
    np.testing.assert_array_equal(valid, [[True, True, False]])


def test_a_discount_for_each_row():
    rng = np.random.default_rng(1)
    reward, _, _, value = random_rows(rng, 3, 6, 1.0)
    none = np.zeros((3, 6), bool)
    gamma = rng.uniform(0, 1, (3, 6)).astype(np.float32)
    got, _ = targets(reward, none, none, value, gamma, 2)
    want = reward[:, :5] + gamma[:, :5] * (reward[:, 1:] + gamma[:, 1:] * value[:, 1:])
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_jit_equals_eager_and_gradients_are_finite():
    rows = random_rows(np.random.default_rng(2), 4, 6, 1.0)
    eager, _ = n_step_targets(*rows, 0.9, 3)
    np.testing.assert_allclose(targets(*rows, 0.9, 3)[0], eager, rtol=1e-6, atol=1e-6)
    grad = jax.grad(lambda g: n_step_targets(*rows, g, 3)[0].sum())(0.0)
    assert np.isfinite(grad)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"n_steps": 0}, "n_steps"),
        ({"n_steps": 1.5}, "n_steps"),
        ({"n_steps": 6}, "columns"),
        ({"gamma": 1.1}, "gamma"),
        ({"gamma": float("nan")}, "gamma"),
        ({"gamma": np.ones(3)}, "gamma"),
        ({"reward": np.ones((2, 4))}, "same shape"),
        ({"terminated": np.zeros(5, bool)}, "same shape"),
    ],
)
def test_bad_arguments(change, message):
    rows = dict.fromkeys(("reward", "next_value"), np.ones((2, 5), np.float32))
    rows |= dict.fromkeys(("terminated", "truncated"), np.zeros((2, 5), bool))
    with pytest.raises(ValueError, match=message):
        n_step_targets(**{**rows, "gamma": 0.9, "n_steps": 2, **change})
