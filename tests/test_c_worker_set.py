"""Sets of collection workers on Ray."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from workers import (
    CountingEnvs,
    N,
    factories,
    jax_envs,
    maze_actor,
    random_actor,
    scripted,
    stack_actor,
)

from lrl_jax.collectors import (
    CollectionSettings,
    CWorker,
    CWorkerSet,
    WorkerError,
    ray_pool,
    weights_of,
)

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.extras, pytest.mark.filterwarnings("ignore")]  # Ray's own
HERE = Path(__file__).parent


@pytest.fixture(scope="module", autouse=True)
def cluster():
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    ray.init(
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": path}},
    )
    yield
    ray.shutdown()


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def pids(workers):
    return ray.get([w.process_id.remote() for w in workers.remote_workers()])


@pytest.fixture(scope="module")
def pair(cluster):
    with CWorkerSet(2, 0, seed=3, **factories(stack_actor, scripted)) as workers:
        yield workers


def test_rollouts_of_workers_are_joined(pair):
    """Two streams, the same as those of local workers of the same seed."""
    data, info = pair.collect()
    alone = [CWorker(i, 0, seed=3, **factories(stack_actor, scripted)) for i in (0, 1)]
    parts = [w.collect_data()[0] for w in alone]
    assert info["NumberSamples"] == 80 == len(data["rew"]) and len(info["Workers"]) == 2
    assert pair.n_env_instances == 2 * N and info["PolicyLag"] == 0
    for i, part in enumerate(parts):
        mine = data["instance"] // N == i
        for name in ("obs", "act", "rew", "obs_next", "actor_version"):
            np.testing.assert_array_equal(data[name][mine], part[name])
    assert not np.array_equal(parts[0]["act"], parts[1]["act"])
    # What workers send fits a state that has their instances.
    state = alone[0].actor.init(jax.random.key(0), 2 * N)
    state = alone[0].actor.add_rows(state, data["levels"], 80)
    assert int(state.levels[1].owed) == 80


def test_weights_reach_all_workers(pair):
    actor = stack_actor(None)
    pair.set_weights(weights_of(actor.init(jax.random.key(0), 1), 6))
    data, info = pair.collect()
    np.testing.assert_array_equal(data["actor_version"], 6)
    assert info["ActorVersion"] == 6 and info["PolicyLag"] == 0
    assert info["DecisionLag"] == 6  # rows of level 0 that version 0 had begun
    # An evaluation is of the latest weights, also right behind them.
    for version in (7, 8):
        pair.set_weights(weights_of(actor.init(jax.random.key(0), 1), version))
    pair.evaluate()
    versions = [w.get_attribute.remote("actor_version") for w in pair.remote_workers()]
    assert ray.get(versions) == [8, 8]
    with pytest.raises(ValueError, match="lack"):
        pair.set_weights({})
    pair.set_weights(ray.put(weights_of(actor.init(jax.random.key(0), 1), 8)))
    assert pair.collect()[1]["ActorVersion"] == 8
    assert np.isfinite(pair.evaluate())


def test_weights_that_do_not_fit_surface(pair):
    good = weights_of(stack_actor(None).init(jax.random.key(0), 1), 9)
    pair.set_weights({**good, "ActorWeights": good["ActorWeights"][:1]})
    with pytest.raises(WorkerError, match="worker 0 raised ValueError: learners has 1"):
        pair.collect()
    pair.set_weights(good)
    assert pair.collect()[1]["ActorVersion"] == 9


def test_changes_reach_all_workers(pair):
    pair.update_algorithm_parameter("update_every", 20)
    assert pair.collect()[1]["NumberSamples"] == 40
    pair.update_storage_parameter("buffer_size", 80)
    with pytest.raises(WorkerError, match="worker 0 raised ValueError: the algorithm has no"):
        pair.update_algorithm_parameter("gamma", 1)
    with pytest.raises(WorkerError, match="no component"):
        pair.replace_agent_component("policy", stack_actor)


def test_asynchronous_gathering_bounds_the_lag_and_a_death_surfaces():
    actor = random_actor(None)
    envs = SlowSecond()
    state = actor.init(jax.random.key(0), 1)
    settings = factories(random_actor, envs)
    with CWorkerSet(2, 0, max_lag=2, **settings) as workers:
        lags, who = [], []
        for version in range(1, 13):
            data, info = workers.collect_async()
            lags.append(info["PolicyLag"])
            who.append([w["IndexWorker"] for w in info["Workers"]])
            assert info["NumberSamples"] == 40 * len(info["Workers"])
            workers.set_weights(weights_of(state, version))
        assert max(lags) <= 2 and max(lags) > 0
        counts = np.bincount(np.concatenate(who))
        assert counts[0] > counts[1] > 0  # nobody waits for the slow one longer than the bound
        # An evaluation waits for them; none is lost.
        assert workers.evaluate() == 5.0 and not workers._flying
        assert len(workers.collect_async()[1]["Workers"]) == 2
        # What is under way comes first.
        assert [w["IndexWorker"] for w in workers.collect()[1]["Workers"]] == [0, 0, 1, 1]
        # One that dies surfaces within seconds.
        workers._launch_idle()
        os.kill(pids(workers)[1], signal.SIGKILL)
        began = time.monotonic()
        with pytest.raises(WorkerError, match="worker 1 died") as error:
            workers.drain()
        assert error.value.index_worker == 1 and time.monotonic() - began < 30


class SlowSecond(CountingEnvs):
    """The second worker's environments are slow."""

    def __call__(self, device, index_worker, index_parent, mode):
        return CountingEnvs(delay=0.02 * index_worker)(device, index_worker, index_parent, mode)


