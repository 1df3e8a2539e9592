"""Optimisers of plans, coloured noise, the cost of a plan, planning with a known model."""

import dataclasses
import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrl_jax.planners import (
    CEM,
    ICEM,
    BlackboxPlanner,
    CategoricalCEM,
    KnownModelRollout,
    Rollout,
    colouring_matrix,
    ensemble_disagreement,
    plan_cost,
    stillness,
)
from lrl_jax.planners.common import Search, n_elites, population_sizes
from lrl_jax.spaces import Box, Discrete

H = 5
SMALL = {"horizon": H, "num_samples": 64, "elite_ratio": 0.125}
FAST = {"horizon": H, "num_samples": 128, "elite_ratio": 0.1, "n_iterations": 4}
BOX = Box((-1.0, 0.0), (1.0, 3.0), (2,))
PLANNERS = {
    "cem": (CEM(**FAST), BOX),
    "cem_sample": (CEM(**FAST, return_mode="sample"), BOX),
    "cem_best": (CEM(**FAST, return_mode="best"), BOX),
    "cem_truncated": (CEM(**FAST, sampling="truncated_normal"), BOX),
    "icem": (ICEM(**FAST), BOX),
    "icem_mean": (ICEM(**FAST, return_mode="mean", noise_beta=0.5), BOX),
    "icem_shrinking": (ICEM(**FAST, sample_decay=1.25), BOX),
    "icem_unbounded": (ICEM(**FAST), Box(-np.inf, np.inf, (2,))),
    "icem_half_bounded": (ICEM(**FAST, sigma=(0.5, 1.0)), Box((0, -np.inf), np.inf, (2,))),
    "categorical": (CategoricalCEM(**FAST), Discrete(4)),
    "categorical_mean": (CategoricalCEM(**FAST, return_mode="mean", min_prob=0.01), Discrete(4)),
    "categorical_sample": (CategoricalCEM(**FAST, return_mode="sample"), Discrete(4)),
}
BOXES = [name for name, (_, space) in PLANNERS.items() if isinstance(space, Box)]
TARGET = np.linspace([0.5, 2.0], [-0.3, 0.4], H).astype(np.float32)
SEQUENCE = np.array([3, 0, 2, 2, 1])
OUTSIDE = -1e9  # cost of a plan that leaves the bounds: it would win


def quadratic(plans, target=TARGET):
    return ((plans - target) ** 2).sum((1, 2))


def target_of(space):
    return np.maximum(TARGET, space.low_array) if isinstance(space, Box) else SEQUENCE


def problem(space, target=None, above=np.inf, bad=np.nan):
    """A cost as data, so that one compilation serves all: `bad` if the first entry is above."""
    target = target_of(space) if target is None else target
    return jax.tree.map(jnp.float32, (target, above, bad))


def cost_of(space, data, plans):
    target, above, bad = data
    flat = plans.reshape(len(plans), -1)
    if isinstance(space, Box):
        cost = quadratic(plans, target)
        inside = (plans >= space.low_array) & (plans <= space.high_array)
    else:
        cost = (plans != target).sum(1).astype(jnp.float32)
        inside = (plans >= 0) & (plans < space.n)
    cost = jnp.where(inside.reshape(flat.shape).all(1), cost, OUTSIDE)
    return jnp.where(flat[:, 0] > above, bad, cost)


@functools.partial(jax.jit, static_argnums=(0, 2))
def run(optimizer, state, space, key, data):
    """Shift and plan; the shift leaves a fresh state alone."""
    state = optimizer.shift(state)
    return optimizer.plan(functools.partial(cost_of, space, data), state, key, space)


@functools.partial(jax.jit, static_argnums=(0, 2, 4))
def run_on(optimizer, state, space, key, cost):
    return optimizer.plan(cost, state, key, space)


