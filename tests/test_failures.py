"""What raises in the middle of collecting leaves no wrong row, sum or length behind."""

import functools
import signal
import warnings

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from scripted import Params, Scripted, label, table
from scripted_gym import ScriptedGym

import lrl_jax as lrl
from lrl_jax.collectors import EnvError, VideoLogger
from lrl_jax.levels import ActionRepeatLevel, RandomLevel

LENGTHS = (6, 50)


class Broken(RuntimeError):
    """What tests raise."""


class Once:
    """Raises at the call whose turn it is, once."""

    def __init__(self, at):
        self.at, self.calls = at, 0

    def __call__(self):
        self.calls += 1
        if self.calls == self.at:
            raise Broken("once")


class Failing(ScriptedGym):
    """Raises once in `step` or `reset`."""

    def __init__(self, index, step=None, reset=None):
        super().__init__(index, LENGTHS)
        self.once_in_step, self.once_in_reset = Once(step), Once(reset)

    def step(self, action):
        self.once_in_step()
        return super().step(action)

    def reset(self, **kwargs):
        self.once_in_reset()
        return super().reset(**kwargs)


def stacked(kind):
    """Two levels, or one that draws its actions ahead."""
    env = ScriptedGym(0, LENGTHS)
    levels = [RandomLevel(buffer_size=400)]
    if kind == "stack":
        levels.append(ActionRepeatLevel(3, buffer_size=400))
    return lrl.Hierarchy(levels, env)


def check_rows(buffer, span=1):
    """Each row leads from a time to a later one of the same episode; pieces continue."""
    rows = lrl.buffers.stored(buffer)
    obs, following = rows["obs"], rows["obs_next"]
    np.testing.assert_array_equal(obs[:, :2], following[:, :2])  # instance and episode
    steps = rows.get("elapsed_env_steps", np.full(len(obs), span))
    np.testing.assert_array_equal(following[:, 2] - obs[:, 2], steps)
    if len(obs) > 1:
        longest = min(buffer.capacity, 12)
        ids, length, _ = lrl.buffers.sample_partial_trajectories(
            buffer, jax.random.key(0), 256, longest
        )
        pieces = lrl.buffers.gather(buffer, ids)
        goes_on = np.arange(1, longest)[:, None] < np.asarray(length)
        same = np.asarray(pieces["obs"][1:] == pieces["obs_next"][:-1])[..., :3].all(-1)
        assert same[goes_on].all()


def check(collector, stats=None):
    check_rows(collector.buffer)
    for level in collector.state.levels:
        check_rows(level.buffer)
    if stats is not None:
        assert set(stats.lens) <= set(LENGTHS), stats.lens


def collector_of(envs, kind, **settings):
    env = SyncVectorEnv(envs, autoreset_mode=settings.pop("mode", AutoresetMode.DISABLED))
    settings = {"buffer": 300, "exploration_noise": True, **settings}
    return lrl.Collector(stacked(kind), env, **settings)


@pytest.mark.parametrize("kind", ["one", "stack"])
@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_an_environment_that_raises_in_a_step(kind, mode):
    envs = [functools.partial(Failing, i, step=5 if i == 2 else None) for i in range(3)]
    collector = collector_of(envs, kind, mode=mode)
    with pytest.raises(Broken):
        collector.collect(n_steps=10)
    check(collector)
    stored = len(lrl.buffers.stored(collector.state.levels[-1].buffer)["rew"])
    assert stored == 4 * 3  # what was received before is not lost
    check(collector, collector.collect(n_steps=20))
    check(collector, collector.collect(n_episodes=4))


@pytest.mark.parametrize("kind", ["one", "stack"])
def test_a_reset_that_raises(kind):
    envs = [functools.partial(Failing, i, reset=2 if i == 1 else None) for i in range(3)]
    collector = collector_of(envs, kind)
    collector.collect(n_steps=4)
    with pytest.raises(Broken):
        collector.reset_env()
    stats = collector.collect(n_steps=20)
    check(collector, stats)
    assert list(stats.lens[:3]) != [10] * 3


