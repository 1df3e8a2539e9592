"""Collecting in Gymnasium environments: the same transitions as on the device."""

import functools

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from scripted import Params, Scripted, label, table
from scripted_gym import ScriptedGym

import lrl_jax as lrl
from lrl_jax.collectors.requests import Way
from lrl_jax.envs.gymnasium_adapter import HostEnv, flat_space, flatten_batch
from lrl_jax.levels import ActionRepeatLevel, Decision, RandomLevel

ENV = Scripted()
LENGTHS = [[3, 5], [4, 2], [7, 1]]
MODES = {
    "next": AutoresetMode.NEXT_STEP,
    "same": AutoresetMode.SAME_STEP,
    "disabled": AutoresetMode.DISABLED,
}


def functions(lengths=LENGTHS, **arguments):
    return [
        functools.partial(ScriptedGym, i, row, **arguments) for i, row in enumerate(table(lengths))
    ]


def vector(kind, mode, lengths=LENGTHS):
    if kind == "sync":
        return SyncVectorEnv(functions(lengths), autoreset_mode=MODES[mode])
    # Not forked: this process has threads.
    return AsyncVectorEnv(functions(lengths), autoreset_mode=MODES[mode], context="spawn")


def stack(env, params=None):
    """Two levels, so that rows of a semi-MDP are closed by ends of episodes."""
    levels = [RandomLevel(buffer_size=300), ActionRepeatLevel(2, buffer_size=300)]
    return lrl.Hierarchy(levels, env, params)


def collected(collector):
    """What a fixed sequence of calls collects and stores."""
    out = []
    for asked in ({"n_steps": 12}, {"n_steps": 7}):
        out.append(collector.collect(record_transitions=True, **asked))
    stored = [lrl.buffers.stored(level.buffer) for level in collector.state.levels]
    return out, stored, lrl.buffers.stored(collector.buffer)


@pytest.fixture(scope="module")
def on_device():
    params = Params(lengths=jnp.asarray(table(LENGTHS)))
    collector = lrl.Collector(
        stack(ENV, params),
        ENV,
        env_params=params,
        n_env_instances=3,
        buffer=300,
        exploration_noise=True,
    )
    collector.reset(seed=0)
    label(collector)
    return collected(collector)


@pytest.mark.parametrize("kind, mode", [
    ("sync", "next"), ("sync", "same"), ("sync", "disabled"), ("async", "next"), ("async", "same"),
    ("async", "disabled"),
])  # fmt: skip
def test_the_same_transitions_as_on_the_device(kind, mode, on_device):
    env = vector(kind, mode)
    try:
        collector = lrl.Collector(stack(env), env, buffer=300, exploration_noise=True)
        collector.reset(seed=0)
        calls, levels, own = collected(collector)
    finally:
        env.close()
    for (stats, batch), (twin_stats, twin_batch) in zip(calls, on_device[0], strict=True):
        assert_equal(batch, twin_batch)
        assert stats.lens.tolist() == twin_stats.lens.tolist()
        np.testing.assert_allclose(stats.returns, twin_stats.returns, rtol=1e-6)
        np.testing.assert_allclose(stats.mean_reward, twin_stats.mean_reward, rtol=1e-6)
        assert stats.successes.tolist() == twin_stats.successes.tolist()
    for rows, twin_rows in zip([*levels, own], [*on_device[1], on_device[2]], strict=True):
        assert_equal(rows, twin_rows)


def assert_equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_counts_are_exact(mode):
    """Who sits out is stepped unseen, and reset before its next use."""
    env = vector("sync", mode, [[2, 9], [3, 9], [4, 9], [5, 9]])
    collector = lrl.Collector(lrl.RandomHierarchy(env), env)
    collector.reset(seed=0)
    stats, batch = collector.collect(n_total_steps=6, record_transitions=True)
    assert stats.n_collected_steps == 6 and batch.valid.sum(1).tolist() == [4, 2]
    # The last two begin another episode: theirs was spoiled.
    stats = collector.collect(n_episodes=4)
    assert stats.lens.tolist() == [3, 9, 9, 9]
    single = collector.collect(n_episodes=3)
    assert len(single.lens) == 3
    assert collector.collect_episode == 7 + 1


def test_the_rule_of_episodes_on_the_host():
    env = SyncVectorEnv(functions([[2], [3], [4], [5]]), autoreset_mode=MODES["disabled"])
    collector = lrl.Collector(lrl.RandomHierarchy(env), env)
    stats = collector.collect(n_episodes=7)
    assert stats.lens.tolist() == [2, 3, 2, 4, 5, 3, 4] and stats.n_collected_steps == 23
    quota = collector.collect(n_episodes=6, episode_allocation="quota")
    assert sorted(quota.lens.tolist()) == [2, 2, 3, 3, 4, 5]


