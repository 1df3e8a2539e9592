"""Hindsight relabelling against a plain search through the stored episodes."""

import dataclasses
import functools
import math
from typing import Any, ClassVar

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments import environment
from gymnax.environments import spaces as gymnax_spaces

import lrl_jax as lrl
from lrl_jax import buffers, cli
from lrl_jax.algorithms import SAC, Hindsight
from lrl_jax.buffers import Replay
from lrl_jax.levels import ActionRepeatLevel, ConstantLevel, Context, SACLevel
from lrl_jax.spaces import Box
from lrl_jax.training import load_run

SPACE = Box(-1, 1, (1,))
GOAL = Box(-100, 100, (1,))
N, TICKS, DRAWS = 3, 40, 400


class Spaces:
    """Observations: achieved goal, desired goal, something else."""

    name = "spaces"
    default_params = None

    def observation_space(self, params):
        return Box(-math.inf, math.inf, (3,))

    def action_space(self, params):
        return SPACE


def reward(achieved, desired, info):
    """Tells both goals and the row apart."""
    return achieved[:, 0] * 1000 + desired[:, 0] + 0.25 * info["obs"][:, 2]


OBS_GOALS = Hindsight(reward, (0, 1), (1, 2), ratio=0.8)
INPUT_GOALS = Hindsight(reward, (0, 1), None, ratio=0.8)


@functools.cache
def played(hindsight: Hindsight, buffer_size: int):
    """A learner's rows after episodes of random lengths; every row achieved a goal of its own."""
    settings: dict[str, Any] = {"hindsight": hindsight, "buffer_size": buffer_size, "n_updates": 1}
    levels: list[Any] = []
    if hindsight.desired_goal is None:
        settings["level_input_space"] = GOAL
        settings["control_interval"] = 5
        levels = [ConstantLevel([-50.0])]
    level = SACLevel(SAC(hidden=(4,)), batch_size=64, **settings)
    h = lrl.Hierarchy([*levels, level], Spaces())
    state = h.init(jax.random.key(0), N)
    rng = np.random.default_rng(0)
    obs = first = np.stack([np.arange(N) * 200.0, np.full(N, -7.0), np.arange(N) * 0.5], 1)
    for t in range(TICKS):
        state, _ = h.get_action(state, obs.astype(np.float32))
        obs_next = first.copy()
        obs_next[:, 0] += t + 1
        ends = rng.random((2, N)) < 0.06
        rew = np.full(N, -1.0, np.float32)
        state = h.process_transition(state, obs_next.astype(np.float32), rew, *ends)
        obs = obs_next
        if t == 20:  # a reset in mid-episode ends the trajectory as well
            state = h.reset(state)
    return level, state.levels[-1].learner, Replay(state.levels[-1].buffer)


@functools.cache
def relabelled(hindsight: Hindsight, buffer_size: int, n_steps: int):
    """Rows before and rows after, of many draws."""
    _, _, replay = played(hindsight, buffer_size)

    def draw(key):
        key_rows, key = jax.random.split(key)
        if n_steps == 1:
            rows = replay.sample(key_rows, 64)
        else:
            rows, _ = replay.pieces(key_rows, 64, n_steps)
        return rows, hindsight.relabel(replay, rows, key)

    return jax.device_get(jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(1), DRAWS)))


def futures(replay) -> dict[float, list[float]]:
    """For each row, by its own achieved goal, those achieved from there to its episode's end."""
    rows = buffers.stored(replay.buffer)
    result = {}
    achieved = rows["obs_next"][:, 0]
    resets = {200.0 * i + 21 for i in range(N)}  # the last row before the reset
    for i in range(len(achieved)):
        goals = []
        for j in range(i, len(achieved)):
            if rows["instance"][j] != rows["instance"][i]:
                break
            goals.append(float(achieved[j]))
            if rows["terminated"][j] or rows["truncated"][j] or achieved[j] in resets:
                break
        result[float(achieved[i])] = goals
    return result


