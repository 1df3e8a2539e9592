"""Vector environments as users have them: wrapped, of odd dtypes, in threads and processes."""

import functools
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import vector as vector_wrappers
from gymnasium.wrappers.utils import RunningMeanStd
from steady_gym import Failing, NeedsNone, Steady

import lrl_jax as lrl
from lrl_jax.collectors import EnvError
from lrl_jax.collectors.ray_pool import in_one_thread
from lrl_jax.levels import ConstantLevel

MODES = list(AutoresetMode)


def both(fns):
    """A collector of each kind, and the argument that asks for steps."""
    hierarchy = lrl.RandomHierarchy(Steady())
    return [
        (lrl.Collector(hierarchy, SyncVectorEnv(fns)), "n_steps"),
        (lrl.AsyncCollector(hierarchy, fns), "n_total_steps"),
    ]


# --- wrappers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
@pytest.mark.parametrize("outside", [False, True])
def test_a_normaliser_of_rewards_keeps_its_sums(mode, outside):
    """As written out: the discounted sum of each instance is cleared at its own reset alone."""
    lengths = [3, 50, 7]
    fns = [functools.partial(Steady, length) for length in lengths]
    env = normaliser = vector_wrappers.NormalizeReward(SyncVectorEnv(fns, autoreset_mode=mode))
    if outside:
        env = vector_wrappers.TransformReward(normaliser, lambda rew: 2 * rew)
    lrl.Collector(lrl.RandomHierarchy(env), env).collect(n_steps=40)
    want, sums = RunningMeanStd(shape=()), np.zeros(3)
    for t in range(1, 41):
        sums = 0.99 * sums + 1
        want.update(sums)
        sums[[t % length == 0 for length in lengths]] = 0
    np.testing.assert_allclose(normaliser.return_rms.var, want.var, rtol=1e-5)


def test_wrappers_that_cannot_reset_single_instances_are_refused_by_name():
    fns = [Steady] * 2
    inner = vector_wrappers.NormalizeObservation(SyncVectorEnv(fns))
    for env in (
        inner,
        vector_wrappers.RecordEpisodeStatistics(inner),
        vector_wrappers.DictInfoToList(SyncVectorEnv(fns)),
    ):
        with pytest.raises(TypeError, match="(NormalizeObservation|DictInfoToList).*leave it out"):
            lrl.Collector(lrl.RandomHierarchy(env), env)
    env = vector_wrappers.NormalizeReward(SyncVectorEnv(fns, autoreset_mode="SameStep"))
    with pytest.raises(TypeError, match="NormalizeReward.*NEXT_STEP"):
        lrl.Collector(lrl.RandomHierarchy(env), env)


@pytest.mark.parametrize("inside", [lambda env: env, gymnasium.wrappers.OrderEnforcing])
@pytest.mark.parametrize("name", ["NormalizeObservation", "NormalizeReward"])
def test_statistics_of_single_instances_are_named(name, inside):
    def wrapped():
        return inside(getattr(gymnasium.wrappers, name)(Steady()))

    hierarchy = lrl.RandomHierarchy(Steady())
    for call in (
        lambda: lrl.Collector(hierarchy, SyncVectorEnv([wrapped] * 2)),
        lambda: lrl.Collector(hierarchy, wrapped()),
        lambda: lrl.Collector(hierarchy, Steady(), wrapped()).evaluate(1),
        lambda: lrl.AsyncCollector(hierarchy, [wrapped] * 2).close(),
    ):
        with pytest.warns(UserWarning, match=f"{name} of a single .*running_normaliser=True"):
            call()


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
def test_episode_statistics_of_gymnasium_are_those_of_the_collector(mode):
    env = SyncVectorEnv([functools.partial(Steady, n) for n in (3, 7)], autoreset_mode=mode)
    env = vector_wrappers.RecordEpisodeStatistics(env)
    stats = lrl.Collector(lrl.RandomHierarchy(env), env).collect(n_steps=14)
    assert list(env.length_queue) == list(env.return_queue) == stats.lens.tolist()
    assert sorted(stats.lens) == [3, 3, 3, 3, 7, 7]


