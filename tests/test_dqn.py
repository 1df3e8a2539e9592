"""DQN against formulas written out in NumPy, and its rules of acting and learning."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrl_jax as lrl
from lrl_jax.algorithms import DQN, SAC, Batch
from lrl_jax.algorithms.base import present_settings
from lrl_jax.buffers import Replay
from lrl_jax.levels import DQNLevel
from lrl_jax.nets import DuelingMLP
from lrl_jax.predictors import RampSchedule
from lrl_jax.spaces import Box, Discrete

X, C, A = 3, 2, 4
SPACE = Discrete(A)


def make(**settings):
    dqn = DQN(**{"hidden": (8,), "gamma": 0.9, **settings})
    state = dqn.init(jax.random.key(0), X, C, SPACE)
    # Parameters, targets' apart, that are not zero anywhere.
    leaves, tree = jax.tree.flatten((state.params, state.target_params))
    rng = np.random.default_rng(1)
    leaves = [jnp.asarray(rng.normal(size=x.shape), jnp.float32) for x in leaves]
    params, target = jax.tree.unflatten(tree, leaves)
    return dqn, state.replace(params=params, target_params=target)


def batch(n=8):
    rng = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    # Neither, terminated, truncated, both: truncation is no field of a batch, nothing to mistake.
    terminated = np.resize([False, True, False, True], n)
    return Batch(
        obs=draw(n, X),
        condition=draw(n, C),
        act=jnp.asarray(rng.integers(A, size=n), jnp.int32),
        rew=draw(n),
        obs_next=draw(n, X),
        condition_next=draw(n, C),
        terminated=jnp.asarray(terminated),
        elapsed_env_steps=jnp.arange(1, n + 1),
        mask=jnp.ones(n, bool),
    )


def oracle_q(params, x):
    """Q values [B, A] in float64 of a network with one hidden layer."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    hidden = np.maximum(x @ p["dense_0"]["kernel"] + p["dense_0"]["bias"], 0.0)
    return hidden @ p["out"]["kernel"] + p["out"]["bias"]


def oracle_targets(state, rows, double, gamma=0.9):
    x = np.concatenate([rows.obs_next, rows.condition_next], -1).astype(np.float64)
    q = oracle_q(state.target_params, x)
    best = (oracle_q(state.params, x) if double else q).argmax(-1)
    value = q[np.arange(len(x)), best]
    return np.asarray(rows.rew, np.float64) + gamma * np.where(rows.terminated, 0.0, value)


@pytest.mark.parametrize("double", [True, False])
def test_targets_are_those_of_the_formula(double):
    dqn, state = make(double=double)
    rows = batch(64)
    targets = dqn.targets(state, rows, jax.random.key(0))
    expected = oracle_targets(state, rows, double)
    np.testing.assert_allclose(targets, expected, rtol=1e-5, atol=1e-5)
    # The rows tell the two apart.
    assert not np.allclose(expected, oracle_targets(state, rows, not double), atol=1e-2)