@pytest.mark.parametrize("name", ["icem", "categorical"])
def test_jit_equals_eager(name):
    optimizer, space = PLANNERS[name]
    optimizer = dataclasses.replace(optimizer, n_iterations=2)
    args = optimizer, optimizer.init(space), space, jax.random.key(1), problem(space)
    fast = run(*args)
    with jax.disable_jit():
        slow = run(*args)
    chex.assert_trees_all_close(fast, slow, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", PLANNERS)
def test_carry_is_stable_and_compiles_once(name):
    optimizer, space = PLANNERS[name]
    state = optimizer.init(space)
    before = None
    for i in range(3):
        plan, new, info = run(optimizer, state, space, jax.random.key(i), problem(space))
        chex.assert_trees_all_equal_shapes_and_dtypes(state, new)
        assert not any(x.weak_type for x in jax.tree.leaves((state, new, plan, info)))
        before = run._cache_size() if before is None else before
        assert run._cache_size() == before
        state = new
    assert plan.shape == (H, *space.shape) and plan.dtype == space.dtype
    assert hash(optimizer) == hash(dataclasses.replace(optimizer))


@pytest.mark.parametrize("name", PLANNERS)
def test_bounds_are_respected_and_targets_beyond_them_lead_there(name):
    optimizer, space = PLANNERS[name]
    state = optimizer.init(space)
    data = problem(space, np.full_like(target_of(space), 20))
    for i in range(2):
        plan, state, info = run(optimizer, state, space, jax.random.key(i), data)
        assert info["cost"] > OUTSIDE and info["elite_cost"] > OUTSIDE
    plan = np.asarray(plan)
    if isinstance(space, Box):
        assert (plan >= space.low_array).all() and (plan <= space.high_array).all()
        if space.is_bounded:
            assert (plan > space.high_array - 0.7).all()
    else:
        assert (plan >= 0).all() and (plan < space.n).all()


@pytest.mark.parametrize("name", BOXES)
def test_solves_a_quadratic_cost(name):
    """Within two decisions; the target is the same at all steps, so a shift changes nothing."""
    optimizer, space = PLANNERS[name]
    optimizer = (
        optimizer
        if optimizer.sample_decay > 1
        else dataclasses.replace(optimizer, n_iterations=10, num_samples=256)
    )
    target = np.full((H, 2), [0.4, 1.0], np.float32)
    state = optimizer.init(space)
    for i in range(2):
        key = jax.random.key(i)
        plan, state, info = run(optimizer, state, space, key, problem(space, target))
    tolerance = 0.3 if optimizer.sample_decay > 1 else 0.1
    assert np.abs(np.asarray(plan) - target).max() < tolerance
    assert np.abs(np.asarray(state.mean) - target).max() < tolerance
    assert info["cost"] <= info["elite_cost"] < 10 * tolerance**2


@pytest.mark.parametrize("name", [name for name in PLANNERS if name not in BOXES])
def test_finds_the_best_discrete_sequence(name):
    optimizer, space = PLANNERS[name]
    plan, state, info = run(
        optimizer, optimizer.init(space), space, jax.random.key(0), problem(space)
    )
    np.testing.assert_array_equal(plan, SEQUENCE)
    np.testing.assert_array_equal(state.mean.argmax(-1), SEQUENCE)
    np.testing.assert_allclose(state.mean.sum(-1), 1.0, rtol=1e-5)
    assert info["cost"] == 0


@pytest.mark.parametrize("name", ["cem", "icem", "icem_unbounded", "categorical"])
def test_warm_start_improves(name):
    """Planning on from a kept plan ends at lower costs than planning anew."""
    optimizer, space = PLANNERS[name]
    optimizer = dataclasses.replace(optimizer, n_iterations=2, num_samples=32)
    if isinstance(optimizer, CEM):
        optimizer = dataclasses.replace(optimizer, sigma=0.3)

    @jax.jit
    @jax.vmap
    def twice(key):
        target = target_of(space)
        later = jnp.concatenate([target[1:], target[-1:]])
        _, state, _ = run(optimizer, optimizer.init(space), space, key, problem(space, target))
        key = jax.random.fold_in(key, 1)
        _, _, warm = run(optimizer, state, space, key, problem(space, later))
        _, _, cold = run(optimizer, optimizer.init(space), space, key, problem(space, later))
        return cold["elite_cost"], warm["elite_cost"]

    cold, warm = twice(jax.random.split(jax.random.key(0), 32))
    assert warm.mean() < 0.9 * cold.mean()


@pytest.mark.parametrize("name", PLANNERS)
@pytest.mark.parametrize("bad", [np.nan, -np.inf, np.inf])
def test_costs_that_are_not_finite_never_win(name, bad):
    """Every plan with a high first entry is bad, though the target is there."""
    optimizer, space = PLANNERS[name]
    above = 0.2 if isinstance(space, Box) else 1
    data = problem(space, above=above, bad=bad)
    args = optimizer, optimizer.init(space), space, jax.random.key(0), data
    plan, state, info = run(*args)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((plan, state, info)))
    if optimizer.return_mode == "best":
        assert plan.reshape(-1)[0] <= above
        np.testing.assert_allclose(cost_of(space, data, plan[None])[0], info["cost"], rtol=1e-5)


