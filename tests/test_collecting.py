"""How loops are called, compiled and recorded: environment named once, levels, evaluation."""

from __future__ import annotations

import functools
import pickle

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from scripted import Params, Scripted, label, table
from scripted_gym import ScriptedGym

import lrl_jax as lrl
from lrl_jax.collectors.requests import Request
from lrl_jax.collectors.stats import Collected
from lrl_jax.levels import ActionRepeatLevel, RandomLevel
from lrl_jax.settings import check_int

LENGTHS = [[3, 4], [7, 2]]
N = len(LENGTHS)


class Traced(Scripted):
    """Counts how often its step is traced."""

    def __init__(self):
        super().__init__()
        self.traces = 0

    def step(self, key, state, action, params=None):
        self.traces += 1
        return super().step(key, state, action, params)


class Short(Traced):
    """Every episode has five steps, which its parameters say."""

    @property
    def default_params(self):
        return Params(lengths=jnp.full((1, 64), 5, jnp.int32), max_steps_in_episode=5)

    def reset(self, key, params=None):
        obs, state = super().reset(key, params)
        return obs, state.replace(index=jnp.zeros((), jnp.int32))


def stacked(env, params=None, **settings):
    """A level that holds its decision for two steps of the one below."""
    levels = [RandomLevel(buffer_size=300), ActionRepeatLevel(2, buffer_size=300)]
    return lrl.Hierarchy(levels, env, params, **settings)


def scripted_params():
    return Params(lengths=jnp.asarray(table(LENGTHS)))


# --- environment and parameters -------------------------------------------------------------------


def old_calls():
    """Calls in the order of before, and the beginning of the one that is right."""
    env, params = Short(), Short().default_params
    h = lrl.RandomHierarchy(env, env_params=params)
    key = jax.random.key(0)
    carry = lrl.init_carry(h, key, 2)
    state = h.init(key, 2)
    collectors = lrl.collectors
    return {
        "init_carry(hierarchy, key, n_env_instances": lambda: lrl.init_carry(
            h, env, params, key, 2
        ),
        "init_carry(hierarchy, key, n_env": lambda: lrl.init_carry(h, env, None, key, 2, state),
        "rollout(hierarchy, carry, n_steps": lambda: lrl.rollout(h, env, params, carry, n_steps=3),
        "tick(hierarchy, carry, mask": lambda: collectors.tick(h, env, params, carry),
        "evaluate(hierarchy, state, key, n_episodes": lambda: lrl.evaluate(
            h, env, params, state, key, 2, 5
        ),
    }


@pytest.mark.parametrize("call", list(old_calls()))
def test_the_order_of_before_is_refused_with_the_present_call(call):
    with pytest.raises(TypeError) as caught:
        old_calls()[call]()
    assert call in str(caught.value) and "env_params=None" in str(caught.value)


def test_parameters_are_those_of_the_hierarchy_unless_others_are_given():
    env, params = lrl.make("Pendulum-v1")
    mine = params.replace(max_steps_in_episode=20)
    h = lrl.RandomHierarchy(env, env_params=mine)
    collector = lrl.Collector(h, n_env_instances=2)
    assert collector.env is env and collector.env_params is mine
    assert collector.collect(n_steps=50).n_collected_episodes == 4
    assert set(collector.evaluate(3).lens) == {20}
    key = jax.random.key(0)

    def episodes(**given):
        carry = lrl.init_carry(h, key, 2, **given)
        return int(lrl.rollout(h, carry, 50, **given)[1].metrics["n_episodes"])

    assert episodes() == 4
    assert episodes(env_params=params.replace(max_steps_in_episode=10)) == 10
    other, _ = lrl.make("Pendulum-v1")  # an environment of its own, with its defaults
    assert episodes(env=other) == 0 and episodes(env=other, env_params=mine) == 4
    state = h.init(key, 1)
    assert set(np.asarray(lrl.evaluate(h, state, key, 3).length)) == {20}
    assert set(np.asarray(lrl.evaluate(h, state, key, 3, env=other).length)) == {200}


