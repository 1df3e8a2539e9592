"""Predictors: shapes of the contract, targets, densities, learning."""

import dataclasses
import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrl_jax import buffers, spaces
from lrl_jax.buffers import Replay
from lrl_jax.models import ProbabilisticEnsemble
from lrl_jax.nets import RewardFunction, ValueFunction
from lrl_jax.predictors import (
    ConstantSchedule,
    IndexEncoder,
    LinearEncoder,
    PredictorFactory,
    RewardPredictor,
    StaticPredictor,
)

BOX = spaces.Box(-1, 1, (2,))
INDEX = IndexEncoder(state=(0, 3), context=(3, 5))
B, H, D, C, O, A = 5, 4, 3, 2, 5, 2


def make(space=BOX, kind=RewardPredictor, encoder=INDEX, model=(), value=True, **settings):
    if kind is RewardPredictor:
        settings = {"k_steps": 3, "n_steps": 2, "encoder_warm_up": 0, **settings}
    return PredictorFactory(
        ProbabilisticEnsemble(**{"hidden": (16,), **dict(model)}),
        ValueFunction(hidden=(16,)) if value else None,
        functools.partial(RewardFunction, hidden=(16,)),
        encoder,
        kind(**settings),
    )((O,), space)


def field(shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def fill(n=4, ticks=50, end_rate=0.1, space=BOX, capacity=40, planning=False):
    """Replay of the linear system s' = s + 0.3 a + 0.1, with reward s_0 - a_0."""
    rng = np.random.default_rng(0)
    example = {
        "obs": field((O,)),
        "act": field(space.shape, space.dtype),
        "rew": field(()),
        "obs_next": field((O,)),
        "terminated": field((), bool),
        "truncated": field((), bool),
        "elapsed_env_steps": field((), jnp.int32),
    }
    if planning:
        example["planning_mode"] = field((), bool)
    buffer = buffers.create(example, n, n * capacity)
    obs = rng.normal(size=(n, O)).astype(np.float32)
    first = np.ones(n, bool)
    add = jax.jit(lambda buffer, rows, first: buffers.add(buffers.cut(buffer, first), rows))
    for _ in range(ticks):
        if isinstance(space, spaces.Discrete):
            act = rng.integers(space.n, size=n).astype(np.int32)
            push = act[:, None] - 1.0
        else:
            act = push = rng.uniform(-1, 1, (n, 2)).astype(np.float32)
        obs_next = obs.copy()
        obs_next[:, : push.shape[1]] += 0.3 * push + 0.1
        ends = rng.uniform(size=(2, n)) < end_rate
        rows = {
            "obs": obs,
            "act": act,
            "rew": (obs[:, 0] - push[:, 0]).astype(np.float32),
            "obs_next": obs_next,
            "terminated": ends[0],
            "truncated": ends[1],
            "elapsed_env_steps": rng.integers(1, 4, n).astype(np.int32),
        }
        if planning:
            rows["planning_mode"] = rng.uniform(size=n) < 0.5
        buffer = add(buffer, rows, first)
        first = ends.any(0)
        fresh = rng.normal(size=(n, O)).astype(np.float32)
        obs = np.where(first[:, None] | (np.abs(obs_next[:, :1]) > 3), fresh, obs_next)
        first = first | (np.abs(obs_next[:, 0]) > 3)
    return buffer


BUFFER = fill()


def shapes(tree):
    return jax.tree.map(jnp.shape, tree)


# ------------------------------------------------------------------ shapes


@pytest.mark.parametrize(
    "n_models, particles, space", [(1, 1, BOX), (3, 2, spaces.Discrete(3))], ids=["one", "many"]
)
def test_shapes_of_the_contract(n_models, particles, space):
    sb = {"sb_start_duration": 100, "n_models": n_models, "n_particles": particles}
    predictor = make(space, model=sb)
    hash(predictor)
    ps = predictor.init(jax.random.key(0))
    obs = jnp.ones((B, O))
    act = jax.vmap(jax.vmap(space.sample))(jax.random.split(jax.random.key(1), (B, H)))
    m, j, p, a_dim = n_models, 4, particles, space.dim
    got = predictor.predict(ps, obs, act[:, 0])
    assert shapes(tuple(got)) == ((B, m, j, D), (B, m, j), (B, m, j, D), (B,), (B,))
    np.testing.assert_allclose(got.weights.sum(-1), 1, rtol=1e-5)
    assert predictor.predict_reward(ps, obs, act[:, 0]).shape == (B,)
    roll, context = predictor.rollout(ps, obs, act, key=jax.random.key(2))
    assert context.shape == (B, C)
    assert roll.state.shape == (B, m, p, H + 1, D)
    assert roll.state_mean.shape == (B, m, H + 1, D)
    assert roll.state_epistemic_var.shape == roll.state_aleatoric_var.shape == (B, H + 1, D)
    assert roll.term_prob.shape == roll.rew.shape == (B, m, p, H)
    buffer = BUFFER if space is BOX else fill(space=space)
    batch = predictor.compute_targets(ps, buffer, B, 3, 2, key=jax.random.key(3))
    assert shapes(dataclasses.asdict(batch)) == {
        **dict.fromkeys(("rew", "value", "validity_mask", "terminated", "planning_mode"), (B, 3)),
        "act": (B, 3, a_dim),
        "contexts": (B, 3, C),
        "state": (B, 4, D),
        "obs": (B, 4, O),
        "indices": (4, B),
        "traj_len": (B,),
    }
    rows = predictor.sample_model_batch(ps, buffer, B, key=jax.random.key(4))
    assert shapes(dataclasses.asdict(rows)) == {
        "state": (B, D),
        "state_next": (B, D),
        "act": (B, a_dim),
        "context": (B, C),
        "context_next": (B, C),
        "terminated": (B,),
        "validity_mask": (B,),
    }
    ids, length, mask = predictor.sample_partial_trajectories(buffer, B, 4, key=jax.random.key(5))
    assert (ids.shape, length.shape, mask.shape) == ((4, B), (B,), (B, 4))
    assert mask.dtype == jnp.float32 and length.dtype == jnp.int32


def test_rollout_agrees_with_predict_step_by_step():
    predictor = make(model={"n_models": 2, "deterministic_mode": "mean"})
    ps = predictor.init(jax.random.key(0))
    obs = jax.random.normal(jax.random.key(1), (B, O))
    act = jax.random.uniform(jax.random.key(2), (B, H, A), minval=-1)
    roll, _ = predictor.rollout(ps, obs, act, deterministic=True)
    state, context = predictor.encode(ps, obs)
    fast = predictor.rollout_latent(ps, state, context, act, with_value=True)
    heaviest = predictor.rollout_latent(ps, state, context, act[:, :1], mode="heaviest")
    np.testing.assert_allclose(fast.state, roll.state, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(fast.rew, roll.rew, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(fast.term_prob, roll.term_prob, rtol=1e-5)
    np.testing.assert_allclose(
        roll.state_mean[:, :, 1:], roll.state[:, :, 0, 1:], rtol=1e-4, atol=1e-5
    )
    for m in range(2):
        s = state
        for h in range(H):
            got = predictor.predict(ps, jnp.concatenate([s, context], -1), act[:, h])
            np.testing.assert_allclose(fast.rew[:, m, 0, h], got.reward, rtol=1e-4, atol=1e-5)
            if h == 0:
                best = np.argmax(got.weights[:, m], -1)
                np.testing.assert_allclose(
                    heaviest.state[:, m, 0, 1],
                    got.mean[np.arange(B), m, best],
                    rtol=1e-4,
                    atol=1e-5,
                )
            s = (got.weights[:, m, :, None] * got.mean[:, m]).sum(1)
            np.testing.assert_allclose(fast.state[:, m, 0, h + 1], s, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(
            fast.value[:, m, 0], predictor.value(ps, s, context), rtol=1e-4, atol=1e-5
        )


def test_stochastic_rollout_has_the_moments_of_the_mixture():
    predictor = make()
    ps = predictor.init(jax.random.key(0))
    obs, act = jnp.ones((1, O)), jnp.full((1, 1, A), 0.5)
    roll, _ = predictor.rollout(ps, obs, act, key=jax.random.key(1), n_particles=20_000)
    draws = np.asarray(roll.state[0, 0, :, 1])
    np.testing.assert_allclose(draws.mean(0), roll.state_mean[0, 0, 1], atol=0.05)
    np.testing.assert_allclose(draws.var(0), roll.state_aleatoric_var[0, 1], rtol=0.05)
    with pytest.raises(ValueError, match="key"):
        predictor.rollout(ps, obs, act)


def test_vmap_over_instances_equals_a_loop():
    predictor = make(model={"sb_start_duration": 100})
    ps = predictor.observe_env_steps(predictor.init(jax.random.key(0)), 75)
    s, c = jax.random.normal(jax.random.key(1), (2, B, D)), jnp.ones((2, B, C))
    act = jax.random.uniform(jax.random.key(2), (2, B, H, A))
    together = jax.vmap(lambda s, c, a: predictor.rollout_latent(ps, s, c, a))(s, c, act)
    alone = predictor.rollout_latent(ps, s[1], c[1], act[1])
    chex.assert_trees_all_close(jax.tree.map(lambda x: x[1], together), alone, rtol=1e-5, atol=1e-6)


# ------------------------------------------------------- densities and targets


@pytest.mark.parametrize("n_models, standardize", [(1, True), (3, False)])
def test_standardized_log_prob(n_models, standardize):
    predictor = make(model={"n_models": n_models}, delta_standardizer=standardize)
    ps = predictor.init(jax.random.key(0))
    w = jnp.array([[2.0, 0.5, 0.0], [0.5, 1.0, 0.2], [0.0, 0.2, 1.5]])
    sigma = jnp.array([1.0, 4.0, 0.25])
    ps = ps.replace(
        params={**ps.params, "standardizer": w},
        running_std=ps.running_std.replace(second_moment=jnp.square(sigma)),
    )
    rng = np.random.default_rng(0)
    s, s2 = rng.normal(size=(2, B, D)).astype(np.float32)
    c, a = np.ones((B, C), np.float32), rng.uniform(-1, 1, (B, A)).astype(np.float32)
    got, term, info = predictor.get_standardized_log_prob(ps, s, c, a, s2, 0.5)
    out = predictor.model.heads(ps.params["model"], s[None], c[None], a[None])
    w = np.asarray(w, np.float64)
    want = np.zeros(B)
    for b in range(B):
        terms = []
        for m in range(n_models):
            for j in range(4):
                z = w @ (s2[b] - s[b]) - w @ (np.asarray(sigma) * np.asarray(out["mean"])[m, b, j])
                terms.append(
                    float(out["log_weight"][m, b, j])
                    - 0.5 * (z @ z) / 0.25
                    - D * (math.log(0.5) + 0.5 * math.log(2 * math.pi))
                )
        want[b] = (
            np.log(np.sum(np.exp(np.array(terms) - max(terms)))) + max(terms) - np.log(n_models)
        )
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)
    assert term.shape == (B,) and info["standardized_delta"].shape == (B, D)
    with pytest.raises(ValueError, match="positive"):
        predictor.get_standardized_log_prob(ps, s, c, a, s2, 0.0)


@pytest.mark.parametrize("smdp", [False, True])
def test_targets_follow_the_stored_rows(smdp):
    """Against the rows themselves: starts near the cursor, the ends and all of the episode."""
    buffer = fill(n=3, ticks=45, capacity=20, planning=True)
    predictor = make(smdp_discount=smdp)
    ps = predictor.init(jax.random.key(0))
    ps = ps.replace(target_value=jax.tree.map(lambda x: x + 0.1, ps.target_value))
    k_steps, n, gamma = 3, 4, 0.9
    batch = predictor.compute_targets(ps, buffer, 200, k_steps, n, gamma, key=jax.random.key(3))
    rows = jax.tree.map(np.asarray, buffers.gather(buffer, batch.indices.T))
    np.testing.assert_array_equal(batch.planning_mode, rows["planning_mode"][:, :k_steps])
    np.testing.assert_array_equal(batch.act, rows["act"][:, :k_steps])
    state, context = predictor.encode(ps, rows["obs_next"])
    bootstrap = np.asarray(predictor.value(ps, state, context, target=True))
    done = rows["terminated"] | rows["truncated"]
    n_checked = 0
    for b in range(200):
        for t in range(k_steps):
            valid = t < batch.traj_len[b] and not done[b, :t].any()
            assert bool(batch.validity_mask[b, t]) == valid
            value, discount = 0.0, 1.0
            for j in range(t, min(t + n, int(batch.traj_len[b]))):
                value += discount * rows["rew"][b, j]
                discount *= gamma ** (rows["elapsed_env_steps"][b, j] if smdp else 1)
                if done[b, j]:
                    break
            if valid:
                n_checked += 1
                value += discount * bootstrap[b, j] * (not rows["terminated"][b, j])
                np.testing.assert_allclose(batch.state[b, t], rows["obs"][b, t, :D])
                np.testing.assert_allclose(batch.state[b, t + 1], rows["obs_next"][b, t, :D])
            np.testing.assert_allclose(
                batch.value[b, t], value if valid else 0, rtol=1e-4, atol=1e-4
            )
    assert n_checked > 300


def test_losses_are_averages_over_valid_rows():
    predictor = make(learn_encoder=False)
    ps = predictor.init(jax.random.key(0))
    batch = predictor.compute_targets(ps, BUFFER, 16, 3, 2, key=jax.random.key(1))
    rows = predictor.sample_model_batch(ps, BUFFER, 16, key=jax.random.key(2))
    planning = jax.random.bernoulli(jax.random.key(3), 0.5, (16, 3))
    batch = batch.replace(planning_mode=planning)
    loss, info = predictor.loss(ps, batch, rows)
    valid = np.asarray(batch.validity_mask)
    r = predictor.reward(ps, batch.state[:, :3], batch.contexts, batch.act)
    v = predictor.value(ps, batch.state[:, :3], batch.contexts)
    both = valid & np.asarray(planning)
    np.testing.assert_allclose(info["reward_loss"], np.mean((r - batch.rew)[valid] ** 2), rtol=1e-5)
    np.testing.assert_allclose(info["value_loss"], np.mean((v - batch.value)[both] ** 2), rtol=1e-5)
    parts = ("reward_loss", "value_loss", "model_loss", "standardizer_loss")
    np.testing.assert_allclose(loss, sum(info[k] for k in parts), rtol=1e-5)
    junk = batch.replace(
        **{k: jnp.where(valid, getattr(batch, k), jnp.nan) for k in ("rew", "value")},
        act=jnp.where(valid[..., None], batch.act, jnp.nan),
    )
    gradient = jax.jit(jax.grad(lambda p, batch: predictor.loss(ps, batch, rows, params=p)[0]))
    grads, want = gradient(ps.params, junk), gradient(ps.params, batch)
    chex.assert_trees_all_close(grads, want, rtol=1e-5, atol=1e-6)


def test_reward_and_mask_functions():
    predictor = make()
    ps = predictor.init(jax.random.key(0))

    def full(rows):
        return rows.elapsed_env_steps == 3

    twice = jax.tree_util.Partial(lambda rows, key: 2 * rows.rew)
    key = jax.random.key(1)
    one = predictor.compute_targets(ps, BUFFER, 8, 3, 2, key=key)
    two = predictor.compute_targets(ps, Replay(BUFFER, None, twice), 8, 3, 2, key=key)
    np.testing.assert_allclose(two.rew, 2 * one.rew)
    batch = predictor.sample_model_batch(ps, BUFFER, 64, key=key, model_mask_fn=full)
    assert 0 < batch.validity_mask.sum() < 64
    empty = Replay(jax.tree.map(jnp.zeros_like, BUFFER), None, twice)
    after, (loss, _) = predictor.learn(ps, empty, 1, 8, 8, 0, model_mask_fn=full)
    assert np.isfinite(loss)
    chex.assert_trees_all_equal(after.params["model"], ps.params["model"])
    assert not after.running_std.initialised


# ------------------------------------------------------------------- learning


def test_learn_fits_a_linear_system():
    predictor = make(model_lr=3e-3, reward_lr=3e-3, value_lr=3e-3, gamma=0.5)
    ps = predictor.init(jax.random.key(0))
    ps, (_, before) = predictor.learn(ps, BUFFER, 1, 64, 128, 0)
    for steps in range(3):
        ps, (_, after) = predictor.learn(ps, BUFFER, 200, 64, 64, steps)
    assert after["reward_loss"] < 0.1 * before["reward_loss"]
    assert after["value_loss"] < 0.5 * before["value_loss"]
    assert after["nll"] < before["nll"] - 2
    got = predictor.predict(ps, jnp.zeros((1, O)), jnp.array([[0.5, -0.5]]))
    mean = (got.weights[0, 0, :, None] * got.mean[0, 0]).sum(0)
    np.testing.assert_allclose(mean, [0.25, -0.05, 0.0], atol=0.06)
    assert int(ps.n_learn_calls) == 4 and float(ps.n_total_env_steps) == 2
    assert "standardizer_diag_2" in after and after["mean_abs_delta"] > 0


def test_learned_encoder_gets_the_gradient_of_the_reward_only():
    encoder = LinearEncoder(latent_state_dim=3, context_dim=2)

    def gradient(**settings):
        predictor = make(encoder=encoder, **settings)
        ps = predictor.init(jax.random.key(0))
        batch = predictor.compute_targets(ps, BUFFER, 8, 3, 2, key=jax.random.key(1))
        rows = predictor.sample_model_batch(ps, BUFFER, 8, key=jax.random.key(2))
        gradient = jax.jit(jax.grad(lambda p: predictor.loss(ps, batch, rows, params=p)[0]))
        grads = gradient(ps.params)
        return sum(float(jnp.abs(g).sum()) for g in jax.tree.leaves(grads["encoder"]))

    assert gradient() > 0
    assert gradient(rew_loss_weight=0.0) == 0


def test_warm_up_calls_only_count():
    predictor = make(encoder_warm_up=2)
    start = ps = predictor.init(jax.random.key(0))
    for _ in range(2):
        ps, _ = predictor.learn(ps, BUFFER, 2, 8, 8, 0)
    for name in ("params", "target_value", "opt_state", "running_std"):
        chex.assert_trees_all_equal(getattr(ps, name), getattr(start, name))
    assert int(ps.n_learn_calls) == 2
    ps, _ = predictor.learn(ps, BUFFER, 2, 8, 8, 0)
    assert int(ps.opt_state.count) == 2
    assert not np.array_equal(ps.W, start.W)
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), ps.target_value, start.target_value)
    assert any(jax.tree.leaves(changed))


def test_updates_are_those_of_optax():
    import optax

    from lrl_jax.predictors.optim import adam_update, clip_per_tensor, init_adam

    rng = np.random.default_rng(0)
    params = {"a": {"w": rng.normal(size=(3, 2)).astype(np.float32)}, "b": np.ones(4, np.float32)}
    oracle, state = optax.adam(1e-2), init_adam(params)
    other, other_state, got = params, oracle.init(params), params
    for _ in range(5):
        grads = jax.tree.map(lambda x: rng.normal(0, 10, x.shape).astype(np.float32), params)
        clipped = clip_per_tensor(grads, 20.0)
        for g, c in zip(jax.tree.leaves(grads), jax.tree.leaves(clipped), strict=True):
            norm = np.linalg.norm(g)
            np.testing.assert_allclose(c, g * min(1, 20 / norm), rtol=1e-5)
        got, state = adam_update(clipped, state, got, {"a": 1e-2, "b": 1e-2})
        change, other_state = oracle.update(clipped, other_state, other)
        other = optax.apply_updates(other, change)
    chex.assert_trees_all_close(got, other, rtol=1e-4, atol=1e-6)


def test_learning_rates_sweep_under_vmap():
    predictor = make()
    ps = predictor.init(jax.random.key(0))
    rates = jnp.array([0.0, 1e-3])
    swept = jax.vmap(lambda r: ps.replace(settings={**ps.settings, "model_lr": r}))(rates)
    swept, _ = jax.vmap(lambda ps: predictor.learn(ps, BUFFER, 2, 8, 16, 0))(swept)
    kernel = swept.params["model"]["mean"]["kernel"]
    np.testing.assert_array_equal(kernel[0], ps.params["model"]["mean"]["kernel"])
    assert np.abs(kernel[1] - kernel[0]).max() > 1e-4
    alone, _ = predictor.learn(
        ps.replace(settings={**ps.settings, "model_lr": rates[1]}), BUFFER, 2, 8, 16, 0
    )
    chex.assert_trees_all_close(
        jax.tree.map(lambda x: x[1], swept.params), alone.params, rtol=1e-4, atol=1e-5
    )


def test_schedules_are_read_at_the_env_steps():
    predictor = make(model_lr=lambda t: jnp.where(t < 100, 0.0, 1e-3), value_lr=ConstantSchedule(0))
    ps = predictor.init(jax.random.key(0))
    assert "model_lr" not in ps.settings and "reward_lr" in ps.settings
    early, _ = predictor.learn(ps, BUFFER, 1, 8, 8, 99)
    chex.assert_trees_all_equal(early.params["model"], ps.params["model"])
    late, _ = predictor.learn(ps, BUFFER, 1, 8, 8, 100)
    assert np.any(late.params["model"]["mean"]["kernel"] != ps.params["model"]["mean"]["kernel"])
    chex.assert_trees_all_equal(late.params["value"], ps.params["value"])


def test_jit_equals_eager_with_one_compilation_and_a_stable_carry():
    predictor = make(encoder_warm_up=1)
    ps = predictor.init(jax.random.key(0))

    @jax.jit
    @chex.assert_max_traces(1)
    def learn(ps, t):
        return predictor.learn(ps, BUFFER, 1, 8, 8, t)

    jitted = ps
    for t in range(3):
        before = jax.tree.map(jax.typeof, jitted)
        jitted, _ = learn(jitted, jnp.float32(t))
        assert before == jax.tree.map(jax.typeof, jitted)
    batch = predictor.compute_targets(jitted, BUFFER, 8, 3, 2, key=jax.random.key(1))
    rows = predictor.sample_model_batch(jitted, BUFFER, 8, key=jax.random.key(2))
    loss, _ = predictor.loss(jitted, batch, rows)
    with jax.disable_jit():
        eager, _ = predictor.loss(jitted, batch, rows)
    np.testing.assert_allclose(loss, eager, rtol=1e-4)


def test_state_can_be_donated():
    predictor = make()
    ps = predictor.init(jax.random.key(0))
    pointers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(ps.replace(key=None))]
    assert len(set(pointers)) == len(pointers)


