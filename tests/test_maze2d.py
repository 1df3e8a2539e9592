"""Maze2D against a plain Python simulation, its resets, its episode ends, its errors."""

import itertools
import math
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments.environment import Environment

from lrl_jax.envs import BUILTIN, Maze2D, make
from lrl_jax.envs.maze2d import Maze2DState, _uniform_index

IDS = sorted(BUILTIN)
ROOM = ["#####", "#...#", "#...#", "#####"]


def state_at(position, goal):
    return Maze2DState(position=position, goal=goal, time=jnp.int32(0))


# The oracle: Python floats and loops over all cells.


def gap_to_walls(layout, x, y):
    gaps = [math.inf]
    for row, line in enumerate(layout):
        for column, wall in enumerate(line):
            if wall:
                nearest_x = min(max(x, column), column + 1)
                nearest_y = min(max(y, row), row + 1)
                gaps.append(math.hypot(x - nearest_x, y - nearest_y))
    return min(gaps)


def oracle_move(layout, x, y, action, step_size=0.1):
    """New position, what happened, and how close the decision was to going the other way."""
    vx, vy = (min(max(float(v), -1.0), 1.0) for v in action)
    new_x = min(max(x + step_size * vx, 0.15), len(layout[0]) - 0.15)
    new_y = min(max(y + step_size * vy, 0.15), len(layout) - 0.15)
    margin = math.inf
    candidates = {"free": (new_x, new_y), "x": (new_x, y), "y": (x, new_y)}
    for kind, candidate in candidates.items():
        gap = gap_to_walls(layout, *candidate)
        margin = min(margin, abs(gap - 0.15))
        if gap >= 0.15:
            return candidate, kind, margin
    return (x, y), "stay", margin


