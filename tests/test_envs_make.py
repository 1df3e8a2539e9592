"""Ids, settings, and where goals are in observations."""

import importlib
import sys

import gymnasium
import gymnax
import jax
import numpy as np
import pytest

import lrl_jax.envs as envs
from lrl_jax.envs import BUILTIN, Maze2D, goal_indices, make

PARTS = {"achieved_goal": (0, 2), "desired_goal": (2, 4), "observation": (4, 6)}


@pytest.mark.parametrize("env_id", sorted(BUILTIN))
def test_builtin_ids_are_known_here_and_to_gymnax(env_id):
    ours, params = make(env_id)
    theirs, their_params = gymnax.make(env_id)
    assert isinstance(ours, Maze2D) and ours == theirs and params == their_params
    limits = {"Large-Inertia": 600, "Large": 800, "Giant": 800, "x10": 4_000, "x30": 12_000}
    expected = [limit for name, limit in limits.items() if name in env_id] or [400]
    assert params.max_steps_in_episode == expected[0]
    obs, state = ours.reset(jax.random.key(0), params)
    assert len(ours.step(jax.random.key(1), state, np.ones(2), params)) == 6
    inertia = {"observation": (4, 8)} if "Inertia" in env_id else {}
    assert goal_indices(ours) == {**PARTS, **inertia}


def test_importing_twice_is_safe():
    before = list(gymnax.registered_envs)
    importlib.reload(envs)
    envs.register_own()
    assert gymnax.registered_envs == before


def test_settings_go_to_the_constructor_or_the_parameters():
    env, params = make("Maze2D-Medium-v0", max_steps=7, dense_reward=False, goals=[(1.5, 1.5)])
    assert params.max_steps_in_episode == 7 and not env.dense_reward
    assert env.goals == ((1.5, 1.5),) and len(env.starts) == 4
    _, params = make("Maze2D-Medium-v0", max_steps_in_episode=9)
    assert params.max_steps_in_episode == 9
    env, params = make("CartPole-v1", max_steps_in_episode=11)
    assert env.name == "CartPole-v1" and params.max_steps_in_episode == 11
    env, _ = make("DeepSea-bsuite", size=5)
    assert env.size == 5


@pytest.mark.parametrize("env_id", ["Maze2D-Medium-v0", "CartPole-v1"])
def test_unknown_settings_are_refused(env_id):
    with pytest.raises(TypeError, match=f"{env_id}.*max_step'.*max_steps_in_episode"):
        make(env_id, max_step=3)


def test_a_builtin_id_takes_no_layout():
    with pytest.raises(TypeError, match="layout"):
        make("Maze2D-Medium-v0", layout=["###"])


def test_unknown_ids_name_the_close_ones():
    with pytest.raises(ValueError, match="did you mean Maze2D-Medium-v0.*CartPole-v1.*brax/"):
        make("maze2d-medium")
    with pytest.raises(ValueError, match="did you mean Pendulum-v1"):
        make("Pendulum-v0")
    with pytest.raises(ValueError, match=r"'': There are"):
        make("")
    with pytest.raises(TypeError, match="string"):
        make(Maze2D(["####", "#..#", "####"]))


@pytest.mark.parametrize(
    "library, module",
    [
        ("brax", "brax.envs"),
        ("playground", "mujoco_playground"),
        ("xminigrid", "xminigrid"),
        ("craftax", "craftax.craftax_env"),
    ],
)
def test_a_library_that_is_not_installed_is_named_with_its_extra(monkeypatch, library, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"{library}/some.*lrl_jax\[{library}\]"):
        make(f"{library}/some")


class GoalEnv(gymnasium.Env):
    """A Gymnasium environment with goals of 3, observations of 2 x 2."""

    action_space = gymnasium.spaces.Discrete(2)
    observation_space = gymnasium.spaces.Dict(
        observation=gymnasium.spaces.Box(-1, 1, (2, 2)),
        desired_goal=gymnasium.spaces.Box(-1, 1, (3,)),
        achieved_goal=gymnasium.spaces.Box(-1, 1, (3,)),
    )

    def reset(self, *, seed=None, options=None):
        parts = {"observation": ((2, 2), 2), "desired_goal": (3, 1), "achieved_goal": (3, 0)}
        return {k: np.full(s, v, np.float32) for k, (s, v) in parts.items()}, {}


def test_goal_indices_of_gymnasium_environments():
    expected = {"achieved_goal": (0, 3), "desired_goal": (3, 6), "observation": (6, 10)}
    env = GoalEnv()
    assert goal_indices(env) == expected
    flat = gymnasium.wrappers.FlattenObservation(env)
    obs, _ = flat.reset()  # in the order in which the space was written down
    for value, part in enumerate(sorted(expected)):
        np.testing.assert_array_equal(obs[slice(*goal_indices(flat)[part])], value)
    vector = gymnasium.vector.SyncVectorEnv([GoalEnv, GoalEnv])
    assert goal_indices(vector) == expected
    vector.close()


def test_goal_indices_refuses_environments_without_goals():
    for env in (make("CartPole-v1")[0], gymnasium.make("CartPole-v1"), object()):
        with pytest.raises(ValueError, match="not goal based"):
            goal_indices(env)


def test_goal_indices_of_an_own_environment():
    class Own:
        goal_indices = {"achieved_goal": (0, 1), "desired_goal": (1, 2)}

    assert goal_indices(Own()) == Own.goal_indices
