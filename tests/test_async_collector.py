"""Environments that step on their own: who is ready goes on, and nothing is mixed up."""

import functools
import time

import jax
import numpy as np
import pytest
from scripted_gym import ScriptedGym

import lrl_jax as lrl
from lrl_jax.collectors import EnvError
from lrl_jax.levels import ActionRepeatLevel, RandomLevel


def functions(n=8, length=5, delays=(0.0,), **arguments):
    return [
        functools.partial(ScriptedGym, i, [length], delay=delays[i % len(delays)], **arguments)
        for i in range(n)
    ]


def hierarchy():
    levels = [RandomLevel(buffer_size=4000), ActionRepeatLevel(2, buffer_size=4000)]
    return lrl.Hierarchy(levels, ScriptedGym(0, [5]))


def check_rows(rows, n, gaps=False):
    """Every row is of one instance, and follows the one before it unless there are gaps."""
    for i in range(n):
        mine = {name: x[rows["instance"] == i] for name, x in rows.items()}
        assert (mine["obs"][:, 0] == i).all() and (mine["obs_next"][:, 0] == i).all()
        position = 0.5 * mine["obs"][:, 3] + np.clip(mine["act"][:, 0], -1, 1)
        np.testing.assert_allclose(mine["obs_next"][:, 3], position, atol=1e-5)
        np.testing.assert_allclose(mine["rew"], 1 + i + 0.1 * mine["obs_next"][:, 3], atol=1e-4)
        done = mine["terminated"] | mine["truncated"] | gaps
        np.testing.assert_allclose(mine["obs"][1:][~done[:-1]], mine["obs_next"][:-1][~done[:-1]])


@pytest.mark.parametrize("wait_num, timeout", [(1, None), (3, None), (None, 0.002), (8, None)])
def test_no_row_mixes_instances(wait_num, timeout):
    fns = functions(delays=(0.0, 0.001, 0.004))
    with lrl.AsyncCollector(
        hierarchy(),
        fns,
        wait_num=wait_num,
        timeout=timeout,
        buffer=4000,
        exploration_noise=True,
    ) as collector:
        collector.reset(seed=0)
        stats, batch = collector.collect(n_total_steps=150, record_transitions=True)
        assert stats.n_collected_steps == 150 + stats.n_steps_beyond
        assert batch.valid.sum() == stats.n_collected_steps
        assert not batch.rew[~batch.valid].any()
        check_rows(lrl.buffers.stored(collector.buffer), 8)
        # The lowest level's own rows are the environment's.
        rows = lrl.buffers.stored(collector.state.levels[1].buffer)
        assert len(rows["rew"]) == stats.n_collected_steps
        check_rows(rows, 8)
        assert (stats.lens == 5).all()
        # What was under way is received by the next call.
        again = collector.collect(n_total_steps=20)
        rows = lrl.buffers.stored(collector.state.levels[1].buffer)
        assert len(rows["rew"]) == stats.n_collected_steps + again.n_collected_steps
        check_rows(rows, 8)


def test_episodes_are_exact_and_unbiased():
    """Slow instances have long episodes: they count as they should."""
    fns = [
        functools.partial(ScriptedGym, i, [1 if i % 2 else 20], delay=0.0 if i % 2 else 0.001)
        for i in range(8)
    ]
    with lrl.AsyncCollector(lrl.RandomHierarchy(ScriptedGym(0, [5])), fns, wait_num=1) as collector:
        stats = collector.collect(n_episodes=8)
        assert sorted(stats.lens.tolist()) == [1] * 4 + [20] * 4
        assert collector.collect(n_episodes=11).n_collected_episodes == 11


def test_a_reset_waits_and_forgets():
    fns = functions(n=3, length=100, delays=(0.01, 0.2, 0.2))
    with lrl.AsyncCollector(hierarchy(), fns, wait_num=1, buffer=300) as collector:
        collector.reset(seed=0)
        collector.collect(n_total_steps=1, random=True)
        assert collector._source.busy.any()
        collector.reset_env()
        assert not collector._source.busy.any()
        stats, batch = collector.collect(n_total_steps=6, random=True, record_transitions=True)
        first = [batch.obs[:, i][batch.valid[:, i]] for i in range(3)]
        # The first step seen of each instance is the first of its second episode.
        for i, obs in enumerate(first):
            if len(obs):
                assert obs[0].tolist() == [i, 1, 0, 0]
        _, length, _ = lrl.buffers.sample_partial_trajectories(
            collector.buffer, jax.random.key(0), 64, 50
        )
        assert int(length.max()) <= stats.n_collected_steps


def test_random_actions_and_learning():
    with lrl.AsyncCollector(hierarchy(), functions(n=4), wait_num=2) as collector:
        collector.reset(seed=0)
        collector.collect(n_total_steps=40, random=True)
        assert int(collector.state.n_total_env_steps) == 0
        stats = collector.collect(n_total_steps=40, learn=True)
        # Steps under way that had been drawn at random are not the hierarchy's.
        counted = int(collector.state.n_total_env_steps)
        assert stats.n_collected_steps - 4 <= counted <= stats.n_collected_steps
        assert collector.collect_step >= 80


