"""Runs that go on: in another call, with a state of another process, or with other seeds."""

import functools
import itertools
from typing import Any

import gymnasium
import jax
import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv

import lrl_jax as lrl
from lrl_jax.levels import RandomLevel
from lrl_jax.randomness import key_of

N = 2


class Writer:
    """Remembers the steps it is given."""

    def __init__(self):
        self.steps = []

    def add_scalar(self, name, value, step):
        if name.endswith("mean_reward"):
            self.steps.append(step)


def maker(kind) -> Any:
    """A function that makes collectors of the kind, with a hierarchy that they share."""
    if kind == "jax":
        env, params = lrl.make("Pendulum-v1")
        hierarchy = lrl.Hierarchy([RandomLevel(buffer_size=800)], env, params)
        return functools.partial(lrl.Collector, hierarchy, env, n_env_instances=N)
    envs = [lambda: gymnasium.make("Pendulum-v1")] * N
    hierarchy = lrl.Hierarchy([RandomLevel(buffer_size=800)], envs[0]())
    if kind == "async":
        return lambda **settings: lrl.AsyncCollector(hierarchy, envs, **settings)
    return lambda **settings: lrl.Collector(hierarchy, SyncVectorEnv(envs), **settings)


# ------------------------------------------------------------------- numbering


def test_calls_are_numbered_one_after_another(tmp_path):
    writer = Writer()
    collector = maker("jax")(writer=writer, checkpoint_dir=tmp_path)
    seen = []
    for _ in range(3):
        stats = collector.collect(n_steps=25, learn=True, log_interval=10, test_interval=20)
        seen += [t for t, _ in stats.tests]
    assert writer.steps == [t * N for t in range(0, 75, 10)] and seen == [0, 20, 40, 60]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_25", "step_50", "step_75"]
    # A state that was saved goes on there, whatever collects.
    state = collector.hierarchy.load(tmp_path / "step_50")
    other = maker("jax")(writer=writer, checkpoint_dir=tmp_path, state=state)
    other.collect(n_steps=5, learn=True, log_interval=10)
    other.collect(n_episodes=1, learn=True, log_interval=1000)
    assert writer.steps[-1] == 50 * N and (tmp_path / "step_55").exists()
    # With a start of one's own.
    other.collect(n_steps=5, n_steps_start=0, learn=True, log_interval=10)
    assert writer.steps[-1] == 0


def test_what_the_state_does_not_count_is_numbered_too():
    writer, seen = Writer(), []
    collector = maker("jax")(writer=writer)
    collector.collect(n_steps=4, random=True, log_interval=2)
    collector.collect(n_steps=4, log_interval=2)
    collector.collect(n_total_steps=3, learn=True, log_interval=2)
    settings = {"learn": True, "log_interval": 2}
    collector.collect(n_steps=2, post_step_callback=lambda t, _: seen.append(t), **settings)
    assert writer.steps == [t * N for t in (0, 2, 4, 6, 8, 10)] and seen == [10, 11]


def test_the_last_checkpoints_are_kept(tmp_path):
    (tmp_path / "step_2").mkdir()  # of somebody else
    collector = maker("jax")(checkpoint_dir=tmp_path, checkpoint_interval=4, max_to_keep=2)
    for _ in range(2):
        collector.collect(n_steps=6, learn=True)
    assert {p.name for p in tmp_path.iterdir()} == {"step_2", "step_09", "step_12"}
    with pytest.raises(ValueError, match="max_to_keep"):
        maker("jax")(max_to_keep=0)


# ------------------------------------------------------------------- randomness


def first_obs(collector, **settings):
    amount = {"n_total_steps" if isinstance(collector, lrl.AsyncCollector) else "n_steps": N}
    _, batch = collector.collect(**amount, record_transitions=True, **settings)
    return batch.obs[0], batch.act[0]


def assert_alike(a, b):
    for x, y in zip(first_obs(a), first_obs(b), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("kind", ["jax", "sync", "async"])
def test_no_restart_repeats_a_start(kind):
    make, state, seen = maker(kind), None, []
    for turn in range(4):
        collector = make(state=state) if turn < 3 else make()
        if turn == 3:
            collector.state = state
        seen.append(first_obs(collector, random=turn == 1, learn=turn != 1))
        state = collector.state
    for one, other in itertools.combinations(seen, 2):
        assert not any(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    a, b = (make(state=state) for _ in range(2))
    assert_alike(a, b)
    for collector in (a, b):
        collector.reset(seed=3)
    assert_alike(a, b)


def test_all_bits_of_a_seed_count():
    data = [jax.random.key_data(key_of(seed)).tolist() for seed in (1, 2**32 + 1, 2**64 + 1)]
    assert data[0] == jax.random.key_data(jax.random.key(1)).tolist()
    assert len(set(map(tuple, data))) == 3


@pytest.mark.parametrize("kind", ["jax", "sync"])
def test_all_bits_of_a_collectors_seed_count(kind):
    collector, seen = maker(kind)(), []
    for seed in (1, 2**32 + 1, 1):
        collector.reset(seed=seed)
        seen.append(np.concatenate(first_obs(collector, learn=True), 1))
    assert np.array_equal(seen[0], seen[2]) and not (seen[0] == seen[1]).any()
    wrong: Any
    for wrong in (-1, 1.5, 2**63):
        with pytest.raises(ValueError, match="seed"):
            collector.reset(seed=wrong)