def test_a_truncated_row_of_the_replay_bootstraps_and_a_terminated_one_does_not():
    level = DQNLevel(DQN(hidden=(8,), gamma=0.9), buffer_size=4, batch_size=64, warm_up_steps=0)
    env, params = lrl.make("CartPole-v1")
    hierarchy = lrl.Hierarchy([level], env, params)
    state = hierarchy.init(jax.random.key(0), 4)
    ends = np.array([[False, False], [True, False], [False, True], [True, True]])
    obs = jnp.zeros((4, 4))
    state, _ = hierarchy.get_action(state, obs)
    rew = jnp.arange(4.0)  # tells which row was drawn
    obs_next = 0.1 + jnp.arange(16.0).reshape(4, 4)
    state = hierarchy.process_transition(
        state, obs_next, rew, jnp.asarray(ends[:, 0]), jnp.asarray(ends[:, 1])
    )
    learner, replay = state.levels[0].learner, Replay(state.levels[0].buffer)
    rows = level.batch(learner, replay, *level.sample(replay, jax.random.key(1)))
    which = np.asarray(rows.rew).astype(int)
    assert set(which) == {0, 1, 2, 3}
    targets = level.algorithm.targets(learner.state, rows, jax.random.key(2))
    x = np.asarray(learner.see(obs_next), np.float64)
    best = oracle_q(learner.state.params, x).max(-1)
    expected = np.arange(4) + 0.9 * np.where(ends[:, 0], 0.0, best)
    np.testing.assert_allclose(targets, expected[which], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("loss", ["huber", "squared"])
def test_loss_is_that_of_the_formula_over_the_masked_rows(loss):
    dqn, state = make(loss=loss)
    rows = batch(8)
    rows = rows.replace(mask=jnp.arange(8) < 5, rew=rows.rew.at[7].set(1e6))
    _, metrics = dqn.update(state, rows, jax.random.key(0))
    x = np.concatenate([rows.obs, rows.condition], -1).astype(np.float64)
    q = oracle_q(state.params, x)[np.arange(8), np.asarray(rows.act)]
    error = np.abs(q - oracle_targets(state, rows, True))
    huber = np.where(error < 1.0, 0.5 * error**2, error - 0.5)
    expected = (huber if loss == "huber" else 0.5 * error**2)[:5].mean()
    assert (error[:5] > 1.0).any()
    np.testing.assert_allclose(metrics["q_loss"], expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["q"], q[:5].mean(), rtol=1e-5)


def test_gradients_are_clipped_to_the_norm():
    # Adam's first step does not depend on the gradients' size, its second moment does.
    rows = batch(8)
    norms = {}
    for norm in (None, 0.1):
        dqn, state = make(max_grad_norm=norm)
        moment = dqn.update(state, rows, jax.random.key(0))[0].opt.nu
        squares = [float(jnp.sum(leaf)) for leaf in jax.tree.leaves(moment)]
        norms[norm] = np.sqrt(sum(squares) / 1e-3)
    assert norms[None] > 0.2
    np.testing.assert_allclose(norms[0.1], 0.1, rtol=1e-3)


def test_given_targets_are_what_the_network_learns():
    dqn, state = make(learning_rate=1e-2, loss="squared")
    rows, goal = batch(8), jnp.linspace(-1.0, 1.0, 8)
    update = jax.jit(functools.partial(dqn.update, targets=goal))
    for i in range(500):
        state, metrics = update(state, rows, jax.random.key(i))
    assert metrics["q_loss"] < 1e-3


def equal(a, b):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))


def assert_close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def test_hard_copies_every_few_updates():
    dqn, state = make(tau=1.0, target_interval=3)
    first, rows = state.target_params, batch()
    for i in range(1, 8):
        before = state.target_params
        state, _ = dqn.update(state, rows, jax.random.key(i))
        assert equal(state.target_params, state.params if i % 3 == 0 else before)
        assert equal(state.target_params, first) == (i < 3)


def test_polyak_average_at_every_update():
    dqn, state = make(tau=0.25)
    new, _ = dqn.update(state, batch(), jax.random.key(0))
    expected = jax.tree.map(lambda t, p: 0.75 * t + 0.25 * p, state.target_params, new.params)
    assert_close(new.target_params, expected, rtol=1e-6)


def test_schedules_follow_the_environment_steps():
    dqn = DQN(
        hidden=(8,), epsilon=RampSchedule(1.0, 0.1, 90), learning_rate=RampSchedule(1e-2, 0.0, 50)
    )
    state = dqn.init(jax.random.key(0), X, C, SPACE)
    for total, epsilon, rate in ((0.0, 1.0, 1e-2), (45.0, 0.55, 1e-3), (1e6, 0.1, 0.0)):
        state = dqn.at(state, jnp.float32(total))
        settings = present_settings(state)
        np.testing.assert_allclose(settings["epsilon"], epsilon, rtol=1e-6)
        np.testing.assert_allclose(settings["learning_rate"], rate, rtol=1e-5)
        assert settings["epsilon"].dtype == jnp.float32
    # With a rate of 0 nothing is learned.
    new, metrics = dqn.update(state, batch(), jax.random.key(0))
    assert equal(new.params, state.params)
    np.testing.assert_allclose(metrics["epsilon"], 0.1, rtol=1e-6)


@pytest.mark.parametrize("epsilon", [0.0, 0.4, 1.0])
def test_training_explores_with_epsilon_and_evaluation_does_not(epsilon):
    dqn, state = make(epsilon=epsilon)
    obs, condition = jnp.ones(X), jnp.ones(C)
    q = oracle_q(state.params, np.ones((1, X + C)))[0]
    keys = jax.random.split(jax.random.key(3), 4000)

    def act(key, explores):
        return dqn.act(state, (), obs, condition, key, explores)[0]

    actions = {t: np.asarray(jax.vmap(lambda k, t=t: act(k, t))(keys)) for t in (True, False)}
    assert actions[True].dtype == np.int32
    assert np.all(actions[False] == q.argmax())
    shares = np.bincount(actions[True], minlength=A) / len(keys)
    expected = np.full(A, epsilon / A)
    expected[q.argmax()] += 1.0 - epsilon
    np.testing.assert_allclose(shares, expected, atol=0.03)


