"""TD-MPC2 against float64 NumPy references, and what its interface promises."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrl_jax.algorithms.base import Batch, present_settings
from lrl_jax.algorithms.masked import row_means, update_scale
from lrl_jax.algorithms.tdmpc2 import TDMPC2
from lrl_jax.nets.normed_mlp import dropout_factors, mish
from lrl_jax.nets.simnorm import simnorm
from lrl_jax.nets.tdmpc2 import pick_heads, two_of
from lrl_jax.nets.two_hot import TwoHot, symexp, symlog
from lrl_jax.planners.mppi import MPPI
from lrl_jax.spaces import Box, Discrete

X, C, A, B, H = 3, 2, 2, 6, 3
SPACE = Box((-2.0, 0.0), (2.0, 1.0), (A,))
ALGORITHM = TDMPC2(
    latent_dim=16,
    hidden=(12, 10),
    encoder_hidden=(9,),
    n_critics=3,
    dropout=0.0,
    max_grad_norm=0.05,
    planner=MPPI(num_samples=12, num_policy_samples=3, num_elites=4, n_iterations=2),
)

# Compiled quickly rather than well.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
encode, next_latent = jit(ALGORITHM.encode), jit(ALGORITHM.next_latent)
td_targets, next_value = jit(ALGORITHM.td_targets), jit(ALGORITHM.next_value)


@pytest.fixture(autouse=True)
def exact_products():
    with jax.default_matmul_precision("highest"):
        yield


@functools.cache
def fresh_state(algorithm=ALGORITHM, seed=0, condition_dim=C, space=SPACE):
    init = jit(algorithm.init, static_argnums=(1, 2, 3))
    return init(jax.random.key(seed), X, condition_dim, space)


@functools.cache
def make_state(algorithm=ALGORITHM, seed=0):
    """A state whose parameters are all away from where they start."""
    state = fresh_state(algorithm, seed)
    rng = np.random.default_rng(seed)

    def move(x):
        return x + jnp.asarray(rng.normal(0, 0.3, x.shape), jnp.float32)

    return state.replace(
        params=jax.tree.map(move, state.params), target_q=jax.tree.map(move, state.target_q)
    )


def make_batch(seed=0, mask=None, condition_dim=C):
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    obs = normal(H + 1, B, X)
    condition = normal(H + 1, B, condition_dim)
    if mask is None:
        mask = np.ones((H, B), bool)
        mask[1:, 1] = False
        mask[2:, 4] = False
        mask[:, 5] = False
    terminated = np.zeros((H, B), bool)
    terminated[0, 1] = True
    batch = Batch(
        obs=obs[:-1],
        condition=condition[:-1],
        act=rng.uniform([-2.0, 0.0], [2.0, 1.0], (H, B, A)).astype(np.float32),
        rew=5 * normal(H, B),
        obs_next=obs[1:],
        condition_next=condition[1:],
        terminated=terminated,
        elapsed_env_steps=rng.integers(1, 5, (H, B)),
        mask=mask,
    )
    return jax.tree.map(jnp.asarray, batch)


def close(actual, desired, rtol=1e-5, atol=1e-6):
    np.testing.assert_allclose(np.asarray(actual), desired, rtol=rtol, atol=atol)


# ------------------------------------------------------------ the reference, in float64


def f64(tree):
    return jax.tree.map(
        lambda x: np.asarray(x, np.float64 if x.dtype == jnp.float32 else None), tree
    )


def o_simnorm(x, size=8):
    groups = np.exp(x).reshape(*x.shape[:-1], -1, size)
    return (groups / groups.sum(-1, keepdims=True)).reshape(x.shape)


def o_norm(p, x):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-5) * p["scale"] + p["bias"]


def o_mlp(p, x, group=False, keep=None):
    for i in range(sum(k.startswith("dense") for k in p)):
        x = x @ p[f"dense_{i}"]["kernel"] + p[f"dense_{i}"]["bias"]
        if i == 0 and keep is not None:
            x = x * keep
        x = o_norm(p[f"norm_{i}"], x)
        x = x * np.tanh(np.log1p(np.exp(x)))
    x = x @ p["out"]["kernel"] + p["out"]["bias"]
    return o_simnorm(o_norm(p["norm_out"], x)) if group else x


def o_log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


BINS = np.linspace(-11, 11, 101)


def o_two_hot(y):
    y = np.asarray(y, np.float64)
    x = np.clip(np.sign(y) * np.log(1 + np.abs(y)), -11, 11)
    out = np.zeros((*x.shape, 101))
    for index in np.ndindex(x.shape):
        low = min(int(np.floor((x[index] + 11) / 0.22)), 99)
        share = (x[index] - BINS[low]) / 0.22
        out[(*index, low)] += 1 - share
        out[(*index, low + 1)] += share
    return out


def o_number(logits):
    mean = np.exp(o_log_softmax(logits)) @ BINS
    return np.sign(mean) * (np.exp(np.abs(mean)) - 1)


def o_cross_entropy(logits, y):
    return -(o_two_hot(y) * o_log_softmax(logits)).sum(-1)


def o_policy(params, z, c, noise):
    out = o_mlp(params["policy"], np.concatenate([z, c], -1))
    mean, raw = out[..., :A], out[..., A:]
    log_std = -10 + 0.5 * 12 * (np.tanh(raw) + 1)
    x = mean + np.exp(log_std) * noise
    normal = np.exp(-0.5 * noise**2) / np.sqrt(2 * np.pi) / np.exp(log_std)
    density = normal / (1 - np.tanh(x) ** 2)
    return np.tanh(x), np.log(density).sum(-1)


def o_q(heads, z, a, c, keep=None):
    x = np.concatenate([z, a, c], -1)
    n = len(heads["out"]["bias"])
    nets = [jax.tree.map(lambda p, i=i: p[i], heads) for i in range(n)]
    return np.stack(
        [o_mlp(p, x, keep=None if keep is None else keep[i]) for i, p in enumerate(nets)]
    )


def o_rows(x, mask):
    return np.array([x[t][m].mean() if (m := mask[t]).any() else 0.0 for t in range(len(x))])


def o_unit(act):
    return (act - np.array([0.0, 0.5])) / np.array([2.0, 0.5])


def o_rollout(params, obs, actions):
    z = [o_mlp(params["encoder"], obs, group=True)]
    for a in actions:
        z.append(o_mlp(params["dynamics"], np.concatenate([z[-1], a], -1), group=True))
    return np.stack(z)


# ------------------------------------------------------------------------ numbers as bins


def test_symlog_and_its_inverse():
    x = np.array([-5e4, -3.0, -1e-3, 0.0, 0.5, 20.0, 5e4], np.float32)
    close(symlog(x), np.sign(x) * np.log(1 + np.abs(np.float64(x))), atol=1e-9)
    close(symexp(symlog(x)), x, rtol=1e-5)


def test_two_hot_and_its_inverse():
    x = np.array([-1e9, -100.0, -0.3, 0.0, 1e-3, 2.0, 5e4, 1e9], np.float32)
    weights = TwoHot().encode(x)
    close(weights, o_two_hot(x), atol=1e-5)
    close(weights.sum(-1), np.ones(8))
    assert ((np.asarray(weights) > 0).sum(-1) <= 2).all()
    clipped = np.clip(x, 1 - np.exp(11.0), np.exp(11.0) - 1)
    close(TwoHot().decode(jnp.log(weights + 1e-30)), clipped, rtol=2e-5)


def test_decoding_and_cross_entropy_match_the_oracle():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (7, 101)).astype(np.float32)
    x = np.array([-80.0, -2.0, 0.0, 0.1, 1.0, 30.0, 1e7], np.float32)
    close(TwoHot().decode(logits), o_number(np.float64(logits)))
    close(TwoHot().cross_entropy(logits, x), o_cross_entropy(np.float64(logits), x))


def test_simnorm_and_mish_match_the_oracle():
    x = np.random.default_rng(0).normal(0, 3, (4, 16)).astype(np.float32)
    close(simnorm(x), o_simnorm(np.float64(x)))
    wide = np.linspace(-30, 60, 91)
    close(mish(wide.astype(np.float32)), wide * np.tanh(np.logaddexp(wide, 0)), atol=1e-7)
    slope = jax.vmap(jax.grad(mish))(wide.astype(np.float32))
    h = 1e-6
    above, below = ((w := wide + s) * np.tanh(np.logaddexp(w, 0)) for s in (h, -h))
    close(slope, (above - below) / (2 * h), atol=1e-5)


def test_dropout_factors_keep_the_mean():
    keep = np.asarray(dropout_factors(jax.random.key(0), (3, 1001, 33), 0.01))
    assert keep.shape == (3, 1001, 33) and keep.dtype == np.float32
    assert len(np.unique(keep)) == 2
    np.testing.assert_allclose((keep == 0).mean(), 0.01, atol=1e-3)
    np.testing.assert_allclose(keep.mean(), 1.0, atol=1e-3)
    assert dropout_factors(jax.random.key(0), (3,), 0.0) is None


# ------------------------------------------------------------------------------ learning


def test_start_of_the_parameters():
    state = fresh_state()
    for part in ("reward", "q"):
        np.testing.assert_array_equal(state.params[part]["out"]["kernel"], 0)
    kernels = [state.params[part]["dense_0"]["kernel"].ravel() for part in ("dynamics", "q")]
    kernel = np.concatenate(kernels)
    assert 0.016 < np.std(kernel) < 0.02 and np.abs(kernel).max() < 0.05
    biases = [x for path, x in jax.tree.leaves_with_path(state.params) if "bias" in str(path[-1])]
    assert biases and all((x == 0).all() for x in biases)
    heads = state.params["q"]["dense_0"]["kernel"]
    assert np.abs(heads[0] - heads[1]).max() > 0
    n = sum(
        x.size
        for x in jax.tree.leaves(
            jax.eval_shape(
                lambda k: TDMPC2().init(k, 20, 0, Box(-1.0, 1.0, (6,))).params, jax.random.key(0)
            )
        )
    )
    assert 4e6 < n < 6e6


def test_td_targets_match_the_oracle():
    state, batch, key = make_state(), make_batch(), jax.random.key(3)
    latents = encode(state.params, batch.obs_next)
    noise = np.random.default_rng(1).normal(size=(H, B, A)).astype(np.float32)
    p, b = f64(state.params), f64(batch)
    z = o_mlp(p["encoder"], b.obs_next, group=True)
    close(latents, z)
    action, _ = o_policy(p, z, b.condition_next, np.float64(noise))
    for pair in ((0, 1), (2, 0), (1, 2)):
        heads = jax.tree.map(lambda x, pair=pair: x[jnp.array(pair)], state.target_q)
        value = next_value(state, heads, latents, batch.condition_next, noise)
        wanted = o_number(o_q(f64(heads), z, action, b.condition_next)).min(0)
        close(value, wanted, atol=1e-5)
    # The whole, with the draws of its own keys.
    key_noise, key_heads = jax.random.split(key)
    noise = np.float64(jax.random.normal(key_noise, (H, B, A)))
    action, _ = o_policy(p, z, b.condition_next, noise)
    heads = f64(pick_heads(state.target_q, key_heads))
    value = o_number(o_q(heads, z, action, b.condition_next)).min(0)
    wanted = b.rew + 0.99 * (1 - b.terminated) * value
    targets = td_targets(state, batch, latents, key)
    close(targets, wanted, atol=1e-5)
    assert targets[0, 1] == batch.rew[0, 1]
    assert np.abs(targets - batch.rew)[~np.asarray(batch.terminated)].min() > 1e-4


def test_model_loss_matches_the_oracle_term_by_term():
    state, batch = make_state(), make_batch()
    rng = np.random.default_rng(2)
    latents = encode(state.params, batch.obs_next)
    targets = (10 * rng.normal(size=(H, B))).astype(np.float32)
    keep = dropout_factors(jax.random.key(0), (3, H, B, 12), 0.3)
    unit = o_unit(np.float64(batch.act))
    loss, (rolled, metrics) = jit(ALGORITHM.model_loss)(
        state.params, state.settings, batch, jnp.float32(unit), latents, targets, keep
    )
    p, b = f64(state.params), f64(batch)
    z = o_rollout(p, b.obs[0], unit)
    close(rolled, z)
    wanted_z = o_mlp(p["encoder"], b.obs_next, group=True)
    inputs = np.concatenate([z[:-1], unit, b.condition], -1)
    q = o_q(p["q"], z[:-1], unit, b.condition, np.float64(keep))
    logit = o_mlp(p["termination"], np.concatenate([z[1:], b.condition_next], -1))[..., 0]
    prob = 1 / (1 + np.exp(-logit))
    errors = dict(
        consistency=((z[1:] - wanted_z) ** 2).mean(-1),
        reward=o_cross_entropy(o_mlp(p["reward"], inputs), b.rew),
        value=np.mean([o_cross_entropy(x, targets) for x in q], 0),
        termination=-np.log(np.where(b.terminated, prob, 1 - prob)),
    )
    total = 0.0
    weights = dict(consistency=20, reward=0.1, value=0.1, termination=0.05)
    for name, error in errors.items():
        rho = np.ones(H) if name == "termination" else 0.5 ** np.arange(H)
        wanted = (rho * o_rows(error, b.mask)).sum() / H
        close(metrics[f"{name}_loss"], wanted)
        total += weights[name] * wanted
    close(loss, total)


def test_gradients_stop_where_they_should():
    state, batch = make_state(), make_batch()
    latents = encode(state.params, batch.obs_next)
    unit = jnp.float32(o_unit(np.asarray(batch.act)))

    def loss(params, latents, targets):
        return ALGORITHM.model_loss(params, state.settings, batch, unit, latents, targets)[0]

    grads = jit(jax.grad(loss, (0, 1, 2)))(state.params, latents, batch.rew)
    for name, grad in grads[0].items():
        largest = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(grad))
        assert (largest == 0) == (name == "policy"), name
    assert not np.any(grads[1]) and not np.any(grads[2])


def policy_terms(mask=None, scale=2.5):
    state = make_state()
    rng = np.random.default_rng(5)
    latents = encode(state.params, rng.normal(size=(H + 1, B, X)).astype(np.float32))
    conditions = rng.normal(size=(H + 1, B, C)).astype(np.float32)
    noise = rng.normal(size=(H + 1, B, A)).astype(np.float32)
    mask = np.ones((H + 1, B), bool) if mask is None else mask
    heads = jax.tree.map(lambda x: x[jnp.array([2, 0])], state.params["q"])
    return state, (latents, conditions, jnp.asarray(mask), noise, heads), jnp.float32(scale)


def test_policy_loss_and_scale_match_the_oracle():
    batch = make_batch()
    mask = np.concatenate([batch.mask[:1], batch.mask])
    state, terms, scale = policy_terms(mask)
    loss, (new_scale, metrics) = jit(ALGORITHM.policy_loss)(
        state.params["policy"], state.params, state.settings, scale, *terms
    )
    p = f64(state.params)
    z, c, _, noise, heads = f64(terms)
    action, log_prob = o_policy(p, z, c, noise)
    q = o_number(o_q(heads, z, action, c)).mean(0)
    low, high = np.percentile(q[0][mask[0]], [5, 95])
    wanted_scale = 2.5 + 0.01 * (max(1, high - low) - 2.5)
    close(new_scale, wanted_scale)
    steps = o_rows(-q / wanted_scale + 1e-4 * log_prob, mask)
    close(loss, (0.5 ** np.arange(H + 1) * steps).mean())
    close(metrics["entropy"], -log_prob[0][mask[0]].mean())


def test_scale_follows_the_percentiles():
    values = np.random.default_rng(0).normal(0, 20, 50).astype(np.float32)
    mask = np.arange(50) % 3 > 0
    low, high = np.percentile(np.float64(values[mask]), [5, 95])
    close(update_scale(jnp.float32(4.0), values, mask, 0.1), 0.9 * 4 + 0.1 * (high - low))
    close(update_scale(jnp.float32(4.0), values * 1e-3, mask, 0.1), 0.9 * 4 + 0.1)
    close(update_scale(jnp.float32(4.0), values, mask & False, 0.1), 4.0)


def test_policy_loss_trains_nothing_but_the_policy():
    state, terms, scale = policy_terms()

    def loss(policy, params, heads):
        args = (state.settings, scale, *terms[:-1], heads)
        return ALGORITHM.policy_loss(policy, {**params, "policy": policy}, *args)[0]

    grads = jit(jax.grad(loss, (0, 1, 2)))(state.params["policy"], state.params, terms[-1])
    assert any(np.any(x) for x in jax.tree.leaves(grads[0]))
    assert not any(np.any(x) for x in jax.tree.leaves(grads[1:]))


def test_row_means_of_no_rows_are_zero():
    means = row_means(jnp.ones((2, 3)) * jnp.nan, jnp.zeros((2, 3), bool))
    np.testing.assert_array_equal(means, 0)


donating_update = jit(ALGORITHM.update, donate_argnums=0)


def jitted_update(state, batch, key):
    return donating_update(jax.tree.map(jnp.copy, state), batch, key)


def o_adam_first_step(grad, norm, limit, epsilon):
    grad = grad * min(1.0, limit / norm)
    return grad / (np.abs(grad) + epsilon)


def test_update_steps_by_adam_with_clipped_gradients():
    state, batch, key = make_state(), make_batch(), jax.random.key(1)
    new, metrics = jitted_update(state, batch, key)
    latents = encode(state.params, batch.obs_next)
    targets = td_targets(state, batch, latents, jax.random.split(key, 4)[0])
    unit = jnp.float32(o_unit(np.asarray(batch.act)))

    def loss(params):
        return ALGORITHM.model_loss(params, state.settings, batch, unit, latents, targets)[0]

    grads = f64(jit(jax.grad(loss))(state.params))
    norm = np.sqrt(sum((x**2).sum() for x in jax.tree.leaves(grads)))
    assert norm > 0.05
    close(metrics["grad_norm"], norm)
    for part, rate in (("encoder", 0.9e-4), ("dynamics", 3e-4), ("q", 3e-4), ("reward", 3e-4)):

        def check(old, new, grad, rate=rate):
            step = rate * o_adam_first_step(grad, norm, 0.05, 1e-8)
            # Gradients next to nothing have a direction that rounding decides.
            sure = np.abs(grad) > 1e-5
            np.testing.assert_allclose((old - new)[sure], step[sure], rtol=0, atol=3e-7)

        jax.tree.map(check, f64(state.params[part]), f64(new.params[part]), grads[part])
    wanted = jax.tree.map(
        lambda t, q: 0.99 * t + 0.01 * q, f64(state.target_q), f64(new.params["q"])
    )
    jax.tree.map(close, new.target_q, wanted)
    moved = jax.tree.map(
        lambda a, b: np.abs(a - b).max(), state.params["policy"], new.params["policy"]
    )
    assert 1e-4 < max(jax.tree.leaves(moved)) < 3.1e-4


def test_rows_behind_the_end_have_no_influence():
    state, batch, key = make_state(), make_batch(), jax.random.key(1)

    def poison(x, sign):
        mask = batch.mask.reshape(*batch.mask.shape, *(1,) * (x.ndim - 2))
        return jnp.where(mask, x, ~x if x.dtype == bool else x.dtype.type(sign * 1e6))

    for sign in (1, -1):
        fields = {
            f.name: poison(getattr(batch, f.name), sign)
            for f in dataclasses.fields(batch)
            if f.name != "mask"
        }
        bad = batch.replace(**fields)
        jax.tree.map(
            np.testing.assert_array_equal,
            jitted_update(state, batch, key),
            jitted_update(state, bad, key),
        )
    empty, metrics = jitted_update(state, batch.replace(mask=batch.mask & False), key)
    jax.tree.map(np.testing.assert_array_equal, empty.params, state.params)
    assert all(np.isfinite(x) for x in metrics.values()) and empty.scale == state.scale


def test_policy_conditions_do_not_come_from_behind_the_end():
    # The last valid row's next state counts for the policy, with that row's next condition.
    state, key = make_state(), jax.random.key(1)
    mask = np.zeros((H, B), bool)
    mask[0] = True
    batch = make_batch(mask=mask)
    new, _ = jitted_update(state, batch, key)
    changed = batch.replace(condition_next=batch.condition_next.at[0].add(1.0))
    other, _ = jitted_update(state, changed, key)
    difference = jax.tree.map(
        lambda a, b: np.abs(a - b).max(), new.params["policy"], other.params["policy"]
    )
    assert max(jax.tree.leaves(difference)) > 1e-6


def test_batches_of_another_length_are_refused():
    short = jax.tree.map(lambda x: x[:2], make_batch())
    with pytest.raises(ValueError, match=r"learns from \[3, B\] rows"):
        ALGORITHM.update(make_state(), short, jax.random.key(0))


def test_targets_can_be_handed_in_and_are_learned():
    algorithm = dataclasses.replace(
        ALGORITHM, learning_rate=lambda n: 0.0 * n, dropout=0.1, max_grad_norm=20.0
    )
    batch = make_batch(mask=np.ones((H, B), bool))
    targets = 3.0 * batch.rew

    @jit
    def run(state, targets):
        def body(state, key):
            return algorithm.update(state, batch, key, targets)

        return jax.lax.scan(body, state, jax.random.split(jax.random.key(0), 300))[1]

    state = fresh_state()  # with a rate of its own, which stays whatever the schedule
    settings = {**state.settings, "learning_rate": jnp.float32(3e-3)}
    losses = run(state.replace(settings=settings), targets)
    # All logits start at 0; then they learn what was handed in.
    rho = 0.5 ** np.arange(H)
    close(losses["value_loss"][0], rho.sum() / H * np.log(101))
    for name in ("reward_loss", "value_loss", "termination_loss"):
        assert losses[name][-1] < 0.7 * losses[name][0], name
    assert np.isfinite(losses["policy_loss"]).all()


def test_vmap_over_seeds_equals_a_loop():
    keys = jax.random.split(jax.random.key(0), 2)
    batches = [make_batch(seed) for seed in range(2)]
    states = [make_state(seed=seed) for seed in range(2)]
    states[1] = states[1].replace(
        settings={
            **states[1].settings,
            "learning_rate": jnp.float32(1e-3),
            "gamma": jnp.float32(0.9),
        }
    )

    def stack(*trees):
        return jax.tree.map(lambda *x: jnp.stack(x), *trees)

    together = jit(jax.vmap(ALGORITHM.update))(stack(*states), stack(*batches), keys)
    apart = stack(*(jitted_update(s, b, k) for s, b, k in zip(states, batches, keys, strict=True)))
    jax.tree.map(lambda a, b: close(a, b, rtol=1e-4, atol=2e-5), together, apart)


def test_states_can_be_donated():
    class Given(TDMPC2):
        def init_params(self, *args):
            return jax.tree.map(jnp.copy, fresh_state().params)

    # Not compiled: there, one array twice would be no alias.
    state = Given(**ALGORITHM.__dict__).init(jax.random.key(0), X, C, SPACE)
    pointers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(state)]
    assert len(set(pointers)) == len(pointers)
    batch = make_batch()
    for i in range(2):
        state, metrics = donating_update(state, batch, jax.random.key(i))
    assert np.isfinite(metrics["model_loss"])


def test_the_state_keeps_its_shape_in_a_scan():
    state, batch = make_state(), make_batch()
    new = jax.eval_shape(ALGORITHM.update, state, batch, jax.random.key(0))[0]
    old = jax.eval_shape(lambda: state)

    def same(a, b):
        assert (a.shape, a.dtype, a.weak_type) == (b.shape, b.dtype, b.weak_type)

    jax.tree.map(same, old, new)


def test_without_a_termination_head():
    algorithm = dataclasses.replace(ALGORITHM, learn_termination=False)
    state = jax.eval_shape(lambda k: algorithm.init(k, X, C, SPACE), jax.random.key(0))
    assert "termination" not in state.params
    _, metrics = jax.eval_shape(algorithm.update, state, make_batch(), jax.random.key(0))
    assert "termination_loss" not in metrics


def test_schedules_are_read():
    algorithm = dataclasses.replace(ALGORITHM, learning_rate=lambda n: 1e-3 / (1.0 + n))
    state = algorithm.init(jax.random.key(0), X, C, SPACE)
    close(state.scheduled["learning_rate"], 1e-3)
    state = algorithm.at(state, jnp.float32(9))
    close(present_settings(state)["learning_rate"], 1e-4)
    close(state.settings["temperature"], 0.5)


# -------------------------------------------------------------------------------- acting


def plan_terms(seed=0):
    state = make_state()
    rng = np.random.default_rng(seed)
    latent = encode(state.params, rng.normal(size=X).astype(np.float32))
    plans = rng.uniform(-1, 1, (12, H, A)).astype(np.float32)
    conditions = rng.normal(size=(H + 1, C)).astype(np.float32)
    noise = rng.normal(size=(12, A)).astype(np.float32)
    return state, (latent, jnp.asarray(plans), jnp.asarray(conditions), noise)


def o_plan_terms(state, terms):
    p, (latent, plans, conditions, noise) = f64(state.params), f64(terms)
    z = [np.broadcast_to(latent, (12, 16))]
    rewards, alive = [], [np.ones(12)]
    for t in range(H):
        c = np.broadcast_to(conditions[t], (12, C))
        a = plans[:, t]
        rewards.append(o_number(o_mlp(p["reward"], np.concatenate([z[t], a, c], -1))))
        z.append(o_mlp(p["dynamics"], np.concatenate([z[t], a], -1), group=True))
        c = np.broadcast_to(conditions[t + 1], (12, C))
        logit = o_mlp(p["termination"], np.concatenate([z[-1], c], -1))[:, 0]
        alive.append(alive[-1] / (1 + np.exp(logit)))
    values = []
    for t in range(H + 1):
        c = np.broadcast_to(conditions[t], (12, C))
        action, _ = o_policy(p, z[t], c, noise)
        values.append(o_number(o_q(p["q"], z[t], action, c)))
    return np.stack(z), np.stack(rewards), np.stack(alive), np.stack(values)


def test_values_of_plans_match_the_oracle():
    state, terms = plan_terms()
    weights = np.array([0.5, 0.0, 0.5], np.float32)
    _, rewards, alive, values = o_plan_terms(state, terms)
    wanted = sum(0.99**t * alive[t] * rewards[t] for t in range(H))
    wanted = wanted + 0.99**H * alive[H] * (values[H][0] + values[H][2]) / 2
    close(jit(ALGORITHM.evaluate_plans)(state, *terms, weights), wanted, atol=1e-5)


def test_values_of_plans_that_end_early_with_another_value():
    state, terms = plan_terms()
    weights = np.full(3, 1 / 3, np.float32)
    z, rewards, alive, values = o_plan_terms(state, terms)
    evaluate = jit(
        lambda n: ALGORITHM.evaluate_plans(
            state, *terms, weights, n_steps=n, terminal_value=lambda x, v: v + 3 * x.max(-1)
        )
    )
    for n in (1, 2, 3):
        wanted = sum(0.99**t * alive[t] * rewards[t] for t in range(n))
        wanted = wanted + 0.99**n * alive[n] * (values[n].mean(0) + 3 * z[n].max(-1))
        close(evaluate(n), wanted, atol=1e-5)


def test_without_termination_all_plans_stay_alive():
    state, terms = plan_terms()
    weights = np.full(3, 1 / 3, np.float32)
    never = dataclasses.replace(ALGORITHM, learn_termination=False)
    _, rewards, _, values = o_plan_terms(state, terms)
    wanted = sum(0.99**t * rewards[t] for t in range(H)) + 0.99**H * values[H].mean(0)
    close(jit(never.evaluate_plans)(state, *terms, weights), wanted, atol=1e-5)


def test_plans_of_the_policy_match_the_oracle():
    state, (latent, _, conditions, _) = plan_terms()
    noise = np.random.default_rng(1).normal(size=(H, 3, A)).astype(np.float32)
    plans = jit(ALGORITHM.policy_plans)(state, latent, conditions, noise)
    p, z = f64(state.params), np.broadcast_to(np.float64(latent), (3, 16))
    for t in range(H):
        c = np.broadcast_to(np.float64(conditions[t]), (3, C))
        action, _ = o_policy(p, z, c, np.float64(noise[t]))
        close(plans[:, t], action)
        z = o_mlp(p["dynamics"], np.concatenate([z, action], -1), group=True)


act = jit(ALGORITHM.act, static_argnums=5)
OBS, CONDITION = jnp.array([0.3, -1.0, 2.0]), jnp.array([0.5, -0.5])


def test_actions_are_in_bounds_and_deterministic_in_evaluation():
    state = make_state()
    memory = ALGORITHM.init_memory(state)
    assert memory.fresh and memory.mean.shape == (H, A)
    keys = jax.random.split(jax.random.key(0), 20)
    explore = jit(jax.vmap(lambda k: ALGORITHM.act(state, memory, OBS, CONDITION, k, True)))
    explored, memories = explore(keys)
    assert explored.dtype == jnp.float32 and explored.shape == (20, A)
    assert (explored >= SPACE.low_array).all() and (explored <= SPACE.high_array).all()
    assert len(np.unique(explored[:, 0])) > 1
    assert not memories.fresh.any()
    first, kept = act(state, memory, OBS, CONDITION, keys[0], False)
    second, _ = act(state, memory, OBS, CONDITION, keys[1], False)
    np.testing.assert_array_equal(first, second)
    assert not kept.fresh


def test_the_last_mean_is_where_the_search_starts():
    planner = dataclasses.replace(ALGORITHM.planner, num_policy_samples=0, max_std=0.06)
    narrow = dataclasses.replace(ALGORITHM, planner=planner)
    state = make_state()
    memory = narrow.init_memory(state).replace(mean=jnp.full((H, A), 0.7))
    key = jax.random.key(0)
    search = jit(lambda memory: narrow.act(state, memory, OBS, CONDITION, key, False)[1].mean)
    close(search(memory), np.zeros((H, A)), atol=0.2)
    warm = search(memory.replace(fresh=jnp.zeros((), bool)))
    close(warm, np.array([0.7, 0.7, 0.0])[:, None] * np.ones(A), rtol=0, atol=0.2)


def test_conditions_change_actions_and_may_change_over_the_horizon():
    state = make_state()
    memory, key = ALGORITHM.init_memory(state), jax.random.key(0)
    _, kept = act(state, memory, OBS, CONDITION, key, False)
    _, same = act(state, memory, OBS, jnp.tile(CONDITION, (H + 1, 1)), key, False)
    np.testing.assert_allclose(kept.mean, same.mean, rtol=1e-5, atol=1e-6)
    means = [kept.mean]
    for t in range(H + 1):
        moved = jnp.tile(CONDITION, (H + 1, 1)).at[t].add(2.0)
        means.append(act(state, memory, OBS, moved, key, False)[1].mean)
    for i, mean in enumerate(means):
        for other in means[:i]:
            assert np.abs(mean - other).max() > 1e-5
    with pytest.raises(ValueError, match="do not fit a horizon of 3"):
        ALGORITHM.act(state, memory, OBS, jnp.zeros((2, C)), key, False)


def test_acting_without_conditions_and_mapped_over_instances():
    algorithm = dataclasses.replace(ALGORITHM, n_critics=2)
    state = fresh_state(algorithm, 0, 0, Box(-1.0, 1.0, (1, 2)))
    obs, none = jax.random.normal(jax.random.key(1), (3, X)), jnp.zeros(0)
    keys, memory = jax.random.split(jax.random.key(2), 3), algorithm.init_memory(state)

    def one(obs, key):
        return algorithm.act(state, memory, obs, none, key, True)

    together = jit(jax.vmap(one))(obs, keys)
    assert together[0].shape == (3, 1, 2)
    single = jit(one)
    for i in range(3):
        alone = single(obs[i], keys[i])
        jax.tree.map(lambda a, b, i=i: close(a[i], b, atol=1e-5), together, alone)


def test_the_search_finds_what_pays():
    """With V(z_H) replaced by what a plan's first latent shows, the action follows it."""
    state = make_state()
    memory, latent = ALGORITHM.init_memory(state), encode(state.params, OBS)
    planner = MPPI(num_samples=256, num_policy_samples=4, num_elites=16, n_iterations=4)
    algorithm = dataclasses.replace(ALGORITHM, planner=planner)

    def action(sign):
        return jit(algorithm.plan, static_argnames=("explores", "n_steps", "terminal_value"))(
            state,
            memory,
            latent,
            CONDITION,
            jax.random.key(0),
            False,
            n_steps=1,
            terminal_value=lambda z, v: sign * 1e4 * z[:, 0],
        )[0]

    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, 41)] * 2), -1).reshape(-1, 2)
    z = jax.vmap(lambda a: next_latent(state.params, latent, a))(jnp.float32(grid))[:, 0]

    def reached(a):
        unit = jnp.float32(o_unit(np.asarray(a)))
        return float(next_latent(state.params, latent, unit)[0])

    spread = float(z.max() - z.min())
    assert reached(action(1.0)) > z.max() - 0.05 * spread
    assert reached(action(-1.0)) < z.min() + 0.05 * spread