def walk(env, n, steps, seed, hold=8):
    """Positions [steps + 1, n, 2], actions, rewards and successes of held random actions."""
    params = env.default_params.replace(max_steps_in_episode=10**6)
    rng = np.random.default_rng(seed)
    actions = rng.uniform(-1.3, 1.3, (steps // hold + 1, n, 2))
    actions = np.repeat(actions, hold, axis=0)[:steps].astype(np.float32)
    _, state = jax.vmap(env.reset, (0, None))(jax.random.split(jax.random.key(seed), n), params)

    def tick(state, action):
        keys = jax.random.split(jax.random.key(0), n)
        obs, new, reward, _, _, info = jax.vmap(env.step, (0, 0, 0, None))(
            keys, state, action, params
        )
        return new, (new.position, obs, reward, info["is_success"])

    _, (positions, obs, reward, success) = jax.lax.scan(tick, state, actions)
    positions = np.concatenate([np.asarray(state.position)[None], positions])
    return positions, actions, np.asarray(state.goal), *map(np.asarray, (obs, reward, success))


# Fine control hardly meets a wall in so few steps: a small room does.
FINE = Maze2D(ROOM, starts=[(1.16, 1.17), (3.8, 2.8)], goals=[(2.5, 1.5)], step_size=0.02)


def is_plain(env_id):
    """Whether the body moves by 0.1 of its action."""
    return "x" not in env_id and "Inertia" not in env_id


@pytest.mark.parametrize("env_id", [*filter(is_plain, IDS), "fine"])
def test_moves_rewards_and_success_equal_oracle(env_id):
    env = FINE if env_id == "fine" else make(env_id)[0]
    positions, actions, goals, obs, rewards, successes = walk(env, 4, 280, seed=3)
    diameter = math.sqrt(len(env.layout) ** 2 + len(env.layout[0]) ** 2)
    kinds = {"free": 0, "x": 0, "y": 0, "stay": 0}
    for t, i in itertools.product(range(len(actions)), range(4)):
        before, after = positions[t, i].tolist(), positions[t + 1, i].tolist()
        expected, kind, margin = oracle_move(env.layout, *before, actions[t, i], env.step_size)
        if margin < 3e-6:  # float32 cannot tell which side of the limit it is on
            continue
        kinds[kind] += 1
        np.testing.assert_allclose(after, expected, atol=1e-5)
        distance = math.dist(after, goals[i].tolist())
        assert rewards[t, i] == pytest.approx(-distance / diameter, abs=1e-5)
        assert successes[t, i] == (distance < 0.3)
        np.testing.assert_allclose(obs[t, i], [*after, *goals[i], *after])
        assert gap_to_walls(env.layout, *after) > 0.15 - 3e-6
    assert kinds["free"] > 200 and kinds["x"] > 20 and kinds["y"] > 20, kinds


def test_inertia_equals_oracle():
    env, params = make("Maze2D-Large-Inertia-v0")
    assert params.max_steps_in_episode == 600
    rng = np.random.default_rng(5)
    step = jax.jit(env.step_env)
    _, state = env.reset(jax.random.key(5), params)
    velocity, blocked, fastest = np.zeros(2), 0, 0.0
    for action in np.repeat(rng.uniform(-1.3, 1.3, (60, 2)), 10, axis=0).astype(np.float32):
        position = np.asarray(state.position).tolist()
        velocity = velocity + 0.1 * (3 * np.clip(action, -1, 1) - 2 * velocity)
        velocity, margin = np.clip(velocity, -1.9, 1.9), math.inf
        for _ in range(2):
            by = 0.05 * velocity
            asked = np.add(position, by)
            position, _, near = oracle_move(env.layout, *position, by, step_size=1.0)
            margin = min(margin, near)
            hit = np.abs(np.subtract(position, asked)) > 1e-6
            velocity, blocked = np.where(hit, 0.0, velocity), blocked + hit.sum()
        obs, state, *_ = step(jax.random.key(0), state, action, params)
        if margin > 3e-6:
            np.testing.assert_allclose(state.position, position, atol=1e-5)
            np.testing.assert_allclose(state.velocity, velocity, atol=1e-5)
        np.testing.assert_array_equal(obs[4:], [*state.position, *state.velocity])
        velocity, fastest = np.asarray(state.velocity, float), max(fastest, np.abs(velocity).max())
    assert blocked > 20 and 1.2 < fastest < 1.9
    assert env.goal_indices["observation"] == (4, 8) and obs.shape == (8,)
    with pytest.raises(ValueError, match="step_size"):
        Maze2D(ROOM, step_size=0.4, inertia=True)


def test_body_is_round_at_corners():
    env = Maze2D(["######", "#....#", "#.#..#", "#....#", "######"])
    corner = np.array([3.0, 2.0])  # top right corner of the wall cell in the middle
    state = state_at(jnp.array([3.13, 1.80]), jnp.array([4.5, 3.5]))
    _, moved, *_ = env.step(jax.random.key(0), state, jnp.array([-0.2, 0.8]))
    # (3.11, 1.88): a square body of half side 0.15 would overlap, the disc passes at 0.163.
    np.testing.assert_allclose(moved.position, [3.11, 1.88], atol=1e-6)
    _, moved, *_ = env.step(jax.random.key(0), moved, jnp.array([-0.1, 0.5]))
    assert np.hypot(*(np.asarray(moved.position) - corner)) > 0.15  # (3.10, 1.93) is blocked
    np.testing.assert_allclose(moved.position, [3.10, 1.88], atol=1e-6)


def test_touching_body_slides():
    env = Maze2D(ROOM)
    for x, y, v, expected in [
        (1.15, 1.5, (-1, 0.5), (1.15, 1.55)),
        (3.85, 1.5, (1, 0.5), (3.85, 1.55)),
        (1.5, 2.85, (0.5, 1), (1.55, 2.85)),
        (1.15, 1.15, (-1, -1), (1.15, 1.15)),
    ]:
        state = state_at(jnp.array([x, y]), jnp.array([2.5, 2.5]))
        _, moved, *_ = env.step(jax.random.key(0), state, jnp.array(v, jnp.float32))
        np.testing.assert_allclose(moved.position, expected, atol=1e-6)


def test_sparse_reward_and_success_are_of_the_new_position():
    env = Maze2D(ROOM, dense_reward=False)
    goal = jnp.array([2.5, 1.5])
    for x, v, inside in [(2.15, 1.0, True), (2.15, 0.0, False), (2.25, -1.0, False)]:
        state = state_at(jnp.array([x, 1.5]), goal)
        _, _, reward, terminated, truncated, info = env.step(
            jax.random.key(0), state, jnp.array([v, 0.0])
        )
        assert reward == float(inside) and info["is_success"] == inside
        assert reward.dtype == jnp.float32 and info["is_success"].dtype == bool
        assert not terminated and not truncated


def test_episodes_end_at_goals_where_that_is_asked_for():
    env, params = make("Maze2D-Medium-v0", terminate_at_goal=True)
    state = state_at(jnp.array([1.5, 1.15]), jnp.array([1.5, 1.5]))
    _, _, _, terminated, truncated, info = env.step(
        jax.random.key(0), state, jnp.array([0.0, 1.0]), params
    )
    assert terminated and info["terminated"] and info["is_success"] and not truncated
    _, _, _, terminated, _, info = env.step(jax.random.key(0), state, jnp.array([0.0, 0.0]), params)
    assert not terminated and not info["is_success"]
    goals = jnp.array([[1.5, 1.5], [6.5, 6.5]])
    np.testing.assert_array_equal(env.compute_terminated(goals, goals[::-1]), [False, False])
    np.testing.assert_array_equal(env.compute_terminated(goals, goals), [True, True])
    plain, _ = make("Maze2D-Medium-v0")
    assert not plain.compute_terminated(goals, goals).any() and plain != env
    assert make("Maze2D-Medium-x10-v0")[0].step_size == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"step_size": 0.0}, ValueError, "step_size"),
        ({"step_size": 0.9}, ValueError, "0.5"),
        ({"terminate_at_goal": 1}, TypeError, "terminate_at_goal"),
    ],
)
def test_bad_settings_of_steps_and_ends(settings, error, message):
    with pytest.raises(error, match=message):
        Maze2D(ROOM, **settings)