def test_the_last_to_finish_are_told_to_stop_and_nothing_is_left_at_the_end():
    settings = factories(random_actor, SlowSecond())
    with CWorkerSet(2, 0, fraction_samples=0.25, **settings) as workers:
        workers.collect()
        _, info = workers.collect()
        samples = [w["NumberSamples"] for w in info["Workers"]]
        assert samples[0] == 40 and 10 <= samples[1] < 40
        assert info["NumberSamples"] == sum(samples)
        processes = pids(workers)
        assert all(alive(pid) for pid in processes) and len(set(processes)) == 2
    workers.stop()  # a second time
    deadline = time.monotonic() + 20
    while any(alive(pid) for pid in processes) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(alive(pid) for pid in processes)
    with pytest.raises(RuntimeError, match="stopped"):
        workers.collect()
    assert ray.is_initialized()  # it had not started Ray


def test_a_worker_that_raises_surfaces():
    envs = CountingEnvs(fail_at=7, failing=(1,))
    with CWorkerSet(2, 0, **factories(random_actor, envs)) as workers:
        began = time.monotonic()
        with pytest.raises(WorkerError, match="worker 1 raised RuntimeError: the environ") as error:
            workers.collect()
        assert error.value.index_worker == 1 and time.monotonic() - began < 60


def test_a_worker_that_raises_is_started_again_without_its_start_steps(tmp_path):
    """In a gather of all; its environment fails once only."""
    envs = FailsOnce(str(tmp_path / "failed"))
    settings = factories(
        random_actor, envs, algo_factory=lambda d, a: CollectionSettings(40, start_steps=20)
    )
    with CWorkerSet(2, 0, max_restarts=1, **settings) as workers:
        data, info = workers.collect()
        assert info["Restarts"] == {1: 1} and info["NumberSamples"] == 80
        rows = data["levels"][0]["instance"] // N
        assert np.bincount(rows).tolist() == [20, 40]  # random steps are in no row
        # A death that a change meets is one of those, too.
        os.kill(pids(workers)[0], signal.SIGKILL)
        workers.update_algorithm_parameter("update_every", 20)
        assert workers.restarts == {1: 1, 0: 1}
        assert workers.collect()[1]["NumberSamples"] == 40
        os.kill(pids(workers)[0], signal.SIGKILL)
        with pytest.raises(WorkerError, match="worker 0 died"):
            workers.evaluate()


class FailsOnce(CountingEnvs):
    """The second worker's environments fail in their seventh step, the first time."""

    def __init__(self, path):
        object.__setattr__(self, "path", path)

    def __call__(self, device, index_worker, index_parent, mode):
        fails = index_worker == 1 and mode == "train" and not os.path.exists(self.path)
        if fails:
            Path(self.path).touch()
        envs = CountingEnvs(fail_at=7 if fails else None)
        return envs(device, index_worker, index_parent, mode)


def test_a_worker_that_is_killed_is_started_again():
    settings = factories(random_actor, CountingEnvs(delay=0.05), compress_data_to_send=True)
    state = random_actor(None).init(jax.random.key(0), 1)
    with CWorkerSet(
        2, 0, max_restarts=1, initial_weights=ray.put(weights_of(state, 3)), **settings
    ) as workers:
        assert workers.actor_version == 3
        workers.set_weights(weights_of(state, 4))
        workers._check_weights()
        # What was changed until then, the new one has too.
        workers.update_algorithm_parameter("test_every", 2)
        workers.replace_agent_component("algo", lambda d, a: CollectionSettings(20))
        workers.update_algorithm_parameter("update_every", 28)
        workers.update_algorithm_parameter("update_every", 24)
        workers.replace_agent_component("envs_train", CountingEnvs(n=4, delay=0.05))
        assert [k[1] for k in workers._changes] == ["algo", "update_every", "envs_train"]
        victim = pids(workers)[1]
        workers._launch_idle()
        os.kill(victim, signal.SIGKILL)
        workers.drain()
        data, info = workers.collect_async()
        assert info["Restarts"] == {1: 1} and info["NumberSamples"] == 48
        assert set(data["instance"]) == set(range(8)) and workers.n_env_instances == 8
        np.testing.assert_array_equal(data["actor_version"], 4)
        assert pids(workers)[1] != victim