def test_random_steps_under_way_do_not_disturb_learning():
    """Batches without updates among others, and rows of the hierarchy's own decisions only."""
    from lrl_jax.algorithms import SAC
    from lrl_jax.levels import SACLevel

    sac = SACLevel(SAC(hidden=(8,)), buffer_size=400, batch_size=8, warm_up_steps=0)
    level = lrl.Hierarchy([sac], ScriptedGym(0, [5]))
    with lrl.AsyncCollector(level, functions(n=4, delays=(0.0, 0.02)), wait_num=1) as collector:
        collector.collect(n_total_steps=30, random=True)
        stats = collector.collect(n_total_steps=30, learn=True)
        assert stats.learning["level0/n_updates"] > 0
        # Normal, random, normal: what was under way when the hierarchy was reset is not its own.
        collector.collect(n_total_steps=10, random=True)
        collector.collect(n_total_steps=30, learn=True)
        rows = lrl.buffers.stored(collector.state.levels[0].buffer)
        check_rows(rows, 4, gaps=True)
        assert len(rows["rew"]) == int(collector.state.n_total_env_steps)


def test_errors_in_an_environment_surface():
    fns = functions(n=2, fail_at=3)
    collector = lrl.AsyncCollector(lrl.RandomHierarchy(ScriptedGym(0, [5])), fns, wait_num=1)
    with collector:
        with pytest.raises(EnvError, match="environment [01] raised RuntimeError: the env.* broke"):
            collector.collect(n_total_steps=50)
        # All begin anew in the next call, and break again where they do.
        with pytest.raises(RuntimeError, match="the environment broke"):
            collector.collect(n_total_steps=50)


def test_the_user_function_sees_who_is_ready():
    seen = []

    def change(**given):
        seen.append(given["env_id"].tolist())
        return {} if "obs" in given else {"truncated": given["obs_next"][:, 2] >= 2}

    fns = functions(n=3)
    with lrl.AsyncCollector(
        lrl.RandomHierarchy(ScriptedGym(0, [5])), fns, wait_num=1, preprocess_fn=change
    ) as collector:
        stats = collector.collect(n_episodes=6)
        assert stats.lens.tolist() == [2] * 6
    assert {len(ids) for ids in seen} <= {1, 2, 3}


def test_processes():
    fns = functions(n=2)
    level = lrl.RandomHierarchy(ScriptedGym(0, [5]))
    with lrl.AsyncCollector(level, fns, wait_num=1, processes=True) as collector:
        assert collector.collect(n_episodes=3).lens.tolist() == [5, 5, 5]


def test_wrong_calls_are_refused():
    from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv

    env = ScriptedGym(0, [5])
    level = lrl.RandomHierarchy(env)
    for wrong, error, message in (
        ([], ValueError, "empty"),
        ([env], TypeError, "functions that make"),
        (env, TypeError, "list of functions"),
        (3, TypeError, "list of functions"),
        (SyncVectorEnv(functions(2)), TypeError, "all of its environments or none"),
    ):
        with pytest.raises(error, match=message):
            lrl.AsyncCollector(level, wrong)
    together = AsyncVectorEnv(functions(1), context="spawn")
    try:
        with pytest.raises(TypeError, match="list of functions that it was made from"):
            lrl.AsyncCollector(level, together)
    finally:
        together.close()
    for arguments, message in (
        ({"wait_num": 0}, "wait_num"),
        ({"wait_num": 5}, "there are 2"),
        ({"timeout": 0}, "timeout"),
        ({"buffer": 1}, "buffer"),
    ):
        with pytest.raises(ValueError, match=message):
            lrl.AsyncCollector(level, functions(2), **arguments)
    with pytest.raises(TypeError, match="Hierarchy"):
        lrl.AsyncCollector(RandomLevel(), functions(2))
    with lrl.AsyncCollector(level, functions(2)) as collector:
        for arguments, message in (
            ({}, "exactly one"),
            ({"n_total_steps": 3, "n_episodes": 3}, "exactly one"),
            ({"n_episodes": 0}, "n_episodes"),
            ({"n_total_steps": 3, "max_steps": 2}, "goes with n_episodes"),
            ({"n_episodes": 1, "render": -0.1}, "render, the seconds"),
            ({"n_episodes": 1, "no_grad": False}, "no gradients"),
            ({"n_episodes": 1, "random": True, "learn": True}, "cannot learn"),
        ):
            with pytest.raises(ValueError, match=message):
                collector.collect(**arguments)