@pytest.mark.parametrize("hidden", [(), (8,), (8, 6)])
def test_dueling_advantages_have_mean_zero(hidden):
    net, x = DuelingMLP(A, hidden), jax.random.normal(jax.random.key(1), (5, X))
    params = net.init(jax.random.key(0), x)
    value, advantage = net.apply(params, x, method="streams")
    assert value.shape == (5,) and advantage.shape == (5, A)
    assert np.abs(advantage).max() > 1e-2
    np.testing.assert_allclose(advantage.mean(-1), 0.0, atol=1e-6)
    q = net.apply(params, x)
    np.testing.assert_allclose(q, value[:, None] + advantage, rtol=1e-6)
    np.testing.assert_allclose(q.mean(-1), value, atol=1e-6)


def test_dueling_learns_and_acts():
    dqn = DQN(hidden=(8,), dueling=True)
    state = dqn.init(jax.random.key(0), X, C, SPACE)
    new, metrics = jax.jit(dqn.update)(state, batch(), jax.random.key(1))
    assert set(new.params) == {"value", "advantage"} and np.isfinite(metrics["q_loss"])
    assert not equal(new.params, state.params)


def small_level(**settings):
    dqn = DQN(hidden=(8,), epsilon=RampSchedule(1.0, 0.1, 200), **settings)
    return DQNLevel(dqn, buffer_size=256, batch_size=16, update_interval=4, warm_up_steps=32)


@functools.cache
def cartpole():
    env, params = lrl.make("CartPole-v1")
    return env, params, lrl.Hierarchy([small_level()], env, params)


def run(key):
    env, params, hierarchy = cartpole()
    carry = lrl.init_carry(hierarchy, key, 4)
    return lrl.rollout(hierarchy, carry, 40, learn=True)


single = jax.jit(run)


def test_vmap_over_seeds_equals_a_loop():
    keys = jax.random.split(jax.random.key(0), 3)
    carry, out = jax.jit(jax.vmap(run))(keys)
    assert np.all(out.metrics["level0/n_updates"] > 0)
    for i in range(3):
        one, one_out = single(keys[i])
        mine = jax.tree.map(lambda x, i=i: x[i], carry.hierarchy.levels[0].learner.state)
        assert_close(mine, one.hierarchy.levels[0].learner.state, rtol=1e-4, atol=1e-5)
        assert out.metrics["n_episodes"][i] == one_out.metrics["n_episodes"]


def test_evaluation_is_deterministic_and_leaves_the_learner_alone():
    _, _, hierarchy = cartpole()
    carry, _ = single(jax.random.key(0))
    obs = jax.random.normal(jax.random.key(5), (4, 4))
    frozen = hierarchy.eval()
    state = carry.hierarchy
    after, first = frozen.get_action(state, obs)
    other = state.replace(stream=state.stream.advance())
    np.testing.assert_array_equal(first, frozen.get_action(other, obs)[1])
    assert equal(after.levels[0].learner, state.levels[0].learner)


@pytest.mark.parametrize(
    "settings, error, message",
    [
        ({"gamma": 1.5}, ValueError, r"gamma must be a finite number in \[0, 1\], got 1.5"),
        ({"tau": -0.1}, ValueError, r"tau must be a finite number in \[0, 1\], got -0.1"),
        ({"epsilon": 2.0}, ValueError, "epsilon must be a finite number"),
        ({"epsilon": "high"}, TypeError, "epsilon must be a number or a schedule"),
        ({"learning_rate": -1.0}, ValueError, "learning_rate must be a finite number"),
        ({"target_interval": 0}, ValueError, "target_interval must be .* at least 1, got 0"),
        ({"target_interval": 2.5}, ValueError, "target_interval must be a whole number"),
        ({"loss": "hubber"}, ValueError, "loss must be one of .* got 'hubber'"),
        ({"hidden": (0,)}, ValueError, "each of hidden must be"),
        ({"activation": "rleu"}, ValueError, "unknown activation"),
        ({"max_grad_norm": 0.0}, ValueError, "max_grad_norm must be a finite number"),
        ({"max_grad_norm": lambda t: 1.0}, ValueError, "max_grad_norm must be a finite number"),
    ],
)
def test_bad_settings_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        DQN(**settings)


def test_other_places_and_algorithms_are_refused():
    with pytest.raises(TypeError, match="DQN decides in a Discrete space, got Box.*use SAC"):
        DQN().check(Box(-1.0, 1.0, (2,)))
    env, params = lrl.make("Pendulum-v1")
    with pytest.raises(TypeError, match="use SAC"):
        lrl.Hierarchy([DQNLevel()], env, params).init(jax.random.key(0), 1)
    with pytest.raises(TypeError, match="algorithm must be a DQN"):
        DQNLevel(SAC())


def test_settings_are_hashable_and_equal():
    assert hash(DQN()) == hash(DQN()) and DQN() == DQN()
    assert hash(small_level()) == hash(small_level())
