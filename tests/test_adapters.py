"""Environments of other libraries: the base of their adapters, and those that are installed."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrl_jax as lrl
from lrl_jax.levels import RandomLevel

# Each compiles for half a minute or more.
IDS = {
    "brax": ("inverted_pendulum", {"backend": "generalized"}, 5),
    "playground": ("CartpoleBalance", {"ctrl_dt": 0.02}, 5),
    "xminigrid": ("MiniGrid-Empty-5x5", {"view_size": 5}, 5),
    "craftax": ("Craftax-Classic-Symbolic-v1", {"zombie_health": 3}, 5),
}
MODULES = {"playground": "mujoco_playground"}


class Counter(lrl.envs.AdaptedEnvironment):
    """Counts up by the action; ends above 5."""

    def __init__(self, max_steps=4):
        space = lrl.spaces.Box(-np.inf, np.inf, (1,))
        super().__init__(
            "own/counter", lrl.spaces.Discrete(3), space, max_steps, own_params={"scale": 2.0}
        )

    def begin(self, key, own):
        return jnp.zeros(1), {"count": jnp.zeros(())}

    def advance(self, key, inner, action, own):
        count = inner["count"] + action  # an integer: the state's type would change
        return count[None], {"count": count}, own["scale"] * count, count > 5, {"count": count}


def test_an_adapter_tells_terminated_truncated_and_the_final_observation_apart():
    env = Counter()
    hierarchy = lrl.Hierarchy([RandomLevel(buffer_size=64)], env, signals=("count",))
    carry = lrl.init_carry(hierarchy, jax.random.key(0), 8)
    _, out = lrl.rollout(hierarchy, carry, 12, record=True)
    steps = jax.device_get(out.transitions)
    assert steps.terminated.any() and steps.truncated.any()
    obs = np.zeros(8)
    time = np.zeros(8)
    for t in range(12):
        np.testing.assert_array_equal(steps.obs[t, :, 0], obs)
        obs, time = obs + steps.act[t], time + 1
        np.testing.assert_array_equal(steps.obs_next[t, :, 0], obs)
        np.testing.assert_array_equal(steps.rew[t], 2 * obs)
        np.testing.assert_array_equal(steps.terminated[t], obs > 5)
        np.testing.assert_array_equal(steps.truncated[t], time >= 4)
        ends = steps.terminated[t] | steps.truncated[t]
        obs, time = np.where(ends, 0, obs), np.where(ends, 0, time)


def test_an_adapter_takes_its_librarys_parameters_of_each_instance():
    env = Counter()
    own = env.default_params.replace(own={"scale": jnp.array([1.0, 10.0])})
    hierarchy = lrl.Hierarchy([RandomLevel()], env, own)
    carry = lrl.init_carry(hierarchy, jax.random.key(0), 2)
    steps = lrl.rollout(hierarchy, carry, 3, record=True)[1].transitions
    np.testing.assert_array_equal(steps.rew, steps.obs_next[..., 0] * jnp.array([1.0, 10.0]))


def library(name):
    installed = importlib.util.find_spec(MODULES.get(name, name)) is not None
    missing = pytest.mark.skipif(not installed, reason=f"extra {name} is not installed")
    return pytest.param(name, marks=[pytest.mark.slow, missing])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [library(name) for name in IDS])
def test_a_random_hierarchy_runs_in_the_library(name):
    env_id, settings, limit = IDS[name]
    env, params = lrl.make(f"{name}/{env_id}", max_steps=limit, **settings)
    assert env.name == f"{name}/{env_id}" and params.max_steps_in_episode == limit
    hierarchy = lrl.RandomHierarchy(env, env_params=params)
    carry = lrl.init_carry(hierarchy, jax.random.key(0), 2)
    _, out = lrl.rollout(hierarchy, carry, 2 * limit, record=True)
    steps = out.transitions
    assert out.metrics["n_episodes"] >= 4
    assert steps.truncated[limit - 1].any() or steps.terminated[:limit].any()
    assert np.isfinite(np.asarray(steps.obs_next, np.float32)).all()
    with pytest.raises(TypeError, match="no_such"):
        lrl.make(f"{name}/{env_id}", no_such=1)
    with pytest.raises(ValueError, match="no-such"):
        lrl.make(f"{name}/no-such")
