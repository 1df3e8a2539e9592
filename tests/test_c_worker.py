"""Collection workers in this process: stamps, counts, rows, components, evaluation."""

import threading

import jax
import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv
from workers import (
    Counting,
    CountingEnvs,
    N,
    factories,
    jax_envs,
    maze_actor,
    no_storage,
    random_actor,
    sac_actor,
    scripted,
    stack_actor,
)

import lrl_jax as lrl
from lrl_jax import buffers
from lrl_jax.collectors import (
    CollectionSettings,
    CWorker,
    CWorkerSet,
    WorkerError,
    decompress,
    weights_of,
)
from lrl_jax.collectors.worker_data import pack, unpack
from lrl_jax.levels import RandomLevel

SAMPLES = ("obs", "act", "rew", "terminated", "truncated", "obs_next", "instance", "actor_version")


def worker(*args, index=0, fraction_samples=1.0, seed=0, **more):
    return CWorker(
        index, 0, fraction_samples=fraction_samples, seed=seed, **factories(*args, **more)
    )


def weights(actor, version, key=0):
    return weights_of(actor.init(jax.random.key(key), 1), version)


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


# -------------------------------------------------------------------- rollouts


def test_a_rollout():
    w = worker()
    data, info = w.collect_data()
    assert set(data) == {*SAMPLES, "levels"}
    assert info["NumberSamples"] == 40 == len(data["rew"]) and info["ActorVersion"] == 0
    assert info["Episodes"] == 8 and set(info["Lengths"]) == {5} and set(info["Returns"]) == {5.0}
    assert info["Time"] > 0 and w.iter == 1 and info["IndexWorker"] == 0
    assert all(len(data[name]) == 40 for name in SAMPLES)
    # What was decided is what was observed next, in each instance.
    np.testing.assert_array_equal(data["obs_next"][:, :1], data["act"].clip(-1, 1))
    for i in range(N):
        mine = data["instance"] == i
        assert mine.sum() == 20
        time = data["obs_next"][mine, 1]
        np.testing.assert_array_equal(time, np.tile(np.arange(1, 6), 4))
    np.testing.assert_array_equal(w.obs[:, 1], 0)
    np.testing.assert_array_equal(w.done, [True] * N)
    assert len(w.rhs) == 1 and w.update_every == 40
    for name in ("index_worker", "fraction_samples", "device", "compress_data_to_send", "actor"):
        assert hasattr(w, name)
    assert w.storage.n_env_instances == N and len(buffers.stored(w.storage)["rew"]) == 40
    w.stop()
    w.stop()


def test_collected_samples_are_kept_until_they_are_sent():
    w = worker()
    seconds, mean = w.collect_train_data(num_steps=10)
    assert seconds > 0 and mean == 5.0
    assert w.collect_train_data(num_steps=4)[1] is None
    data, info = w.collect_data()
    assert info["NumberSamples"] == 54 == len(data["rew"])


def test_rows_of_levels_are_those_of_a_collector():
    """What workers send, written into another state, is what a collector would have stored."""
    w = worker(stack_actor, scripted)
    actor = w.actor
    state = actor.init(jax.random.key(1), N)
    for _ in range(3):
        data, _ = w.collect_data()
        state = actor.add_rows(state, data["levels"], len(data["rew"]))
    assert int(state.n_total_env_steps) == 120

    env = scripted(None, 0, 0, "train")
    collector = lrl.Collector(actor, env, exploration_noise=True)
    collector.reset(seed=w._seed)
    collector.collect(n_steps=60)
    for mine, theirs in zip(state.levels, collector.state.levels, strict=True):
        equal(buffers.stored(mine.buffer), buffers.stored(theirs.buffer))
        assert int(mine.owed) == int(theirs.owed)
        # Trajectories run on over the seams between rollouts.
        ids, length, _ = buffers.sample_partial_trajectories(mine.buffer, jax.random.key(0), 64, 3)
        pieces = buffers.gather(mine.buffer, ids)
        goes_on = np.arange(1, 3)[:, None] < np.asarray(length)
        same = np.asarray(pieces["obs"][1:] == pieces["obs_next"][:-1]).all(-1)
        assert same[goes_on].all() and goes_on.any()


