"""Rewards and observations that are not finite: named, and kept out of all that is stored."""

import contextlib
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from scripted import Params, Scripted, label, table
from scripted_gym import ScriptedGym

import lrl_jax as lrl
from lrl_jax.collectors import check_finite
from lrl_jax.levels import ActionRepeatLevel, RandomLevel

N = 3
LENGTHS = (6, 50)
TICK = 8  # when instance 1 has made three steps of its second episode


def stacked(env, two, params=None):
    levels: list[Any] = [RandomLevel(buffer_size=300)]
    if two:
        levels.append(ActionRepeatLevel(3, buffer_size=300))
    return lrl.Hierarchy(levels, env, params)


def spoil(name, value, *, env_id, obs_next: Any = None, rew: Any = None, **data: Any):
    """Put a number into the step of instance 1 that is taken at TICK."""
    if obs_next is None:  # a reset
        return {}
    xp = np if isinstance(obs_next, np.ndarray) else jnp
    here = (obs_next[:, :3] == xp.asarray([1, 1, 3])).all(1)
    if name == "rew":
        return {"rew": xp.where(here, xp.float32(value), rew)}
    entry = xp.arange(4) == 3
    return {"obs_next": xp.where(here[:, None] & entry, xp.float32(value), obs_next)}


def made(kind, spoils=("rew", np.nan), two=True, **settings) -> Any:
    settings = {"buffer": 300, "exploration_noise": True, **settings}
    if spoils is not None:
        settings["preprocess_fn"] = functools.partial(spoil, *spoils)
    if kind == "jax":
        params = Params(lengths=jnp.asarray(table([LENGTHS] * N)))
        collector = lrl.Collector(stacked(Scripted(), two, params), n_env_instances=N, **settings)
        collector.reset(seed=0)
        label(collector)
        return collector
    envs = [functools.partial(ScriptedGym, i, LENGTHS) for i in range(N)]
    hierarchy = stacked(envs[0](), two)
    if kind == "futures":
        return lrl.AsyncCollector(hierarchy, envs, **settings)
    mode = AutoresetMode.SAME_STEP if kind == "same_step" else AutoresetMode.DISABLED
    return lrl.Collector(hierarchy, SyncVectorEnv(envs, autoreset_mode=mode), **settings)


def check_clean(collector, n_rows):
    """All that is stored is finite, in pieces that continue, and counts agree."""
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(collector._engine.saved()["store"]))
    rows: Any = None
    for level in (*collector.state.levels, collector):
        rows = lrl.buffers.stored(level.buffer)
        assert all(np.isfinite(x).all() for x in rows.values())
        np.testing.assert_array_equal(rows["obs"][:, :2], rows["obs_next"][:, :2])
    assert len(rows["rew"]) == int(collector.state.n_total_env_steps) == n_rows
    assert collector.collect_step == n_rows
    assert np.isfinite(collector._engine.obs).all()