@pytest.mark.parametrize("name", PLANNERS)
def test_without_any_finite_cost_nothing_moves(name):
    optimizer, space = PLANNERS[name]
    start = optimizer.init(space)
    data = problem(space, above=-np.inf)
    plan, state, info = run(optimizer, start, space, jax.random.key(0), data)
    np.testing.assert_allclose(state.mean, start.mean, atol=1e-6)
    assert np.isfinite(plan).all() and not state.has_elites
    assert np.isinf(info["cost"])


@pytest.mark.parametrize("name", ["icem", "categorical"])
def test_instances_are_independent(name):
    optimizer, space = PLANNERS[name]
    keys = jax.random.split(jax.random.key(5), 3)
    start = optimizer.init(space)
    plans, _, _ = jax.vmap(lambda k: run(optimizer, start, space, k, problem(space)))(keys)
    for i in range(3):
        alone, _, _ = run(optimizer, start, space, keys[i], problem(space))
        np.testing.assert_allclose(alone, plans[i], rtol=1e-4, atol=1e-5)


def test_shift_moves_plan_and_elites_and_keeps_a_fresh_state():
    optimizer, space = ICEM(**FAST), BOX
    start = optimizer.init(space)
    chex.assert_trees_all_equal(optimizer.shift(start), start)
    _, state, _ = run(optimizer, start, space, jax.random.key(0), problem(space))
    moved = optimizer.shift(state)
    np.testing.assert_array_equal(moved.mean[:-1], state.mean[1:])
    np.testing.assert_array_equal(moved.mean[-1], state.mean[-1])
    np.testing.assert_array_equal(moved.elites[:, :-1], state.elites[:, 1:])


def candidates_of(optimizer, state, key, space=BOX):
    """Candidates of each iteration, recorded in order."""
    seen = []

    def cost(plans):
        jax.debug.callback(lambda p: seen.append(np.asarray(p)), plans, ordered=True)
        return quadratic(plans)

    result = run_on(optimizer, state, space, key, cost)
    jax.effects_barrier()
    return seen, result


def rows_in(rows, candidates):
    """How many of `rows` are among the candidates, exactly."""
    return sum((candidates == row).reshape(len(candidates), -1).all(1).any() for row in rows)


def test_elites_are_kept_over_iterations_and_decisions():
    optimizer = ICEM(**SMALL, n_iterations=3, keep_elites=0.5, shift_elites=0.25)
    assert (optimizer.n_elites, optimizer.n_kept, optimizer.n_shifted) == (8, 4, 2)
    seen, (_, state, _) = candidates_of(optimizer, optimizer.init(BOX), jax.random.key(0))
    assert [len(plans) for plans in seen] == [64, 64, 64]
    for before, after in itertools.pairwise(seen):
        order = np.argsort(quadratic(before))
        assert rows_in(before[order[:4]], after) == 4
        assert rows_in(before[order[4:]], after) == 0
    shifted = optimizer.shift(state)
    seen, _ = candidates_of(optimizer, shifted, jax.random.key(1))
    assert rows_in(np.asarray(shifted.elites)[:, :-1], seen[0][:, :-1]) == 2
    assert rows_in(np.asarray(shifted.elites), seen[0]) == 0  # the last step is drawn anew

    plain = dataclasses.replace(optimizer, keep_elites=0.0, shift_elites=0.0)
    seen, _ = candidates_of(plain, plain.init(BOX), jax.random.key(0))
    assert rows_in(seen[0], seen[1]) == 0


