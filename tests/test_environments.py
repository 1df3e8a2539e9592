"""What JAX environments may be like: observations, parameters, older steps, success."""

import dataclasses
from typing import Any

import gymnasium
import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrl_jax as lrl
from lrl_jax.algorithms import DQN
from lrl_jax.levels import ActionRepeatLevel, DQNLevel, RandomLevel

CARTPOLE = type(gymnax.make("CartPole-v1")[0])
# MNIST is downloaded; mazes have tests of their own.
IDS = [i for i in gymnax.registered_envs if not i.startswith(("Maze2D", "MNIST"))]


def rolled(env, params=None, n_steps=3, n=2, **settings):
    hierarchy = lrl.RandomHierarchy(env, env_params=params)
    carry = lrl.init_carry(hierarchy, jax.random.key(0), n)
    return lrl.rollout(hierarchy, carry, n_steps, record=True, **settings)[1]


# --------------------------------------------------------------------- all ids


@pytest.mark.parametrize("env_id", IDS)
def test_every_id_takes_its_parameters_by_keyword(env_id):
    env, params = lrl.make(env_id, max_steps_in_episode=7)
    assert params.max_steps_in_episode == 7
    lrl.RandomHierarchy(env, env_params=params)
    with pytest.raises(TypeError, match=f"{env_id}.*'no_such'.*max_steps_in_episode"):
        lrl.make(env_id, no_such=1)


@pytest.mark.slow
@pytest.mark.parametrize("env_id", IDS)
def test_a_random_hierarchy_runs_in_every_id(env_id):
    out = rolled(*lrl.make(env_id, max_steps_in_episode=4), n_steps=10)
    assert out.metrics["n_episodes"] >= 4
    assert np.isfinite(np.asarray(out.transitions.obs_next, np.float32)).all()


@pytest.mark.parametrize("env_id", ["Catch-bsuite", "FrozenLake-misc"])
def test_whole_numbers_are_observations_and_features(env_id):
    env, params = lrl.make(env_id)
    sizes = {"buffer_size": 64, "batch_size": 4, "update_interval": 4, "n_updates": 1}
    level = DQNLevel(DQN(hidden=(8,)), **sizes, warm_up_steps=0)
    hierarchy = lrl.Hierarchy([level], env, params)
    carry = lrl.init_carry(hierarchy, jax.random.key(0), 2)
    carry, out = lrl.rollout(hierarchy, carry, 6, learn=True, record=True)
    assert jnp.issubdtype(out.transitions.obs.dtype, jnp.integer)
    assert out.metrics["level0/n_updates"] > 0
    learner = carry.hierarchy.levels[0].learner
    if env_id == "FrozenLake-misc":
        np.testing.assert_array_equal(learner.see(jnp.array([3, 15])), np.eye(16)[[3, 15]])


def test_whole_numbers_of_gymnasium_are_observations():
    class Spots(gymnasium.Env):
        observation_space = gymnasium.spaces.Discrete(5, start=2)
        action_space = gymnasium.spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            return 2, {}

        def step(self, action):
            return 6, 0.0, False, False, {}

    for space in (gymnasium.spaces.MultiDiscrete([3, 4]), gymnasium.spaces.MultiBinary(2)):
        bounds = lrl.spaces.from_any(space, integers=True)
        assert isinstance(bounds, lrl.spaces.Box) and bounds.shape == (2,)
    hierarchy = lrl.Hierarchy([RandomLevel(buffer_size=8)], Spots())
    collector = lrl.Collector(hierarchy, exploration_noise=True)
    collector.collect(n_steps=2)
    assert lrl.buffers.stored(collector.state.levels[0].buffer)["obs"].tolist() == [2, 6]


# ----------------------------------------------------------------- parameters


def test_maps_in_the_place_of_parameters_are_refused():
    maze, params = lrl.make("Maze2D-Medium-v0")
    levels = [RandomLevel(), ActionRepeatLevel(2)]
    for wrong in ([lambda obs: obs[:1], None], lambda obs: obs):
        with pytest.raises(TypeError, match="env_obs_maps="):
            lrl.Hierarchy(levels, maze, wrong)
        with pytest.raises(TypeError, match="env_obs_maps="):
            lrl.Hierarchy(levels, gymnasium.make("Pendulum-v1"), wrong)
    with pytest.raises(ValueError, match="Gymnasium"):
        lrl.Hierarchy(levels, gymnasium.make("Pendulum-v1"), params)