def test_a_test_environment_can_have_parameters_of_its_own():
    env, params = lrl.make("Pendulum-v1")
    other, _ = lrl.make("Pendulum-v1")
    h = lrl.RandomHierarchy(env, env_params=params.replace(max_steps_in_episode=20))

    def lengths(**given):
        return set(lrl.Collector(h, env, **given).evaluate(2).lens)

    assert lengths() == {20} and lengths(test_env=other) == {200}
    short = params.replace(max_steps_in_episode=7)
    assert lengths(test_env=other, test_env_params=short) == {7}
    assert lengths(test_env_params=short) == {7}


def test_gymnasium_environments_are_refused_on_the_device():
    h = lrl.RandomHierarchy(ScriptedGym(0, [3]))
    with pytest.raises(TypeError, match="runs on the host: use Collector"):
        lrl.init_carry(h, jax.random.key(0), 1)
    with pytest.raises(TypeError, match="runs on the host: use Collector"):
        lrl.evaluate(h, h.init(jax.random.key(0), 1), jax.random.key(0), 2)


# --- compiled once --------------------------------------------------------------------------------


def test_evaluate_compiles_once_and_can_be_traced():
    env = Short()
    h = lrl.RandomHierarchy(env)
    state = h.init(jax.random.key(0), 2)
    first = lrl.evaluate(h, state, jax.random.key(1), 6)
    traces = env.traces
    again = lrl.evaluate(h, state, jax.random.key(1), 6)
    assert env.traces == traces
    np.testing.assert_array_equal(first.episode_return, again.episode_return)
    inside = jax.jit(lambda s, k: lrl.evaluate(h, s, k, 6))(state, jax.random.key(1))
    np.testing.assert_allclose(first.episode_return, inside.episode_return, rtol=1e-6)
    assert set(np.asarray(first.length)) == {5} and first.finished.all()


def test_evaluate_asks_for_a_limit_that_nobody_knows():
    class Endless(Short):
        @property
        def default_params(self):
            return {"lengths": jnp.zeros((1, 64), jnp.int32)}

    env = Endless()
    h = lrl.RandomHierarchy(env)
    state, key = h.init(jax.random.key(0), 1), jax.random.key(0)
    with pytest.raises(ValueError, match="Endless have no max_steps_in_episode: give max_steps"):
        lrl.evaluate(h, state, key, 2)
    pendulum, params = lrl.make("Pendulum-v1")
    h = lrl.RandomHierarchy(pendulum, env_params=params)
    run = jax.jit(lambda p: lrl.evaluate(h, h.init(key, 1), key, 2, env_params=p))
    with pytest.raises(ValueError, match="known while they are traced: give max_steps"):
        run(params)


@pytest.mark.parametrize("learn", [False, True])
def test_any_number_of_steps_compiles_once(learn):
    env = Short()
    collector = lrl.Collector(stacked(env), n_env_instances=2)
    collector.collect(n_steps=3, learn=learn)
    traces = env.traces
    for n in (1, 50, 51, 200):
        assert collector.collect(n_steps=n, learn=learn).n_collected_steps == 2 * n
    assert env.traces == traces


# --- what levels do -------------------------------------------------------------------------------


def levels_in_python(batch, hold=2):
    """Who decides, closes and hands back in two levels, one instance at a time."""
    n_ticks, n = batch.valid.shape
    out = {name: np.zeros((2, n_ticks, n), bool) for name in ("decided", "closed", "hands_back")}
    for i in range(n):
        active, rows = 0, 0
        for t in range(n_ticks):
            if not batch.valid[t, i]:
                continue
            out["decided"][:, t, i] = active == 0, True
            rows = 0 if active == 0 else rows
            rows += 1
            done = batch.terminated[t, i] or batch.truncated[t, i]
            active = 0 if done or rows == hold else 1
            out["closed"][:, t, i] = active == 0, True
            out["hands_back"][:, t, i] = done, active == 0
    return out