def test_a_single_environment_and_learning():
    env = ScriptedGym(0, [6])
    collector = lrl.Collector(lrl.Hierarchy([RandomLevel(buffer_size=50)], env), env)
    stats = collector.collect(n_steps=10, learn=True)
    assert stats.n_collected_steps == 10 and stats.lens.tolist() == [6]
    assert int(lrl.buffers.n_rows(collector.state.levels[0].buffer)) == 10
    assert int(collector.state.n_total_env_steps) == 10


def test_resets_on_the_way_and_by_the_user():
    env = SyncVectorEnv(functions(), autoreset_mode=MODES["disabled"])
    collector = lrl.Collector(lrl.RandomHierarchy(env), env, buffer=100)
    collector.reset(seed=1, gym_reset_kwargs={"options": {"first": 1}})
    collector.collect(n_steps=3, gym_reset_kwargs={"options": {"later": 2}})
    assert [e.options for e in env.envs] == [[{"first": 1}, {"later": 2}], [{"first": 1}],
                                             [{"first": 1}]]  # fmt: skip
    collector.collect(n_steps=1)
    collector.reset_env()
    stats = collector.collect(n_episodes=3, episode_allocation="quota")
    assert [e.lengths[e.episode - 1] for e in env.envs] == [LENGTHS[0][0], LENGTHS[1][0],
                                                           LENGTHS[2][1]]  # fmt: skip
    assert sorted(stats.lens.tolist()) == sorted([3, 4, 1])
    _, length, _ = lrl.buffers.sample_partial_trajectories(
        collector.buffer, jax.random.key(0), 256, 10
    )
    assert int(length.max()) == 4


def test_preprocess_gets_numpy_and_may_end_episodes():
    kinds = set()

    def change(**given):
        kinds.update(type(given[k]) for k in given if k != "info")
        if "obs" in given:
            return {"obs": given["obs"] * 0 - 1}
        return {"rew": given["rew"] * 0 + 3, "truncated": given["obs_next"][:, 2] >= 2}

    env = vector("sync", "same")
    collector = lrl.Collector(lrl.RandomHierarchy(env), env, preprocess_fn=change)
    stats, batch = collector.collect(n_episodes=3, record_transitions=True)
    assert kinds == {np.ndarray}
    assert stats.lens.tolist() == [2, 2, 2] and stats.returns.tolist() == [6.0] * 3
    assert (batch.obs[0] == -1).all()


def test_random_and_callback_and_tests():
    env, test_env = vector("sync", "next"), vector("sync", "next", [[2]])
    collector = lrl.Collector(lrl.RandomHierarchy(env), env, test_env)
    seen = []
    stats, batch = collector.collect(
        n_steps=5,
        random=True,
        record_transitions=True,
        post_step_callback=lambda t, obs: seen.append((t, obs.copy())),
    )
    assert [t for t, _ in seen] == list(range(5))
    np.testing.assert_array_equal(np.stack([obs for _, obs in seen]), batch.obs_next)
    result = collector.test(5, collector.hierarchy.get_copy(collector.state), n_steps=6)
    np.testing.assert_allclose(result["test_reward"], 1.0, atol=0.3)
    assert result["test_return"] is not None


def test_dicts_are_flattened_by_sorted_keys():
    space = gymnasium.spaces.Dict(
        {
            "b": gymnasium.spaces.Box(-1, 1, (2, 2)),
            "a": gymnasium.spaces.Discrete(3),
            "c": gymnasium.spaces.Dict({"z": gymnasium.spaces.MultiBinary(2)}),
        }
    )
    obs = {
        "b": np.arange(8.0).reshape(2, 2, 2),
        "a": np.array([2, 0]),
        "c": {"z": np.array([[0, 1], [1, 1]])},
    }
    flat = flatten_batch(space, obs, np.float32)
    assert flat_space(space).shape == (9,)
    assert flat[0].tolist() == [0, 0, 1, 0, 1, 2, 3, 0, 1]
    assert flat[1].tolist() == [1, 0, 0, 4, 5, 6, 7, 1, 1]


class Goals(gymnasium.Env):
    """Observations in a dict, as goal-based environments have them."""

    observation_space = gymnasium.spaces.Dict(
        {
            k: gymnasium.spaces.Box(-9, 9, (2,))
            for k in ("observation", "achieved_goal", "desired_goal")
        }
    )
    action_space = gymnasium.spaces.Discrete(2)

    def _obs(self):
        p = np.full(2, self.t, np.float32)
        return {"observation": p, "achieved_goal": p + 1, "desired_goal": p + 2}

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return self._obs(), {}

    def step(self, action):
        self.t += 1
        return self._obs(), 0.0, False, self.t == 3, {"is_success": self.t == 3}