def reset_many(env, n=20_000):
    keys = jax.random.split(jax.random.key(1), n)
    _, state = jax.vmap(env.reset, (0, None))(keys, env.default_params)
    return np.asarray(state.position), np.asarray(state.goal)


def pair_counts(env, n=20_000):
    positions, goals = reset_many(env, n)
    starts_index = {tuple(np.float32(p)): i for i, p in enumerate(env.starts)}
    goals_index = {tuple(np.float32(p)): i for i, p in enumerate(env.goals)}
    counts = np.zeros((len(env.goals), len(env.starts)))
    for p, g in zip(positions, goals, strict=True):
        counts[goals_index[tuple(g)], starts_index[tuple(p)]] += 1
    return counts


# The last one: starts near goals are left out, a different number for each goal.
CLUSTERED = dict(
    layout=ROOM,
    starts=[(1.5, 1.5), (1.6, 1.5), (1.7, 1.5), (3.5, 1.5), (3.5, 2.5)],
    goals=[(1.5, 1.4), (3.5, 2.4), (2.5, 2.5)],
)


@pytest.mark.parametrize("one_draw", [True, False])
@pytest.mark.parametrize(
    "settings", [BUILTIN["Maze2D-Medium-v0"], BUILTIN["Maze2D-Large-v0"], CLUSTERED]
)
def test_reset_is_uniform_over_goals_then_far_starts(settings, one_draw, monkeypatch):
    if not one_draw:
        monkeypatch.setattr("lrl_jax.envs.maze2d._ONE_DRAW_PAIRS", 0)
        settings = {**settings, "max_steps": 399}  # not the trace of the other case
    env = Maze2D(**settings)
    counts = pair_counts(env)
    expected = np.zeros_like(counts)
    for g, goal in enumerate(env.goals):
        far = [math.dist(goal, start) > 0.3 for start in env.starts]
        expected[g] = np.array(far) / sum(far) / len(env.goals)
    assert (counts[expected == 0] == 0).all()
    # Pearson's chi squared: its mean is the degrees of freedom, its variance twice as much.
    observed, expected = counts[expected > 0], expected[expected > 0] * counts.sum()
    chi2 = ((observed - expected) ** 2 / expected).sum()
    dof = len(expected) - 1
    assert abs(chi2 - dof) < 5 * math.sqrt(2 * dof)


def test_uniform_index_is_the_upper_half_of_the_product():
    rng = np.random.default_rng(0)
    bits = np.concatenate([rng.integers(0, 2**32, 500), [0, 2**32 - 1, 2**16, 2**16 - 1]])
    for n in (1, 2, 3, 46, 999, 65_535, 65_536):
        index, rest = jax.vmap(_uniform_index, (0, None))(jnp.asarray(bits, jnp.uint32), n)
        assert [int(b) * n >> 32 for b in bits] == index.tolist()
        assert [int(b) * n % 2**32 for b in bits] == rest.tolist()