# ------------------------------------------------------------ other predictors


def test_static_predictor_does_not_learn():
    predictor = make(kind=StaticPredictor)
    ps = predictor.init(jax.random.key(0))
    after, (loss, info) = predictor.learn(ps, BUFFER, 1, 8, 8, 0)
    assert after is ps and loss == 0.0 and info == {}
    learned, _ = make().learn(make().init(jax.random.key(1)), BUFFER, 1, 8, 8, 0)
    obs, act = jnp.ones((B, O)), jnp.ones((B, A))
    chex.assert_trees_all_close(
        predictor.predict(learned, obs, act), make().predict(learned, obs, act)
    )


def test_without_value_and_termination_and_with_plain_functions():
    model = ProbabilisticEnsemble(D, C, BOX, hidden=(8,), learn_termination=False)

    def reward(state, context, action):
        return state[..., 0] - action[..., 0]

    predictor = RewardPredictor(
        model,
        None,
        reward,
        lambda obs: (obs[..., :D], obs[..., D:]),
        D,
        C,
        encoder_warm_up=0,
        delta_standardizer=False,
    )
    ps = predictor.init(jax.random.key(0))
    ps, (_, info) = predictor.learn(ps, BUFFER, 1, 8, 8, 0)
    assert info["value_loss"] == 0 and info["termination_loss"] == 0
    assert info["reward_loss"] < 1e-9
    np.testing.assert_array_equal(ps.W, np.eye(D))
    s, c = predictor.encode(ps, jnp.ones((B, O)))
    out = predictor.rollout_latent(ps, s, c, jnp.ones((B, H, A)), with_value=True)
    assert out.term_prob is None and np.all(out.value == 0)