@pytest.mark.parametrize("buffer_size", [3 * 60, 3 * 17])
@pytest.mark.parametrize("hindsight", [OBS_GOALS, INPUT_GOALS], ids=["obs", "input"])
def test_goals_are_those_of_the_rest_of_the_episode(hindsight, buffer_size):
    _, _, replay = played(hindsight, buffer_size)
    before, after = relabelled(hindsight, buffer_size, 1)
    future = futures(replay)
    in_obs = hindsight.desired_goal is not None
    goal = (after.obs[..., 1] if in_obs else after.level_input[..., 0]).reshape(-1)
    own = before.obs_next[..., 0].reshape(-1)
    kept = goal == (-7.0 if in_obs else -50.0)
    assert abs(kept.mean() - 0.2) < 0.02
    counts: dict[float, dict[float, int]] = {}
    for row, new in zip(own[~kept].tolist(), goal[~kept].tolist(), strict=True):
        assert new in future[row]
        seen = counts.setdefault(row, {})
        seen[new] = seen.get(new, 0) + 1
    longest = max(counts, key=lambda row: len(future[row]))
    expected = sum(counts[longest].values()) / len(future[longest])
    # Uniform: chi squared has a mean of its degrees of freedom, and twice as much for variance.
    chi = sum((counts[longest].get(g, 0) - expected) ** 2 / expected for g in future[longest])
    degrees = len(future[longest]) - 1
    assert degrees >= 8 and chi < degrees + 5 * math.sqrt(2 * degrees)


@pytest.mark.parametrize("hindsight", [OBS_GOALS, INPUT_GOALS], ids=["obs", "input"])
def test_rewards_and_observations_follow_the_goal(hindsight):
    before, after = relabelled(hindsight, 180, 1)
    in_obs = hindsight.desired_goal is not None
    goal = after.obs[..., 1] if in_obs else after.level_input[..., 0]
    kept = goal == (-7.0 if in_obs else -50.0)
    expected = after.obs_next[..., 0] * 1000 + goal + 0.25 * after.obs[..., 2]
    if in_obs:  # rows that keep their goal keep the environment's reward
        expected = np.where(kept, -1.0, expected)
        np.testing.assert_array_equal(after.obs_next[..., 1], goal)
    np.testing.assert_allclose(after.rew, expected, rtol=1e-6)
    for name in ("obs", "obs_next"):
        new, old = (getattr(x, name)[..., [0, 2]] for x in (after, before))
        np.testing.assert_array_equal(new, old)
    for name in ("act", "terminated", "truncated"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))


def test_pieces_of_trajectories_get_one_goal():
    _, _, replay = played(OBS_GOALS, 180)
    before, after = relabelled(OBS_GOALS, 180, 3)
    assert before.id.shape == (DRAWS, 3, 64)
    goal = after.obs[..., 1]
    np.testing.assert_array_equal(goal[:, 1:], np.broadcast_to(goal[:, :1], goal[:, 1:].shape))
    future = futures(replay)
    for row, new in zip(before.obs_next[:, 0, :, 0].ravel(), goal[:, 0].ravel(), strict=True):
        assert new == -7.0 or float(new) in future[float(row)]


def test_ratios_and_terminations():
    _, _, replay = played(OBS_GOALS, 180)
    rows = replay.sample(jax.random.key(0), 64)
    none = dataclasses.replace(OBS_GOALS, ratio=0.0).relabel(replay, rows, jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, none, rows)
    ends = dataclasses.replace(
        OBS_GOALS,
        ratio=1.0,
        terminated_fn=lambda achieved, goal, info: achieved[:, 0] == goal[:, 0],
    ).relabel(replay, rows, jax.random.key(1))
    np.testing.assert_array_equal(ends.terminated, ends.obs_next[:, 0] == ends.obs[:, 1])
    kept = dataclasses.replace(
        OBS_GOALS, ratio=1.0, terminated_fn=lambda achieved, goal, info: info["terminated"]
    ).relabel(replay, rows, jax.random.key(1))
    np.testing.assert_array_equal(kept.terminated, rows.terminated)
    assert ends.terminated.any() and not ends.terminated.all()


def test_a_level_learns_from_relabelled_rows():
    level, learner, replay = played(OBS_GOALS, 180)
    rows, mask = level.sample(replay, jax.random.key(3))
    batch = level.batch(learner, replay, rows, mask)
    assert 0.6 < np.mean(np.asarray(batch.obs[:, 1]) != -7.0) <= 1.0
    assert rows.obs.shape == (64, 3)
    ctx = Context(jax.random.key(3), jnp.float32(TICKS * N))
    new, metrics = level.learn(learner, replay, ctx)
    assert np.isfinite(metrics["critic_loss"])