class Meddling:
    """A preprocess_fn that raises once."""

    def __init__(self, at):
        self.once = Once(at)

    def __call__(self, **data):
        self.once()
        return {}


def test_a_users_function_that_raises():
    collector = collector_of(
        [functools.partial(Failing, i) for i in range(2)], "stack", preprocess_fn=Meddling(6)
    )
    with pytest.raises(Broken):
        collector.collect(n_steps=10)
    check(collector, collector.collect(n_steps=20))


def test_a_test_that_raises_in_the_training_environment(tmp_path):
    class Video(VideoLogger):
        def record(self, *args):
            raise Broken("video")

    collector = collector_of([functools.partial(Failing, i) for i in range(2)], "stack")
    collector.collect(n_steps=4)
    with pytest.raises(Broken):
        collector.test(0, collector.state, 5, video_logger=Video(tmp_path / "a.gif"))
    check(collector, collector.collect(n_steps=20))


def test_an_interrupted_async_vector_environment_is_usable_again():
    envs = [functools.partial(ScriptedGym, i, LENGTHS, delay=0.2) for i in range(2)]
    env = AsyncVectorEnv(envs, autoreset_mode=AutoresetMode.DISABLED, context="forkserver")
    collector = lrl.Collector(stacked("stack"), env, buffer=300, exploration_noise=True)
    try:
        collector.collect(n_steps=2)

        def interrupt(*_):
            raise KeyboardInterrupt

        old = signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(KeyboardInterrupt):
            collector.collect(n_steps=100)
        signal.signal(signal.SIGALRM, old)
        check(collector, collector.collect(n_steps=8))
    finally:
        env.close()


def test_custom_vector_environments_go_on_after_instances_sat_out():
    class Custom(gymnasium.vector.VectorEnv):
        """Resets itself, and cannot reset single instances."""

        metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}

        def __init__(self):
            fns = [functools.partial(ScriptedGym, i, LENGTHS) for i in range(3)]
            self.inner = SyncVectorEnv(fns, autoreset_mode=AutoresetMode.SAME_STEP)
            self.num_envs = 3
            for name in ("single_observation_space", "single_action_space"):
                setattr(self, name, getattr(self.inner, name))

        def reset(self, *, seed=None, options=None):
            return self.inner.reset(seed=seed, options=options)

        def step(self, actions):
            return self.inner.step(actions)

    collector = lrl.Collector(stacked("stack"), Custom(), buffer=300, exploration_noise=True)
    assert collector.collect(n_total_steps=4).n_collected_steps == 4
    assert collector.collect(n_steps=3).n_collected_steps == 9
    for _ in range(2):
        check(collector, collector.collect(n_episodes=2))


# ---------------------------------------------------------------------- async


def asynchronous(envs, **settings):
    settings = {"wait_num": 1, "buffer": 300, "exploration_noise": True, **settings}
    return lrl.AsyncCollector(stacked("stack"), envs, **settings)


def test_a_step_under_way_that_raises_while_all_are_reset():
    envs = [functools.partial(Failing, 0, step=1), functools.partial(Failing, 1)]
    with asynchronous(envs, timeout=0.001) as collector:
        try:
            collector.collect(n_total_steps=1)
        except EnvError:
            pass
        else:
            with pytest.raises(EnvError, match="environment 0 raised Broken: once"):
                collector.reset_env()
        stats, rows = collector.collect(n_total_steps=20, record_transitions=True)
        assert (rows.valid.sum(0) > 0).all(), "an environment was starved"
        check(collector, stats)
        assert collector.collect(n_episodes=2).n_collected_episodes == 2


def test_an_asynchronous_reset_that_raises():
    envs = [functools.partial(Failing, 0), functools.partial(Failing, 1, reset=2)]
    with asynchronous(envs) as collector:
        collector.collect(n_total_steps=8)
        with pytest.raises(EnvError, match="environment 1 raised Broken: once"):
            collector.reset_env()
        stats = collector.collect(n_total_steps=40)
        check(collector, stats)


