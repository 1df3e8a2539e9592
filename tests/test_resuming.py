"""Runs that go on: in another call, with a state of another process, or with other seeds."""

import functools
import itertools
import os
import subprocess
import sys
from typing import Any

import gymnasium
import jax
import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv

import lrl_jax as lrl
from lrl_jax.algorithms import SAC
from lrl_jax.levels import ActionRepeatLevel, PlannerLevel, RandomLevel, SACLevel
from lrl_jax.planners import ICEM
from lrl_jax.predictors import get_default_predictor_factory
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


# ---------------------------------------------------------------- save and load


def agents() -> dict[str, Any]:
    """Hierarchies with a replay and with all kinds of state."""
    pendulum, maze = lrl.make("Pendulum-v1"), lrl.make("Maze2D-Simple-v0")
    sac = SACLevel(
        SAC(hidden=(8,)), buffer_size=200, batch_size=8, update_interval=8, warm_up_steps=20
    )
    planner = PlannerLevel(
        get_default_predictor_factory(maze[0], 0),
        optimizer=ICEM(horizon=3, num_samples=8, n_iterations=2, elite_ratio=0.25),
        warm_up_steps=20,
        buffer_size=400,
    )
    return {
        "sac": lrl.Hierarchy([sac], *pendulum),
        "planner": lrl.Hierarchy([planner, ActionRepeatLevel(5)], *maze),
    }


def everything(collector) -> dict[str, Any]:
    """All that goes on, by name."""
    tree = collector._engine.saved() | {n: np.asarray(getattr(collector, n)) for n in COUNTS}
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    plain = {
        jax.tree_util.keystr(path): jax.random.key_data(x)
        if jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key)
        else x
        for path, x in leaves
    }
    return {name: np.asarray(x) for name, x in plain.items()}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    different = [k for k in one if one[k].tobytes() != other[k].tobytes()]
    assert not different, different


COUNTS = ("collect_step", "collect_episode")
HALF = 100


def go_on(folder):
    """The second half of each agent's run; called in a process of its own."""
    for name, hierarchy in agents().items():
        collector = lrl.Collector.load(folder / name, hierarchy)
        collector.collect(n_steps=HALF, learn=True)
        np.savez(folder / f"{name}.npz", **everything(collector))


def test_a_run_goes_on_to_the_bit_in_another_process(tmp_path):
    expected = {}
    for name, hierarchy in agents().items():
        collector = lrl.Collector(hierarchy, n_env_instances=2, buffer=60)
        collector.reset(seed=3)
        collector.collect(n_steps=2 * HALF, learn=True)
        expected[name] = everything(collector)
        collector = lrl.Collector(hierarchy, n_env_instances=2, buffer=60)
        collector.reset(seed=3)
        collector.collect(n_steps=HALF, learn=True)
        collector.save(tmp_path / name)
        assert any((expected[name][k] != x).any() for k, x in everything(collector).items())
    code = f"import pathlib, test_resuming; test_resuming.go_on(pathlib.Path({str(tmp_path)!r}))"
    settings = {**os.environ, "JAX_NUM_CPU_DEVICES": "8", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=settings, timeout=300)
    for name, whole in expected.items():
        with np.load(tmp_path / f"{name}.npz") as found:
            assert_equal(whole, dict(found))


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_gymnasium_environments_go_on_elsewhere(tmp_path, kind):
    make = maker(kind)
    collector = make(buffer=40)
    first = first_obs(collector, learn=True)
    collector.save(tmp_path / "a")
    hierarchy = collector.hierarchy
    env = SyncVectorEnv([lambda: gymnasium.make("Pendulum-v1")] * N)
    if kind == "async":
        env = [lambda: gymnasium.make("Pendulum-v1")] * N
    other = type(collector).load(tmp_path / "a", hierarchy, env)
    assert other.collect_step == collector.collect_step
    rows = len(lrl.buffers.stored(other.buffer)["rew"])
    assert rows == len(lrl.buffers.stored(collector.buffer)["rew"]) > 0
    second = first_obs(other, learn=True)
    assert not any(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert len(lrl.buffers.stored(other.buffer)["rew"]) > rows
    other.close()


def test_what_does_not_fit_is_refused(tmp_path):
    collector = maker("jax")()
    collector.collect(n_steps=2, learn=True)
    collector.save(tmp_path / "a")
    hierarchy, load = collector.hierarchy, lrl.Collector.load
    env = SyncVectorEnv([lambda: gymnasium.make("Pendulum-v1")] * N)
    other = lrl.Hierarchy([RandomLevel(buffer_size=400)], hierarchy.env)
    with pytest.raises(ValueError, match="buffer_size: saved 800, here 400"):
        load(tmp_path / "a", other)
    with pytest.raises(TypeError, match="n_env_instances.*leave them out"):
        load(tmp_path / "a", hierarchy, n_env_instances=3)
    with pytest.raises(ValueError, match=r"DeviceEngine.*HostEngine"):
        load(tmp_path / "a", hierarchy, env)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "b", hierarchy)
    hierarchy.save(collector.state, tmp_path / "c")
    with pytest.raises((ValueError, FileNotFoundError)):
        load(tmp_path / "c", hierarchy)