def test_two_heads_are_drawn_uniformly_and_differ():
    pairs = jax.vmap(lambda k: jnp.stack(two_of(4, k)))(jax.random.split(jax.random.key(0), 6000))
    assert (pairs[:, 0] != pairs[:, 1]).all()
    counts = np.histogram2d(*np.asarray(pairs).T, bins=[range(5), range(5)])[0] / 6000
    np.testing.assert_allclose(counts, (1 - np.eye(4)) / 12, atol=0.015)
    heads = {"x": jnp.arange(4.0)}
    picked = pick_heads(heads, jax.random.key(0))["x"]
    np.testing.assert_array_equal(picked, jnp.stack(two_of(4, jax.random.key(0))))
    weights = ALGORITHM.head_weights(jax.random.key(1))
    assert sorted(np.asarray(weights)) == [0.0, 0.5, 0.5]


# ------------------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        (dict(latent_dim=60), ValueError, "60 entries does not divide into groups of 8"),
        (dict(n_critics=1), ValueError, "n_critics must be .* at least 2"),
        (dict(gamma=1.5), ValueError, "gamma must be a finite number in"),
        (dict(learning_rate="fast"), TypeError, "learning_rate must be a number or a schedule"),
        (dict(dropout=0.9), ValueError, "dropout must be"),
        (dict(planner=3), TypeError, "planner must be a MPPI"),
        (dict(two_hot=101), TypeError, "two_hot must be a TwoHot"),
        (dict(hidden=()), ValueError, "hidden needs at least one layer"),
        (dict(log_std_min=3.0), ValueError, "must be below log_std_max"),
    ],
)
def test_settings_are_checked(settings, error, text):
    with pytest.raises(error, match=text):
        TDMPC2(**settings)


def test_spaces_are_checked():
    with pytest.raises(TypeError, match="bounded Box"):
        TDMPC2.small().check(Discrete(3))
    with pytest.raises(ValueError, match="needs bounded actions"):
        TDMPC2.small().check(Box(-np.inf, np.inf, (2,)))
    with pytest.raises(ValueError, match="must be below high"):
        TwoHot(low=1.0, high=0.0)


def test_settings_are_hashable_and_have_presets():
    assert hash(TDMPC2()) == hash(TDMPC2()) and TDMPC2.small(gamma=0.9).gamma == 0.9
    assert TDMPC2().sequence_length == 3
    small = TDMPC2.small()
    assert (small.latent_dim, small.n_critics, small.planner.num_samples) == (64, 2, 64)