# --- resets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_nothing_passed_is_none(mode):
    envs = SyncVectorEnv([Steady] * 2, autoreset_mode=mode)
    for collector in (
        lrl.Collector(lrl.RandomHierarchy(envs), envs),
        lrl.Collector(lrl.RandomHierarchy(Steady())),
    ):
        collector.collect(n_steps=7)
        env = envs.envs[0] if collector.env is envs else collector.env
        assert env.resets == [(None, {})] * 3


def test_nothing_passed_is_none_in_processes():
    env = AsyncVectorEnv([NeedsNone] * 2, autoreset_mode="Disabled", context="forkserver")
    try:
        stats = lrl.Collector(lrl.RandomHierarchy(env), env).collect(n_steps=7)
        assert stats.lens.tolist() == [3] * 4
    finally:
        env.close()


def test_options_and_keywords_reach_every_reset_of_a_call():
    made = []

    def make():
        made.append(Steady())
        return made[-1]

    given = {"options": {"level": 3}}
    for collector, unit in both([make] * 2):
        collector.collect(**{unit: 14}, gym_reset_kwargs=given)
        collector.close()
    assert all(env.resets and set(map(str, env.resets)) == {f"({given['options']}, {{}})"}
               for env in made if env.resets)  # fmt: skip
    assert sum(bool(env.resets) for env in made) == 4
    # A single environment takes keywords of its own, in both collectors.
    single = Steady()
    lrl.Collector(lrl.RandomHierarchy(single)).collect(n_steps=7, gym_reset_kwargs={"goal": 2})
    assert single.resets == [(None, {"goal": 2})] * 3
    made.clear()
    with lrl.AsyncCollector(lrl.RandomHierarchy(Steady()), [make]) as collector:
        collector.collect(n_total_steps=7, gym_reset_kwargs={"goal": 2})
        assert made[0].resets == [(None, {"goal": 2})] * 3
        collector.reset(seed=1, gym_reset_kwargs={"seed": [4], "options": {"a": 1}})
        assert made[0].resets[-1] == ({"a": 1}, {})
    vector = SyncVectorEnv([Steady] * 2)
    with pytest.raises(ValueError, match=r"\['goal'\].*options only"):
        collector = lrl.Collector(lrl.RandomHierarchy(vector), vector)
        collector.reset()
        collector.collect(n_steps=2, gym_reset_kwargs={"goal": 2})


# --- actions, infos -------------------------------------------------------------------------------


class Bounded(Steady):
    """Refuses actions outside its space, whose bounds float32 cannot hold."""

    action_space = gymnasium.spaces.Box(-0.1, 0.1, (1,), np.float64)

    def step(self, action):
        assert self.action_space.contains(action), (action, action.dtype)
        return super().step(action)


@pytest.mark.parametrize("value", [5.0, -5.0, 0.03])
def test_actions_are_inside_bounds_of_any_dtype(value):
    h = lrl.Hierarchy([ConstantLevel(np.array([value], np.float32))], Bounded())
    lrl.Collector(h).collect(n_steps=4)
    lrl.Collector(h).collect(n_steps=4, random=True)
    vector = SyncVectorEnv([Bounded] * 2)
    lrl.Collector(h, vector).collect(n_steps=4)
    with lrl.AsyncCollector(h, [Bounded] * 2) as collector:
        collector.collect(n_total_steps=4)


def test_infos_may_differ_in_shape_and_type():
    seen = []
    fns = [functools.partial(Steady, n, lambda t: {"path": np.arange(t)}) for n in (3, 5)]
    for collector, unit in both(fns):
        assert sorted(collector.collect(**{unit: 30}).lens)[0] == 3
        collector.close()
    # A whole number beside a fraction does not cut it.
    fns = [functools.partial(Steady, 3, lambda t, x=x: {"cost": x}) for x in (0, 0.5)]
    env = SyncVectorEnv(fns)

    def look(**data):
        seen.extend(data.get("info", {}).get("cost", []))

    lrl.Collector(lrl.RandomHierarchy(env), env, preprocess_fn=look).collect(n_steps=2)
    assert seen == [0, 0.5, 0, 0.5]


@pytest.mark.parametrize("value, rate", [(True, 1.0), (np.float64(0), 0.0), (1, 1.0),
    (float("nan"), None), (0.3, None), ([False, True], None), ("yes", None)])  # fmt: skip
