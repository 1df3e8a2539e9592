"""Purcell's swimmer against the mechanics written down plainly, and what gaits are known to do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrl_jax as lrl
from lrl_jax.env_spec import env_spec
from lrl_jax.envs import Swimmer
from lrl_jax.envs.swimmer import _drift, swim


def drift(joints, moved):
    """Displacement and turn by solving for no force and no torque, links laid end to end."""
    angles = np.array([-joints[0], 0.0, joints[1]])
    turns = np.array([-moved[0], 0.0, moved[1]])
    # Heading is the mean of the three.
    angles, turns = angles - angles.mean(), turns - turns.mean()
    along = np.stack([np.cos(angles), np.sin(angles)], 1)
    across = np.stack([-along[:, 1], along[:, 0]], 1)
    centres = np.stack([-along[1] - along[0], np.zeros(2), along[1] + along[2]]) / 2
    first, last = turns[0] * across[0], turns[2] * across[2]
    rates = np.stack([-turns[1] * across[1] - first, np.zeros(2), turns[1] * across[1] + last]) / 2
    rates -= rates.mean(0)
    arms = centres - centres.mean(0)
    matrix, right = np.zeros((3, 3)), np.zeros(3)
    for t, n, arm, rate, turn in zip(along, across, arms, rates, turns, strict=True):
        drag = np.outer(t, t) + 2 * np.outer(n, n)
        jacobian = np.array([[1, 0, -arm[1]], [0, 1, arm[0]]])
        matrix += jacobian.T @ drag @ jacobian
        matrix[2, 2] += 2 / 12
        right -= jacobian.T @ drag @ rate
        right[2] -= 2 / 12 * turn
    return np.linalg.solve(matrix, right)


def test_moves_as_forces_and_torques_that_vanish_demand():
    rng = np.random.default_rng(0)
    for _ in range(20):
        joints, moved = rng.uniform(-1.8, 1.8, 2), rng.uniform(-1, 1, 2)
        found = np.array(_drift(jnp.float32(joints), jnp.float32(moved)))
        np.testing.assert_allclose(found, drift(joints, moved), atol=1e-6)


@jax.jit
def swum(actions, joints):
    """Position, heading and joints after actions [T, 2]."""
    start = (jnp.zeros(2), jnp.zeros(()), joints)
    return jax.lax.scan(lambda carry, action: (swim(*carry, action), None), start, actions)[0]


def test_held_actions_and_reversed_strokes_go_nowhere():
    rng = np.random.default_rng(1)
    for action in rng.uniform(-1, 1, (8, 2)):
        position, *_ = swum(jnp.full((20, 2), action, jnp.float32), jnp.zeros(2))
        assert np.hypot(*position) < 0.3
    stroke = rng.uniform(-0.2, 0.2, (6, 2))
    there_and_back = np.concatenate([stroke, -stroke[::-1]]).astype(np.float32)
    position, heading, joints = swum(jnp.array(there_and_back), jnp.zeros(2))
    np.testing.assert_allclose(position, 0.0, atol=1e-5)
    np.testing.assert_allclose([heading, *joints], 0.0, atol=1e-5)


def best_distance(period, n=2000, steps=20):
    """Farthest of random square waves of a period."""
    rng = np.random.default_rng(2)
    t = np.arange(steps)[None, :, None]
    phase = rng.integers(0, period, (n, 1, 2))
    waves = np.sign(np.sin(2 * np.pi * (t + 0.5 + phase) / period))
    waves = waves * rng.choice([0.25, 0.5, 0.75, 1.0], (n, 1, 2))
    start = rng.uniform(-1.8, 1.8, (n, 2))
    position, *_ = jax.vmap(swum)(jnp.float32(waves), jnp.float32(start))
    return float(np.hypot(*np.asarray(position).T).max())


def test_gaits_swim():
    best = {period: best_distance(period) for period in (2, 6, 20)}
    assert best[6] > 0.9 > 0.6 > best[20] > best[2]


def test_the_environment_as_a_goal_based_one():
    env, params = lrl.make("Swimmer-Open-v0")
    assert env == Swimmer() != Swimmer(terminate_at_goal=True) and hash(env) == hash(Swimmer())
    obs, state = jax.vmap(env.reset, (0, None))(jax.random.split(jax.random.key(0), 500), params)
    distance = np.hypot(*np.asarray(state.goal).T)
    assert 2 <= distance.min() < 2.1 and 3.9 < distance.max() <= 4
    np.testing.assert_allclose(obs[:, 2:4], state.goal)
    near = jax.tree.map(lambda x: x[0], state).replace(goal=jnp.array([0.1, 0.0]))
    for ends in (False, True):
        env = Swimmer(terminate_at_goal=ends)
        _, _, reward, terminated, truncated, info = env.step(
            jax.random.key(0), near, jnp.zeros(2), params
        )
        assert info["is_success"] and terminated == ends and not truncated
        assert reward == pytest.approx(-0.1 / 4) == env.compute_reward(jnp.zeros(2), near.goal)
    carry = lrl.init_carry(lrl.RandomHierarchy(env), jax.random.key(0), 4)
    _, out = lrl.rollout(lrl.RandomHierarchy(env), carry, n_steps=201)
    assert int(out.metrics["n_episodes"]) >= 4
    with pytest.raises(TypeError, match="dense_reward"):
        Swimmer(dense_reward=1)


# --------------------------------------------------------------------- in a maze

CORNER = ("####", "#..#", "##.#", "####")


def body(position, heading, joints):
    """Ends of the links, [4, 2], around their centroid."""
    angles = np.array([0.0, joints[0], joints[0] + joints[1]])
    angles += heading - angles.mean()
    ends = np.cumsum([[0, 0], *np.stack([np.cos(angles), np.sin(angles)], 1)], 0)
    centres = (ends[1:] + ends[:-1]) / 2
    return ends - centres.mean(0) + position


def test_no_link_touches_a_wall_in_any_pose():
    env = Swimmer(CORNER, max_steps=50)
    params = env.default_params
    keys = jax.random.split(jax.random.key(3), 32)
    _, states = jax.vmap(env.reset, (0, None))(keys, params)
    assert {tuple(x) for x in np.asarray(states.position)} == {(6, 6), (10, 6), (10, 10)}
    assert (np.asarray(states.position) != np.asarray(states.goal)).any(1).all()
    free = np.array([[c == "." for c in line] for line in CORNER])
    step = jax.jit(jax.vmap(env.step_env, (0, 0, 0, None)))
    wave = np.sign(np.sin(2 * np.pi * (np.arange(120)[:, None] + [0.5, 2.0]) / 6))
    went = np.zeros(32)
    for action in wave:
        before = np.asarray(states.position)
        _, states, reward, *_ = step(keys, states, np.tile(np.float32(action), (32, 1)), params)
        went += np.hypot(*(np.asarray(states.position) - before).T)
        for i in range(32):
            points = body(states.position[i], states.heading[i], states.joints[i])
            cells = np.floor(points / env.cell_size).astype(int)
            assert free[cells[:, 1], cells[:, 0]].all()
    assert went.min() > 1  # they did swim
    distance = np.hypot(*np.asarray(states.position - states.goal).T)
    np.testing.assert_allclose(reward, -distance / np.hypot(16, 16), rtol=1e-5)


def test_walls_stop_what_moves_into_them():
    env = Swimmer(CORNER)
    params = env.default_params
    _, state = env.reset(jax.random.key(0), params)
    inside = state.replace(position=jnp.array([9.0, 6.0]))
    wall = state.replace(position=jnp.array([5.5, 5.5]))  # both sides are touched
    open_state = state.replace(position=jnp.array([0.0, 0.0]))
    for action in np.random.default_rng(0).uniform(-1, 1, (20, 2)).astype(np.float32):
        free = swim(open_state.position, state.heading, state.joints, action)[0]
        moved = env.step_env(jax.random.key(0), inside, action, params)[1]
        np.testing.assert_allclose(moved.position - inside.position, free, atol=1e-5)
        moved = env.step_env(jax.random.key(0), wall, action, params)[1]
        np.testing.assert_allclose(moved.position - wall.position, np.maximum(free, 0.0), atol=1e-5)


def test_mazes_of_swimmers():
    env, params = lrl.make("Swimmer-UMaze-v0", max_steps=300)
    assert params.max_steps_in_episode == 300 and env != lrl.make("Swimmer-UMaze-v0")[0]
    assert env == Swimmer(env_layout(env), max_steps=300) != Swimmer(max_steps=300)
    low, high = (np.asarray(x) for x in env_spec(env).obs_space.bounds)
    assert (low[:4] == 0).all() and (high[:4] == 20).all()
    image = lrl.envs.render_maze(env, env.reset(jax.random.key(0), params)[1], size=100)
    # The body is drawn where it is in the world, not in cells.
    rows, columns = np.nonzero((image == (206, 62, 58)).all(-1))
    position = env.reset(jax.random.key(0), params)[1].position
    np.testing.assert_allclose([columns.mean(), rows.mean()], position * 5, atol=1)
    for layout, cell_size, message in (
        ("###\n#.#\n###", 4.0, "one free cell"),
        (CORNER, 3.0, "cell_size"),
        ("....", 4.0, "border"),
    ):
        with pytest.raises(ValueError, match=message):
            Swimmer(layout, cell_size)


def env_layout(env):
    return ["".join("#" if wall else "." for wall in row) for row in env.layout]