def test_rows_that_do_not_fit_are_refused():
    actor = stack_actor(None)
    state = actor.init(jax.random.key(0), N)
    data, _ = worker(stack_actor, scripted).collect_data()
    rows = data["levels"]
    with pytest.raises(ValueError, match="rows of 1 levels for 2"):
        actor.add_rows(state, rows[:1], 40)
    with pytest.raises(ValueError, match=r"unknown \['more'\]"):
        actor.add_rows(state, [{**rows[0], "more": rows[0]["rew"]}, rows[1]], 40)
    with pytest.raises(ValueError, match="instances 0 to 1, but the buffer has 1"):
        actor.add_rows(actor.init(jax.random.key(0), 1), rows, 40)
    same = actor.add_rows(state, [None, None], 0)
    assert int(same.n_total_env_steps) == 0


@pytest.mark.parametrize("size", [10, 100_000])
def test_a_worker_has_room_for_its_rollouts_only(size):
    """Whatever replay the level has where it learns."""
    level = RandomLevel(buffer_size=size)
    w = worker(lambda d: lrl.Hierarchy([level], random_actor(d).env))
    for samples in (40, 200, 40):
        w.update_algorithm_parameter("update_every", samples)
        data, _ = w.collect_data()
        assert len(data["levels"][0]["rew"]) == samples
        assert samples <= w._present.levels[0].buffer.capacity * N <= 2 * (samples + N)


def test_all_workers_begin_with_the_same_weights():
    one, other, third = worker(sac_actor), worker(sac_actor, index=1), worker(sac_actor, seed=1)
    learners = [pack(w._present.levels[0].learner.state.actor) for w in (one, other, third)]
    equal(learners[0], learners[1])
    with pytest.raises(AssertionError):
        equal(learners[0], learners[2])
    assert not np.isin(one.collect_data()[0]["obs"][:, 0], other.collect_data()[0]["obs"]).any()


def test_what_is_replaced_draws_from_another_stream():
    w = worker()
    first = w.collect_data()[0]
    for name, factory in (("envs_train", CountingEnvs()), ("actor", random_actor)):
        w.replace_agent_component(name, factory)
        again = w.collect_data()[0]
        assert not np.isin(again["obs"][:, 0], first["obs"][:, 0]).any()


def test_jax_environments():
    w = worker(maze_actor, jax_envs)
    data, info = w.collect_data()
    assert info["NumberSamples"] == 40 and set(data["instance"]) == {0, 1, 2, 3}
    assert w.evaluate() < 0


# ---------------------------------------------------------------------- stamps


def test_every_sample_has_the_version_that_chose_its_action():
    w = worker(stack_actor, scripted)
    stamps, steps = [], []
    for version in (0, 1, 2, 3):
        if version:
            w.set_weights(weights(w.actor, version))
        data, info = w.collect_data()
        assert info["ActorVersion"] == version
        np.testing.assert_array_equal(data["actor_version"], version)
        stamps.append([rows["actor_version"] for rows in data["levels"]])
        steps.append([rows["elapsed_env_steps"] for rows in data["levels"]])
        instance = [rows["instance"] for rows in data["levels"]]
        for level in (0, 1):
            for i in range(N):
                mine = instance[level] == i
                # Decided in the tick that many before it closed: the first may be an older one's.
                begin = np.cumsum(steps[-1][level][mine]) - steps[-1][level][mine]
                assert (stamps[-1][level][mine][1:] == version).all() and (begin[1:] > 0).all()
    # 20 ticks a rollout; level 0 decides every 3, or at the start of an episode of 6 or 9.
    firsts = np.array([[s[0][0], s[1][0]] for s in stamps])
    np.testing.assert_array_equal(firsts[:, 1], [0, 1, 2, 3])  # level 1 decides every tick
    np.testing.assert_array_equal(firsts[:, 0], [0, 0, 1, 3])


def test_weights_that_come_while_it_collects_wait():
    w = worker(envs=CountingEnvs(delay=0.002))
    thread = threading.Thread(target=w.collect_train_data)
    thread.start()
    while not w._collects:
        pass
    w.set_weights(weights(w.actor, 7))
    assert w.actor_version == 0
    thread.join()
    data, _ = w.collect_data()
    np.testing.assert_array_equal(data["actor_version"], [0] * 40 + [7] * 40)