def test_a_users_function_that_raises_asynchronously():
    envs = [functools.partial(Failing, i) for i in range(2)]
    with asynchronous(envs, preprocess_fn=Meddling(6)) as collector:
        with pytest.raises(Broken):
            collector.collect(n_total_steps=30)
        check(collector, collector.collect(n_total_steps=30))


def test_a_state_that_is_set_while_steps_are_under_way():
    envs = [functools.partial(ScriptedGym, i, (1000,), delay=0.003 * i) for i in range(2)]
    with asynchronous(envs) as collector:
        for _ in range(5):
            collector.collect(n_total_steps=7)
            collector.state = collector.state
        for level in collector.state.levels:
            check_rows(level.buffer)


class Counted(ScriptedGym):
    """Counts those that are open."""

    opened = 0

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        Counted.opened += 1

    def close(self):
        Counted.opened -= 1


def raising():
    raise Broken("made")


class Wider(ScriptedGym):
    """Of another observation space."""

    def __init__(self):
        super().__init__(0, LENGTHS)
        self.observation_space = gymnasium.spaces.Box(-1, 1, (5,), np.float32)


@pytest.mark.parametrize(
    "last,settings,error",
    [
        (None, {"buffer": 1}, ValueError),
        (None, {"preprocess_fn": 3}, TypeError),
        (None, {"timeout": "a"}, ValueError),
        (None, {"state": 3}, TypeError),
        (raising, {}, Broken),
        (Wider, {}, ValueError),
    ],
)
def test_a_constructor_that_raises_leaves_nothing_open(last, settings, error):
    Counted.opened = 0
    envs = [functools.partial(Counted, i, LENGTHS) for i in range(3)]
    with pytest.raises(error):
        lrl.AsyncCollector(stacked("one"), [*envs, *([last] if last else [])], **settings)
    assert Counted.opened == 0


def test_nothing_is_collected_after_close():
    collector = asynchronous([functools.partial(Failing, 0)])
    collector.close()
    collector.close()
    for call in (lambda: collector.collect(n_total_steps=1), collector.reset):
        with pytest.raises(ValueError, match="closed"):
            call()


# ------------------------------------------------------------------ on the device


def on_device(**settings):
    env, params = Scripted(), Params(lengths=jnp.asarray(table([[3], [4]])))
    hierarchy = lrl.Hierarchy([RandomLevel()], env, params)
    collector = lrl.Collector(hierarchy, env, env_params=params, n_env_instances=2, **settings)
    collector.reset(seed=0)
    label(collector)
    return collector


def test_a_state_in_the_users_hands_survives_an_error():
    collector = on_device(preprocess_fn=Meddling(2))
    state = collector.state
    with pytest.raises(Broken):
        collector.collect(n_steps=4)
    collector.collect(n_steps=4)
    np.asarray(state.active_level)


def test_statistics_without_no_grad_are_the_same():
    plain, differentiable = on_device(), on_device()
    want = plain.collect(n_steps=9)
    got, rows = differentiable.collect(n_steps=9, no_grad=False, record_transitions=True)
    assert rows.obs.shape == (9, 2, 4) and want.n_collected_episodes == 5
    for name in ("n_collected_episodes", "n_collected_steps"):
        assert getattr(got, name) == getattr(want, name)
    for name in ("lens", "returns", "successes"):
        np.testing.assert_array_equal(getattr(got, name), getattr(want, name))
    np.testing.assert_allclose(got.mean_reward, want.mean_reward, rtol=1e-6)


def test_statistics_while_differentiating():
    collector, seen = on_device(), []

    def loss(scale):
        label(collector)
        state = collector.state
        level = state.levels[0].replace(cum_reward=state.levels[0].cum_reward * scale)
        collector.state = state.replace(levels=(level,))
        stats, rows = collector.collect(n_steps=9, no_grad=False, record_transitions=True)
        seen.append(stats)
        return rows.rew.sum() + scale

    assert jax.grad(loss)(1.0) == 1.0
    assert seen[0].n_collected_steps == 18 and seen[0].n_collected_episodes == 5