def assert_levels(levels, batch):
    expected = levels_in_python(batch)
    for k, level in enumerate(levels):
        for name, values in expected.items():
            np.testing.assert_array_equal(getattr(level, name), values[k], f"level {k}: {name}")
    valid = np.asarray(batch.valid)[..., None]
    top, last = levels
    assert top.level_input.shape == (*batch.valid.shape, 0)
    np.testing.assert_array_equal(last.act, batch.act)
    np.testing.assert_array_equal(last.level_input, np.where(valid, top.act, 0))
    np.testing.assert_array_equal(last.act, last.level_input)  # it repeats what it is sent
    changed = np.any(np.diff(np.asarray(top.act), axis=0) != 0, -1)
    assert not (changed & ~np.asarray(top.decided)[1:] & np.asarray(batch.valid)[1:]).any()


def on_device(**settings):
    params = scripted_params()
    collector = lrl.Collector(
        stacked(Scripted(), params), n_env_instances=N, exploration_noise=True, **settings
    )
    collector.reset(seed=0)
    label(collector)
    return collector


def on_host(**settings):
    envs = [functools.partial(ScriptedGym, i, row) for i, row in enumerate(table(LENGTHS))]
    env = SyncVectorEnv(envs, autoreset_mode=AutoresetMode.NEXT_STEP)
    collector = lrl.Collector(stacked(env), exploration_noise=True, **settings)
    collector.reset(seed=0)
    return collector


@pytest.mark.parametrize("make", [on_device, on_host])
@pytest.mark.parametrize("asked", [{"n_steps": 17}, {"n_episodes": 3}, {"n_total_steps": 9}])
def test_the_record_of_levels(make, asked):
    collector = make()
    stats, batch, levels = collector.collect(record_transitions="levels", learn=True, **asked)
    assert stats.n_collected_steps == batch.valid.sum()
    assert_levels(levels, batch)
    # The rows that were closed are those stored.
    for level, state in zip(levels, collector.state.levels, strict=True):
        assert len(lrl.buffers.stored(state.buffer)["rew"]) == level.closed.sum()