def test_success_is_a_flag(value, rate):
    told = functools.partial(Steady, 3, lambda t: {"success": value})
    for collector, unit in both([told] * 2):
        assert collector.collect(**{unit: 20})["success"] == rate
        collector.close()


class Far(Steady):
    observation_space = gymnasium.spaces.Box(0, 2**40, (1,), np.int64)

    def reset(self, **kwargs):
        return np.array([3]), super().reset(**kwargs)[1]

    def step(self, action):
        return np.array([2**40]), *super().step(action)[1:]


def test_whole_numbers_that_int32_cannot_hold_stay_large():
    _, rows = lrl.Collector(lrl.RandomHierarchy(Far())).collect(n_steps=2, record_transitions=True)
    assert (rows.obs_next == 2.0**40).all()


# --- threads and processes ------------------------------------------------------------------------


def test_each_environment_lives_in_one_thread():
    made = []

    class Threaded(Steady):
        def __init__(self):
            super().__init__()
            self.threads = [threading.get_ident()]
            made.append(self)

        def reset(self, **kwargs):
            self.threads.append(threading.get_ident())
            return super().reset(**kwargs)

        def step(self, action):
            self.threads.append(threading.get_ident())
            return super().step(action)

        def close(self):
            self.threads.append(threading.get_ident())

    with lrl.AsyncCollector(lrl.RandomHierarchy(Steady()), [Threaded] * 3, wait_num=1) as collector:
        collector.collect(n_total_steps=60)
    assert [len(set(env.threads)) for env in made] == [1] * 3
    assert len({env.threads[0] for env in made}) == 3


WAYS = {"raise": "raised ValueError: lost its way", "die": "died: its process ended with code 7",
        "interrupt": "raised KeyboardInterrupt"}  # fmt: skip


@pytest.mark.extras
@pytest.mark.filterwarnings("ignore:.*ERROR")
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("how", WAYS)
def test_a_process_of_a_vector_environment_that_is_lost(how, wrapped):
    fns = [functools.partial(Failing, i, how) for i in range(3)]
    env = AsyncVectorEnv(fns, context="forkserver")
    try:
        outer = vector_wrappers.TransformReward(env, lambda rew: rew) if wrapped else env
        collector = lrl.Collector(lrl.RandomHierarchy(Steady()), outer)
        for _ in range(2):  # again, and at once
            with pytest.raises(EnvError, match=f"environment 1 {WAYS[how]}.*again") as caught:
                collector.collect(n_steps=60)
            assert caught.value.index == 1
        assert collector.collect_step == 4 * 3
    finally:
        env.close(terminate=True)
    assert not any(process.is_alive() for process in env.processes)


@pytest.mark.extras
@pytest.mark.filterwarnings("ignore:.*ERROR")
@pytest.mark.parametrize("how", ["raise", "die"])
def test_a_process_of_an_asynchronous_collector_is_started_again(how):
    fns = [functools.partial(Failing, i, how) for i in range(2)]
    hierarchy = lrl.RandomHierarchy(Steady())
    heard = signal.getsignal(signal.SIGINT)
    with lrl.AsyncCollector(hierarchy, fns, processes=True) as collector:
        assert signal.getsignal(signal.SIGINT) is heard
        for _ in range(2):
            with pytest.raises(EnvError, match=f"environment 1 {WAYS[how]}.*makes it again"):
                collector.collect(n_total_steps=60)
            assert collector.collect(n_total_steps=6).n_collected_steps >= 6


def test_a_worker_on_ray_works_in_one_thread():
    began, told = threading.Event(), threading.Event()

    class Worker:
        def __init__(self, index):
            self.threads = [threading.get_ident()]

        def collect_data(self):
            self.threads.append(threading.get_ident())
            began.set()
            assert told.wait(30), "it was not heard while it worked"
            return len(set(self.threads))

        def tell(self, word):
            told.set()
            return word

    worker = in_one_thread(Worker)(0)
    with ThreadPoolExecutor(2) as callers:
        answer = callers.submit(worker.collect_data)
        assert began.wait(30) and callers.submit(worker.tell, "stop").result() == "stop"
        assert answer.result() == 1