def test_weights_are_what_is_acted_by():
    w, other = worker(sac_actor), sac_actor(None)
    state = other.init(jax.random.key(5), 1)
    state = state.replace(n_total_env_steps=state.n_total_env_steps.add(1234))
    w.set_weights(weights_of(state, 3))
    equal(pack(w._present.levels[0].learner.state.actor), pack(state.levels[0].learner.state.actor))
    assert int(w._present.n_total_env_steps) == 1234
    for bad in ({}, {"ActorVersion": 1}, {"ActorVersion": 1, "ActorWeights": []}, None):
        with pytest.raises((ValueError, TypeError)):
            w.set_weights(bad)
    wrong = lrl.Hierarchy([RandomLevel()], w.envs_train)
    with pytest.raises((ValueError, TypeError)):
        w.set_weights(weights(wrong, 1))
    assert w.actor_version == 3


def test_packing_keeps_random_keys():
    tree = {"key": jax.random.key(3), "x": np.arange(3)}
    back = unpack(pack(tree))
    np.testing.assert_array_equal(
        jax.random.key_data(back["key"]), jax.random.key_data(tree["key"])
    )


# ------------------------------------------------------------------ early stops


def test_a_worker_of_jax_environments_that_is_told_stops():
    """They can be paused, so a rollout need be no whole number of steps of all of them."""
    w = worker(maze_actor, jax_envs, fraction_samples=0.5)
    w.update_algorithm_parameter("update_every", 42)
    w.tell("stop")
    data, info = w.collect_data(["stop"])
    assert info["NumberSamples"] == 24 == len(data["rew"])
    data, info = w.collect_data()
    assert info["NumberSamples"] == 42 and np.bincount(data["instance"]).tolist() == [
        11,
        11,
        10,
        10,
    ]


@pytest.mark.parametrize("fraction,least", [(0.5, 20), (0.51, 22), (1.0, 40), (0.0, 2)])
def test_a_worker_that_is_told_stops_with_the_samples_it_has(fraction, least):
    w = worker(fraction_samples=fraction)
    w.tell("stop-1")
    data, info = w.collect_data(listen_to=["stop-1"])
    assert info["NumberSamples"] == len(data["rew"]) == max(least, 2)
    # No row of unused room.
    np.testing.assert_array_equal(data["obs_next"][:, :1], data["act"].clip(-1, 1))
    assert w.collect_data(listen_to=["another word"])[1]["NumberSamples"] == 40
    assert w.collect_data()[1]["NumberSamples"] == 40
    with pytest.raises(TypeError, match="list of words"):
        w.collect_data(listen_to="stop-1")


def test_no_stale_rows():
    """Unused rows are poisoned: none of them is sent, early stop or not."""
    w = worker(stack_actor, scripted, fraction_samples=0.5)
    for _ in range(3):
        w.tell("stop")
        state = w._collector.state
        levels = []
        for s in state.levels:
            nan = np.float32(np.nan).view(np.uint32)
            words = np.where(
                np.arange(s.buffer.capacity)[:, None, None] >= np.asarray(s.buffer.size)[:, None],
                nan,
                np.asarray(s.buffer.words),
            )
            levels.append(s.replace(buffer=s.buffer.replace(words=jax.numpy.asarray(words))))
        w._collector.state = state.replace(levels=tuple(levels))
        data, info = w.collect_data(["stop"])
        assert info["NumberSamples"] == 20
        for leaf in jax.tree.leaves(data):
            assert np.isfinite(leaf).all()


def test_random_steps_at_the_start():
    w = worker(
        sac_actor, algo_factory=lambda d, a: CollectionSettings(update_every=40, start_steps=60)
    )
    data, _ = w.collect_data()
    assert len(data["levels"][0]["rew"]) == 0  # the hierarchy has seen nothing
    assert data["act"].std() > 0.4
    data, info = w.collect_data()
    assert info["NumberSamples"] == 40 and len(data["levels"][0]["rew"]) == 20


def test_compression_changes_no_bit():
    plain, small = (
        worker(stack_actor, scripted),
        worker(stack_actor, scripted, compress_data_to_send=True),
    )
    for _ in range(2):
        data, _ = plain.collect_data()
        sent, _ = small.collect_data()
        assert isinstance(sent, bytes)
        back = decompress(sent)
        assert jax.tree.structure(back) == jax.tree.structure(data)
        for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(data), strict=True):
            assert a.dtype == b.dtype and a.tobytes() == b.tobytes()


