"""Collector and rollout on an environment whose episodes plain Python can follow."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from gymnax.environments import environment
from gymnax.environments import spaces as gymnax_spaces

import lrl_jax as lrl
from lrl_jax import buffers
from lrl_jax.levels import ActionRepeatLevel, ConstantLevel, Decision, Level
from lrl_jax.spaces import Box

N = 3
LIMIT = 4  # longer episodes are truncated here, one of just this length ends both ways
TEST_WORDS = {f"test_{x}" for x in ("reward", "return", "length", "success", "success_at_end")}
TEST_KEYS = TEST_WORDS | {"test_success_frac", "test_success_in_ep"}  # and the seeds' words


@struct.dataclass
class CountState:
    time: jax.Array
    length: jax.Array
    number: jax.Array


@struct.dataclass
class CountParams:
    max_steps_in_episode: int = LIMIT
    bonus: float = 0.0


class Counting(environment.Environment):
    """Counts its steps; an episode of length L (2 to 5, drawn and shown) terminates at step L.

    Step k = 1, 2, ... is worth k / 2 plus the action. Success is shown at step 2 of episodes of
    even length.
    """

    def __init__(self, bonus: float = 0.0, width: int = 3):
        super().__init__()
        self.bonus, self.width = bonus, width

    @property
    def name(self):
        return "Counting"

    @property
    def default_params(self):
        return CountParams(bonus=self.bonus)

    def observe_all(self, state):
        parts = [state.time, state.length, state.number, *[0] * (self.width - 3)]
        return jnp.stack([jnp.asarray(x, jnp.float32) for x in parts])

    def step_env(self, key, state, action, params):
        state = state.replace(time=state.time + 1)
        reward = state.time / 2 + action[0] + params.bonus
        success = (state.time == 2) & (state.length % 2 == 0)
        terminated = state.time >= state.length
        return self.observe_all(state), state, reward, terminated, {"is_success": success}

    def reset_env(self, key, params):
        length_key, key = jax.random.split(key)
        state = CountState(
            time=jnp.zeros((), jnp.int32),
            length=jax.random.randint(length_key, (), 2, 6),
            number=jax.random.randint(key, (), 0, 1000),
        )
        return self.observe_all(state), state

    def is_truncated(self, state, params):
        return state.time >= params.max_steps_in_episode

    def action_space(self, params=None):
        return gymnax_spaces.Box(-1.0, 1.0, (1,))

    def observation_space(self, params):
        return gymnax_spaces.Box(0.0, 1000.0, (self.width,))


@dataclasses.dataclass(frozen=True)
class Counted(Level):
    """Acts on its observation, with noise in training only; counts its updates."""

    buffer_size: int = 600
    update_interval: int = 4
    n_updates: int = 3

    def init_learner(self, key, spec):
        return {"n": jnp.zeros((), jnp.int32)}

    def act(self, learner, memory, obs, ctx):
        noise = jax.random.uniform(ctx.key) if ctx.training else 0.0
        return Decision((obs[:1] - 2 + noise) / 4, memory)

    def learn(self, learner, replay, ctx):
        return {"n": learner["n"] + 1}, {"number": learner["n"].astype(jnp.float32)}


ENV = Counting()


@functools.cache
def hierarchy_for(two: bool = True) -> lrl.Hierarchy:
    """One level, or one above an ActionRepeatLevel."""
    below = [ActionRepeatLevel(2, buffer_size=600)] if two else []
    return lrl.Hierarchy([Counted(), *below], ENV)


def new_collector(two: bool = True, n: int = N, seed: int = 0, **settings) -> lrl.Collector:
    collector = lrl.Collector(hierarchy_for(two), ENV, n_env_instances=n, **settings)
    collector.reset(seed=seed)
    return collector


class Writer:
    """Remembers what it is given."""

    def __init__(self):
        self.scalars: dict[str, list[tuple[int, float]]] = {}

    def add_scalar(self, name, value, step):
        assert value is not None and np.isfinite(value)
        self.scalars.setdefault(name, []).append((step, float(value)))

    def steps(self, name):
        return [step for step, _ in self.scalars[name]]


def episodes_of(batch, n: int) -> list[dict]:
    """Follow each instance in plain Python; finished episodes by tick, then instance."""
    rows = {k: np.asarray(v) for k, v in dataclasses.asdict(batch).items()}
    running = [{"return": 0.0, "length": 0, "success": False} for _ in range(n)]
    done = []
    for t in range(len(rows["rew"])):
        for i in range(n):
            episode = running[i]
            time, length = rows["obs"][t, i, 0], rows["obs"][t, i, 1]
            assert time == episode["length"]
            reward = (time + 1) / 2 + np.clip(rows["act"][t, i, 0], -1, 1)
            np.testing.assert_allclose(rows["rew"][t, i], reward, atol=1e-6)
            # The true final observation: the counter went on, the episode is the same one.
            np.testing.assert_array_equal(
                rows["obs_next"][t, i], rows["obs"][t, i] + np.array([1, 0, 0])
            )
            terminated, truncated = time + 1 >= length, time + 1 >= LIMIT
            assert rows["terminated"][t, i] == terminated and rows["truncated"][t, i] == truncated
            episode["return"] += float(rows["rew"][t, i])
            episode["length"] += 1
            episode["success_at_end"] = bool(time + 1 == 2 and length % 2 == 0)
            episode["success"] |= episode["success_at_end"]
            if terminated or truncated:
                done.append(episode)
                running[i] = {"return": 0.0, "length": 0, "success": False}
            elif t + 1 < len(rows["rew"]):
                np.testing.assert_array_equal(rows["obs"][t + 1, i], rows["obs_next"][t, i])
    assert rows["valid"].all()
    return done


def assert_same(a, b) -> None:
    """Equal leaf by leaf, bit for bit."""
    for (path, x), y in zip(jax.tree.leaves_with_path(a), jax.tree.leaves(b), strict=True):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        where = jax.tree_util.keystr(path)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes(), where


def on_host(tree):
    """A copy that nothing can overwrite."""
    return jax.tree.map(
        lambda x: (
            np.array(jax.random.key_data(x))
            if jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
            else np.array(x)
        ),
        tree,
    )


# --- statistics and transitions -------------------------------------------------------------------


def test_statistics_and_transitions():
    collector = new_collector()
    stats, batch = collector.collect(n_steps=25, learn=True, record_transitions=True)
    assert batch.obs.shape == (25, N, 3) and batch.act.shape == (25, N, 1)
    assert batch.rew.shape == batch.valid.shape == (25, N)
    done = episodes_of(batch, N)
    assert {LIMIT, 2, 3} == {e["length"] for e in done}
    both = batch.terminated & batch.truncated
    assert both.any() and (batch.truncated & ~batch.terminated).any()
    np.testing.assert_allclose(stats.returns, [e["return"] for e in done], atol=1e-5)
    assert stats.lens.tolist() == [e["length"] for e in done]
    assert stats.successes.tolist() == [e["success"] for e in done]
    assert stats.n_collected_episodes == stats["n_episodes"] == len(done)
    assert stats.n_collected_steps == stats["n_steps"] == 25 * N
    returns, lens = (np.array([e[k] for e in done]) for k in ("return", "length"))
    for summary, values in ((stats.returns_stat, returns), (stats.lens_stat, lens)):
        np.testing.assert_allclose(summary.mean, values.mean(), rtol=1e-6)
        np.testing.assert_allclose(summary.std, values.std(), rtol=1e-5)
        np.testing.assert_allclose([summary.max, summary.min], [values.max(), values.min()])
    np.testing.assert_allclose(stats["mean_return"], returns.mean(), rtol=1e-6)
    np.testing.assert_allclose(stats["mean_episode_length"], lens.mean(), rtol=1e-6)
    np.testing.assert_allclose(stats.mean_reward, batch.rew.mean(), rtol=1e-5)
    assert stats["success_rate"] == np.mean([e["success"] for e in done])
    assert stats.collect_time > 0 and stats.collect_speed > 0
    assert dict(stats).keys() == set(stats) and len(stats) == len(dict(stats))
    # Stored rows are the recorded transitions: the last level closes one a tick.
    rows = buffers.stored(collector.state.levels[1].buffer)
    for name in ("act", "rew", "obs", "obs_next", "terminated", "truncated"):
        recorded = np.swapaxes(getattr(batch, name), 0, 1)
        np.testing.assert_array_equal(rows[name], recorded.reshape(-1, *recorded.shape[2:]))
    # Going on in the middle of episodes: returns count from the episode's start.
    more, later = collector.collect(n_steps=10, learn=True, record_transitions=True)
    joined = jax.tree.map(lambda a, b: np.concatenate([a, b]), batch, later)
    done_later = episodes_of(joined, N)[len(done) :]
    np.testing.assert_allclose(more.returns, [e["return"] for e in done_later], atol=1e-5)
    assert more.lens.tolist() == [e["length"] for e in done_later]


def test_no_episode_gives_none_never_nan():
    stats = new_collector().collect(n_steps=1)
    assert stats.n_collected_episodes == 0
    assert stats.returns.shape == stats.lens.shape == (0,)
    assert stats.returns_stat is None and stats.lens_stat is None
    assert stats["mean_return"] is stats["mean_episode_length"] is stats["success_rate"] is None
    assert all(v is None or np.isfinite(v) for v in stats.values())


# --- the arguments of collect ---------------------------------------------------------------------


@pytest.mark.parametrize(("start", "stop"), [(0, 4), (4, 10), (9, 10)])
def test_steps_are_numbered(start, stop):
    seen = []
    collector = new_collector()
    stats, batch = collector.collect(
        n_steps=stop,
        n_steps_start=start,
        env_expects_numpy=True,
        record_transitions=True,
        post_step_callback=lambda t, obs_next: seen.append((t, obs_next)),
    )
    assert [t for t, _ in seen] == list(range(start, stop))
    assert stats.n_collected_steps == (stop - start) * N and len(batch.rew) == stop - start
    # Observations handed out stay readable while the collector goes on.
    # Where an episode ended they are its true final ones.
    for k, (_, obs) in enumerate(seen):
        np.testing.assert_array_equal(obs, batch.obs_next[k])


def test_chunks_and_single_ticks_are_the_same():
    chunked, single = new_collector(), new_collector()
    a, batch_a = chunked.collect(n_steps=12, learn=True, record_transitions=True)
    b, batch_b = single.collect(
        n_steps=12, learn=True, record_transitions=True, post_step_callback=lambda t, o: None
    )
    assert_same(batch_a, batch_b)
    assert_same(chunked.state, single.state)
    np.testing.assert_array_equal(a.returns, b.returns)
    assert a.learning == b.learning


@pytest.mark.parametrize(
    ("start", "stop", "interval", "due"),
    [(0, 11, 5, [0, 5, 10]), (3, 11, 4, [4, 8]), (0, 3, 1, [0, 1, 2]), (6, 9, 50, [])],
)
def test_intervals(tmp_path, start, stop, interval, due):
    """Tests, scalars and checkpoints are due at t % interval == 0, checkpoints also at the end."""
    writer = Writer()
    collector = new_collector(
        writer=writer, checkpoint_dir=tmp_path / "c", checkpoint_interval=interval
    )
    stats, batch = collector.collect(
        n_steps=stop,
        n_steps_start=start,
        learn=True,
        record_transitions=True,
        log_interval=interval,
        test_interval=interval,
        n_test_steps=5,
    )
    assert [t for t, _ in stats.tests] == due
    assert all(set(result) == TEST_KEYS for _, result in stats.tests)
    if due:
        assert writer.steps("collect/mean_reward") == [t * N for t in due]
        assert writer.steps("test/test_reward") == [t * N for t in due]
        assert writer.steps("collect/level0/n_updates") == [t * N for t in due]
        # Scalars cover all that was collected since those before.
        first = start
        for t, (_, value) in zip(due, writer.scalars["collect/mean_reward"], strict=True):
            expected = batch.rew[first - start : t + 1 - start].mean()
            np.testing.assert_allclose(value, expected, rtol=1e-5)
            first = t + 1
    else:
        assert not writer.scalars
    taken = [t + 1 for t in due]
    taken += [stop] if stop not in taken else []
    folders = sorted((tmp_path / "c").iterdir())
    assert len(folders) == len(taken)
    for folder, ticks in zip(folders, taken, strict=True):
        saved = collector.hierarchy.load(folder)
        assert int(saved.n_total_env_steps) == (ticks - start) * N
    # A checkpoint has a cursor for each ring.
    now = collector.hierarchy.unaligned(collector.state)
    assert_same(collector.hierarchy.load(folders[-1]), now)


def test_scalars_between_callbacks_cover_the_interval():
    """Also where ticks are taken one by one."""
    writer = Writer()
    collector = new_collector(writer=writer)
    _, batch = collector.collect(
        n_steps=9,
        record_transitions=True,
        log_interval=4,
        post_step_callback=lambda t, obs_next: None,
    )
    expected = [batch.rew[:1].mean(), batch.rew[1:5].mean(), batch.rew[5:9].mean()]
    values = writer.scalars["collect/mean_reward"]
    np.testing.assert_allclose([v for _, v in values], expected, rtol=1e-5)


def test_checkpoint_at_the_end_only(tmp_path):
    collector = new_collector(checkpoint_dir=tmp_path)
    collector.collect(n_steps=4)
    assert len(list(tmp_path.iterdir())) == 1
    assert new_collector().save_checkpoint(1, 2) is None


def test_verbose_and_video(capfd):
    frames = []

    class Video:
        def record(self, env, state):
            assert env is ENV and state.time.shape == ()
            frames.append(int(state.time))

    new_collector().collect(n_steps=6, video_logger=Video())
    assert frames == [0, 1, 2, 3, 0, 1, 2, 0, 1]  # before each episode, and after each step
    assert not capfd.readouterr().err
    new_collector().collect(n_steps=6, verbose=True)
    assert "6/6" in capfd.readouterr().err


def test_without_learning_it_acts_as_in_eval():
    """No noise, nothing stored or counted; exploration_noise brings all of it back."""
    plain, noisy = new_collector(two=False), new_collector(two=False, exploration_noise=True)
    _, batch = plain.collect(n_steps=6, record_transitions=True)
    np.testing.assert_allclose(batch.act, (batch.obs[..., :1] - 2) / 4, atol=1e-6)
    assert int(plain.state.n_total_env_steps) == 0
    assert int(buffers.n_rows(plain.state.levels[0].buffer)) == 0
    stats, batch = noisy.collect(n_steps=6, record_transitions=True)
    assert (np.abs(batch.act - (batch.obs[..., :1] - 2) / 4) > 1e-4).any()
    assert int(noisy.state.n_total_env_steps) == 6 * N
    assert int(buffers.n_rows(noisy.state.levels[0].buffer)) == 6 * N
    assert int(noisy.state.levels[0].learner["n"]) == 0 and not stats.learning


# --- tests ----------------------------------------------------------------------------------------


def test_test_runs_leave_training_alone():
    with_tests, without = new_collector(), new_collector()
    stats = with_tests.collect(n_steps=9, learn=True, test_interval=2, n_test_steps=7)
    without.collect(n_steps=9, learn=True)
    assert len(stats.tests) == 5
    assert_same(with_tests.state, without.state)
    before = on_host(with_tests._engine.carry)
    test_state = with_tests.hierarchy.get_copy(with_tests.state)
    handed_in = on_host(test_state)
    with_tests.test(9, test_state, n_steps=7)
    assert_same(on_host(with_tests._engine.carry), before)
    assert_same(on_host(test_state), handed_in)


def test_test_keys():
    """Over episodes that finished, from a reset, in eval mode."""
    writer = Writer()
    collector = new_collector(two=False, n=5, writer=writer)
    collector.collect(n_steps=3, learn=True, log_interval=100)
    test_state = collector.hierarchy.get_copy(collector.state)
    result = collector.test(7, test_state, n_steps=30)
    assert set(result) == TEST_KEYS
    key = jax.random.fold_in(test_state.stream.key, 0x7E57)
    carry = lrl.init_carry(collector.hierarchy.eval(), key, 5, test_state)
    _, out = lrl.rollout(collector.hierarchy.eval(), carry, n_steps=30, record=True)
    done = episodes_of(out.transitions, 5)
    assert done
    np.testing.assert_allclose(result["test_reward"], out.transitions.rew.mean(), rtol=1e-5)
    np.testing.assert_allclose(result["test_return"], np.mean([e["return"] for e in done]))
    assert result["test_success_in_ep"] == np.mean([e["success"] for e in done])
    assert result["test_success_frac"] == np.mean([e["success_at_end"] for e in done])
    assert result["test_success_frac"] < result["test_success_in_ep"]
    assert writer.steps("test/test_return") == [7 * 5]
    with pytest.warns(UserWarning, match="no episode ended within the 1 steps"):
        nothing = collector.test(0, test_state, n_steps=1)
    assert nothing["test_return"] is nothing["test_success_frac"] is None
    assert nothing["test_success_in_ep"] is None and np.isfinite(nothing["test_reward"])


def test_test_env():
    """Tests run in the environment for tests, with its own default parameters."""
    collector = new_collector(two=False, test_env=Counting(bonus=100.0))
    stats = collector.collect(n_steps=2, test_interval=1, n_test_steps=6)
    assert stats.mean_reward < 10 and all(r["test_reward"] > 90 for _, r in stats.tests)


# --- the state ------------------------------------------------------------------------------------


def test_state_stays_valid():
    """States handed out survive further collecting, which overwrites its own arrays."""
    collector = new_collector()
    collector.collect(n_steps=3, learn=True)
    state = collector.state
    kept = on_host(state)
    collector.collect(n_steps=5, learn=True)
    collector.collect(n_steps=5)
    assert_same(on_host(state), kept)
    later = on_host(collector.state)
    # Settable, also to a state that is used elsewhere.
    collector.state = state
    collector.collect(n_steps=4, learn=True)
    assert_same(on_host(state), kept)
    assert int(collector.state.n_total_env_steps) == (3 + 4) * N
    assert int(later.n_total_env_steps.low) == (3 + 5) * N
    with pytest.raises(ValueError, match="5 instances, but 3 are wanted"):
        collector.state = collector.hierarchy.init(jax.random.key(0), 5)


def test_reset():
    collector = new_collector(seed=3)
    collector.collect(n_steps=5, learn=True)
    state = on_host(collector.state)
    collector.reset(seed=4)
    after = on_host(collector.state)
    assert not after.active_level.any()
    for a, b in zip(after.levels, state.levels, strict=True):
        rows = [(s.learner, buffers.stored(s.buffer)) for s in (a, b)]
        assert_same(*rows)
    assert not np.asarray(collector._engine.obs)[:, 0].any()
    # The same seed, the same run; and a running return does not outlive a reset.
    runs = []
    for seed in (4, 4, 5):
        fresh = new_collector(seed=1)
        fresh.collect(n_steps=2)
        fresh.reset(seed=seed)
        runs.append(fresh.collect(n_steps=8, record_transitions=True))
    assert_same(runs[0][1], runs[1][1])
    assert not np.array_equal(runs[0][1].obs, runs[2][1].obs)
    done = episodes_of(runs[0][1], N)
    np.testing.assert_allclose(runs[0][0].returns, [e["return"] for e in done], atol=1e-5)


def test_starts_from_a_state():
    hierarchy = hierarchy_for()
    state = hierarchy.init(jax.random.key(8), 2)
    kept = on_host(state)
    collector = lrl.Collector(hierarchy, ENV, state=state, device=jax.devices()[0])
    assert collector.n_env_instances == 2
    collector.collect(n_steps=3, learn=True)
    assert_same(on_host(state), kept)
    assert int(collector.state.n_total_env_steps) == 6


# --- updates --------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 3, 5])
def test_updates_follow_each_tick_at_the_exact_ratio(n):
    """3 updates per 4 rows of the level, the remainder carried, whatever n."""
    collector, numbers = new_collector(two=False, n=n), []

    def callback(t, obs_next):
        state = collector.state.levels[0]
        assert int(state.learner["n"]) == (t + 1) * n // 4 * 3
        assert int(state.owed) == (t + 1) * n % 4
        numbers.append(int(state.learner["n"]))

    stats = collector.collect(n_steps=9, learn=True, post_step_callback=callback)
    assert stats["level0/n_updates"] == numbers[-1] == 9 * n // 4 * 3
    # Metrics are means over updates, here of 0, 1, 2, ...
    np.testing.assert_allclose(stats["level0/number"], (numbers[-1] - 1) / 2)
    # Rows of the level are not ticks: above a level that holds control they are fewer.
    collector = new_collector(two=True, n=n)
    collector.collect(n_steps=12, learn=True)
    level = collector.state.levels[0]
    n_rows = int(buffers.n_rows(level.buffer))
    assert n_rows < 12 * n and int(level.learner["n"]) == n_rows // 4 * 3


# --- rollouts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("learn", "learn_interval"), [(False, 1), (True, 1), (True, 4), (True, 50)]
)
def test_rollout_metrics(learn, learn_interval):
    hierarchy = hierarchy_for(two=False)
    start = lrl.init_carry(hierarchy, jax.random.key(0), N)
    carry, out = lrl.rollout(
        hierarchy,
        start,
        n_steps=18,
        learn=learn,
        record=True,
        learn_interval=learn_interval,
    )
    done = episodes_of(out.transitions, N)
    metrics = {k: float(v) for k, v in out.metrics.items()}
    assert metrics["n_episodes"] == len(done) > 0
    np.testing.assert_allclose(metrics["return_sum"], sum(e["return"] for e in done), rtol=1e-6)
    assert metrics["length_sum"] == sum(e["length"] for e in done)
    assert metrics["success_sum"] == sum(e["success"] for e in done)
    np.testing.assert_allclose(metrics["reward_mean"], out.transitions.rew.mean(), rtol=1e-5)
    updates = 18 * N // 4 * 3 if learn else 0
    assert int(carry.hierarchy.levels[0].learner["n"]) == updates
    if learn:
        assert metrics["level0/n_updates"] == updates
        np.testing.assert_allclose(metrics["level0/number"], (updates - 1) / 2)
    else:
        assert not any(name.startswith("level") for name in metrics)
    assert int(carry.hierarchy.n_total_env_steps) == 18 * N
    assert kinds(carry) == kinds(start)
    going_on = ~(out.transitions.terminated | out.transitions.truncated)[-1]
    np.testing.assert_array_equal(carry.obs[going_on], out.transitions.obs_next[-1][going_on])


def kinds(tree) -> list:
    return [(x.shape, x.dtype, getattr(x, "weak_type", False)) for x in jax.tree.leaves(tree)]


def test_rollout_equals_ticks():
    """The loop settles each step in the next iteration, which shows nowhere."""
    hierarchy, params = hierarchy_for(), ENV.default_params
    carry = lrl.init_carry(hierarchy, jax.random.key(1), N)
    end, out = lrl.rollout(hierarchy, carry, n_steps=5, record=True)
    tick = jax.jit(functools.partial(lrl.collectors.tick, hierarchy))
    for t in range(5):
        carry, step, _ = tick(carry)
        assert_same(step, jax.tree.map(lambda x, t=t: x[t], out.transitions))
    assert_same(carry, end)
    # A rollout within a jit of one's own, with the parameters traced.
    inner = jax.jit(lambda c, p: lrl.rollout(hierarchy, c, n_steps=5, env_params=p)[1].metrics)
    start = lrl.init_carry(hierarchy, jax.random.key(1), N)
    np.testing.assert_allclose(inner(start, params)["reward_mean"], out.metrics["reward_mean"])


def test_rollout_without_an_episode_gives_zeros():
    hierarchy = hierarchy_for()
    carry = lrl.init_carry(hierarchy, jax.random.key(1), N)
    _, out = lrl.rollout(hierarchy, carry, n_steps=1, learn=True)
    assert out.transitions is None
    for name in ("n_episodes", "return_sum", "length_sum", "success_sum", "level0/n_updates"):
        assert float(out.metrics[name]) == 0
    assert all(np.isfinite(v) for v in out.metrics.values())


def test_actions_are_clipped_for_the_environment_only():
    hierarchy = lrl.Hierarchy([ConstantLevel([3.0], buffer_size=30)], ENV)
    collector = lrl.Collector(hierarchy, ENV, exploration_noise=True)
    _, batch = collector.collect(n_steps=3, record_transitions=True)
    assert (batch.act == 3.0).all()
    np.testing.assert_allclose(batch.rew, batch.obs_next[..., 0] / 2 + 1.0)
    assert (buffers.stored(collector.state.levels[0].buffer)["act"] == 3.0).all()
    assert hierarchy.action_space == Box(-1, 1, (1,))


def test_reset_seeds_the_decisions_too():
    """The same seed gives the same run again; another seed, or none, gives another."""
    env, params = lrl.make("Maze2D-Simple-v0")
    hierarchy = lrl.RandomHierarchy(env, env_params=params)
    collector = lrl.Collector(hierarchy, env, env_params=params, n_env_instances=2)

    def actions(seed):
        collector.reset(seed)
        return collector.collect(n_steps=3, record_transitions=True)[1].act

    first = actions(0)
    np.testing.assert_array_equal(first, actions(0))
    assert not np.array_equal(first, actions(1))
    assert not np.array_equal(actions(None), actions(None))
