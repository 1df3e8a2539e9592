"""Collecting exact numbers of steps and episodes, against a plain simulation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scripted import Params, Scripted, label, table

import lrl_jax as lrl
from lrl_jax.collectors.counting import Owed
from lrl_jax.levels import RandomLevel

ENV = Scripted()


def simulate(lengths, position, amount, allocation):
    """The rule in plain Python, one instance at a time.

    `position` is [episode, steps taken in it] of each instance, and is moved on. Returns lengths
    and instances in order of completion, and the steps taken.
    """
    n = len(lengths)
    if allocation == "quota":
        quota = [amount // n + (i < amount % n) for i in range(n)]
        running = [i for i in range(n) if quota[i]]
    else:
        running = list(range(min(n, amount)))
    unstarted = amount - len(running)
    lens, who, steps = [], [], 0
    while running:
        finished = []
        for i in running:
            position[i][1] += 1
            steps += 1
            if position[i][1] == lengths[i][position[i][0]]:
                lens.append(position[i][1])
                who.append(i)
                position[i] = [position[i][0] + 1, 0]
                finished.append(i)
        for rank, i in enumerate(reversed(finished)):
            if allocation == "quota":
                quota[i] -= 1
                goes_on = quota[i] > 0
            else:
                goes_on = rank < unstarted
            if not goes_on:
                running.remove(i)
        if allocation == "any":
            unstarted -= min(unstarted, len(finished))
    return lens, who, steps


def test_the_example_of_the_rule():
    lengths = [[2] * 9, [3] * 9, [4] * 9, [5] * 9]
    lens, _, steps = simulate(lengths, [[0, 0] for _ in range(4)], 7, "any")
    assert (lens, steps) == ([2, 3, 2, 4, 5, 3, 4], 23)


def run_owed(lengths, position, amount, mode, arrays):
    """The same with `Owed`, tick by tick."""
    owed = jax.tree.map(arrays, Owed.begin(mode, amount, len(lengths)))
    lens, who, steps = [], [], 0
    while np.any(owed.active):
        done = np.zeros(len(lengths), bool)
        for i in np.flatnonzero(owed.active):
            position[i][1] += 1
            steps += 1
            if position[i][1] == lengths[i][position[i][0]]:
                lens.append(position[i][1])
                who.append(i)
                position[i] = [position[i][0] + 1, 0]
                done[i] = True
        owed = owed.after(mode, arrays(done))
    return lens, who, steps


@pytest.mark.parametrize("allocation", ["any", "quota"])
def test_the_rule_against_a_simulation(allocation):
    """500 random sets in NumPy, each with two calls, the second going on where the first ended."""
    rng = np.random.default_rng(0)
    mode = "n_episodes" if allocation == "any" else "n_episodes_quota"
    for _ in range(500):
        n = rng.integers(1, 9)
        lengths = rng.integers(1, rng.integers(2, 12), (n, 80)).tolist()
        expected_at, at = ([[0, 0] for _ in range(n)] for _ in range(2))
        for i in range(n):  # in the middle of an episode
            start = [0, int(rng.integers(0, lengths[i][0]))]
            expected_at[i], at[i] = list(start), list(start)
        for _ in range(2):
            amount = int(rng.integers(1, 20))
            expected = simulate(lengths, expected_at, amount, allocation)
            assert run_owed(lengths, at, amount, mode, np.asarray) == expected
            assert at == expected_at


def test_on_the_device_it_is_the_same():
    rng = np.random.default_rng(1)
    for _ in range(20):
        lengths = rng.integers(1, 6, (4, 40)).tolist()
        amount = int(rng.integers(1, 9))
        results = [
            run_owed(lengths, [[0, 0] for _ in range(4)], amount, "n_episodes", arrays)
            for arrays in (np.asarray, jnp.asarray)
        ]
        assert results[0] == results[1]


HIERARCHIES = {}


def new_collector(lengths, **arguments):
    """With the lengths as parameters, so that few programs are compiled."""
    params = Params(lengths=jnp.asarray(table(lengths)))
    hierarchy = HIERARCHIES.setdefault(0, lrl.Hierarchy([RandomLevel()], ENV, params))
    collector = lrl.Collector(
        hierarchy, ENV, env_params=params, n_env_instances=len(lengths), **arguments
    )
    collector.reset(seed=0)
    label(collector)
    return collector


@pytest.mark.parametrize("allocation", ["any", "quota"])
def test_collector_against_the_simulation(allocation):
    """Lengths in order of completion and steps, over calls that carry on; returns add up."""
    rng = np.random.default_rng(2)
    for _ in range(40):
        lengths = rng.integers(1, 9, (4, 64)).tolist()
        collector = new_collector(lengths)
        at = [[0, 0] for _ in range(4)]
        for _ in range(3):
            amount = int(rng.integers(1, 13))
            lens, who, steps = simulate(lengths, at, amount, allocation)
            stats = collector.collect(n_episodes=amount, episode_allocation=allocation)
            assert stats.lens.tolist() == lens
            assert stats.n_collected_episodes == amount and stats.n_collected_steps == steps
            # A step pays 1 + instance and at most 0.2 for the position.
            low = np.array([(1 + i) * length for i, length in zip(who, lens, strict=True)])
            assert (np.abs(stats.returns - low) <= 0.2 * np.array(lens) + 1e-4).all()
            state = collector._engine.carry.env_state
            assert np.asarray(state.episode).tolist() == [e for e, _ in at]
            assert np.asarray(state.time).tolist() == [t for _, t in at]


def test_short_episodes_are_not_favoured():
    """Lengths 1 or 20 at even odds, 32 instances, 32 episodes: 10.5 in the mean."""
    rng = np.random.default_rng(3)
    means, first_to_finish = [], []
    for _ in range(30):
        lengths = np.where(rng.random((32, 64)) < 0.5, 1, 20).tolist()
        lens, _, _ = simulate(lengths, [[0, 0] for _ in range(32)], 32, "any")
        means.append(np.mean(lens))
        ends = sorted(
            (t, length) for row in lengths for t, length in zip(np.cumsum(row), row, strict=True)
        )
        first_to_finish.append(np.mean([length for _, length in ends[:32]]))
    assert abs(np.mean(means) - 10.5) < 0.6
    assert np.mean(first_to_finish) < 4
    collected = new_collector([[1], [20]] * 16).collect(n_episodes=32)
    assert np.mean(collected.lens) == 10.5


def test_total_steps_are_exact():
    """10 steps on four instances; who sits out is unchanged bit for bit."""
    collector = new_collector([[3], [5], [7], [9]], buffer=64)
    stats, batch = collector.collect(n_total_steps=10, record_transitions=True)
    assert stats.n_collected_steps == 10
    assert batch.valid.sum(1).tolist() == [4, 4, 2]
    assert batch.valid[2].tolist() == [True, True, False, False]
    for leaf in jax.tree.leaves(batch):
        assert not leaf[2, 2:].any()
    assert len(lrl.buffers.stored(collector.buffer)["rew"]) == 10
    twin = new_collector([[3], [5], [7], [9]])
    twin.collect(n_steps=2)
    sat_out = jax.tree.map(lambda x: np.asarray(x)[2:], twin._engine.carry.env_state)
    carry = collector._engine.carry
    now = jax.tree.map(lambda x: np.asarray(x)[2:], carry.env_state)
    jax.tree.map(np.testing.assert_array_equal, now, sat_out)
    np.testing.assert_array_equal(carry.obs[2:], twin._engine.carry.obs[2:])


def test_a_hierarchy_that_sits_out_is_unchanged():
    params = Params(lengths=jnp.asarray(table([[5]] * 4)))
    hierarchy = lrl.Hierarchy([lrl.levels.RandomLevel(buffer_size=64)], ENV, params)
    collectors = [
        lrl.Collector(hierarchy, ENV, env_params=params, n_env_instances=4, exploration_noise=True)
        for _ in range(2)
    ]
    for collector in collectors:
        collector.reset(seed=0)
        label(collector)
    collectors[0].collect(n_total_steps=9)
    collectors[1].collect(n_steps=2)
    a, b = (c.state.levels[0] for c in collectors)
    for name in ("obs", "action", "cum_reward", "elapsed_env_steps", "n_steps_in_control"):
        np.testing.assert_array_equal(getattr(a, name)[1:], getattr(b, name)[1:])
    assert np.asarray(a.buffer.size).tolist() == [3, 2, 2, 2]


def test_a_reset_leaves_no_sums_and_no_seam():
    collector = new_collector([[4], [6]], buffer=64)
    collector.collect(n_steps=3)
    collector.reset_env()
    label(collector)
    stats = collector.collect(n_episodes=2)
    assert stats.lens.tolist() == [4, 6]
    rows = lrl.buffers.stored(collector.buffer)
    assert len(rows["rew"]) == 6 + 4 + 6
    # No stretch of rows passes from before the reset to after it.
    buffer = collector.buffer
    _, length, _ = lrl.buffers.sample_partial_trajectories(buffer, jax.random.key(0), 512, 16)
    assert int(length.max()) == 6


def test_environments_that_never_end_are_given_up():
    collector = new_collector([[3], [10_000]])
    with pytest.warns(UserWarning, match="1 episodes were still open after 50 steps"):
        stats = collector.collect(n_episodes=2, max_steps=50)
    assert stats.lens.tolist() == [3] and stats.truncated_by_limit == 1
    assert stats.n_collected_steps == 53


def test_many_total_steps_are_not_cut(monkeypatch):
    from lrl_jax.collectors import requests as module

    monkeypatch.setattr(module, "_MAX_STEPS", 5)
    assert new_collector([[3], [4]]).collect(n_total_steps=31).n_collected_steps == 31


def test_random_actions_leave_the_hierarchy_alone():
    params = Params(lengths=jnp.asarray(table([[4], [6]])))
    level = lrl.levels.ConstantLevel(jnp.zeros(1), buffer_size=32)
    hierarchy = lrl.Hierarchy([level], ENV, params)
    collector = lrl.Collector(
        hierarchy, ENV, env_params=params, n_env_instances=2, exploration_noise=True
    )
    collector.reset(seed=0)
    label(collector)
    stats, batch = collector.collect(n_steps=9, random=True, record_transitions=True)
    assert np.abs(batch.act).min() > 0 and len(np.unique(batch.act)) == 18
    state = collector.state
    assert int(lrl.buffers.n_rows(state.levels[0].buffer)) == 0
    assert int(state.n_total_env_steps) == 0 and stats.n_collected_steps == 18
    collector.collect(n_steps=2)
    assert int(lrl.buffers.n_rows(collector.state.levels[0].buffer)) == 4


def test_totals_and_empty_statistics():
    collector = new_collector([[40], [50]])
    stats = collector.collect(n_steps=3)
    assert stats.returns.shape == (0,) and stats.lens_stat is None and stats.returns_stat is None
    assert stats["mean_return"] is None
    collector.collect(n_total_steps=3)
    assert (collector.collect_step, collector.collect_episode) == (9, 0)
    collector.reset_stat()
    assert collector.collect_step == 0 and collector.collect_time == 0.0


def test_preprocess_changes_what_is_stored_and_counted():
    seen = []

    def change(**given):
        seen.append(set(given))
        if "obs" in given:
            return {"obs": given["obs"] + 100}
        over = given["obs_next"][:, 2] >= 3  # cuts episodes of more than 3 steps
        return {
            "obs_next": given["obs_next"] + 100,
            "rew": given["rew"] * 0 + 2,
            "truncated": given["truncated"] | over,
        }

    collector = new_collector([[2], [9]], preprocess_fn=change, buffer=32)
    # Labels come after the reset: what the function did to the first observation is undone.
    stats, batch = collector.collect(n_episodes=2, record_transitions=True)
    assert stats.lens.tolist() == [2, 3] and stats.returns.tolist() == [4.0, 6.0]
    step = {"obs_next", "rew", "terminated", "truncated", "done", "info", "act", "env_id"}
    assert {frozenset(s) for s in seen} == {frozenset({"obs", "env_id"}), frozenset(step)}
    valid = batch.valid
    assert (batch.obs_next[valid] >= 99).all() and (batch.obs[1:][valid[1:]] >= 99).all()
    rows = lrl.buffers.stored(collector.buffer)
    assert (rows["rew"] == 2).all() and rows["truncated"].sum() == 2
    # What the function ended was reset.
    assert np.asarray(collector._engine.carry.env_state.time).tolist() == [0, 0]


def test_gradients_go_through_a_rollout():
    params = Params(lengths=jnp.asarray(table([[40], [50]])))

    import dataclasses

    @dataclasses.dataclass(frozen=True)
    class Push(lrl.levels.Level):
        def init_learner(self, key, spec):
            return jnp.float32(0.3)

        def act(self, learner, memory, obs, ctx):
            return lrl.levels.Decision(jnp.broadcast_to(learner, (1,)), memory)

    hierarchy = lrl.Hierarchy([Push()], ENV, params)
    collector = lrl.Collector(hierarchy, ENV, env_params=params, n_env_instances=2)
    collector.reset(seed=0)
    label(collector)

    def total(push):
        state = collector.state
        level = state.levels[0].replace(learner=push)
        collector.state = state.replace(levels=(level,))
        _, batch = collector.collect(n_steps=2, record_transitions=True, no_grad=False)
        return batch.rew.sum()

    # Positions 0.3 p and 0.45 p of two instances, a tenth of which is paid.
    gradient = jax.grad(total)(jnp.float32(0.3))
    np.testing.assert_allclose(gradient, 2 * 0.1 * (1 + 1.5), rtol=1e-5)
    assert collector.collect(n_steps=3).n_collected_steps == 6  # it stays usable

    def wrong(push):
        state = collector.state
        level = state.levels[0].replace(learner=push)
        collector.state = state.replace(levels=(level,))
        return collector.collect(n_steps=2).mean_reward

    for _ in range(2):
        with pytest.raises(ValueError, match="no_grad=False"):
            jax.grad(wrong)(jnp.float32(0.3))
        assert collector.collect(n_steps=3).n_collected_steps == 6  # it stays usable
    with pytest.raises(ValueError, match="nothing else"):
        collector.collect(n_steps=2, record_transitions=True, no_grad=False, random=True)


def test_a_buffer_is_given_on_and_emptied():
    first = new_collector([[4], [6]], buffer=64)
    first.collect(n_steps=5)
    # A reset empties it unless told not to; here it happens before the rows are handed over.
    second = new_collector([[4], [6]])
    third = lrl.Collector(
        second.hierarchy, ENV, env_params=second.env_params, n_env_instances=2, buffer=first.buffer
    )
    third._ready()
    label(third)
    third.collect(n_steps=2)
    assert len(lrl.buffers.stored(third.buffer)["rew"]) == 14
    third.reset_buffer(keep_statistics=True)
    assert len(lrl.buffers.stored(third.buffer)["rew"]) == 0 and third.collect_step == 4
    third.collect(n_steps=1)
    third.reset()
    assert len(lrl.buffers.stored(third.buffer)["rew"]) == 0 and third.collect_step == 0
    with pytest.raises(ValueError, match="of 2 instances"):
        new_collector([[4]] * 3, buffer=first.buffer)
    with pytest.raises(ValueError, match="buffer"):
        new_collector([[4]] * 3, buffer=2)