def test_mean_is_a_candidate_in_the_last_iteration_only():
    optimizer = CEM(**SMALL, n_iterations=2, alpha=1.0, mean_candidate=True)  # the mean stays
    seen, _ = candidates_of(optimizer, optimizer.init(BOX), jax.random.key(0))
    mean = np.asarray(optimizer.init(BOX).mean)[None]
    assert [rows_in(mean, plans) for plans in seen] == [0, 1]


def test_shrinking_counts():
    assert population_sizes(100, 1.25, 5, 20) == (100, 80, 64, 51, 40)
    optimizer = ICEM(horizon=H, num_samples=100, elite_ratio=0.1, sample_decay=2, n_iterations=4)
    assert optimizer.population == (100, 50, 25, 20)
    seen, _ = candidates_of(optimizer, optimizer.init(BOX), jax.random.key(0))
    assert [len(plans) for plans in seen] == [100, 50, 25, 20]


def test_refit_against_numpy():
    """One iteration: elites, momentum and the std with n - 1, starting from sigma."""
    optimizer = CEM(horizon=H, num_samples=40, elite_ratio=0.1, n_iterations=1, alpha=0.25)
    seen, (_, state, info) = candidates_of(optimizer, optimizer.init(BOX), jax.random.key(3))
    elites = seen[0][np.argsort(quadratic(seen[0]))[:4]]
    middle, half = np.array([0.0, 1.5]), np.array([1.0, 1.5])
    np.testing.assert_allclose(state.mean, 0.25 * middle + 0.75 * elites.mean(0), rtol=1e-5)
    std = 0.25 * half + 0.75 * elites.std(0, ddof=1)
    np.testing.assert_allclose(info["std"], std.mean(), rtol=1e-5)


def fit(mean, std):
    """What is drawn from, without kept elites."""
    return Search(mean=mean, std=std, kept=None, has_kept=None, best=None)


@pytest.mark.parametrize("sampling", ["clip", "truncated_normal"])
def test_sampling_distributions(sampling):
    optimizer = CEM(horizon=1, num_samples=20000, n_iterations=1, sampling=sampling, sigma=0.5)
    space = Box((-1.0, -1.0), (1.0, 0.25), (2,))
    mean = jnp.array([[0.5, -0.2]])
    std = jnp.array([[1.0, 0.1]])
    draws = np.asarray(optimizer._draw(fit(mean, std), jax.random.key(0), 20000, space))[:, 0]
    rng = np.random.default_rng(0).normal(size=(200_000, 2)) * np.asarray(std) + np.asarray(mean)
    low, high = space.low_array, space.high_array
    for i in range(2):
        inside = rng[(rng[:, i] >= low[i]) & (rng[:, i] <= high[i]), i]
        wanted = inside if sampling == "truncated_normal" else np.clip(rng[:, i], low[i], high[i])
        np.testing.assert_allclose(draws[:, i].mean(), wanted.mean(), atol=0.015)
        np.testing.assert_allclose(draws[:, i].std(), wanted.std(), atol=0.015)


def test_sigma_is_in_units_of_half_the_width():
    wide = Box((-4.0, -np.inf, -3.4e38), (4.0, np.inf, 3.4e38), (3,))
    optimizer = CEM(horizon=1, num_samples=20000, n_iterations=1, sigma=0.1, elite_ratio=1.0)
    assert np.asarray(optimizer.init(wide).mean).tolist() == [[0, 0, 0]]
    _, state, info = run_on(
        optimizer, optimizer.init(wide), wide, jax.random.key(0), lambda p: p.sum((1, 2))
    )
    np.testing.assert_allclose(info["std"], (0.4 + 0.1 + 0.1) / 3, rtol=0.05)
    assert np.isfinite(state.mean).all()


# --- Noise ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("horizon", [1, 2, 7, 15, 64])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 2.0, -1.0])
def test_coloured_noise_has_variance_one_at_every_step(horizon, beta):
    matrix = colouring_matrix(horizon, beta)
    np.testing.assert_allclose((matrix.astype(np.float64) ** 2).sum(1), 1.0, rtol=1e-6)
    draws = matrix @ np.random.default_rng(0).normal(size=(horizon, 50_000))
    np.testing.assert_allclose(draws.var(1), 1.0, rtol=0.05)