def test_relabelled_rows_terminate_where_the_environment_would():
    env, _ = lrl.make("Maze2D-Medium-v0", terminate_at_goal=True)
    ends = Hindsight(ratio=0.5).bind_env(env).terminated_fn
    goals = jnp.array([[1.5, 1.5], [6.5, 6.5]])
    np.testing.assert_array_equal(ends(goals, goals[:1], {}), [True, False])
    own = Hindsight(ratio=0.5, terminated_fn=lambda achieved, desired, info: None)
    assert own.bind_env(env).terminated_fn is own.terminated_fn


def test_of_env():
    env, _ = lrl.make("Maze2D-Medium-v0")
    hindsight = Hindsight.of_env(env, ratio=0.5)
    assert (hindsight.achieved_goal, hindsight.desired_goal, hindsight.ratio) == (
        (0, 2),
        (2, 4),
        0.5,
    )
    a, b = jnp.array([[1.5, 1.5], [3.0, 2.0]]), jnp.array([[1.5, 2.5], [3.0, 2.0]])
    np.testing.assert_allclose(hindsight.reward_fn(a, b, {}), [-1 / math.hypot(8, 8), 0.0])
    assert hash(hindsight) == hash(Hindsight.of_env(lrl.make("Maze2D-Medium-v0")[0], ratio=0.5))
    with pytest.raises(TypeError, match="compute_reward"):
        Hindsight.of_env(lrl.make("Pendulum-v1")[0])


def test_of_env_above_a_level_is_of_the_scale_of_its_rows():
    """Rows of three steps with rewards of -1 are worth -3, relabelled or not; 0 at the goal."""
    env = Point()
    fields = {}
    for ratio in (0.0, 1.0):
        level = SACLevel(
            SAC(hidden=(4,)),
            batch_size=64,
            buffer_size=64,
            warm_up_steps=1e6,
            hindsight=Hindsight(ratio=ratio),
        )
        agent = lrl.Hierarchy([level, ActionRepeatLevel(3)], env)
        collector = lrl.Collector(agent, n_env_instances=2)
        collector.collect(n_steps=18, learn=True)
        replay = Replay(collector.state.levels[0].buffer)
        rows, _ = agent.levels[0].sample(replay, jax.random.key(0))
        fields[ratio] = set(np.asarray(rows.rew).tolist())
    assert fields[0.0] == {-3.0} and fields[1.0] == {-3.0, 0.0}
    discounted = dataclasses.replace(level, reward_discount=0.9)
    with pytest.raises(ValueError, match="reward_discount weighs them"):
        lrl.Hierarchy([discounted, ActionRepeatLevel(3)], env)
    lrl.Hierarchy([discounted], env)  # rows of one step


class Point(environment.Environment):
    """Moves up by one a step, for nine steps; the goal is out of reach."""

    default_params = environment.EnvParams(max_steps_in_episode=9)
    goal_indices: ClassVar = {"achieved_goal": (0, 1), "desired_goal": (1, 2)}

    def get_obs(self, state, params=None, key=None):
        return jnp.stack([state.time.astype(jnp.float32), jnp.float32(99)])

    def reset_env(self, key, params):
        state = environment.EnvState(time=jnp.int32(0))
        return self.get_obs(state), state

    def step_env(self, key, state, action, params):
        state = environment.EnvState(time=state.time + 1)
        return self.get_obs(state), state, jnp.float32(-1), jnp.bool_(False), {}

    def compute_reward(self, achieved_goal, desired_goal, info):
        return jnp.where((achieved_goal == desired_goal).all(-1), 0.0, -1.0)

    def action_space(self, params=None):
        return gymnax_spaces.Box(-1, 1, (1,))

    def observation_space(self, params=None):
        return gymnax_spaces.Box(0, 99, (2,))