def test_factory_resolves_dimensions_and_compares_by_content():
    assert make() == make() and hash(make()) == hash(make())
    assert make() != make(gamma=0.5)
    assert make().latent_state_dim == 3 and make().context_dim == 2
    with pytest.raises(ValueError, match="latent_state_dim"):
        make(encoder=lambda: np.abs)
    with pytest.raises(TypeError, match="partial_model"):
        PredictorFactory(1, None, None, INDEX, RewardPredictor)


@pytest.mark.parametrize(
    "change",
    [
        {"gamma": 1.1},
        {"tau": -0.1},
        {"k_steps": 0},
        {"n_steps": 1.5},
        {"encoder_warm_up": -1},
        {"model_lr": float("nan")},
        {"value_loss_weight": -1},
        {"clip_grad_max_norm": 0.0},
        {"log_interval": 0},
    ],
)
def test_bad_settings(change):
    with pytest.raises(ValueError):
        make(**change)


def test_bad_calls():
    predictor = make()
    ps = predictor.init(jax.random.key(0))
    for sizes in ((0, 8, 8), (1, 0, 8), (1, 8, 0)):
        with pytest.raises(ValueError, match="at least 1"):
            predictor.learn(ps, BUFFER, *sizes, 0)
    with pytest.raises(ValueError, match="mode"):
        s, c = predictor.encode(ps, jnp.ones((B, O)))
        predictor.rollout_latent(ps, s, c, jnp.ones((B, H, A)), mode="median")
    with pytest.raises(ValueError, match="actions"):
        predictor.rollout_latent(ps, s, c, jnp.ones((B, A)))
    with pytest.raises(ValueError, match="end in shape"):
        predictor.encode(ps, jnp.ones((B, O + 1)))

    class Loose(dict):
        def __call__(self, state, context, action):
            return 0.0

    with pytest.raises(TypeError, match="hashable"):
        dataclasses.replace(predictor, rew_func=Loose())