@pytest.mark.parametrize("beta", [0.0, 1.0, 2.0])
def test_coloured_noise_has_a_power_law_spectrum(beta):
    horizon = 64
    covariance = colouring_matrix(horizon, beta) @ colouring_matrix(horizon, beta).T
    basis = np.fft.rfft(np.eye(horizon))
    density = np.einsum("tk,ts,sk->k", basis.conj(), covariance, basis).real
    frequency = np.arange(1, horizon // 2)
    slope = np.polyfit(np.log(frequency), np.log(density[1:-1]), 1)[0]
    np.testing.assert_allclose(slope, -beta, atol=1e-3)
    np.testing.assert_allclose(density[0], density[1], rtol=1e-3)


def test_optimizer_colours_the_steps_and_not_the_entries():
    optimizer = ICEM(horizon=16, num_samples=4000)
    space = Box(-np.inf, np.inf, (2,))
    zero = jnp.zeros((16, 2))
    search = fit(zero, zero + 1.0)
    draws = np.asarray(optimizer._draw(search, jax.random.key(0), 4000, space))
    assert draws.shape == (4000, 16, 2)
    np.testing.assert_allclose(draws.var(0), 1.0, atol=0.12)
    covariance = np.cov(draws[:, :, 0].T)
    matrix = colouring_matrix(16, 1.0)
    np.testing.assert_allclose(covariance, matrix @ matrix.T, atol=0.1)
    across = np.einsum("nt,ns->ts", draws[..., 0], draws[..., 1]) / len(draws)
    assert np.abs(across).max() < 0.1


# --- Cost ----------------------------------------------------------------------------------------


def oracle_cost(rew, term, value, aux, use_value, use_termination):
    n, models, particles, horizon = rew.shape
    costs = np.zeros(n)
    for i in range(n):
        total = 0.0
        for m in range(models):
            for p in range(particles):
                alive = 1.0
                for h in range(horizon):
                    total += alive * rew[i, m, p, h]
                    if use_termination:
                        alive *= 1.0 - term[i, m, p, h]
                if use_value:
                    total += alive * value[i, m, p]
        costs[i] = -total / (models * particles) - aux[i]
    return costs


@pytest.mark.parametrize("use_value", [False, True])
@pytest.mark.parametrize("use_termination", [False, True])
def test_cost_against_a_plain_oracle(use_value, use_termination):
    rng = np.random.default_rng(0)
    shape = (7, 3, 2, 4)
    rew, value = rng.normal(size=shape), rng.normal(size=shape[:3])
    term = rng.choice([0.0, 0.3, 1.0], size=shape)
    state = rng.normal(size=(7, 3, 2, 5, 6))
    plans = jnp.asarray(rng.normal(size=(7, 4, 2)), jnp.float32)
    rollout = jax.tree.map(jnp.float32, Rollout(state, rew, term, value))
    moved = (np.diff(state, axis=3) ** 2).sum((3, 4)).mean((1, 2))
    aux = ((0.5, ensemble_disagreement), (-2.0, lambda r, p: (p**2).sum((1, 2))), (0.3, stillness))
    cost = plan_cost(
        rollout, plans, use_value=use_value, use_termination=use_termination, aux_rewards=aux
    )
    disagreement = state.mean(2).var(1)[:, 1:].sum((1, 2))
    extra = 0.5 * disagreement - 2.0 * (np.asarray(plans) ** 2).sum((1, 2)) - 0.3 * moved
    wanted = oracle_cost(rew, term, value, extra, use_value, use_termination)
    np.testing.assert_allclose(cost, wanted, rtol=1e-4, atol=1e-4)


def test_after_a_sure_end_nothing_counts():
    rew = jnp.array([1.0, 2.0, jnp.nan, jnp.inf]).reshape(1, 1, 1, 4)
    term = jnp.array([0.0, 1.0, 0.0, 0.0]).reshape(1, 1, 1, 4)
    rollout = Rollout(jnp.zeros((1, 1, 1, 5, 1)), rew, term, jnp.full((1, 1, 1), jnp.nan))
    assert plan_cost(rollout, jnp.zeros((1, 4, 1)), use_value=True)[0] == -3


def test_cost_refuses_what_does_not_fit():
    rollout = Rollout(jnp.zeros((3, 1, 1, 5, 1)), jnp.zeros((3, 1, 1, 4)))
    plans = jnp.zeros((3, 4, 1))
    with pytest.raises(ValueError, match="term_prob"):
        plan_cost(rollout, plans)
    with pytest.raises(ValueError, match="value"):
        plan_cost(rollout, plans, use_termination=False, use_value=True)
    with pytest.raises(ValueError, match="horizon"):
        plan_cost(rollout, plans[:, :2])
    with pytest.raises(ValueError, match="one number per plan"):
        plan_cost(rollout, plans, use_termination=False, aux_rewards=((1.0, lambda r, p: r.rew),))
    with pytest.raises(ValueError, match=r"\(3,\)"):
        CEM(horizon=2, num_samples=3, elite_ratio=0.8).plan(
            lambda p: p, CEM(horizon=2).init(BOX), jax.random.key(0), BOX
        )


# --- Known model ---------------------------------------------------------------------------------


def point_mass(state, action):
    """Position and velocity on a line, pushed; reward for nearness to 1, end beyond 1.5."""
    velocity = state["v"] + 0.3 * action[0]
    position = state["x"] + 0.3 * velocity
    reward = -jnp.abs(position - 1.0) - 0.1 * jnp.abs(velocity)
    return {"x": position, "v": velocity}, reward, (position > 1.5).astype(jnp.float32)


def test_planning_with_a_known_model_reaches_the_goal():
    planner = BlackboxPlanner(ICEM(horizon=12, num_samples=128), KnownModelRollout(point_mass))
    space = Box(-1, 1, (1,))

    def step(carry, key):
        state, plan_state = carry
        plan, plan_state, info = planner.plan(state, planner.shift(plan_state), key, space)
        state, reward, _ = point_mass(state, plan[0])
        return (state, plan_state), (state["x"], reward, info["cost"])

    start = {"x": jnp.zeros(()), "v": jnp.zeros(())}
    _, (x, _, cost) = jax.lax.scan(
        step, (start, planner.init(space)), jax.random.split(jax.random.key(0), 30)
    )
    assert x.max() < 1.2 and np.abs(x[-5:] - 1).max() < 0.1
    assert np.isfinite(cost).all()


def test_known_model_rollout_matches_a_loop():
    plans = jax.random.normal(jax.random.key(0), (4, 6, 1)) * 2
    rollout_fn = KnownModelRollout(point_mass, value_fn=lambda s: s["x"] * 10)
    rollout = rollout_fn({"x": jnp.ones(()), "v": jnp.zeros(())}, plans, jax.random.key(0))
    assert rollout.state["x"].shape == (4, 1, 1, 7) and rollout.rew.shape == (4, 1, 1, 6)
    for i in range(4):
        state = {"x": jnp.ones(()), "v": jnp.zeros(())}
        for h in range(6):
            state, rew, term = point_mass(state, plans[i, h])
            np.testing.assert_allclose(rollout.rew[i, 0, 0, h], rew, rtol=1e-5, atol=1e-6)
            assert rollout.term_prob[i, 0, 0, h] == term
            np.testing.assert_allclose(rollout.state["x"][i, 0, 0, h + 1], state["x"], rtol=1e-5)
        np.testing.assert_allclose(rollout.value[i, 0, 0], 10 * state["x"], rtol=1e-5)


def test_terminations_are_avoided_when_they_cost_reward():
    """Reward 1 a step while moving right, but beyond 0 life ends: only termination tells."""

    def step_fn(x, a):
        x = x + a[0]
        return x, 1.0 + 0.1 * a[0], (x > 0.0).astype(jnp.float32)

    space = Box(-1, 1, (1,))
    kwargs = {
        "optimizer": ICEM(horizon=5, num_samples=128),
        "rollout_fn": KnownModelRollout(step_fn),
    }
    for use, ends in ((None, False), (True, False), (False, True)):
        planner = BlackboxPlanner(**kwargs, use_termination=use)
        plan, _, _ = jax.jit(planner.plan, static_argnums=3)(
            jnp.float32(-1.0), planner.init(space), jax.random.key(0), space
        )
        assert bool((-1 + np.cumsum(plan[:-1, 0]) > 0).any()) == ends


# --- Settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"horizon": 0}, "horizon must be .* at least 1, got 0"),
        ({"num_samples": 1}, "num_samples"),
        ({"num_samples": 20}, "leave 1 elites.*raise elite_ratio to 0.1 or num_samples to 40"),
        ({"elite_ratio": 0.0}, "elite_ratio"),
        ({"elite_ratio": float("nan")}, "elite_ratio"),
        ({"n_iterations": 0}, "n_iterations"),
        ({"alpha": 1.5}, "alpha"),
        ({"return_mode": "median"}, "return_mode.*'mean'"),
        ({"keep_elites": -0.1}, "keep_elites"),
        ({"shift_elites": 2}, "shift_elites"),
        ({"elite_ratio": 1.0, "keep_elites": 1.0}, "leave no new"),
    ],
)
@pytest.mark.parametrize("kind", [CEM, ICEM, CategoricalCEM])
def test_bad_settings(kind, settings, message):
    with pytest.raises(ValueError, match=message):
        kind(**{"horizon": 3, **settings})


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"sigma": 0.0}, ValueError, "sigma"),
        ({"sigma": [1.0, -1.0]}, ValueError, "sigma"),
        ({"sampling": "uniform"}, ValueError, "truncated_normal"),
        ({"noise_beta": float("inf")}, ValueError, "noise_beta"),
        ({"sample_decay": 0.5}, ValueError, "sample_decay"),
        ({"horizon": 2.5}, ValueError, "horizon must be a whole number"),
        ({"horizon": 3.0}, None, None),
        ({"alpha": "0.1"}, ValueError, "alpha must be a finite number"),
        ({"alpha": None}, ValueError, "alpha must be a finite number"),
    ],
)
def test_bad_settings_of_cem(settings, error, message):
    if error is None:
        assert CEM(**settings) == CEM(horizon=3) and type(CEM(**settings).horizon) is int
        return
    with pytest.raises(error, match=message):
        CEM(**{"horizon": 3, **settings})