def test_both_engines_record_the_same_of_levels():
    device, host = (make().collect(n_steps=9, record_transitions="levels") for make in
                    (on_device, on_host))  # fmt: skip
    for a, b in zip(jax.tree.leaves(device[1:]), jax.tree.leaves(host[1:]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_a_rollout_records_levels_and_is_the_same_without():
    h = stacked(Short())
    carry = lrl.init_carry(h, jax.random.key(0), 3)
    end, out = lrl.rollout(h, carry, 12, learn=True, record="levels", learn_interval=5)
    twin, plain = lrl.rollout(h, carry, 12, learn=True, record=True, learn_interval=5)
    assert plain.levels is None and len(out.levels) == 2
    assert_levels(out.levels, out.transitions)
    for a, b in zip(
        jax.tree.leaves((end.hierarchy.levels, end.sums, out.transitions, out.metrics)),
        jax.tree.leaves((twin.hierarchy.levels, twin.sums, plain.transitions, plain.metrics)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_what_cannot_be_recorded_is_refused():
    h = stacked(Short())
    carry = lrl.init_carry(h, jax.random.key(0), 1)
    with pytest.raises(ValueError, match="record='rows' is unknown"):
        lrl.rollout(h, carry, 2, record="rows")
    collector = lrl.Collector(h)
    with pytest.raises(ValueError, match="leaves the levels alone"):
        collector.collect(n_steps=2, random=True, record_transitions="levels")
    fns = [functools.partial(ScriptedGym, 0, [5])]
    asynchronous = lrl.AsyncCollector(stacked(ScriptedGym(0, [5])), fns)
    with asynchronous, pytest.raises(ValueError, match="still pending.*use Collector"):
        asynchronous.collect(n_total_steps=2, record_transitions="levels")


# --- evaluation -----------------------------------------------------------------------------------


def test_evaluation_is_exact_and_leaves_training_alone():
    env = Short()
    collectors = [lrl.Collector(stacked(env), n_env_instances=3, buffer=90) for _ in range(2)]
    for collector in collectors:
        collector.collect(n_steps=4, learn=True)
    one, twin = collectors
    stats = one.evaluate(n_episodes=7)
    assert isinstance(stats, lrl.CollectStats) and stats.lens.tolist() == [5] * 7
    assert stats.returns.tolist() == one.evaluate(n_episodes=7).returns.tolist()
    other = one.evaluate(n_episodes=7, key=jax.random.key(5))
    assert stats.returns.tolist() != other.returns.tolist()
    assert one.collect_step == 12 and one.evaluate(2).n_collected_steps == 10
    a, b = (c.collect(n_steps=6, learn=True, record_transitions=True)[1] for c in collectors)
    jax.tree.map(np.testing.assert_array_equal, a, b)
    for name in ("rew", "obs"):
        np.testing.assert_array_equal(
            lrl.buffers.stored(one.buffer)[name], lrl.buffers.stored(twin.buffer)[name]
        )


def test_evaluation_of_another_state_and_of_endless_episodes():
    env = Short()
    collector = lrl.Collector(stacked(env), n_env_instances=2)
    state = collector.hierarchy.init(jax.random.key(3), 5)
    assert collector.evaluate(3, state=state).n_collected_episodes == 3
    with pytest.warns(UserWarning, match="3 episodes were still open after 2 steps"):
        stats = collector.evaluate(3, state=state, max_steps=2)
    assert stats.truncated_by_limit == 3 and not len(stats.lens)
    with pytest.raises(TypeError, match="state must be a HierarchyState"):
        collector.evaluate(3, state=4)
    with pytest.raises(ValueError, match="n_episodes must be a whole number"):
        collector.evaluate(0)


def test_evaluation_in_gymnasium_environments():
    test_env = SyncVectorEnv([functools.partial(ScriptedGym, i, [2 + 5 * i]) for i in range(2)])
    collector = lrl.Collector(on_host().hierarchy, on_host().env, test_env)
    collector.collect(n_steps=2)
    obs = collector._engine.obs.copy()
    assert sorted(collector.evaluate(5).lens) == [2, 2, 2, 7, 7]
    np.testing.assert_array_equal(collector._engine.obs, obs)
    shared = on_host()
    shared.collect(n_steps=2)
    assert shared.evaluate(3).n_collected_episodes == 3
    assert not shared._engine.obs[:, 2].any()  # training goes on from a reset


# --- sums and numbers -----------------------------------------------------------------------------


class Paying(gymnasium.Env):
    """One episode: much at its first step, little at the others."""

    observation_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.t += 1
        reward = 1e6 if self.t == 1 else 0.01
        return np.zeros(1, np.float32), reward, False, self.t == 2000, {}


def test_small_rewards_do_not_vanish_in_large_returns():
    env = Paying()
    stats = lrl.Collector(lrl.RandomHierarchy(env)).collect(n_steps=2000)
    np.testing.assert_allclose(stats.returns, [1e6 + 1999 * 0.01], rtol=1e-9)


def test_options_reach_every_reset_of_an_asynchronous_call():
    seen = []

    class Watched(ScriptedGym):
        def reset(self, *, seed=None, options=None):
            seen.append(options)
            return super().reset(seed=seed, options=options)

    fns = [functools.partial(Watched, 0, [2])]
    with lrl.AsyncCollector(lrl.RandomHierarchy(ScriptedGym(0, [2])), fns) as collector:
        collector.reset(seed=0)
        collector.collect(n_total_steps=1)
        # The episode under way goes on: nothing is cut.
        stats = collector.collect(n_episodes=2, gym_reset_kwargs={"options": {"level": 3}})
        assert stats.lens.tolist() == [2, 2]
        assert [o and o.get("level") for o in seen] == [None, 3, 3]
        collector.collect(n_episodes=1)
        assert not (seen[-1] or {}).get("level")


@pytest.mark.parametrize("value", [3, 3.0, np.int64(3), np.float32(3)])
def test_whole_numbers(value):
    assert check_int("n", value, 1) == 3 and type(check_int("n", value, 1)) is int


@pytest.mark.parametrize("value", [2.5, "2", True, None, [1], 0, -1.0, float("nan"), float("inf")])
def test_what_is_no_whole_number(value):
    with pytest.raises(ValueError, match="n must be a whole number of at least 1, got "):
        check_int("n", value, 1)
    collector = lrl.Collector(stacked(Short()))
    if value is not None:
        with pytest.raises(ValueError, match="n_steps must be a whole number of at least 1, got "):
            collector.collect(n_steps=value)


# --- signals --------------------------------------------------------------------------------------


class Tired(Short):
    """Tells how much strength a step has cost: 1, 2, 3, ..."""

    def step(self, key, state, action, params=None):
        *out, info = super().step(key, state, action, params)
        spent = jnp.asarray(state.time + 1, jnp.float32)
        return *out, {**info, "spent": spent}


class TiredGym(ScriptedGym):
    """Its twin."""

    def step(self, action):
        *out, info = super().step(action)
        return *out, {**info, "spent": float(self.time)}


def spent_on_device():
    h = stacked(Tired(), signals=("spent",))
    return lrl.Collector(h, n_env_instances=2, exploration_noise=True), {"n_steps": 6}


def spent_on_host():
    env = SyncVectorEnv([functools.partial(TiredGym, i, [5]) for i in range(2)])
    h = stacked(env, signals=("spent",))
    return lrl.Collector(h, exploration_noise=True), {"n_steps": 6}


def spent_alone():
    fns = [functools.partial(TiredGym, i, [5]) for i in range(2)]
    h = stacked(TiredGym(0, [5]), signals=("spent",))
    return lrl.AsyncCollector(h, fns, exploration_noise=True), {"n_total_steps": 12}


@pytest.mark.parametrize("make", [spent_on_device, spent_on_host, spent_alone])
def test_signals_are_passed_on(make):
    collector, asked = make()
    collector.collect(**asked)
    top = lrl.buffers.stored(collector.state.levels[0].buffer)
    names = [name for name in top if "spent" in name]
    assert len(names) == 1, sorted(top)
    # Rows of two steps, the last of an episode of five alone: 1 + 2, 3 + 4, 5.
    mine = top[names[0]][top["instance"] == 0]
    assert mine.tolist() == [3.0, 7.0, 5.0]


def test_a_signal_that_is_not_told_is_refused_by_name():
    h = stacked(Short(), signals=("health",))
    with pytest.raises(ValueError, match=r"signals \['health'\] are not in the info"):
        lrl.Collector(h).collect(n_steps=2)
    carry = lrl.init_carry(h, jax.random.key(0), 1)
    with pytest.raises(ValueError, match=r"signals \['health'\]"):
        lrl.rollout(h, carry, 2)
    h = stacked(ScriptedGym(0, [5]), signals=("health",))
    with pytest.raises(ValueError, match=r"signals \['health'\]"):
        lrl.Collector(h).collect(n_steps=2)


# --- memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("one_by_one", [False, True])
def test_memory_does_not_grow_with_steps(one_by_one, monkeypatch):
    kept, sizes = [], []
    begun, carried = Request.begun, Collected.add

    def begin(self, n):
        kept.append(begun(self, n))
        return kept[-1]

    def add(self, record):
        carried(self, record)
        sizes.append(len(pickle.dumps({**vars(self), "latest": None, "owed": None})))

    monkeypatch.setattr(Request, "begun", begin)
    monkeypatch.setattr(Collected, "add", add)
    env = ScriptedGym(0, [10**6])
    looked_at = {"post_step_callback": lambda t, obs: None} if one_by_one else {}
    stats = lrl.Collector(lrl.RandomHierarchy(env)).collect(n_steps=600, **looked_at)
    assert stats.n_collected_steps == 600 and len(sizes) == (600 if one_by_one else 5)
    assert sizes[-1] < sizes[0] + 50 and len(kept[0].latest) == 1