def test_nobody_waits_for_the_slowest():
    """Not a timing that decides: the slow instance makes at most a small share of the steps."""
    fns = functions(n=4, length=1000, delays=(0.2, 0.0, 0.0, 0.0))
    with lrl.AsyncCollector(lrl.RandomHierarchy(ScriptedGym(0, [5])), fns, wait_num=1) as collector:
        began = time.monotonic()
        stats, batch = collector.collect(n_total_steps=60, record_transitions=True)
        assert stats.n_collected_steps >= 60
        # In lockstep 60 steps of four would take fifteen times 0.2 s.
        share = batch.valid.sum(0) / batch.valid.sum()
        assert share[0] < 0.2, (share, time.monotonic() - began)


# --------------------------------------------------------------------- envpool


class FakeEnvpool:
    """What is used of envpool, in one thread: batches of answers, resets in steps of their own."""

    def __init__(self, num_envs, batch_size, lengths):
        import gymnasium

        self.config = {"num_envs": num_envs, "batch_size": batch_size}
        self.envs = [ScriptedGym(i, lengths) for i in range(num_envs)]
        self.observation_space, self.action_space = (
            self.envs[0].observation_space,
            self.envs[0].action_space,
        )
        assert isinstance(self.action_space, gymnasium.spaces.Box)
        self.queue, self.over = [], [False] * num_envs
        self.rng = np.random.default_rng(0)

    def async_reset(self):
        for i in range(len(self.envs)):
            self._reset(i)

    def _reset(self, i):
        self.over[i] = False
        self.queue.append((i, self.envs[i].reset()[0], 0.0, False, False))

    def send(self, actions, ids):
        busy = {i for i, *_ in self.queue}
        for i, action in zip(ids.tolist(), actions, strict=True):
            assert i not in busy, "one step at a time"
            if self.over[i]:
                self._reset(i)
                continue
            obs, rew, terminated, truncated, _ = self.envs[i].step(action)
            self.over[i] = terminated or truncated
            self.queue.append((i, obs, rew, terminated, truncated))

    def recv(self):
        size = self.config["batch_size"]
        assert len(self.queue) >= size, "envpool would wait for ever"
        chosen = sorted(self.rng.choice(len(self.queue), size, replace=False), reverse=True)
        ids, *columns = zip(*[self.queue.pop(k) for k in chosen], strict=True)
        return *(np.array(column) for column in columns), {"env_id": np.array(ids)}

    def close(self):
        pass


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_envpool(batch):
    pool = FakeEnvpool(4, batch, [3, 5])
    with lrl.AsyncCollector(hierarchy(), pool, buffer=4000, exploration_noise=True) as collector:
        collector.reset(seed=0)
        stats = collector.collect(n_total_steps=60)
        assert stats.n_collected_steps >= 60 and set(stats.lens.tolist()) <= {3, 5}
        rows = lrl.buffers.stored(collector.buffer)
        check_rows(rows, 4)
        # Both ends of an episode are true: it begins at 0 and ends where it has to.
        first = np.r_[True, (rows["terminated"] | rows["truncated"])[:-1]]
        first |= np.r_[True, np.diff(rows["instance"]) != 0]
        assert (rows["obs"][first][:, 2] == 0).all()
        ended = rows["terminated"] | rows["truncated"]
        assert set(rows["obs_next"][ended][:, 2].tolist()) == {3, 5}
        # Fewer instances are wanted than fill a batch: what others did is forgotten.
        assert collector.collect(n_episodes=5).n_collected_episodes == 5
        stats = collector.collect(n_episodes=4)
        assert len(stats.lens) == 4
        check_rows(lrl.buffers.stored(collector.buffer), 4)
    with pytest.raises(ValueError, match="multiple"):
        lrl.AsyncCollector(hierarchy(), FakeEnvpool(4, 3, [3]))
    with pytest.raises(ValueError, match="batch_size"):
        lrl.AsyncCollector(hierarchy(), FakeEnvpool(4, 2, [3]), wait_num=1)


@pytest.mark.extras
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("batch", [{"batch_size": 2}, {}])
def test_the_real_envpool(batch):
    envpool = pytest.importorskip("envpool")
    import gymnasium

    env = envpool.make_gymnasium("CartPole-v1", num_envs=4, seed=0, **batch)
    level = lrl.RandomHierarchy(gymnasium.make("CartPole-v1"))
    with lrl.AsyncCollector(level, env, buffer=2000) as collector:
        stats = collector.collect(n_total_steps=500)
        assert stats.n_collected_steps >= 500 and 10 < stats.lens.mean() < 40
        np.testing.assert_allclose(stats.returns, stats.lens)
        rows = lrl.buffers.stored(collector.buffer)
        ended = rows["terminated"] | rows["truncated"]
        goes_on = ~ended[:-1] & (np.diff(rows["instance"]) == 0)
        np.testing.assert_allclose(rows["obs"][1:][goes_on], rows["obs_next"][:-1][goes_on])
        # Resets are not rows: every first observation is small, every last one out of bounds.
        assert (np.abs(rows["obs_next"][ended][:, [0, 2]]) > [2.4, 0.2]).any(1).all()
        assert collector.collect(n_episodes=7).n_collected_episodes == 7
