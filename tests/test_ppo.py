"""PPO against float64 NumPy, and its level at all places of a hierarchy."""

import dataclasses
import functools

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probes import BEST, CASES, Probe, stacked_obs, stacked_params

import lrl_jax as lrl
from lrl_jax.algorithms import PPO, PPOBatch
from lrl_jax.algorithms.base import present_settings
from lrl_jax.algorithms.on_policy import advantages, permutations
from lrl_jax.algorithms.policy_heads import policy_head
from lrl_jax.levels import ActionRepeatLevel, PPOLevel, RandomLevel
from lrl_jax.nets.orthogonal_mlp import Pair, init_orthogonal, mlp
from lrl_jax.schedules import RampSchedule
from lrl_jax.spaces import Box, Discrete
from lrl_jax.testing import check_level

BOX, FREE, THREE = Box((-1, 0), (1, 3), (2,)), Box(-np.inf, np.inf, (2,)), Discrete(3)
SPACES = {"box": BOX, "unbounded": FREE, "discrete": THREE}
T, N, X, C = 6, 4, 3, 2
ALGORITHM = PPO(
    hidden=(8, 8),
    gamma=0.9,
    gae_lambda=0.8,
    value_clip=0.1,
    n_epochs=1,
    n_minibatches=1,
    entropy_coefficient=0.02,
    learning_rate=1e-3,
    max_grad_norm=1e3,
    log_std_start=-0.4,
)


def random_batch(space, seed=0, version=-1) -> PPOBatch:
    """Rows of instances that have 6, 4, 1 and no rows, at some place in time."""
    rng = np.random.default_rng(seed)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    first, last = np.array([0, 1, 3, 0]), np.array([6, 5, 4, 0])
    t = np.arange(T)[:, None]
    mask = (t >= first) & (t < last)
    ended = rng.random((T, N)) < 0.3
    terminated = ended & (rng.random((T, N)) < 0.5)
    followed = np.concatenate([mask[1:], np.zeros((1, N), bool)])
    breaks = ended | (rng.random((T, N)) < 0.3)
    index = jnp.asarray(rng.integers(0, 3, (T, N)), jnp.int32)
    act = index if space == THREE else normal(T, N, 2)
    return PPOBatch(
        obs=normal(T, N, X),
        condition=normal(T, N, C),
        act=act,
        log_prob=normal(T, N) * 0.3 - 1.5,
        version=jnp.full((T, N), version, jnp.int32),
        rew=normal(T, N),
        obs_next=normal(T, N, X),
        condition_next=normal(T, N, C),
        terminated=jnp.asarray(terminated),
        ended=jnp.asarray(ended),
        continues=jnp.asarray(mask & followed & ~breaks),
        elapsed_env_steps=jnp.asarray(rng.integers(1, 5, (T, N)), jnp.int32),
        mask=jnp.asarray(mask),
    )