def test_data_on_the_device():
    data, _ = worker().collect_data(data_to_cpu=False)
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(data))


# ------------------------------------------------------------------- evaluation


def test_evaluation_is_exact_and_leaves_training_alone():
    lengths = []

    class Envs(CountingEnvs):
        def __call__(self, device, index_worker, index_parent, mode):
            lengths.append(mode)
            return super().__call__(device, index_worker, index_parent, mode)

    w, twin = worker(sac_actor, Envs()), worker(sac_actor, Envs())
    assert lengths[:2] == ["train", "test"]
    w.collect_data()
    twin.collect_data()
    before = np.array(w.obs)
    assert w.evaluate() == 5.0 == w.evaluate()
    np.testing.assert_array_equal(w.obs, before)
    equal(w.collect_data()[0], twin.collect_data()[0])


@pytest.mark.parametrize("episodes", [1, 2, 3, 4, 7])
def test_evaluation_is_exact_and_unbiased(episodes):
    """Instances whose episodes have unequal lengths: exactly so many, short ones not favoured."""
    lengths = (2, 9)

    def envs(device, index_worker, index_parent, mode):
        return SyncVectorEnv([lambda length=length: Counting(length=length) for length in lengths])

    w = worker(test_envs_factory=envs)
    w.update_algorithm_parameter("num_test_episodes", episodes)
    each = [lengths[i % 2] for i in range(episodes)]  # the first instances do one more
    assert w.evaluate() == pytest.approx(sum(each) / episodes)


def test_evaluation_has_no_noise():
    w = worker(sac_actor)
    assert w.evaluate() == w.evaluate()


def test_an_evaluation_that_raises_loses_no_sample():
    settings = CollectionSettings(40, test_every=2, num_test_episodes=1)
    w = worker(stack_actor, scripted, algo_factory=lambda d, a: settings)
    twin = worker(stack_actor, scripted)
    w.evaluate = broken = lambda: 1 / 0
    first, _ = w.collect_data()
    with pytest.raises(ZeroDivisionError):
        w.collect_data()
    with pytest.raises(ValueError, match="samples of the present actor that were not sent"):
        w.replace_agent_component("actor", random_actor)
    assert w.evaluate is broken and w.iter == 1
    del w.evaluate
    data, info = w.collect_data()
    assert info["NumberSamples"] == 80 and "TestReturn" in info
    equal(first, twin.collect_data()[0])
    expected = [twin.collect_data()[0] for _ in range(2)]
    np.testing.assert_array_equal(data["obs"], np.concatenate([x["obs"] for x in expected]))


def test_evaluation_is_due_every_so_many_rollouts():
    w = worker(algo_factory=lambda d, a: CollectionSettings(40, test_every=2, num_test_episodes=1))
    infos = [w.collect_data()[1] for _ in range(4)]
    assert ["TestReturn" in info for info in infos] == [False, True, False, True]


# ---------------------------------------------------------------------- changes


def test_parameters():
    w = worker()
    w.update_algorithm_parameter("update_every", 20)
    assert w.update_every == 20 == w.collect_data()[1]["NumberSamples"]
    w.update_storage_parameter("buffer_size", 60)
    assert w.storage.capacity == 30
    assert len(buffers.stored(w.storage)["rew"]) == 20
    with pytest.raises(ValueError, match="no parameter 'gamma'.*update_every"):
        w.update_algorithm_parameter("gamma", 0.9)
    with pytest.raises(ValueError, match="no parameter 'size'.*buffer_size"):
        w.update_storage_parameter("size", 10)
    bad = [("update_every", 41, "41 samples.*2 instances.*use 42"), ("update_every", 0, "least 1")]
    bad += [("start_steps", 3, "use 4"), ("start_steps", -2, "start_steps")]
    bad += [("num_test_episodes", 0, "num_test_episodes"), ("test_every", 0.5, "test_every")]
    for name, value, message in bad:
        with pytest.raises((ValueError, TypeError), match=message):
            w.update_algorithm_parameter(name, value)
    with pytest.raises(ValueError, match="num_steps=5 samples"):
        w.collect_train_data(num_steps=5)
    assert w.update_every == 20 == w.collect_data()[1]["NumberSamples"]
    with pytest.raises(ValueError, match="no storage"):
        worker(storage_factory=no_storage).update_storage_parameter("buffer_size", 10)