def test_every_loop_uses_the_hierarchys_parameters_and_tests_may_have_their_own():
    env, params = lrl.make("Pendulum-v1", max_steps_in_episode=5)
    hierarchy = lrl.RandomHierarchy(env, env_params=params)
    carry = lrl.init_carry(hierarchy, jax.random.key(0), 2)
    assert lrl.rollout(hierarchy, carry, 10)[1].metrics["n_episodes"] == 4
    assert lrl.evaluate(hierarchy, carry.hierarchy, jax.random.key(0), 2).length.tolist() == [5, 5]
    longer = params.replace(max_steps_in_episode=7)
    for own in ({}, {"test_env": lrl.make("Pendulum-v1")[0]}):
        collector = lrl.Collector(hierarchy, test_env_params=longer, **own)
        assert collector.collect(n_steps=10).lens.tolist() == [5, 5]
        assert collector.evaluate(1).lens.tolist() == [7]


def test_parameters_are_swept_under_vmap():
    env, params = lrl.make("Pendulum-v1")
    hierarchy = lrl.RandomHierarchy(env, env_params=params)

    def reward(g):
        own = params.replace(g=g)
        carry = lrl.init_carry(hierarchy, jax.random.key(0), 3, env_params=own)
        return lrl.rollout(hierarchy, carry, 5, env_params=own)[1].metrics["reward_mean"]

    g = jnp.array([1.0, 10.0])
    np.testing.assert_allclose(jax.vmap(reward)(g), [reward(x) for x in g], rtol=1e-5)


def test_each_instance_may_have_parameters_of_its_own():
    env, params = lrl.make("Pendulum-v1", max_steps_in_episode=6)
    g = jnp.array([1.0, 5.0, 10.0])
    own = params.replace(g=g)
    for hierarchy, given in (
        (lrl.RandomHierarchy(env, env_params=own), {}),
        (lrl.RandomHierarchy(env, env_params=params), {"env_params": own}),
    ):
        carry = lrl.init_carry(hierarchy, jax.random.key(0), 3, **given)
        rew = lrl.rollout(hierarchy, carry, 4, record=True, **given)[1].transitions.rew
        for i in range(3):
            one = {"env_params": params.replace(g=g[i])}
            carry = lrl.init_carry(hierarchy, jax.random.key(0), 3, **one)
            alone = lrl.rollout(hierarchy, carry, 4, record=True, **one)[1].transitions.rew
            np.testing.assert_allclose(rew[:, i], alone[:, i], rtol=1e-6)
        tested = lrl.evaluate(hierarchy, carry.hierarchy, jax.random.key(0), 3, **given)
        assert tested.finished.all()


def test_parameters_that_do_not_fit_are_refused_in_every_loop():
    env, params = lrl.make("Pendulum-v1")
    hierarchy = lrl.RandomHierarchy(env, env_params=params)
    carry = lrl.init_carry(hierarchy, jax.random.key(0), 2)
    with pytest.raises(ValueError, match=r"env_params.g has 3 values, but there are 2 instances"):
        lrl.rollout(hierarchy, carry, 2, env_params=params.replace(g=jnp.ones(3)))
    with pytest.raises(ValueError, match=r"built for action_space Box\(-2, 2"):
        lrl.rollout(hierarchy, carry, 2, env_params=params.replace(max_torque=10.0))
    different = params.replace(max_torque=jnp.array([2.0, 3.0]))
    with pytest.raises(ValueError, match="different action spaces"):
        lrl.rollout(hierarchy, carry, 2, env_params=different)
    with pytest.raises(ValueError, match="different action spaces"):
        lrl.RandomHierarchy(env, env_params=different)


# ------------------------------------------------------------------ older steps


class FiveValues(CARTPOLE):
    """Of five values, with what is needed in the info."""

    def step(self, key, state, action, params=None):
        obs, state, rew, terminated, truncated, info = super().step(key, state, action, params)
        return obs, state, rew, terminated | truncated, info


class OlderBase:
    """`step` as in gymnax before 1.0."""

    def step(self, key, state, action, params):
        key, reset_key = jax.random.split(key)
        obs, new, rew, done, info = self.step_env(key, state, action, params)
        start = self.reset_env(reset_key, params)
        obs, state = jax.tree.map(lambda x, y: jnp.where(done, x, y), start, (obs, new))
        return obs, state, rew, done, info

    def reset(self, key, params):
        return self.reset_env(key, params)

    def step_env(self, key, state, action, params) -> Any:
        raise NotImplementedError

    def reset_env(self, key, params) -> Any:
        raise NotImplementedError


class Older(OlderBase):
    """CartPole as gymnax had it: `done` also at the time limit."""

    inner = CARTPOLE()
    default_params = inner.default_params
    action_space, observation_space = inner.action_space, inner.observation_space

    def step_env(self, key, state, action, params):
        obs, state, rew, terminated, info = self.inner.step_env(key, state, action, params)
        return obs, state, rew, terminated | self.inner.is_truncated(state, params), {}

    def reset_env(self, key, params):
        return self.inner.reset_env(key, params)