def double(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def net(layers, x):
    """tanh network in float64."""
    layers = double(layers)
    for i, layer in enumerate(layers):
        x = x @ layer["kernel"] + layer["bias"]
        x = np.tanh(x) if i + 1 < len(layers) else x
    return x


def oracle_advantages(rew, value, next_value, terminated, ended, gamma, gae_lambda, mask):
    """One instance after the other, one row after the other, from the last."""
    out = np.zeros(rew.shape)
    for i in range(rew.shape[1]):
        later = 0.0
        for t in reversed(np.flatnonzero(mask[:, i])):
            bootstrap = 0.0 if terminated[t, i] else gamma[t, i] * next_value[t, i]
            delta = rew[t, i] + bootstrap - value[t, i]
            later = delta + (0.0 if ended[t, i] else gamma[t, i] * gae_lambda * later)
            out[t, i] = later
    return out


# ----------------------------------------------------------------- advantages


@pytest.mark.parametrize("smdp", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_advantages(seed, smdp):
    batch = random_batch(THREE, seed)
    value, next_value = jax.random.normal(jax.random.key(seed), (2, T, N))
    steps = np.asarray(batch.elapsed_env_steps, np.float64)
    gamma = 0.9**steps if smdp else np.full((T, N), 0.9)
    got, target = jax.jit(advantages)(
        batch.rew,
        value,
        next_value,
        batch.terminated,
        batch.ended,
        jnp.float32(0.9) ** batch.elapsed_env_steps if smdp else jnp.float32(0.9),
        jnp.float32(0.8),
        batch.mask,
    )
    args = double((batch.rew, value, next_value, batch.terminated, batch.ended))
    mask = np.asarray(batch.mask)
    expected = oracle_advantages(*args, gamma, 0.8, mask)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        target, np.where(mask, expected + args[1], 0.0), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("smdp", [False, True])
def test_values_of_rows_that_continue_are_those_of_the_next(smdp):
    """Elsewhere they are those of the row's own next observation and condition."""
    algorithm = dataclasses.replace(ALGORITHM, smdp_discount=smdp)
    state, batch = algorithm.init(jax.random.key(0), X, C, THREE), random_batch(THREE)
    joined = lambda *x: np.concatenate(double(x), -1)  # noqa: E731
    own = net(state.critic, joined(batch.obs, batch.condition))[..., 0]
    behind = net(state.critic, joined(batch.obs_next, batch.condition_next))[..., 0]
    behind = np.where(batch.continues, np.concatenate([own[1:], own[:1]]), behind)
    used = np.asarray(batch.mask & ~batch.terminated)
    value, next_value = algorithm.values(state, batch)
    np.testing.assert_allclose(value, own, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(next_value[used], behind[used], rtol=1e-5, atol=1e-5)
    gamma = 0.9 ** (np.asarray(batch.elapsed_env_steps) if smdp else np.ones((T, N)))
    args = double((batch.rew, own, behind, batch.terminated, batch.ended))
    expected = oracle_advantages(*args, gamma, 0.8, np.asarray(batch.mask))
    np.testing.assert_allclose(
        algorithm.advantages(state, batch)[1], expected, rtol=1e-4, atol=1e-5
    )


def test_values_come_in_pieces(monkeypatch):
    """A long rollout is cut along time, and pieces that need no next value are left out."""
    state = ALGORITHM.init(jax.random.key(0), X, C, THREE)
    batch = random_batch(THREE)
    whole = ALGORITHM.values(state, batch)
    monkeypatch.setattr("lrl_jax.algorithms.ppo.PIECE", 2 * N)
    pieces = ALGORITHM.values(state, batch)
    used = np.asarray(batch.mask & ~batch.terminated)
    np.testing.assert_allclose(pieces[0], whole[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(pieces[1][used], whole[1][used], rtol=1e-5, atol=1e-6)
    none = batch.replace(continues=jnp.arange(T)[:, None] * jnp.ones((T, N)) < 4)
    assert (ALGORITHM.values(state, none)[1][3] == ALGORITHM.values(state, none)[0][4]).all()


# ---------------------------------------------------------------- minibatches


def test_permutations():
    orders = np.asarray(permutations(jax.random.key(0), 2000, 5))
    assert (np.sort(orders, 1) == np.arange(5)).all()
    share = np.stack([(orders == i).mean(0) for i in range(5)])
    assert np.abs(share - 0.2).max() < 0.04  # each index is as often at each place
    assert len(np.unique(orders, axis=0)) == 120
    with pytest.raises(ValueError, match="shorter"):
        permutations(jax.random.key(0), 1, 2**24 + 1)


# -------------------------------------------------------------- distributions


def oracle_policy(state, batch):
    """Log-probabilities and entropies [T, N] of a batch, float64."""
    x = np.concatenate(double((batch.obs, batch.condition)), -1)
    out = net(state.actor, x)
    if state.action_space == THREE:
        p = np.exp(out) / np.exp(out).sum(-1, keepdims=True)
        chosen = np.take_along_axis(p, np.asarray(batch.act)[..., None], -1)[..., 0]
        return np.log(chosen), -(p * np.log(p)).sum(-1)
    unit = np.asarray(batch.act, np.float64)
    if state.action_space == BOX:
        unit = (unit - [0, 1.5]) / [1, 1.5]
    std = np.exp(np.asarray(state.log_std, np.float64))
    density = np.exp(-0.5 * ((unit - out) / std) ** 2) / std / np.sqrt(2 * np.pi)
    entropy = np.log(std * np.sqrt(2 * np.pi * np.e)).sum()
    return np.log(density).sum(-1), np.full((T, N), entropy)


@pytest.mark.parametrize("name", SPACES)
def test_log_probabilities_and_entropies(name):
    state, batch = ALGORITHM.init(jax.random.key(1), X, C, SPACES[name]), random_batch(SPACES[name])
    state = state.replace(actor=jax.tree.map(lambda x: x + 0.1, state.actor))
    head = policy_head(SPACES[name])
    x = jnp.concatenate([batch.obs, batch.condition], -1).reshape(-1, X + C)
    out, value = Pair.of(state.actor, state.critic).columns(x.T, "tanh")
    action = head.encode(batch.act).reshape(T * N, -1).T
    log_prob, entropy = head.log_prob_entropy(out, state.log_std, action)
    for got, expected in zip((log_prob, entropy), oracle_policy(state, batch), strict=True):
        np.testing.assert_allclose(got, expected.reshape(-1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(value[0], net(state.critic, double(x))[:, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SPACES)
def test_acting(name):
    space = SPACES[name]
    state = ALGORITHM.init(jax.random.key(2), X, C, space)
    bias = jnp.array([0.3, -0.6]) if space != THREE else jnp.array([0.0, 1.0, -1.0])
    last = {**state.actor[-1], "bias": bias}
    state = state.replace(actor=(*state.actor[:-1], last))
    zeros = jnp.zeros(X), jnp.zeros(C)

    def act(explores):
        keys = jax.random.split(jax.random.key(3), 20_000)
        return jax.vmap(lambda k: ALGORITHM.act(state, *zeros, k, explores))(keys)

    best, log_prob = act(False)
    traced, _ = jax.jit(act)(jnp.zeros((), bool))
    np.testing.assert_array_equal(best, traced)
    drawn, log_probs = jax.jit(act)(jnp.ones((), bool))
    if space == THREE:
        p = np.exp([0.0, 1.0, -1.0]) / np.exp([0.0, 1.0, -1.0]).sum()
        assert drawn.dtype == jnp.int32 and (best == 1).all()
        np.testing.assert_allclose(np.bincount(drawn) / len(drawn), p, atol=0.015)
        np.testing.assert_allclose(log_probs, np.log(p)[np.asarray(drawn)], rtol=1e-4)
        np.testing.assert_allclose(log_prob, np.log(p)[1], rtol=1e-4)
        return
    centre, half = ([0, 1.5], [1, 1.5]) if space == BOX else ([0, 0], [1, 1])
    np.testing.assert_allclose(best[0], centre + np.multiply(half, [0.3, -0.6]), rtol=1e-5)
    np.testing.assert_allclose(drawn.mean(0), best[0], atol=0.03)
    np.testing.assert_allclose(drawn.std(0), np.multiply(half, np.exp(-0.4)), rtol=0.03)
    assert (drawn < -1).any()  # as decided, not clipped


def test_initial_weights_need_no_lapack():
    """Under a vmap over seeds its calls would wait for each other."""
    init = jax.vmap(lambda k: ALGORITHM.init(k, X, C, BOX))
    states = jax.jit(init)(jax.random.split(jax.random.key(0), 8))
    assert len(np.unique(states.actor[0]["kernel"], axis=0)) == 8
    assert "lapack" not in jax.jit(init).lower(jax.random.split(jax.random.key(0))).as_text()


def test_initial_weights():
    layers = init_orthogonal(jax.random.key(0), 6, (16, 16), 2, 0.01)
    for layer, scale in zip(layers, (2**0.5, 2**0.5, 0.01), strict=True):
        w = np.asarray(layer["kernel"], np.float64)
        w = w if w.shape[0] >= w.shape[1] else w.T
        np.testing.assert_allclose(w.T @ w, scale**2 * np.eye(w.shape[1]), atol=1e-5)
        np.testing.assert_array_equal(layer["bias"], 0.0)
    pair = Pair.of(layers, init_orthogonal(jax.random.key(1), 6, (16, 16), 1, 1.0))
    for a, b in zip(jax.tree.leaves(pair.split()[0]), jax.tree.leaves(layers), strict=True):
        np.testing.assert_array_equal(a, b)
    x = jax.random.normal(jax.random.key(2), (5, 6))
    np.testing.assert_allclose(pair.columns(x.T, "relu")[0], mlp(layers, x, "relu").T, atol=1e-6)


# ----------------------------------------------------------------------- loss


def oracle_loss(algorithm, state, batch, old, normalise=True):
    """Loss and metrics over the valid rows, float64; `old` is the state that the rows are of."""
    mask = np.asarray(batch.mask)
    x = np.concatenate(double((batch.obs, batch.condition)), -1)
    value_old, advantage, target = (
        np.asarray(a, np.float64)[mask] for a in algorithm.advantages(old, batch)
    )
    if normalise:
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    log_prob, entropy = (a[mask] for a in oracle_policy(state, batch))
    ratio = np.exp(log_prob - np.asarray(batch.log_prob, np.float64)[mask])
    policy = -np.minimum(ratio * advantage, np.clip(ratio, 0.8, 1.2) * advantage).mean()
    value = net(state.critic, x)[..., 0][mask]
    near = value_old + np.clip(value - value_old, -0.1, 0.1)
    value_loss = 0.5 * np.maximum((value - target) ** 2, (near - target) ** 2).mean()
    return policy + 0.5 * value_loss - 0.02 * entropy.mean(), {
        "policy_loss": policy,
        "value_loss": value_loss,
        "entropy": entropy.mean(),
        "approx_kl": (ratio - 1 - np.log(ratio)).mean(),
        "clip_fraction": (np.abs(ratio - 1) > 0.2).mean(),
    }


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("name", SPACES)
def test_loss_and_step(name, normalise):
    algorithm = dataclasses.replace(ALGORITHM, normalise_advantages=normalise)
    state, batch = algorithm.init(jax.random.key(4), X, C, SPACES[name]), random_batch(SPACES[name])
    noise = 0.3 * np.random.default_rng(6).normal(size=(T, N))
    batch = batch.replace(log_prob=jnp.asarray(oracle_policy(state, batch)[0] + noise, jnp.float32))
    new, metrics = jax.jit(algorithm.update)(state, batch, jax.random.key(5))
    loss = lambda s: oracle_loss(algorithm, s, batch, state, normalise)  # noqa: E731
    for key, expected in loss(state)[1].items():
        np.testing.assert_allclose(metrics[key], expected, rtol=1e-4, atol=1e-5, err_msg=key)
    assert 0 < float(metrics["clip_fraction"]) < 1
    assert int(new.version) == 1

    # Adam's first step, against the gradient.
    def shifted(net, layer, i, by):
        layers = list(double(getattr(state, net)))
        bias = layers[layer]["bias"].copy()
        bias[i] += by
        layers[layer] = {**layers[layer], "bias": bias}
        return state.replace(**{net: tuple(layers)})

    for network, layer, i in (("actor", 0, 1), ("actor", 2, 1), ("critic", 1, 2), ("critic", 2, 0)):
        up, down = (loss(shifted(network, layer, i, h))[0] for h in (1e-5, -1e-5))
        slope = (up - down) / 2e-5
        change = getattr(new, network)[layer]["bias"][i] - getattr(state, network)[layer]["bias"][i]
        np.testing.assert_allclose(change, -1e-3 * slope / (abs(slope) + 1e-5), rtol=0.02)
    if name != "discrete":
        assert (np.abs(new.log_std - state.log_std) > 1e-4).all()


def test_gradients_are_clipped_to_the_global_norm():
    """A tiny norm makes Adam's epsilon count, and steps small."""
    state, batch = ALGORITHM.init(jax.random.key(0), X, C, THREE), random_batch(THREE)
    sizes = []
    for norm in (1e-6, 1e6):
        settings = {**state.settings, "max_grad_norm": jnp.float32(norm)}
        new, _ = ALGORITHM.update(state.replace(settings=settings), batch, jax.random.key(0))
        sizes.append(float(jnp.linalg.norm(new.opt.mean)))
    np.testing.assert_allclose(sizes[0], 0.1 * 1e-6, rtol=1e-3)
    assert sizes[1] > 0.01


@pytest.mark.parametrize("n_minibatches", [1, 5])
def test_rows_outside_the_mask_do_not_count(n_minibatches):
    """Not even NaNs; 24 rows do not divide into 5 minibatches: masked ones fill up."""
    algorithm = dataclasses.replace(ALGORITHM, n_minibatches=n_minibatches, n_epochs=2)
    state, batch = algorithm.init(jax.random.key(0), X, C, BOX), random_batch(BOX)
    wide = lambda x: batch.mask.reshape(T, N, *[1] * (x.ndim - 2))  # noqa: E731
    bad = lambda x: jnp.nan if jnp.issubdtype(x.dtype, jnp.floating) else x  # noqa: E731
    garbage = jax.tree.map(lambda x: jnp.where(wide(x), x, bad(x)), batch)
    a, of_a = algorithm.update(state, batch, jax.random.key(5))
    b, of_b = algorithm.update(state, garbage, jax.random.key(5))
    for x, y in zip(jax.tree.leaves((a, of_a)), jax.tree.leaves((b, of_b)), strict=True):
        np.testing.assert_array_equal(x, y)
        assert jnp.isfinite(x).all()
    assert int(a.opt.count) == 2 * n_minibatches


def test_an_update_without_rows_changes_no_policy():
    state, batch = ALGORITHM.init(jax.random.key(0), X, C, BOX), random_batch(BOX)
    empty = batch.replace(mask=jnp.zeros((T, N), bool), continues=jnp.zeros((T, N), bool))
    new, metrics = ALGORITHM.update(state, empty, jax.random.key(0))
    for x, y in zip(jax.tree.leaves(new.params), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_array_equal(x, y)


# -------------------------------------------------------------------- version


@pytest.mark.parametrize("name", SPACES)
def test_the_present_policy_has_a_ratio_of_one(name):
    """Rows of an older policy keep the log-probability that they were stored with."""
    algorithm = dataclasses.replace(ALGORITHM, n_minibatches=2, n_epochs=3)
    state = algorithm.init(jax.random.key(0), X, C, SPACES[name]).replace(version=jnp.int32(7))
    batch = random_batch(SPACES[name])

    @jax.jit
    def decide(key):
        act = lambda o, c, k: algorithm.act(state, o, c, k, jnp.ones((), bool))  # noqa: E731
        return jax.vmap(jax.vmap(act))(batch.obs, batch.condition, jax.random.split(key, (T, N)))

    act, log_prob = decide(jax.random.key(1))
    present = batch.replace(act=act, log_prob=log_prob, version=jnp.full((T, N), 7))
    new, metrics = jax.jit(algorithm.update)(state, present, jax.random.key(2))
    assert float(metrics["first_ratio_error"]) == 0.0
    assert float(metrics["log_prob_error"]) < 1e-5
    assert int(new.version) == 8
    wrong = present.replace(log_prob=log_prob + 0.1)  # mended where the policy is the present one
    once = dataclasses.replace(ALGORITHM, n_minibatches=1, n_epochs=1)
    _, of_wrong = once.update(state, wrong, jax.random.key(2))
    np.testing.assert_allclose(of_wrong["log_prob_error"], 0.1, rtol=1e-4)
    assert float(of_wrong["approx_kl"]) == 0.0
    _, of_older = once.update(state, wrong.replace(version=jnp.full((T, N), 6)), jax.random.key(2))
    np.testing.assert_allclose(of_older["approx_kl"], np.exp(-0.1) - 1 + 0.1, rtol=1e-3)
    assert float(of_older["log_prob_error"]) == 0.0


# ------------------------------------------------------------------- settings


def test_schedules_are_observed_and_settings_can_be_swept():
    algorithm = dataclasses.replace(ALGORITHM, learning_rate=RampSchedule(1.0, 0.0, 100))
    state = algorithm.init(jax.random.key(0), X, C, BOX)
    present = present_settings(algorithm.at(state, jnp.float32(75)))
    assert float(present["learning_rate"]) == 0.25
    batch = random_batch(BOX)

    def moved(rate):
        swept = state.replace(settings={**state.settings, "learning_rate": rate})
        new, _ = algorithm.update(swept, batch, jax.random.key(0))
        return jnp.abs(new.log_std - state.log_std).max()

    np.testing.assert_allclose(jax.vmap(moved)(jnp.array([0.0, 0.1])), [0.0, 0.1], rtol=0.01)


@pytest.mark.parametrize(
    "settings, error",
    [
        ({"hidden": (0,)}, ValueError),
        ({"activation": "nope"}, ValueError),
        ({"gamma": 1.1}, ValueError),
        ({"gae_lambda": -0.1}, ValueError),
        ({"clip": "wide"}, TypeError),
        ({"value_clip": -1.0}, ValueError),
        ({"n_epochs": 0}, ValueError),
        ({"n_minibatches": 1.5}, ValueError),
        ({"learning_rate": float("nan")}, ValueError),
        ({"entropy_coefficient": -1.0}, ValueError),
        ({"max_grad_norm": -1.0}, ValueError),
        ({"adam_epsilon": 0.0}, ValueError),
        ({"log_std_start": float("inf")}, ValueError),
    ],
)
def test_bad_settings(settings, error):
    with pytest.raises(error, match=next(iter(settings)).split("_")[0]):
        PPO(**settings)


# ---------------------------------------------------------------------- level

SMALL = PPO(hidden=(8,), n_epochs=2, n_minibatches=2)


def test_bad_levels():
    with pytest.raises(TypeError, match="algorithm"):
        PPOLevel("ppo")
    with pytest.raises(ValueError, match="rollout_length"):
        PPOLevel(rollout_length=0)
    env, params = gymnax.make("CartPole-v1")
    with pytest.raises(ValueError, match="3 rows .* 4 minibatches"):
        lrl.Hierarchy([PPOLevel(rollout_length=3)], env, params)


@pytest.mark.parametrize(
    "env", ["CartPole-v1", pytest.param("Pendulum-v1", marks=pytest.mark.slow)]
)
def test_properties_alone(env):
    check_level(PPOLevel(SMALL, rollout_length=8), *gymnax.make(env))


@pytest.mark.slow
@pytest.mark.parametrize("place", ["above", "below"])
def test_properties_between_others(place):
    env, params = gymnax.make("Pendulum-v1")
    if place == "above":
        level = PPOLevel(SMALL, rollout_length=4)
        check_level(level, env, params, below=[ActionRepeatLevel(3)], n_steps=48)
    else:
        level = PPOLevel(SMALL, 8, control_interval=3, level_input_space=Box(-1, 1, (2,)))
        check_level(level, env, params, above=[RandomLevel()], n_steps=48)


def test_rows_under_a_level_bootstrap_with_the_next_input():
    """Values see the input: it changes where control is handed back."""
    env, params = gymnax.make("Pendulum-v1")
    level = PPOLevel(SMALL, 8, control_interval=3, level_input_space=Box(-1, 1, (2,)))
    hierarchy = lrl.Hierarchy([RandomLevel(), level], env, params)
    carry = lrl.init_carry(hierarchy, jax.random.key(0), 2)
    carry, _ = lrl.rollout(hierarchy, carry, 8)
    own = carry.hierarchy.levels[1]
    batch = level.batch(own.learner, lrl.buffers.Replay(own.buffer), jax.random.key(0))
    assert batch.mask.all()
    expected = np.tile([[True], [True], [False], [True], [True], [False], [True], [False]], (1, 2))
    np.testing.assert_array_equal(batch.continues, expected)
    inputs, following = np.asarray(batch.condition), np.asarray(batch.condition_next)
    np.testing.assert_array_equal(following[:-1], inputs[1:])
    np.testing.assert_array_equal(following[-1], inputs[-1])  # no next row: its own
    assert (inputs[2] != inputs[3]).all() and (inputs[1] == inputs[2]).all()
    np.testing.assert_array_equal(batch.obs_next[:-1], batch.obs[1:])


def test_a_level_above_counts_its_own_decisions():
    env, params = gymnax.make("Pendulum-v1")
    level = PPOLevel(SMALL, rollout_length=4)
    hierarchy = lrl.Hierarchy([level, ActionRepeatLevel(5)], env, params)
    carry = lrl.init_carry(hierarchy, jax.random.key(0), 3)
    carry, out = lrl.rollout(hierarchy, carry, 45, learn=True)
    assert int(carry.hierarchy.levels[0].learner.state.version) == 2
    assert float(out.metrics["level0/log_prob_error"]) < 1e-5
    assert float(out.metrics["level0/first_ratio_error"]) == 0.0
    rows, mask = lrl.buffers.Replay(carry.hierarchy.levels[0].buffer).fresh()
    assert int(mask.sum()) == 3 and (rows["version"][:1] == 2).all()
    assert (rows.elapsed_env_steps[:1] == 5).all()


# --------------------------------------------------------------------- probes

GAMMA = 0.8
PROBE_TICKS, PROBE_INSTANCES = 1600, 16


@functools.cache
def trained(continuous: bool):
    """Values [cases, obs] and greedy actions [cases, obs, ...] after training on all probes."""
    env = Probe(continuous)
    rate = RampSchedule(5e-3, 1e-4, PROBE_TICKS * PROBE_INSTANCES)
    algorithm = PPO(hidden=(32, 32), gamma=GAMMA, learning_rate=rate, log_std_start=-0.5)
    level = PPOLevel(algorithm, rollout_length=16)
    hierarchy = lrl.Hierarchy([level], env, env.default_params)

    @jax.jit
    @jax.vmap
    def train(params, obs):
        carry = lrl.init_carry(hierarchy, jax.random.key(0), PROBE_INSTANCES, env_params=params)
        carry, _ = lrl.rollout(
            hierarchy, carry, PROBE_TICKS, learn=True, env_params=params, learn_interval=16
        )
        learner = carry.hierarchy.levels[0].learner
        none = jnp.zeros((len(obs), 0))
        act = lambda o, c: algorithm.act(learner.state, o, c, jax.random.key(0), False)[0]  # noqa: E731
        x = learner.see(obs)
        return algorithm.value(learner.state, x, none), jax.vmap(act)(x, none)

    return jax.tree.map(np.asarray, train(stacked_params(), stacked_obs()))


@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_probes(name, continuous):
    case, index = CASES[name], list(CASES).index(name)
    values, actions = (x[index][: len(case.obs)] for x in trained(continuous))
    expected = np.asarray(case.values(GAMMA))
    np.testing.assert_allclose(values, expected, atol=0.1 + 0.02 * np.abs(expected).max())
    for action, sign in zip(actions, case.signs, strict=len(case.signs) > 0):
        if continuous:
            np.testing.assert_allclose(action[0], BEST * sign, atol=0.15)
        else:
            assert int(action) == (sign > 0)