def test_truncation_resets_and_keeps_the_final_observation():
    env = Maze2D(BUILTIN["Maze2D-Medium-v0"]["layout"], max_steps=3)
    params = env.default_params
    obs, state = env.reset(jax.random.key(0), params)
    for t in range(1, 8):
        position, goal = np.asarray(state.position), np.asarray(state.goal)
        expected, *_ = oracle_move(env.layout, *position.tolist(), (0.3, -0.2))
        key = jax.random.key(t)
        obs, state, _, terminated, truncated, info = env.step(
            key, state, jnp.array([0.3, -0.2]), params
        )
        np.testing.assert_allclose(
            info["final_observation"], [*expected, *goal, *expected], atol=1e-5
        )
        assert not terminated and truncated == (t % 3 == 0) == info["truncated"]
        assert not info["terminated"] and state.time == t % 3
        np.testing.assert_array_equal(obs, env.observe(key, state, None, params))
        if truncated:
            centre = np.asarray(state.position) % 1
            np.testing.assert_array_equal(centre, [0.5, 0.5])
        else:
            np.testing.assert_array_equal(obs, info["final_observation"])
            np.testing.assert_array_equal(state.goal, goal)


def test_step_has_the_structure_of_gymnax_step():
    env = Maze2D(ROOM, max_steps=2)
    _, state = env.reset(jax.random.key(0))
    for _ in range(2):
        args = (jax.random.key(1), state, jnp.ones(2), env.default_params)
        ours, theirs = env.step(*args), Environment.step(env, *args)
        described = [jax.tree.map(lambda x: (x.shape, x.dtype), out) for out in (ours, theirs)]
        assert described[0] == described[1]
        for a, b in zip(ours[2:], theirs[2:], strict=True):
            jax.tree.map(np.testing.assert_array_equal, a, b)
        state = ours[1]
    assert ours[4]


def test_vmapped_equals_single():
    env, params = make("Maze2D-Large-v0", max_steps=5)
    n = 4
    keys = jax.random.split(jax.random.key(2), n)
    many = jax.vmap(env.reset, (0, None))(keys, params)
    single = [env.reset(k, params) for k in keys]
    jax.tree.map(np.testing.assert_array_equal, many, jax.tree.map(lambda *x: np.stack(x), *single))
    states = [s for _, s in single]
    state = many[1]
    for t in range(6):
        keys = jax.random.split(jax.random.key(t + 10), n)
        action = jax.random.uniform(jax.random.key(t), (n, 2), minval=-1, maxval=1)
        out = jax.vmap(env.step, (0, 0, 0, None))(keys, state, action, params)
        outs = [env.step(k, s, a, params) for k, s, a in zip(keys, states, action, strict=True)]
        jax.tree.map(
            lambda x, *y: np.testing.assert_allclose(x, np.stack(y), atol=1e-6), out, *outs
        )
        state, states = out[1], [o[1] for o in outs]


def test_equal_settings_share_a_trace_and_carries_keep_their_types():
    settings = BUILTIN["Maze2D-Medium-v0"]
    first, second = Maze2D(**settings), Maze2D(**settings)
    walls = np.array([[c == "#" for c in line] for line in settings["layout"].split()])
    from_array = Maze2D(walls.astype(int), np.array(settings["starts"]), list(settings["goals"]))
    assert first == second == from_array and len({first, second, from_array}) == 1
    assert pickle.loads(pickle.dumps(first)) == first
    others = [
        Maze2D(**settings, max_steps=5),
        Maze2D(**settings, dense_reward=False),
        Maze2D(settings["layout"]),
        first.with_transition_gradients(),
    ]
    assert first not in others and len({*others}) == 4
    traces = []

    def one_step(env, state):
        traces.append(1)
        return env.step(jax.random.key(0), state, jnp.ones(2), env.default_params)[1]

    run = jax.jit(one_step, static_argnums=0)
    _, state = first.reset(jax.random.key(0))
    for env in (first, second, from_array, first):
        state = run(env, state)
    assert len(traces) == 1
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(state))