KINDS = ["jax", "sync", "same_step"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("two", [True, False])
@pytest.mark.parametrize("spoils", [("rew", np.nan), ("obs_next", np.inf)])
def test_a_number_that_is_not_finite_is_refused(kind, two, spoils):
    collector = made(kind, spoils, two)
    what = "reward nan" if spoils[0] == "rew" else r"observation with inf at \[3\]"
    with pytest.raises(FloatingPointError, match=f"instance 1 has a {what} at tick {TICK}:"):
        collector.collect(n_steps=20)
    check_clean(collector, N * (TICK + 1) - 1)
    stats = collector.collect(n_steps=20)
    assert stats.n_nonfinite == 0 and np.isfinite(stats.returns).all()
    check_clean(collector, N * (TICK + 21) - 1)


@pytest.mark.parametrize("kind", KINDS)
def test_such_steps_can_be_dropped(kind):
    """Nothing else changes: other instances go on as they would, those masked do not count."""
    collector, other = made(kind, nan="drop"), made(kind, None)
    stats, batch = collector.collect(n_steps=20, record_transitions=True)
    _, clean = other.collect(n_steps=20, record_transitions=True)
    assert stats.n_nonfinite == 1 and stats.n_collected_steps == 20 * N - 1
    assert np.argwhere(~batch.valid).tolist() == [[TICK, 1]]
    assert stats.truncated_by_limit == 0 and 9 not in stats.lens
    for a, b in zip(jax.tree.leaves(batch), jax.tree.leaves(clean), strict=True):
        np.testing.assert_array_equal(a[:, [0, 2]], b[:, [0, 2]])
        np.testing.assert_array_equal(a[:TICK, 1], b[:TICK, 1])
    check_clean(collector, 20 * N - 1)
    assert collector.collect(n_episodes=4).n_collected_episodes == 4


@pytest.mark.parametrize("kind", [*KINDS, "futures"])
def test_while_episodes_are_counted_or_actions_are_random(kind):
    with contextlib.closing(made(kind, nan="drop")) as c:
        stats = c.collect(n_episodes=6)
        assert stats.n_collected_episodes == 6 and stats.n_nonfinite == 1
        assert np.isfinite(stats.returns).all() and set(stats.lens) <= set(LENGTHS)
        check_clean(c, c.collect_step)
    with contextlib.closing(made(kind)) as c:
        amount = {"n_total_steps": 60}
        with pytest.raises(FloatingPointError, match="instance 1 has a reward nan"):
            c.collect(**amount, random=True)
        rows = lrl.buffers.stored(c.buffer)["rew"]
        assert np.isfinite(rows).all() and len(rows) == c.collect_step


def test_nobody_looks_where_it_is_allowed():
    collector = made("jax", nan="allow")
    stats = collector.collect(n_steps=10)
    assert np.isnan(stats["mean_reward"]) and stats.n_nonfinite == 0
    with pytest.raises(ValueError, match="nan='never'"):
        made("jax", nan="never")


class BadGym(ScriptedGym):
    """Says so itself."""

    def step(self, action):
        obs, rew, terminated, truncated, info = super().step(action)
        rew = float("nan") if tuple(obs[:3]) == (1, 1, 3) else rew
        return obs, rew, terminated, truncated, info


@pytest.mark.parametrize("nan", ["raise", "drop"])
def test_where_actions_are_drawn_ahead(nan):
    envs = [functools.partial(BadGym, i, LENGTHS) for i in range(N)]
    collector = lrl.Collector(
        stacked(envs[0](), False),
        SyncVectorEnv(envs, autoreset_mode=AutoresetMode.DISABLED),
        buffer=300,
        exploration_noise=True,
        nan=nan,
    )
    if nan == "raise":
        with pytest.raises(FloatingPointError, match=f"at tick {TICK}:"):
            collector.collect(n_steps=20)
        check_clean(collector, N * (TICK + 1) - 1)
    else:
        assert collector.collect(n_steps=20).n_nonfinite == 1
        check_clean(collector, N * 20 - 1)
    clean = lrl.Collector(
        collector.hierarchy,
        SyncVectorEnv([functools.partial(ScriptedGym, i, LENGTHS) for i in range(N)]),
        buffer=300,
        exploration_noise=True,
    )
    clean.collect(n_steps=20)
    rows, expected = (lrl.buffers.stored(x.state.levels[0].buffer) for x in (collector, clean))
    for i in (0, 2):
        own, other = (x["act"][x["instance"] == i] for x in (rows, expected))
        np.testing.assert_array_equal(own, other[: len(own)])


@dataclasses.dataclass(frozen=True)
class Diverging(lrl.levels.Level):
    """Learns nothing but a loss that is not finite."""

    buffer_size: int = 40
    n_updates: int = 1

    def act(self, learner, memory, obs, ctx):
        return lrl.levels.Decision(jnp.zeros(1), memory)

    def learn(self, learner, replay, ctx):
        return learner, {"loss": jnp.where(ctx.env_steps > 6, jnp.inf, 1.0)}


def test_losses_that_diverge_are_named():
    env = Scripted()
    collector = lrl.Collector(lrl.Hierarchy([Diverging()], env), n_env_instances=2)
    with pytest.raises(FloatingPointError, match="level0 diverged: loss is inf"):
        collector.collect(n_steps=10, learn=True)
    assert lrl.Collector(collector.hierarchy, nan="allow").collect(n_steps=10, learn=True)


class BadScripted(Scripted):
    """The twin of BadGym."""

    def step(self, key, state, action, params=None):
        obs, after, rew, terminated, truncated, info = super().step(key, state, action, params)
        bad = (info["final_observation"][:3] == jnp.array([1, 1, 3])).all()
        return obs, after, jnp.where(bad, jnp.inf, rew), terminated, truncated, info


@pytest.mark.parametrize("learn_interval", [None, 3])
def test_a_rollout_stops_at_it(learn_interval):
    def run(env, stop_at_nan, n_steps=14):
        params = Params(lengths=jnp.asarray(table([LENGTHS] * N)))
        hierarchy = stacked(env, True, params)
        carry = lrl.init_carry(hierarchy, jax.random.key(0), N)
        env_state = carry.env_state.replace(index=jnp.arange(N, dtype=jnp.int32))
        carry = carry.replace(env_state=env_state, obs=jax.vmap(env.get_obs)(env_state))
        learns = {"learn": True, "learn_interval": learn_interval} if learn_interval else {}
        return lrl.rollout(hierarchy, carry, n_steps, stop_at_nan=stop_at_nan, **learns)

    carry, out = run(BadScripted(), True)
    with pytest.raises(FloatingPointError, match=f"instance 1 had .* at tick {TICK} of"):
        check_finite(out.metrics)
    clean, of_clean = run(Scripted(), True)
    assert check_finite(of_clean.metrics).keys() == run(Scripted(), False)[1].metrics.keys()
    for level, other in zip(carry.hierarchy.levels, clean.hierarchy.levels, strict=True):
        rows, expected = (lrl.buffers.stored(x.buffer) for x in (level, other))
        for i in range(N):
            own, longer = (x["rew"][x["instance"] == i] for x in (rows, expected))
            assert len(own) > 0
            np.testing.assert_array_equal(own, longer[: len(own)])
    assert int(carry.hierarchy.n_total_env_steps) == TICK * N
    assert int(clean.hierarchy.n_total_env_steps) == 14 * N
    with pytest.raises(ValueError, match="stop_at_nan"):
        lrl.rollout(stacked(Scripted(), True), clean, 2, record="levels", stop_at_nan=True)


def test_agents_side_by_side_are_told_apart():
    metrics = {"nonfinite_tick": np.array([-1, 4]), "nonfinite_instance": np.array([-1, 2])}
    with pytest.raises(FloatingPointError, match="instance 2 .* at tick 4 .* of agent 1"):
        check_finite(metrics)
    with pytest.raises(FloatingPointError, match="level1 diverged: loss is nan"):
        check_finite({"level1/loss": np.array([1.0, np.nan])})
