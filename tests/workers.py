"""Environments and factories of worker tests; importable in workers' processes."""

import dataclasses
import time

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from scripted_gym import ScriptedGym

import lrl_jax as lrl
from lrl_jax.algorithms import SAC
from lrl_jax.collectors import CollectionSettings
from lrl_jax.levels import ActionRepeatLevel, RandomLevel, SACLevel

LENGTHS = (6, 9)
N = 2


class Counting(gymnasium.Env):
    """Reward 1 a step, episodes of `length`; what is decided is what is observed next."""

    def __init__(self, delay=0.0, fail_at=None, busy=0.0, length=5):
        self.observation_space = gymnasium.spaces.Box(-10, 10, (2,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
        self.delay, self.fail_at, self.busy = delay, fail_at, busy
        self.time = self.steps = 0
        self.length = length

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        start = self.np_random.uniform(-1, 1)
        return np.array([start, 0], np.float32), {}

    def step(self, action):
        self.time, self.steps = self.time + 1, self.steps + 1
        if self.steps == self.fail_at:
            raise RuntimeError("the environment broke")
        if self.delay:
            time.sleep(self.delay)
        if self.busy:
            end = time.perf_counter() + self.busy
            while time.perf_counter() < end:
                pass
        obs = np.array([float(np.asarray(action).reshape(-1)[0]), self.time], np.float32)
        return obs, 1.0, False, self.time >= self.length, {}


def scripted(device, index_worker, index_parent, mode):
    envs = [lambda i=i: ScriptedGym(i + N * index_worker, LENGTHS) for i in range(N)]
    return SyncVectorEnv(envs, autoreset_mode=AutoresetMode.NEXT_STEP)


@dataclasses.dataclass(frozen=True)
class CountingEnvs:
    """Factory of vector environments of `n` instances."""

    n: int = N
    delay: float = 0.0
    fail_at: int | None = None
    failing: tuple[int, ...] = ()  # workers whose environments fail; all if empty

    def __call__(self, device, index_worker, index_parent, mode):
        fails = not self.failing or index_worker in self.failing
        fail_at = self.fail_at if fails and mode == "train" else None
        return SyncVectorEnv([lambda: Counting(self.delay, fail_at) for _ in range(self.n)])


def jax_envs(device, index_worker, index_parent, mode):
    return *lrl.make("Maze2D-Medium-v0"), 4


def probe():
    return Counting()


def random_actor(device):
    return lrl.Hierarchy([RandomLevel(buffer_size=2000)], probe())


def stack_actor(device):
    return lrl.Hierarchy(
        [RandomLevel(buffer_size=2000), ActionRepeatLevel(3, buffer_size=2000)], ScriptedGym(0, [5])
    )


def sac_actor(device):
    level = SACLevel(
        SAC(hidden=(8,)), buffer_size=4000, batch_size=32, warm_up_steps=0, update_interval=20
    )
    return lrl.Hierarchy([level], probe())


def maze_actor(device):
    env, params = lrl.make("Maze2D-Medium-v0")
    return lrl.Hierarchy(
        [RandomLevel(buffer_size=2000), ActionRepeatLevel(3, buffer_size=2000)], env, params
    )


def settings(device, actor):
    return CollectionSettings(update_every=40, num_test_episodes=3)


def storage(device, actor, algo):
    return 400


def no_storage(device, actor, algo):
    return None


def factories(actor=random_actor, envs=None, **more):
    """Arguments of workers and sets."""
    envs = CountingEnvs() if envs is None else envs
    return {
        "algo_factory": settings,
        "actor_factory": actor,
        "storage_factory": storage,
        "train_envs_factory": envs,
        "test_envs_factory": envs,
        **more,
    }