@pytest.mark.parametrize(
    "settings, error, words",
    [
        ({"reward_fn": None}, TypeError, "callable"),
        ({"achieved_goal": (2, 2)}, ValueError, "start, stop"),
        ({"achieved_goal": (0, 1, 2)}, ValueError, "start, stop"),
        ({"desired_goal": (1, 3)}, ValueError, "differ in size"),
        ({"ratio": 1.5}, ValueError, "ratio"),
    ],
)
def test_bad_settings(settings, error, words):
    with pytest.raises(error, match=words):
        dataclasses.replace(OBS_GOALS, **settings)


def test_goals_that_the_level_does_not_see():
    outside = dataclasses.replace(OBS_GOALS, desired_goal=(3, 4))
    with pytest.raises(ValueError, match="entries up to 4, but the level sees 3"):
        lrl.Hierarchy([SACLevel(hindsight=outside)], Spaces())
    with pytest.raises(ValueError, match="level's input for the goal"):
        lrl.Hierarchy([SACLevel(hindsight=INPUT_GOALS)], Spaces())


class GymPoint(gymnasium.Env):
    """A point on a line as Gymnasium's goal-based environments are, with rewards by NumPy."""

    goals = gymnasium.spaces.Box(-9, 9, (1,), np.float32)
    observation_space = gymnasium.spaces.Dict(
        {"achieved_goal": goals, "desired_goal": goals, "observation": goals}
    )
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def observe(self):
        achieved = np.array([self.at], np.float32)
        goal = np.array([5], np.float32)
        return {"achieved_goal": achieved, "desired_goal": goal, "observation": achieved}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at = 0.0
        return self.observe(), {}

    def step(self, action):
        self.at += 1.0
        obs = self.observe()
        reward = self.compute_reward(obs["achieved_goal"], obs["desired_goal"], {})
        return obs, float(reward), False, self.at >= 4, {}

    def compute_reward(self, achieved_goal, desired_goal, info):
        assert isinstance(achieved_goal, np.ndarray)
        return -(np.linalg.norm(achieved_goal - desired_goal, axis=-1) > 0.5).astype(np.float32)


@pytest.fixture
def gym_point():
    gymnasium.register("HindsightPoint-v0", GymPoint)
    yield "HindsightPoint-v0"
    del gymnasium.registry["HindsightPoint-v0"]


def test_gymnasiums_goals_are_relabelled_from_the_command_line(gym_point, tmp_path):
    small = ["--levels.0.batch-size", "16", "--levels.0.algorithm.hidden", "4"]
    small += ["--levels.0.warm-up-steps", "8", "--levels.0.buffer-size", "200"]
    small += ["--n-env-instances", "2", "--round-ticks", "2", "--levels.0.n-updates", "1"]
    steps = ["--total-steps", "48", "--test-interval", "48", "--test-episodes", "1"]
    wanted = ["--env", f"gymnasium/{gym_point}", "--levels.0.hindsight.ratio", "1.0"]
    run = str(tmp_path / "run")
    options = [*wanted, *small, *steps, "--final-test-episodes", "1", "--out", run]
    cli.main(["train", "maze2d-medium-sac-her", *options])
    agent, state, env, _ = load_run(run)
    env.close()
    rows, _ = agent.levels[0].sample(Replay(state.levels[0].buffer), jax.random.key(0))
    obs = np.asarray(rows.obs)  # achieved, desired, observation
    assert set(obs[:, 1]) <= {1.0, 2.0, 3.0, 4.0} and set(np.asarray(rows.rew)) == {-1.0, 0.0}
    np.testing.assert_array_equal(rows.rew == 0, rows.obs_next[:, 0] == obs[:, 1])


def test_gymnasiums_goals_in_other_processes_and_bad_ones(gym_point):
    shown = gymnasium.make_vec(gym_point, num_envs=2, vectorization_mode="sync")

    class Hidden(gymnasium.vector.VectorEnv):
        spec = shown.spec
        single_observation_space = shown.single_observation_space

    hindsight = Hindsight.of_env(Hidden())
    goals = jnp.array([[1.0], [5.0], [4.0]])
    found = jax.jit(hindsight.reward_fn)(goals, jnp.full((3, 1), 5.0), {})
    np.testing.assert_array_equal(found, [-1.0, 0.0, -1.0])
    assert hindsight.terminated_fn is None
    with pytest.raises(TypeError, match="compute_reward"):
        Hindsight.of_env(gymnasium.make("Pendulum-v1"))
