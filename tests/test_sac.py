"""SAC's equations against float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrl_jax.algorithms import SAC, Batch
from lrl_jax.algorithms.base import present_settings
from lrl_jax.algorithms.sac import least
from lrl_jax.nets import tanh_gaussian
from lrl_jax.predictors import RampSchedule
from lrl_jax.spaces import Box

SPACE = Box((-1, 0), (1, 3), (2,))
ALGORITHM = SAC(hidden=(8, 8), gamma=0.9, tau=0.1, temperature=0.2)
B = 6


@pytest.fixture(scope="module")
def state():
    state = ALGORITHM.init(jax.random.key(0), 3, 2, SPACE)
    # Targets that differ from the critics, so that a mix-up shows.
    moved = jax.tree.map(lambda x: x + 0.05, state.target_critics)
    return state.replace(target_critics=moved)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    return Batch(
        obs=normal(B, 3),
        condition=normal(B, 2),
        act=jnp.asarray(rng.uniform((-1, 0), (1, 3), (B, 2)), jnp.float32),
        rew=normal(B),
        obs_next=normal(B, 3),
        condition_next=normal(B, 2),
        terminated=jnp.array([True, False, True, False, False, False]),
        elapsed_env_steps=jnp.arange(1, B + 1),
        mask=jnp.ones(B, bool),
    )


def mlp(params, x):
    for layer in ("dense_0", "dense_1"):
        x = np.maximum(x @ params[layer]["kernel"] + params[layer]["bias"], 0.0)
    return x @ params["out"]["kernel"] + params["out"]["bias"]


def double(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def policy(state, x, noise):
    out = mlp(double(state.actor)["MLP_0"], x)
    mean, raw = out[:, :2], out[:, 2:]
    log_std = -5 + 3.5 * (np.tanh(raw) + 1)
    u = mean + np.exp(log_std) * noise
    density = np.exp(-0.5 * noise**2) / np.sqrt(2 * np.pi) / np.exp(log_std)
    return np.tanh(u), np.log(density / (1 - np.tanh(u) ** 2)).sum(-1)


def q_values(critics, x, action):
    critics = double(critics)
    return np.stack(
        [
            mlp(jax.tree.map(lambda p, i=i: p[i], critics), np.concatenate([x, action], -1))[:, 0]
            for i in range(2)
        ]
    )


def joined(obs, condition):
    return np.concatenate([obs, condition], -1).astype(np.float64)


def oracle_targets(state, batch, key):
    x = joined(batch.obs_next, batch.condition_next)
    noise = np.asarray(jax.random.normal(key, (B, 2)), np.float64)
    action, log_prob = policy(state, x, noise)
    value = q_values(state.target_critics, x, action).min(0) - 0.2 * log_prob
    return np.asarray(batch.rew, np.float64) + 0.9 * (1 - np.asarray(batch.terminated)) * value


def test_targets(state, batch):
    """Rows 0 and 2 terminated, and do not bootstrap; the others may have been truncated."""
    key = jax.random.key(3)
    got = np.asarray(ALGORITHM.targets(state, batch, key))
    np.testing.assert_allclose(got, oracle_targets(state, batch, key), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(got[[0, 2]], np.asarray(batch.rew)[[0, 2]])


def test_losses_and_steps(state, batch):
    key = jax.random.key(4)
    key_target, key_actor = jax.random.split(key)
    new, metrics = ALGORITHM.update(state, batch, key)
    y = oracle_targets(state, batch, key_target)
    x = joined(batch.obs, batch.condition)
    unit = (np.asarray(batch.act, np.float64) - [0, 1.5]) / [1, 1.5]
    q = q_values(state.critics, x, unit)
    np.testing.assert_allclose(metrics["critic_loss"], ((q - y) ** 2).mean(1).sum(), rtol=1e-5)
    np.testing.assert_allclose(metrics["q"], q.mean(), rtol=1e-4, atol=1e-6)
    noise = np.asarray(jax.random.normal(key_actor, (B, 2)), np.float64)
    action, log_prob = policy(state, x, noise)
    value = q_values(new.critics, x, action).min(0)  # the actor climbs the new critics
    expected = (0.2 * log_prob - value).mean()
    np.testing.assert_allclose(metrics["actor_loss"], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(metrics["entropy"], -log_prob.mean(), rtol=1e-4, atol=1e-5)
    # The first step of Adam has the size of the learning rate.
    change = np.abs(
        double(new.actor)["MLP_0"]["out"]["bias"] - double(state.actor)["MLP_0"]["out"]["bias"]
    )
    np.testing.assert_allclose(change, 3e-4, rtol=1e-2)
    # Entropy of -2 is aimed at: the temperature falls where there is more.
    assert (float(new.temperature) < 0.2) == (-log_prob.mean() > -2.0)
    mixed = jax.tree.map(
        lambda t, p: 0.9 * np.float64(t) + 0.1 * np.float64(p), state.target_critics, new.critics
    )
    for a, b in zip(jax.tree.leaves(new.target_critics), jax.tree.leaves(mixed), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_given_targets_are_learned(state, batch):
    targets = jnp.full(B, 7.0)
    now = jax.jit(ALGORITHM.update)
    new = state
    for i in range(300):
        new, metrics = now(
            new.replace(settings={**new.settings, "learning_rate": jnp.float32(0.01)}),
            batch,
            jax.random.key(i),
            targets,
        )
    assert float(metrics["critic_loss"]) < 0.05 and abs(float(metrics["q"]) - 7) < 0.2


def test_the_least_value_and_its_gradient():
    values = jax.random.normal(jax.random.key(0), (3, 40)).at[:, 0].set(1.0)
    np.testing.assert_array_equal(least(values), values.min(0))
    grads = np.asarray(jax.grad(lambda x: least(x).sum())(values))
    np.testing.assert_array_equal(grads.sum(0), 1.0)
    np.testing.assert_array_equal(grads.argmax(0)[1:], values.argmin(0)[1:])
    # Nothing is divided by a count of equal entries, which rounding can make zero.
    assert " div " not in str(jax.make_jaxpr(jax.grad(lambda x: least(x).sum()))(values))


def test_rows_outside_the_mask_do_not_count(state, batch):
    mask = jnp.arange(B) < 4
    garbage = jax.tree.map(
        lambda x: jnp.where(
            mask.reshape(-1, *[1] * (x.ndim - 1)), x, jnp.asarray(100).astype(x.dtype)
        ),
        batch,
    ).replace(mask=mask)
    a, _ = ALGORITHM.update(state, batch.replace(mask=mask), jax.random.key(5))
    b, _ = ALGORITHM.update(state, garbage, jax.random.key(5))
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


def test_the_density_of_squashed_actions_integrates_to_one():
    mean, log_std = jnp.array([0.7]), jnp.array([-0.3])
    noise = jnp.linspace(-6, 6, 20_001)[:, None]
    action, log_prob = tanh_gaussian(mean, log_std, noise)
    mass = np.trapezoid(
        np.exp(np.asarray(log_prob, np.float64)), np.asarray(action[:, 0], np.float64)
    )
    assert abs(mass - 1) < 1e-3


def test_a_fixed_temperature_stays(batch):
    algorithm = SAC(hidden=(8,), temperature=1e-3, learn_temperature=False)
    state = algorithm.init(jax.random.key(0), 3, 2, SPACE)
    new, _ = algorithm.update(state, batch, jax.random.key(1))
    np.testing.assert_allclose(new.temperature, 1e-3, rtol=1e-6)


def test_schedules_are_observed_and_numbers_can_be_swept(batch):
    algorithm = SAC(hidden=(8,), learning_rate=RampSchedule(1.0, 3.0, 100))
    state = algorithm.init(jax.random.key(0), 3, 2, SPACE)
    assert float(present_settings(state)["learning_rate"]) == 1.0
    state = algorithm.at(state, jnp.float32(50))
    assert float(present_settings(state)["learning_rate"]) == 2.0
    # A number that was put there stays.
    state = state.replace(settings={**state.settings, "learning_rate": jnp.float32(5.0)})
    state = algorithm.at(state, jnp.float32(100))
    assert float(present_settings(state)["learning_rate"]) == 5.0

    def critic_loss(gamma):
        swept = state.replace(settings={**state.settings, "gamma": gamma})
        return algorithm.targets(swept, batch, jax.random.key(0))

    swept = jax.vmap(critic_loss)(jnp.array([0.0, 0.5]))
    np.testing.assert_array_equal(swept[0], batch.rew)
    assert not np.array_equal(swept[0], swept[1])


@pytest.mark.parametrize(
    "settings, error",
    [
        ({"hidden": (0,)}, ValueError),
        ({"activation": "nope"}, ValueError),
        ({"n_critics": 0}, ValueError),
        ({"gamma": 1.1}, ValueError),
        ({"tau": -0.1}, ValueError),
        ({"learning_rate": "fast"}, TypeError),
        ({"learning_rate": float("nan")}, ValueError),
        ({"temperature": 0.0}, ValueError),
        ({"temperature_learning_rate": -1.0}, ValueError),
        ({"log_std_min": 3.0}, ValueError),
    ],
)
def test_bad_settings(settings, error):
    with pytest.raises(error, match=next(iter(settings)).split("_")[0]):
        SAC(**settings)