class NoFinal(CARTPOLE):
    """Six values, without the final observation."""

    def step(self, key, state, action, params=None):
        return *super().step(key, state, action, params)[:-1], {}


class Shaped(Older):
    """Changes what the older base's step says: its parts alone would leave that out."""

    def step(self, key, state, action, params):
        obs, state, rew, done, info = super().step(key, state, action, params)
        return obs, state, 2 * rew, done, info


@pytest.mark.parametrize("limit", [3, 200])
def test_steps_of_five_values_are_completed(limit):
    env, params = lrl.make("CartPole-v1", max_steps_in_episode=limit)
    expected = rolled(env, params, 40).transitions
    assert (expected.truncated if limit == 3 else expected.terminated).any()
    for older in (FiveValues(), Older()):
        got = rolled(older, params, 40).transitions
        for field in dataclasses.fields(got):
            np.testing.assert_array_equal(getattr(got, field.name), getattr(expected, field.name))


@pytest.mark.parametrize("env", [NoFinal(), Shaped()])
def test_steps_without_a_final_observation_are_refused_by_name(env):
    with pytest.raises(ValueError, match=f"{type(env).__name__}.step .*'final_observation'"):
        rolled(env)


# --------------------------------------------------------------------- success


class Says(CARTPOLE):
    """CartPole whose info says something of success."""

    says: Any = None

    def step_env(self, key, state, action, params):
        obs, state, rew, terminated, info = super().step_env(key, state, action, params)
        return obs, state, rew, terminated, {**info, "success": self.says}


class HostSays(gymnasium.Env):
    """Episodes of four steps; the last one or all say something of success."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, says=None, last_only=False):
        self.says, self.last_only = says, last_only

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.t += 1
        done = self.t == 4
        says = self.says is not None and (done or not self.last_only)
        return np.zeros(2, np.float32), 0.0, done, False, {"success": self.says} if says else {}


NO_FLAG = [{"a": False, "b": True}, np.zeros(3, bool)]


@pytest.mark.parametrize("says", [None, *NO_FLAG])
def test_success_is_none_where_nothing_tells_it(says):
    env = CARTPOLE()
    if says is not None:
        env = Says()
        env.says = jax.tree.map(jnp.asarray, says)
    params = env.default_params.replace(max_steps_in_episode=5)
    collector = lrl.Collector(lrl.RandomHierarchy(env, env_params=params), n_env_instances=2)
    stats = collector.collect(n_steps=10)
    assert stats["n_episodes"] >= 4 and stats["success_rate"] is None
    result = collector.test(0, collector.hierarchy.get_copy(collector.state), 10)
    assert result["test_success_in_ep"] is result["test_success_frac"] is None
    told = lrl.evaluate(collector.hierarchy, collector.state, jax.random.key(0), 2).told
    assert not told.any()


@pytest.mark.parametrize("says", [None, "yes", *NO_FLAG])
def test_success_is_none_on_the_host_too(says):
    env = HostSays(says)
    assert lrl.Collector(lrl.RandomHierarchy(env)).collect(n_steps=8)["success_rate"] is None
    with lrl.AsyncCollector(lrl.RandomHierarchy(env), [lambda: HostSays(says)] * 2) as collector:
        assert collector.collect(n_total_steps=16)["success_rate"] is None


@pytest.mark.parametrize("says", [True, np.bool_(True), 1.0, np.array([True])])
@pytest.mark.parametrize("mode", ["single", "NEXT_STEP", "SAME_STEP", "async"])
def test_success_is_found_where_only_the_last_step_tells_it(says, mode):
    def make():
        return HostSays(says, last_only=True)

    if mode == "async":
        with lrl.AsyncCollector(lrl.RandomHierarchy(make()), [make] * 2) as collector:
            stats = collector.collect(n_total_steps=16)
    else:
        env: Any = make()
        if mode != "single":
            mode = gymnasium.vector.AutoresetMode[mode]
            env = gymnasium.vector.SyncVectorEnv([make] * 2, autoreset_mode=mode)
        stats = lrl.Collector(lrl.RandomHierarchy(env)).collect(n_steps=8)
    assert stats["success_rate"] == 1.0 and stats.successes_at_end.all()


def test_a_test_that_is_shorter_than_an_episode_says_so():
    env, params = lrl.make("Pendulum-v1")
    collector = lrl.Collector(lrl.RandomHierarchy(env, env_params=params))
    with pytest.warns(UserWarning, match="no episode ended within the 3 steps"):
        result = collector.test(0, collector.hierarchy.get_copy(collector.state), 3)
    assert result["test_return"] is None