@pytest.mark.parametrize("mode", MODES)
def test_dict_observations_and_final_ones(mode):
    env = SyncVectorEnv([Goals] * 2, autoreset_mode=MODES[mode])
    assert lrl.envs.goal_indices(env)["desired_goal"] == (2, 4)
    collector = lrl.Collector(lrl.RandomHierarchy(env), env)
    stats, batch = collector.collect(n_steps=4, record_transitions=True)
    assert batch.obs[:, 0].tolist()[1] == [2, 2, 3, 3, 1, 1]
    assert batch.obs_next[2, 0].tolist() == [4, 4, 5, 5, 3, 3]  # the true final one
    assert batch.obs[3, 0].tolist() == [1, 1, 2, 2, 0, 0]
    assert stats["success_rate"] == 1.0 and stats.lens.tolist() == [3, 3]


def test_wrong_calls_are_refused():
    env = vector("sync", "next")
    hierarchy = lrl.RandomHierarchy(env)
    collector = lrl.Collector(hierarchy, env)
    with pytest.raises(ValueError, match="leave it out"):
        lrl.Collector(hierarchy, env, n_env_instances=5)
    with pytest.raises(ValueError, match="env_params"):
        lrl.Collector(hierarchy, env, env_params=Params())
    with pytest.raises(ValueError, match="no gradients"):
        collector.collect(n_steps=3, record_transitions=True, no_grad=False)
    with pytest.raises(ValueError, match="options only"):
        collector.collect(n_steps=3, gym_reset_kwargs={"seed": 3})
    for wrong, message in (
        ({}, "exactly one"),
        ({"n_steps": 3, "n_episodes": 2}, "exactly one"),
        ({"n_steps": 0}, "n_steps"),
        ({"n_episodes": 2.5}, "n_episodes"),
        ({"n_total_steps": -1}, "n_total_steps"),
        ({"n_steps": 3, "max_steps": 5}, "goes with n_episodes"),
        ({"n_episodes": 3, "max_steps": 0}, "max_steps"),
        ({"n_steps": 3, "episode_allocation": "quota"}, "goes with n_episodes"),
        ({"n_episodes": 3, "episode_allocation": "all"}, "must be one of"),
        ({"n_episodes": 3, "n_steps_start": 1}, "goes with n_steps"),
        ({"n_steps": 3, "random": True, "learn": True}, "cannot learn"),
        ({"n_steps": 3, "render": -1.0}, "render"),
    ):
        with pytest.raises(ValueError, match=message):
            collector.collect(**wrong)
    unbounded = Goals()
    unbounded.action_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,))
    level = lrl.levels.ConstantLevel(np.zeros(1, np.float32))
    loose = lrl.Collector(lrl.Hierarchy([level], unbounded), unbounded)
    with pytest.raises(ValueError, match="unbounded"):
        loose.collect(n_steps=3, random=True)

    class Other(gymnasium.vector.VectorEnv):
        num_envs = 2
        metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
        single_observation_space = gymnasium.spaces.Box(-1, 1, (1,))

    with pytest.raises(TypeError, match="vectorization_mode='sync'"):
        HostEnv(Other())
    separate = AsyncVectorEnv(functions()[:1], shared_memory=False, context="spawn")
    try:
        with pytest.raises(ValueError, match="shared_memory"):
            HostEnv(separate)
    finally:
        separate.close()


def test_wrong_functions_are_refused():
    env = vector("sync", "next")
    hierarchy = lrl.RandomHierarchy(env)
    with pytest.raises(TypeError, match="not callable"):
        lrl.Collector(hierarchy, env, preprocess_fn=3)
    for change, error, message in (
        (lambda **given: 3, TypeError, "return a dict"),
        (lambda **given: {"reward": 0}, ValueError, "reward"),
        (lambda **given: {"obs": np.zeros(3)}, ValueError, "shape"),
    ):
        with pytest.raises(error, match=message):
            lrl.Collector(hierarchy, env, preprocess_fn=change).collect(n_steps=2)
    device = lrl.Collector(lrl.RandomHierarchy(ENV), ENV)
    with pytest.raises(ValueError, match="seed only"):
        device.reset(gym_reset_kwargs={"options": {"a": 1}})
    with pytest.raises(ValueError, match="resets itself"):
        device.collect(n_steps=1, gym_reset_kwargs={"options": {}})