def test_workers_are_added():
    """They are as if they had been there from the start."""
    state = stack_actor(None).init(jax.random.key(0), 1)
    with CWorkerSet(1, 0, seed=3, **factories(stack_actor, scripted)) as workers:
        workers.update_algorithm_parameter("update_every", 20)
        workers.set_weights(weights_of(state, 2))
        workers._launch_idle()
        with pytest.raises(ValueError, match="1 rollouts of the present envs_train"):
            workers.replace_agent_component("envs_train", scripted)
        assert workers.collect()[1]["NumberSamples"] == 40
        workers.add_workers(1)
        assert workers.num_workers == 2 == len(workers.remote_workers())
        data, info = workers.collect()
        assert info["NumberSamples"] == 40 and workers.n_env_instances == 2 * N
        np.testing.assert_array_equal(data["actor_version"], 2)
        alone = CWorker(1, 0, seed=3, **factories(stack_actor, scripted))
        alone.update_algorithm_parameter("update_every", 20)
        alone.set_weights(weights_of(state, 2))
        part, mine = alone.collect_data()[0], data["instance"] >= N
        for name in ("obs", "act", "rew", "obs_next"):
            np.testing.assert_array_equal(data[name][mine], part[name])
        with pytest.raises(ValueError, match="num_workers"):
            workers.add_workers(0)


def test_jax_environments_in_another_process():
    """On its CPU, the same stream as in this process."""
    with CWorkerSet(1, 0, seed=5, **factories(maze_actor, jax_envs)) as workers:
        data, info = workers.collect()
    alone = CWorker(0, 0, seed=5, **factories(maze_actor, jax_envs)).collect_data()[0]
    assert info["NumberSamples"] == 40 and set(data["instance"]) == {0, 1, 2, 3}
    for name in ("obs", "act", "rew", "obs_next"):
        np.testing.assert_array_equal(data[name], alone[name])


def test_silence_is_an_error_where_asked_for():
    envs = CountingEnvs(delay=0.5)
    with CWorkerSet(1, 0, timeout=2.0, **factories(random_actor, envs)) as workers:
        began = time.monotonic()
        with pytest.raises(WorkerError, match="worker 0 has not answered for 2 s"):
            workers.collect()
        assert time.monotonic() - began < 10
    with pytest.raises(ValueError, match="timeout"):
        CWorkerSet(1, 0, timeout=0, **factories())


def test_resources_that_others_hold(pair, monkeypatch):
    monkeypatch.setattr(ray_pool, "_SCHEDULING_SECONDS", 2.0)
    with pytest.raises(ValueError, match=r"3 workers could not be.*free are 2 CPU of 4 CPU"):
        CWorkerSet(3, 0, **factories())


def test_resources_that_do_not_exist():
    began = time.monotonic()
    with pytest.raises(ValueError, match="2 workers with 1 GPU each need 2.*cluster has 0"):
        CWorkerSet(2, 0, worker_remote_config={"num_cpus": 1, "num_gpus": 1}, **factories())
    with pytest.raises(ValueError, match="9 workers with 1 CPU"):
        CWorkerSet(9, 0, **factories())
    assert time.monotonic() - began < 30
    with CWorkerSet(0, 0, worker_remote_config={"memory": 1000}, **factories()) as workers:
        assert workers.remote_config == {"memory": 1000, "num_cpus": 1}
    with pytest.raises(ValueError, match=r"\['cpus'\]"):
        CWorkerSet(2, 0, worker_remote_config={"cpus": 1}, **factories())


def test_actors_that_cannot_be_made_surface():
    with pytest.raises(WorkerError, match="(?s)worker 0 died.*actor_factory must return"):
        CWorkerSet(1, 0, **factories(lambda device: 3))


SCRIPT = """
import sys
sys.path.insert(0, {here!r})
import psutil, ray, scripted_gym, time, workers
for module in (scripted_gym, workers):  # a cluster does not have them
    ray.cloudpickle.register_pickle_by_value(module)
from lrl_jax.collectors import CWorkerSet
from workers import factories, random_actor
workers = CWorkerSet(1, 0, address={address!r}, **factories(random_actor))
assert workers.collect()[1]["NumberSamples"] == 40
workers.stop()
assert not ray.is_initialized()
deadline = time.monotonic() + 20
while psutil.Process().children(recursive=True) and time.monotonic() < deadline:
    time.sleep(0.1)
print("left", psutil.Process().children(recursive=True))
"""


def run_elsewhere(address):
    kept = ("RAY_AUTH",) if address else ()
    environ = {
        k: v for k, v in os.environ.items() if not k.startswith("RAY_") or k.startswith(kept)
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(here=str(HERE), address=address)],
        env=environ,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0 and "left []" in done.stdout, done.stdout + done.stderr


def test_ray_is_started_and_ended_where_none_runs():
    run_elsewhere(None)


def test_a_cluster_is_joined_and_left_as_it_was():
    address = ray.get_runtime_context().gcs_address
    before = ray.available_resources()["CPU"]
    run_elsewhere(address)
    deadline = time.monotonic() + 20
    while ray.available_resources().get("CPU") != before and time.monotonic() < deadline:
        time.sleep(0.2)
    assert ray.available_resources()["CPU"] == before
    with pytest.raises(ValueError, match=f"address='1.2.3.4:5'.*connected to {address}"):
        CWorkerSet(1, 0, address="1.2.3.4:5", **factories())
