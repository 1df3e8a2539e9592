"""Every environment that is promised: random actions and a fitting learner, of all libraries.

For `make test-extras`: what needs packages that are not installed is skipped, and named.
"""

from __future__ import annotations

import importlib.util
from importlib.metadata import version

import gymnasium
import gymnax
import numpy as np
import pytest

import lrl_jax as lrl
from lrl_jax.algorithms import DQN, SAC
from lrl_jax.levels import DQNLevel, SACLevel
from lrl_jax.spaces import Discrete

pytestmark = [pytest.mark.extras, pytest.mark.filterwarnings("ignore")]

GYMNAX = [i for i in gymnax.registered_envs if not i.startswith(("Maze2D", "MNIST"))]
CLASSIC = ("CartPole-v1", "Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Pendulum-v1")
ENVS: dict[str, tuple[str | None, dict]] = {
    **{env_id: (None, {}) for env_id in GYMNAX},
    "brax/ant": ("brax", {}),
    "brax/reacher": ("brax", {"backend": "spring"}),
    "playground/CheetahRun": ("mujoco_playground", {}),
    "playground/PointMass": ("mujoco_playground", {}),
    "xminigrid/MiniGrid-DoorKey-5x5": ("xminigrid", {}),
    "craftax/Craftax-Classic-Symbolic-v1": ("craftax", {}),
    **{f"gymnasium/{env_id}": (None, {}) for env_id in CLASSIC},
    "gymnasium/LunarLander-v3": ("Box2D", {}),
    "gymnasium/BipedalWalker-v3": ("Box2D", {}),
    "gymnasium/CarRacing-v3": ("Box2D", {}),
    "gymnasium/InvertedPendulum-v5": ("mujoco", {}),
    "gymnasium/HalfCheetah-v5": ("mujoco", {}),
    "gymnasium/FetchReach-v4": ("gymnasium_robotics", {}),
    "gymnasium/MiniGrid-Empty-5x5-v0": ("minigrid", {}),
}


def made(env_id, settings):
    name = env_id.removeprefix("gymnasium/")
    if name.startswith("MiniGrid") and name != env_id:
        from minigrid.wrappers import ImgObsWrapper

        wrappers = [ImgObsWrapper, gymnasium.wrappers.FlattenObservation]
        settings = {**settings, "wrappers": wrappers}
    return lrl.make(env_id, **settings)


def newer_than(package, *release):
    """Whether an installed package is of a later release, such as 3.6.0 after 3, 3."""
    return tuple(int(x) for x in version(package).split(".")[: len(release)]) > release


def learner(space):
    common = {"buffer_size": 64, "batch_size": 4, "warm_up_steps": 0, "update_interval": 4}
    if isinstance(space, Discrete):
        return DQNLevel(DQN(hidden=(8,)), **common)
    return SACLevel(SAC(hidden=(8,)), **common)


@pytest.mark.parametrize("env_id", ENVS)
def test_random_actions_and_a_learner(env_id):
    module, settings = ENVS[env_id]
    if module is not None:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
        if module == "gymnasium_robotics" and newer_than("mujoco", 3, 3):
            # Playground 0.2 needs mujoco 3.6: one environment cannot have both.
            pytest.skip(f"gymnasium_robotics 1.4.2 needs mujoco 3.3, not {version('mujoco')}")
        if module in ("gymnasium_robotics", "minigrid"):  # they register themselves
            gymnasium.register_envs(importlib.import_module(module))
    env, params = made(env_id, settings)
    try:
        n = {} if params is None else {"n_env_instances": 2}
        random = lrl.Collector(lrl.RandomHierarchy(env, env_params=params), **n)
        assert random.collect(n_steps=4).n_collected_steps == 4 * random.n_env_instances
        space = random.hierarchy.action_space
        collector = lrl.Collector(lrl.Hierarchy([learner(space)], env, params), **n)
        stats = collector.collect(n_steps=16, learn=True)
        assert stats.learning["level0/n_updates"] > 0
        assert all(np.isfinite(value) for value in stats.learning.values())
    finally:
        if params is None:
            env.close()