def test_who_sits_out_is_called_back_with_zeros_everywhere():
    seen = {}
    host = collector_of([functools.partial(ScriptedGym, i, (3 + i,)) for i in range(2)], "one")
    for name, collector in (("device", on_device()), ("host", host)):
        seen[name] = []
        collector.collect(
            n_total_steps=3,
            post_step_callback=lambda t, obs, name=name: seen[name].append(np.array(obs)[:, 2]),
        )
    np.testing.assert_array_equal(seen["device"], [[1, 1], [2, 0]])
    np.testing.assert_array_equal(seen["host"], seen["device"])


def test_frames_are_of_counted_steps_alone(tmp_path):
    shown = []

    def render(env, state):
        shown.append(env.unwrapped.envs[0].unwrapped.time)
        return np.zeros((8, 8, 3), np.uint8)

    envs = [functools.partial(ScriptedGym, i, (2 + 7 * i,)) for i in range(2)]
    video = VideoLogger(tmp_path / "a.gif", render_fn=render)
    collector_of(envs, "one").collect(n_episodes=2, video_logger=video)
    assert shown == [0, 1, 2]


def test_info_of_some_instances_is_cut_at_all_depths():
    seen = []

    def look(**data):
        if "info" in data:
            seen.append((len(data["env_id"]), len(data["info"]["episode"]["l"])))
        return {}

    class Nested(ScriptedGym):
        def step(self, action):
            *step, info = super().step(action)
            return *step, {**info, "episode": {"l": self.time}}

    envs = [functools.partial(Nested, i, LENGTHS) for i in range(3)]
    collector_of(envs, "one", preprocess_fn=look).collect(n_total_steps=4)
    assert seen == [(3, 3), (1, 1)]


@pytest.mark.parametrize(
    "call,error,message",
    [
        (lambda c: c.collect(n_total_steps=3_000_000_000), ValueError, "2147483647"),
        (lambda c: c.collect(n_steps=2, post_step_callback=3), TypeError, "not callable"),
        (lambda c: c.collect(n_steps=2, video_logger="a.gif"), TypeError, "VideoLogger"),
        (lambda c: c.collect(n_steps=2, render="a"), ValueError, "seconds"),
        (lambda c: c.collect(n_episodes=2, test_interval=2), ValueError, "test_env"),
        (lambda c: setattr(c, "state", 3), TypeError, "HierarchyState"),
        (lambda c: c.test(0, 3, 4), TypeError, "HierarchyState"),
        (lambda c: c.reset(gym_reset_kwargs=3), TypeError, "dict"),
        (lambda c: c.reset(seed=2**70), ValueError, "at most 9223372036854775807"),
    ],
)
def test_bad_calls(call, error, message):
    collector = collector_of([functools.partial(ScriptedGym, i, LENGTHS) for i in range(2)], "one")
    with pytest.raises(error, match=message):
        call(collector)
    assert collector.collect_step == 0


@pytest.mark.parametrize("settings", [{"test_env": 3}, {"writer": 3}, {"state": 3}])
def test_bad_constructors(settings):
    env = SyncVectorEnv([functools.partial(ScriptedGym, 0, LENGTHS)])
    with pytest.raises(TypeError, match=next(iter(settings))):
        lrl.Collector(stacked("one"), env, **settings)


def test_a_mujoco_environment():
    pytest.importorskip("mujoco")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        env = gymnasium.make_vec("HalfCheetah-v5", num_envs=2, vectorization_mode="sync")
    collector = lrl.Collector(lrl.RandomHierarchy(env), env, buffer=100)
    stats = collector.collect(n_steps=5)
    assert stats.n_collected_steps == 10 and np.isfinite(stats.mean_reward)
    assert lrl.buffers.stored(collector.buffer)["obs"].shape == (10, 17)
    env.close()