def test_transition_gradients():
    plain = Maze2D(ROOM)
    state = state_at(jnp.array([2.5, 1.5]), jnp.array([1.5, 1.5]))

    def landing(action, env):
        return env.step(jax.random.key(0), state, action)[1].position.sum()

    action = jnp.array([0.5, 0.5])
    np.testing.assert_allclose(jax.grad(landing)(action, plain), 0)
    np.testing.assert_allclose(
        jax.grad(landing)(action, plain.with_transition_gradients()), 0.1, rtol=1e-6
    )


OPEN = ["#####", "#....", "#...#", "#####"]
ERRORS = {
    "no free cell": (dict(layout=["###", "###", "###"]), "no free cell"),
    "open border": (dict(layout=OPEN), "row 1, column 4"),
    "ragged text": (dict(layout="####\n#..#\n###"), "row 2 has 3"),
    "unknown character": (dict(layout=["####", "#.o#", "####"]), "unknown characters.*'o'"),
    "empty": (dict(layout=""), "empty"),
    "array of other values": (dict(layout=np.full((3, 3), 2)), "9 values"),
    "NaN in array": (dict(layout=np.full((3, 3), np.nan)), "9 values"),
    "3-D array": (dict(layout=np.ones((3, 3, 3))), r"\(3, 3, 3\)"),
    "ragged array": (dict(layout=[[1, 1], [1]]), "ragged"),
    "start in wall": (dict(starts=[(0.5, 0.5)]), "start 0 .*in a wall .row 0, column 0"),
    "goal in wall": (dict(goals=[(1.5, 1.5), (1.5, 3.5)]), "goal 1 .*in a wall"),
    "start outside": (dict(starts=[(7.0, 1.5)]), "outside"),
    "negative start": (dict(starts=[(-0.5, 1.5)]), "outside"),
    "goal too close": (dict(goals=[(1.5, 1.1)]), "0.1 from a wall.*0.15.*0.05"),
    "NaN start": (dict(starts=[(np.nan, 1.5)]), "not finite"),
    "three numbers": (dict(starts=[(1.5, 1.5, 0.0)]), r"\(1, 3\)"),
    "no goals": (dict(goals=[]), r"\(0,\)"),
    "no steps": (dict(max_steps=0), "max_steps must be .* at least 1, got 0"),
    "half a step": (dict(max_steps=2.5), "max_steps must be a whole number"),
    "goal leaves no start": (dict(starts=[(1.5, 1.5)], goals=[(1.7, 1.5)]), "leaves no start"),
    "one cell": (dict(layout=["###", "#.#", "###"]), "leaves no start"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_say_what_is_wrong(case):
    settings, message = ERRORS[case]
    with pytest.raises(ValueError, match=message):
        Maze2D(**{"layout": ROOM, **settings})


def test_wrong_types_are_refused():
    for settings in (dict(layout=3.0j), dict(layout=None)):
        with pytest.raises(TypeError):
            Maze2D(**{"layout": ROOM, **settings})


def test_a_start_that_touches_a_wall_is_fine():
    assert Maze2D(ROOM, starts=[(1.15, 1.15), (3.85, 2.85)], goals=[(2.5, 2.0)]).starts


def test_spaces_and_layouts():
    env, params = make("Maze2D-Simple-v0")
    assert env.action_space(params).shape == (2,) and env.num_actions == 2
    space = env.observation_space(params)
    obs, state = env.reset(jax.random.key(0), params)
    np.testing.assert_array_equal(obs, np.float32([1.5, 1.5, 8.5, 8.5, 1.5, 1.5]))
    assert obs.dtype == jnp.float32 and space.shape == obs.shape and space.contains(obs)
    walls = np.zeros((10, 10), bool)
    walls[[0, -1]] = walls[:, [0, -1]] = True
    walls[3, 2:8] = walls[2:8, 6] = True
    walls[3, 5] = walls[5, 6] = False
    np.testing.assert_array_equal(np.array(env.layout), walls)
    corridor, _ = make("Maze2D-Corridor-v0")
    assert np.array(corridor.layout).shape == (5, 20) and np.sum(corridor.layout) == 46
    large, params = make("Maze2D-Large-v0")
    assert len(large.starts) == len(large.goals) == 46 and params.max_steps_in_episode == 800