def test_components_are_replaced():
    w = worker()
    w.set_weights(weights(w.actor, 4))
    w.collect_data()
    w.replace_agent_component("envs_train", CountingEnvs(n=4))
    data, info = w.collect_data()
    assert set(data["instance"]) == {0, 1, 2, 3} and info["ActorVersion"] == 4
    w.replace_agent_component("envs_test", CountingEnvs(n=1))
    assert w.evaluate() == 5.0
    w.replace_agent_component("algo", lambda d, a: CollectionSettings(update_every=8))
    assert w.collect_data()[1]["NumberSamples"] == 8
    w.replace_agent_component("storage", lambda d, a, algo: 80)
    assert w.storage.capacity == 20 and not len(buffers.stored(w.storage)["rew"])
    w.replace_agent_component("actor", sac_actor)
    assert w.collect_data()[1]["NumberSamples"] == 8
    with pytest.raises(ValueError, match="no component 'obs'.*actor, algo"):
        w.replace_agent_component("obs", lambda d: None)
    with pytest.raises(TypeError, match="Hierarchy"):
        w.replace_agent_component("actor", lambda d: 3)
    with pytest.raises(TypeError, match="environment factory"):
        w.replace_agent_component("envs_train", lambda *a: 3)
    tests = w.envs_test
    with pytest.raises(ValueError, match="obs_space.*build a hierarchy for this"):
        w.replace_agent_component("envs_test", scripted)
    assert w.envs_test is tests and w.evaluate() == 5.0
    assert w.collect_data()[1]["NumberSamples"] == 8


def test_bad_workers():
    with pytest.raises(ValueError, match="no device 'cpu:99': cpu has"):
        worker(device="cpu:99")
    with pytest.raises(TypeError, match="actor_factory must return a Hierarchy"):
        worker(lambda d: 3)
    with pytest.raises(ValueError, match="update_every=41 samples.*use 42"):
        worker(algo_factory=lambda d, a: CollectionSettings(update_every=41))
    with pytest.raises(ValueError, match="num_test_episodes"):
        worker(algo_factory=lambda d, a: CollectionSettings(40, num_test_episodes=0))
    w = worker(train_envs_factory=lambda *a: None, test_envs_factory=lambda *a: None)
    with pytest.raises(ValueError, match="no training environments"):
        w.collect_data()
    with pytest.raises(ValueError, match="no test environments"):
        w.evaluate()
    with pytest.raises((ValueError, TypeError)):
        worker(fraction_samples=1.5)


# ------------------------------------------------------------------ a set of none


def test_a_set_without_ray():
    with CWorkerSet(0, 0, seed=3, **factories()) as workers:
        data, info = workers.collect()
        alone = worker(seed=3)
        equal(data, alone.collect_data()[0])
        assert info["NumberSamples"] == 40 and info["PolicyLag"] == 0
        version = weights(alone.actor, 5)
        workers.set_weights(version)
        assert workers.collect()[1]["ActorVersion"] == 5
        assert workers.evaluate() == 5.0
        workers.update_algorithm_parameter("update_every", 8)
        assert workers.collect_async()[1]["NumberSamples"] == 8
        assert workers.remote_workers() == [] and workers.num_workers == 0
        assert workers.local_worker().iter == 3
        assert workers.worker_class is CWorker and workers.remote_config == {"num_cpus": 1}
        assert "actor_factory" in workers.worker_params
    workers.stop()
    with pytest.raises(RuntimeError, match="stopped"):
        workers.collect()


def test_a_local_worker_that_raises_is_named():
    workers = CWorkerSet(0, 0, **factories(envs=CountingEnvs(fail_at=7)))
    with workers, pytest.raises(WorkerError, match="worker 0 raised RuntimeError"):
        workers.collect()


def test_a_factory_of_sets():
    make = CWorkerSet.create_factory(0, **factories(), col_fraction_samples=0.5, seed=1)
    with make("cpu", None, 2) as workers:
        w = workers.local_worker()
        assert w.index_parent == 2 and w.fraction_samples == 0.5
        assert w.device == jax.devices("cpu")[0]