def test_spaces_that_do_not_fit():
    with pytest.raises(TypeError, match="CategoricalCEM"):
        CEM(horizon=2).init(Discrete(3))
    with pytest.raises(TypeError, match="ICEM"):
        CategoricalCEM(horizon=2).init(BOX)
    with pytest.raises(ValueError, match="sigma has 3 entries, but an action has 2"):
        CEM(horizon=2, sigma=[1, 1, 1]).init(BOX)
    with pytest.raises(ValueError, match="min_prob"):
        CategoricalCEM(horizon=2, min_prob=0.5).init(Discrete(3))
    with pytest.raises(TypeError, match="not callable"):
        BlackboxPlanner(CEM(horizon=2), rollout_fn=None)
    with pytest.raises(TypeError, match="optimizer"):
        BlackboxPlanner(None, rollout_fn=print)
    with pytest.raises(TypeError, match="pairs"):
        BlackboxPlanner(CEM(horizon=2), rollout_fn=print, aux_rewards=[ensemble_disagreement])
    with pytest.raises(ValueError, match="weight"):
        BlackboxPlanner(CEM(horizon=2), print, aux_rewards=[(np.nan, ensemble_disagreement)])
    with pytest.raises(ValueError, match="horizon"):
        colouring_matrix(0, 1.0)
    assert CEM(horizon=2, sigma=np.ones(2)).sigma == (1.0, 1.0)
    assert n_elites(100, 0.29) == 29


def test_plans_are_float32_also_where_jax_has_wider_floats():
    with jax.enable_x64(True):
        for planner, space in ((CEM(3, 64), BOX), (ICEM(3, 64), BOX)):
            plan, state, _ = planner.plan(
                lambda plans: (plans**2).sum((1, 2)), planner.init(space), jax.random.key(0), space
            )
            assert plan.dtype == state.mean.dtype == jnp.float32
        space, planner = Discrete(3), CategoricalCEM(3, 64)
        planner.plan(
            lambda plans: (plans == 1).sum(1).astype(jnp.float32),
            planner.init(space), jax.random.key(0), space,
        )  # fmt: skip