@pytest.mark.parametrize(
    "level", [RandomLevel(buffer_size=400), lrl.levels.ConstantLevel([0.3], 400)]
)
def test_decisions_ahead_are_those_tick_by_tick(level):
    """Levels that do not look decide many ticks ahead, with the same state and rows after all."""
    collectors = []
    for _ in range(2):
        env = vector("sync", "next")
        hierarchy = lrl.Hierarchy([level], env)
        collector = lrl.Collector(hierarchy, env, buffer=400, exploration_noise=True)
        collector.reset(seed=3)
        collectors.append(collector)
    ahead, each = collectors
    assert ahead._engine._looks_ahead(ahead.hierarchy, Way()) and level.is_blind
    results = [
        ahead.collect(n_steps=23, record_transitions=True),
        # With a callback it goes tick by tick.
        each.collect(n_steps=23, record_transitions=True, post_step_callback=lambda t, obs: None),
    ]
    assert_equal(results[0][1], results[1][1])
    assert results[0][0].lens.tolist() == results[1][0].lens.tolist()
    raw = [jax.tree.map(_plain, collector.state) for collector in collectors]
    assert_equal(*raw)
    assert_equal(*[lrl.buffers.stored(collector.buffer) for collector in collectors])
    assert len(lrl.buffers.stored(ahead.state.levels[0].buffer)["rew"]) == 69


def _plain(x):
    return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x


def test_levels_that_look_are_asked_each_tick():
    import dataclasses

    @dataclasses.dataclass(frozen=True)
    class Looks(RandomLevel):
        def act(self, learner, memory, obs, ctx):
            return Decision(jnp.clip(obs[2:3] / 10, -1, 1), memory)

    assert RandomLevel().is_blind and not Looks().is_blind
    env = vector("sync", "next")
    collector = lrl.Collector(lrl.Hierarchy([Looks(buffer_size=60)], env), env)
    _, batch = collector.collect(n_steps=9, record_transitions=True)
    np.testing.assert_allclose(batch.act[..., 0], batch.obs[..., 2] / 10, rtol=1e-6)


def test_the_mode_is_the_environment_s_own():
    """Gymnasium keeps it in metadata that all environments of a class share."""
    env = vector("sync", "same")
    other = vector("sync", "next", [[5]])
    del other
    collector = lrl.Collector(lrl.RandomHierarchy(env), env)
    _, batch = collector.collect(n_steps=4, record_transitions=True)
    assert batch.obs_next[2, 0, 2] == 3  # the true final observation of the first episode


def test_who_goes_on_keeps_what_preprocess_made_of_it():
    def change(**given):
        name = "obs" if "obs" in given else "obs_next"
        return {name: given[name] + np.float32(100)}

    env = SyncVectorEnv(functions([[9], [9], [9], [9]]), autoreset_mode=MODES["disabled"])
    collector = lrl.Collector(lrl.RandomHierarchy(env), env, preprocess_fn=change)
    collector.collect(n_total_steps=6)
    _, batch = collector.collect(n_steps=2, record_transitions=True)
    assert (batch.obs > 90).all()
    # The first two went on with their episodes, the last two began another.
    assert batch.obs[0, :, 2].tolist() == [102, 102, 100, 100]


def test_infos_are_of_those_that_step():
    sizes = []

    def change(**given):
        if "obs" in given:
            return {}
        sizes.append((len(given["rew"]), len(given["info"]["is_success"])))
        return {"info": {"is_success": given["env_id"] == 1}}

    env = vector("sync", "next")
    collector = lrl.Collector(lrl.RandomHierarchy(env), env, preprocess_fn=change)
    stats = collector.collect(n_episodes=2)
    assert all(a == b for a, b in sizes) and stats.successes.tolist() == [False, True]


def test_a_failing_callback_leaves_a_usable_collector():
    env = vector("sync", "next")
    collector = lrl.Collector(lrl.RandomHierarchy(env), env)

    def fail(t, obs):
        obs[:] = 99  # a copy: nothing else sees that
        if t == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collector.collect(n_steps=5, random=True, post_step_callback=fail)
    _, batch = collector.collect(n_steps=3, record_transitions=True)
    assert batch.obs.max() < 50


def test_runs_without_a_seed_begin_alike():
    first = []
    for _ in range(2):
        env = gymnasium.make_vec("Pendulum-v1", 2, vectorization_mode="sync")
        _, batch = lrl.Collector(lrl.RandomHierarchy(env), env).collect(
            n_steps=1, record_transitions=True
        )
        first.append(batch.obs)
    np.testing.assert_array_equal(*first)
