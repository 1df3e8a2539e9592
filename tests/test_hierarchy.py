"""The contract of Hierarchy: states in and out, learners, checkpoints, gates, random streams."""

import dataclasses
import functools
from typing import Any, ClassVar

import gymnasium
import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrl_jax as lrl
from lrl_jax import buffers
from lrl_jax.buffers import Replay
from lrl_jax.hierarchies import Counter
from lrl_jax.levels import ActionRepeatLevel, ConstantLevel, Decision, Level, RandomLevel
from lrl_jax.spaces import Box

BOX = Box(-1, 1, (2,))


class Spaces:
    """All that a hierarchy needs of an environment."""

    name = "spaces"
    default_params = None

    def observation_space(self, params):
        return Box(-10, 10, (3,))

    def action_space(self, params):
        return BOX


@dataclasses.dataclass(frozen=True)
class Learner(Level):
    """Random actions, a memory, and updates that count themselves and look at a batch."""

    input: Any = None
    control_interval: int | None = None
    buffer_size: int = 24
    update_interval: int = 3
    n_updates: int = 2
    chunk_size: int | None = 0
    width: int = 2

    def input_space(self):
        return self.input

    def init_learner(self, key, spec):
        return {"w": jax.random.normal(key, (self.width,)), "n": 0, "rate": 0.5}

    def init_memory(self, learner):
        return {"acts": 0, "sum": 0.0}  # Python numbers are fine

    def act(self, learner, memory, obs, ctx):
        noise = jax.random.normal(ctx.key, (2,)) * (1.0 if ctx.training else 0.5)
        action = jnp.tanh(noise + learner["w"].sum() + 0.1 * memory["acts"] + obs[:2])
        memory = {"acts": memory["acts"] + 1, "sum": memory["sum"] + action.sum()}
        return Decision(action + 0.1 * ctx.level_input.sum(), memory)

    def learn(self, learner, replay, ctx):
        draw_key, key = jax.random.split(ctx.key)
        rew = replay.sample(draw_key, 4).rew.mean()
        w = learner["w"] - 0.01 * learner["rate"] * rew + 0.01 * jax.random.normal(key)
        return {**learner, "w": w, "n": learner["n"] + 1}, {"rew": rew}


def two_levels(**settings) -> lrl.Hierarchy:
    levels = [Learner(), Learner(BOX, 3, **settings)]
    return lrl.Hierarchy(levels, Spaces(), env_obs_maps=[None, lambda obs: obs[:2]])


@functools.cache
def shared() -> lrl.Hierarchy:
    return two_levels()


def transition(n: int, seed: int = 0, p_end: float = 0.2) -> tuple:
    """obs_next, rew, terminated, truncated of n instances."""
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=(n, 3)).astype(np.float32),
        rng.normal(size=n).astype(np.float32),
        rng.random(n) < p_end,
        rng.random(n) < p_end,
    )


def play(hierarchy, state, n_ticks: int, seed: int = 0, learn: bool = True):
    """Some ticks; returns the state and the last action."""
    n, action = state.n_env_instances, None
    for t in range(n_ticks):
        step = transition(n, seed + t)
        state, action = hierarchy.get_action(state, step[0])
        state = hierarchy.process_transition(state, *step)
        if learn:
            state, _ = hierarchy.learn(state)
    return state, action


def leaves(tree) -> list:
    """(path, NumPy array) of every leaf, keys as their data."""
    out = []
    for path, x in jax.tree.leaves_with_path(tree):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x = jax.random.key_data(x)
        out.append((jax.tree_util.keystr(path), np.asarray(x)))
    return out


def assert_same(a, b) -> None:
    """Equal leaf by leaf, bit for bit."""
    a, b = leaves(a), leaves(b)
    assert [p for p, _ in a] == [p for p, _ in b]
    for (path, x), (_, y) in zip(a, b, strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape, path
        assert x.tobytes() == y.tobytes(), f"{path}: {x} {y}"


def kinds(tree) -> list:
    return [(x.shape, x.dtype, getattr(x, "weak_type", False)) for x in jax.tree.leaves(tree)]


def kept(level) -> tuple:
    """What a reset and an evaluation leave alone: all but whether the next row goes on."""
    return level.learner, level.buffer.replace(position=None), level.owed


def fresh_start(state, n: int) -> None:
    """All instances at level 0 with fresh memory and empty sums."""
    np.testing.assert_array_equal(state.active_level, np.zeros(n))
    for level in state.levels:
        for x in jax.tree.leaves(level.memory):
            assert x.shape[0] == n and not np.asarray(x).any()
        for x in (level.cum_reward, level.elapsed_env_steps, level.n_steps_in_control):
            np.testing.assert_array_equal(x, np.zeros(n))


# --- states ---------------------------------------------------------------------------------------


def test_kept_learners():
    hierarchy = shared()
    old, _ = play(hierarchy, hierarchy.init(jax.random.key(0), 3), 5)
    new = hierarchy.init(jax.random.key(1), 4, learners=[old.levels[0].learner, None])
    assert_same(new.levels[0].learner, old.levels[0].learner)
    assert int(new.levels[1].learner["n"]) == 0
    assert not np.allclose(new.levels[1].learner["w"], old.levels[1].learner["w"])
    assert int(new.n_total_env_steps) == 0 and int(buffers.n_rows(new.levels[0].buffer)) == 0
    fresh_start(new, 4)


def test_get_copy():
    hierarchy = shared()
    state, _ = play(hierarchy, hierarchy.init(jax.random.key(0), 3), 4)
    before = leaves(state)
    copy = hierarchy.get_copy(state)
    fresh_start(copy, 3)
    for a, b in zip(copy.levels, state.levels, strict=True):
        assert_same(a.learner, b.learner)
    assert int(copy.n_total_env_steps) == int(state.n_total_env_steps) == 12
    # A stream of its own: the same observation and memory, other draws.
    obs = np.zeros((3, 3), np.float32)
    _, a = hierarchy.get_action(copy, obs)
    _, b = hierarchy.get_action(hierarchy.reset(state), obs)
    assert not np.isin(np.asarray(a), np.asarray(b)).any()
    # Playing with the copy leaves the original alone.
    play(hierarchy.eval(), copy, 2, learn=False)
    for (path, x), (_, y) in zip(before, leaves(state), strict=True):
        assert x.tobytes() == y.tobytes(), path


def test_reset_keeps_learner_counters_and_rows():
    hierarchy = shared()
    state, _ = play(hierarchy, hierarchy.init(jax.random.key(0), 3), 5)
    reset = hierarchy.reset(state)
    fresh_start(reset, 3)
    for a, b in zip(reset.levels, state.levels, strict=True):
        assert_same(kept(a), kept(b))
    assert int(reset.n_total_env_steps) == 15
    # Across the reset no trajectory is continued.
    never = [(o, r, np.zeros(3, bool), np.zeros(3, bool)) for o, r, _, _ in [transition(3)]][0]
    state = hierarchy.init(jax.random.key(0), 3)
    for _ in range(2):
        state, _ = hierarchy.get_action(state, never[0])
        state = hierarchy.reset(hierarchy.process_transition(state, *never))
    _, length, _ = buffers.sample_partial_trajectories(
        state.levels[1].buffer, jax.random.key(0), 50, 2
    )
    assert int(buffers.n_rows(state.levels[1].buffer)) == 6 and set(length.tolist()) == {1}


def test_set_n_env_instances():
    hierarchy = shared()
    state = hierarchy.init(jax.random.key(0), 3)
    # Without ends, rows are told apart by their reward: instance + tick / 100.
    zeros = np.zeros(3, bool)
    for t in range(10):
        obs = np.full((3, 3), t, np.float32)
        state, _ = hierarchy.get_action(state, obs)
        rew = np.arange(3, dtype=np.float32) + np.float32(t) / 100
        state = hierarchy.process_transition(state, obs + 1, rew, zeros, zeros)
    new = hierarchy.set_n_env_instances(state, 7)
    fresh_start(new, 7)
    assert int(new.n_total_env_steps) == 30
    for a, b in zip(new.levels, state.levels, strict=True):
        assert_same((a.learner, a.owed), (b.learner, b.owed))
    old_rows, rows = (buffers.stored(s.levels[1].buffer) for s in (state, new))
    assert len(old_rows["rew"]) == 24 and len(rows["rew"]) == 21  # 24 // 7 = 3 rows a ring
    dropped = set(old_rows["rew"].tolist()) - set(rows["rew"].tolist())
    assert dropped == set(np.arange(3, dtype=np.float32) + np.float32(2) / 100)  # the oldest
    # Pieces hold rows of one source in steps of one tick.
    new, _ = play(hierarchy, new, 1, learn=False)
    ids, length, _ = buffers.sample_partial_trajectories(
        new.levels[1].buffer, jax.random.key(0), 200, 3
    )
    got = {k: np.asarray(v) for k, v in buffers.gather(new.levels[1].buffer, ids).items()}
    assert length.max() > 1
    for b, n in enumerate(np.asarray(length)):
        steps = got["obs"][:n, b, 0]
        sources = np.floor(got["rew"][:n, b] + 1e-3)
        if n > 1:
            np.testing.assert_allclose(np.diff(steps), 1)
            assert len(set(sources.tolist())) == 1
    # And it plays on.
    state, action = play(hierarchy, new, 2)
    assert action.shape == (7, 2) and np.isfinite(action).all()


def test_eval_stores_and_counts_nothing():
    hierarchy = shared()
    state, _ = play(hierarchy, hierarchy.init(jax.random.key(0), 3), 4)
    tested, _ = play(hierarchy.eval(), state, 5, learn=False)
    for a, b in zip(tested.levels, state.levels, strict=True):
        assert_same(kept(a), kept(b))
    assert int(tested.n_total_env_steps) == int(state.n_total_env_steps)
    # Rows stored afterwards do not continue those before: what lies between was not stored.
    assert not tested.levels[1].buffer.position.any()
    assert hierarchy.training and not hierarchy.eval().training
    assert hierarchy.eval().train() is hierarchy and hierarchy.eval().eval() is hierarchy.eval()


def test_n_total_env_steps_is_exact():
    hierarchy = shared()
    state = hierarchy.init(jax.random.key(0), 5)
    start = 2**32 - 8
    state = state.replace(n_total_env_steps=Counter(jnp.uint32(0), jnp.uint32(start)))
    for t in range(1, 4):
        state, _ = play(hierarchy, state, 1, learn=False)
        assert int(state.n_total_env_steps) == start + 5 * t
    high = Counter(jnp.uint32(7), jnp.uint32(2**32 - 1)).add(1)
    assert int(high) == 8 * 2**32 and float(high.as_float()) == 8 * 2.0**32
    mask = np.array([True, False, True, False, False])
    state, _ = hierarchy.get_action(state, transition(5)[0], mask)
    state = hierarchy.process_transition(state, *transition(5), mask)
    assert int(state.n_total_env_steps) == start + 15 + 2


@pytest.mark.parametrize("everyone", [True, False])
def test_a_mask_without_an_axis_is_for_all_or_none(everyone):
    hierarchy = shared()
    state, _ = play(hierarchy, hierarchy.init(jax.random.key(0), 3), 3, learn=False)
    one, many = jnp.asarray(everyone), np.full(3, everyone)
    step = transition(3, 7)
    a, b = (hierarchy.get_action(state, step[0], mask)[0] for mask in (one, many))
    assert_same(a, b)
    a, b = (hierarchy.process_transition(a, *step, mask) for mask in (one, many))
    assert_same(a, b)
    assert int(a.n_total_env_steps) == 9 + 3 * everyone


# --- checkpoints ----------------------------------------------------------------------------------


def test_save_and_load(tmp_path):
    hierarchy = shared()
    state, _ = play(hierarchy, hierarchy.init(jax.random.key(0), 3), 6)
    hierarchy.save(state, tmp_path / "a")
    loaded = two_levels().load(tmp_path / "a")
    assert_same(loaded, state)
    assert kinds(loaded) == kinds(state)
    for s in range(3):
        state, loaded = (play(hierarchy, x, 1, seed=s)[0] for x in (state, loaded))
        assert_same(loaded, state)
    # Saving again replaces it; another number of instances goes the way of set_n_env_instances.
    hierarchy.save(state, tmp_path / "a")
    other = hierarchy.load(tmp_path / "a", n_env_instances=2)
    assert_same(other, hierarchy.set_n_env_instances(state, 2))
    assert [x.name for x in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (lambda: two_levels(buffer_size=30), ("levels[1].buffer_size", "24", "30")),
        (lambda: two_levels(width=5), ("levels[1].width", "2", "5")),
        (
            lambda: lrl.Hierarchy([Learner(), Learner(BOX, 3)], Spaces()),
            ("specs[1].obs_shape", "2", "3"),
        ),
        (lambda: lrl.Hierarchy([Learner()], Spaces()), ("levels",)),
        (lambda: lrl.Hierarchy([RandomLevel(), Learner(BOX, 3)], Spaces()), ("RandomLevel",)),
    ],
)
def test_load_refuses_other_settings(tmp_path, other, words):
    hierarchy = shared()
    hierarchy.save(hierarchy.init(jax.random.key(0), 2), tmp_path / "a")
    with pytest.raises(ValueError, match="other settings") as error:
        other().load(tmp_path / "a")
    assert all(word in str(error.value) for word in words), str(error.value)


def test_load_of_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        shared().load(tmp_path / "nothing")


# --- compilation ----------------------------------------------------------------------------------


def test_a_python_loop_compiles_once():
    hierarchy = two_levels()
    steps = {
        "get_action": jax.jit(hierarchy.get_action),
        "process": jax.jit(hierarchy.process_transition),
        "learn": jax.jit(hierarchy.learn),
    }
    state = hierarchy.init(jax.random.key(0), 3)
    before = kinds(state)
    for t in range(100):
        step = transition(3, t)
        state, _ = steps["get_action"](state, step[0])
        state = steps["process"](state, *step)
        state, _ = steps["learn"](state)
    assert {name: f._cache_size() for name, f in steps.items()} == dict.fromkeys(steps, 1)
    assert kinds(state) == before
    assert int(state.n_total_env_steps) == 300
    # The methods themselves, without another jit.
    other, _ = play(hierarchy, hierarchy.init(jax.random.key(0), 3), 5)
    inner = (hierarchy._get_action, hierarchy._process, hierarchy._learn)
    sizes = [f._cache_size() for f in inner]
    play(hierarchy, other, 5)
    assert [f._cache_size() for f in inner] == sizes


def test_scan_carry_is_stable():
    hierarchy = shared()
    start = hierarchy.init(jax.random.key(0), 3)

    def tick(state, step):
        state, _ = hierarchy.get_action(state, step[0])
        state, _ = hierarchy.learn(hierarchy.process_transition(state, *step))
        return state, None

    steps = jax.tree.map(lambda *x: np.stack(x), *[transition(3, t) for t in range(6)])
    scanned, _ = jax.jit(lambda s, x: jax.lax.scan(tick, s, x))(start, steps)
    assert kinds(scanned) == kinds(start)
    looped, _ = play(hierarchy, start, 6)
    for (path, a), (_, b) in zip(leaves(scanned), leaves(looped), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5, err_msg=path)


def test_keys_are_used_once():
    with jax.debug_key_reuse(True):
        hierarchy = two_levels()
        state, _ = play(hierarchy, hierarchy.init(jax.random.key(0), 3), 2)
        copy = hierarchy.get_copy(state)
        play(hierarchy.eval(), copy, 1, learn=False)
        state = hierarchy.set_n_env_instances(state, 2)
        env, params = gymnax.make("MountainCarContinuous-v0")
        random = lrl.RandomHierarchy(env)
        carry = lrl.init_carry(random, jax.random.key(0), 2)
        lrl.rollout(random, carry, n_steps=3)


def test_works_under_x64():
    with jax.enable_x64(True):
        hierarchy = two_levels(chunk_size=2)
        start = hierarchy.init(jax.random.key(0), 3)
        state, _ = play(hierarchy, start, 4)
        assert kinds(state) == kinds(start)
        assert int(state.n_total_env_steps) == 12


# --- updates --------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 4, 7])
def test_updates_owed_are_exact(n):
    """2 updates per 3 rows of a level, whatever the number of instances; the rest is carried."""
    hierarchy = shared()
    state, rows = hierarchy.init(jax.random.key(0), n), np.zeros(2, int)
    for t in range(9):
        step = transition(n, t)
        state, _ = hierarchy.get_action(state, step[0])
        closed = state
        state = hierarchy.process_transition(state, *step)
        for i in range(2):
            gone = np.asarray(state.levels[i].elapsed_env_steps) == 0
            rows[i] += gone.sum()
        if t % 2:
            before = [int(x.learner["n"]) for x in state.levels]
            state, metrics = hierarchy.learn(state)
            for i in range(2):
                made = int(state.levels[i].learner["n"]) - before[i]
                assert metrics[f"level{i}/n_updates"] == made
                assert made or metrics[f"level{i}/rew"] == 0
                assert int(state.levels[i].learner["n"]) == rows[i] // 3 * 2
                assert int(state.levels[i].owed) == rows[i] % 3
    assert closed is not state


@dataclasses.dataclass(frozen=True)
class Parent(Learner):
    needs: ClassVar[tuple[str, ...]] = ("children",)


def test_rows_of_other_states_have_no_children_here():
    hierarchy = lrl.Hierarchy([Parent(), Learner(BOX, 3, buffer_size=60)], Spaces())
    state, _ = play(hierarchy, hierarchy.init(jax.random.key(0), 3), 12, learn=False)
    rows = [buffers.drain(s.buffer)[0] for s in state.levels]
    other = hierarchy.add_rows(hierarchy.init(jax.random.key(1), 3), rows, 36)
    assert int(other.n_total_env_steps) == 36
    for s, has_children in ((state, True), (other, False)):
        replay = Replay(s.levels[0].buffer, s.levels[1].buffer)
        found = replay.sample(jax.random.key(0), 20)
        assert (found.elapsed_env_steps > 0).all()
        assert replay.children(found, 3)[1].any() == has_children


# --- randomness and vmap --------------------------------------------------------------------------


def test_an_instance_does_not_depend_on_its_neighbours():
    """Bit for bit the same among 64 as among 256."""
    env, params = gymnax.make("MountainCarContinuous-v0")
    box = lrl.spaces.from_any(env.action_space(params))
    hierarchy = lrl.Hierarchy([RandomLevel(), ActionRepeatLevel(3)], env, params)
    assert hierarchy.action_space == box
    outs = {}
    for n in (64, 256):
        carry = lrl.init_carry(hierarchy, jax.random.key(5), n)
        outs[n] = lrl.rollout(hierarchy, carry, n_steps=12, record=True)[1]
    for name in ("obs", "act", "rew", "obs_next"):
        a, b = (np.asarray(getattr(outs[n].transitions, name)) for n in (64, 256))
        assert a.tobytes() == b[:, :64].copy().tobytes(), name
    acts = np.asarray(outs[256].transitions.act)
    assert len(np.unique(acts[0])) == 256  # and instances differ
    np.testing.assert_array_equal(acts[0], acts[2])  # held for 3 steps
    assert not np.isclose(acts[2], acts[3]).any()


def ticks_of(hierarchy, n, n_ticks):
    """A function of a key: init and play, as one scan with updates."""
    steps = jax.tree.map(lambda *x: np.stack(x), *[transition(n, t) for t in range(n_ticks)])

    def tick(state, step):
        state, action = hierarchy.get_action(state, step[0])
        state, metrics = hierarchy.learn(hierarchy.process_transition(state, *step))
        return state, (action, metrics)

    return lambda key: jax.lax.scan(tick, hierarchy.init(key, n), steps)


@pytest.mark.parametrize("chunk_size", [0, None, 2])
def test_vmap_over_seeds_equals_a_loop(chunk_size):
    run = ticks_of(two_levels(chunk_size=chunk_size), n=3, n_ticks=5)
    keys = jax.random.split(jax.random.key(0), 3)
    together = jax.jit(jax.vmap(run))(keys)
    one_by_one = jax.jit(run)
    for s in range(3):
        alone = one_by_one(keys[s])
        for (path, a), (_, b) in zip(leaves(together), leaves(alone), strict=True):
            np.testing.assert_allclose(a[s], b, rtol=1e-5, atol=1e-6, err_msg=path)


# --- inactive work is not done --------------------------------------------------------------------


class Executed:
    """Counts decisions that are really computed."""

    def __init__(self):
        self.n = 0

    def __call__(self, _):
        self.n += 1

    def taken(self) -> int:
        jax.effects_barrier()
        n, self.n = self.n, 0
        return n


EXECUTED = Executed()


@dataclasses.dataclass(frozen=True)
class Costly(Level):
    """A level whose decisions are counted as they are computed."""

    chunk_size: int | None = None

    def act(self, learner, memory, obs, ctx):
        jax.debug.callback(EXECUTED, jax.random.key_data(ctx.key))  # differs in every copy
        return Decision(jnp.ones(2), memory)


@pytest.mark.parametrize("seeds", [None, 2])
@pytest.mark.parametrize("chunk_size", [None, 1, 3])
def test_inactive_work_is_not_done(chunk_size, seeds):
    """Also under a vmap over seeds, where a gate whose predicate is batched would run all."""
    n = 4
    hierarchy = lrl.Hierarchy([Costly(chunk_size), ActionRepeatLevel(5)], Spaces())

    def tick(state, t, ends):
        obs = jnp.full((n, 3), t, jnp.float32)
        state, _ = hierarchy.get_action(state, obs)
        return hierarchy.process_transition(state, obs, jnp.ones(n), ends, jnp.zeros(n, bool))

    copies = seeds or 1
    keys = jax.random.split(jax.random.key(0), copies)
    if seeds is None:
        run, state = jax.jit(tick), hierarchy.init(keys[0], n)
    else:
        run = jax.jit(jax.vmap(tick, in_axes=(0, None, None)))
        state = jax.vmap(lambda key: hierarchy.init(key, n))(keys)
    jaxpr = str(jax.make_jaxpr(run)(state, jnp.float32(0), jnp.zeros(n, bool)))
    assert ("cond[" if chunk_size is None else "while[") in jaxpr
    EXECUTED.taken()
    done = []
    for t in range(10):
        ends = np.array([False, t == 2, False, False])
        state = run(state, jnp.float32(t), ends)
        done.append(EXECUTED.taken() // copies)
    # All decide at 0 and 5; instance 1 ends at 2 and decides at 3 and 8.
    # Chunks of 3 become chunks of 2, which leave fewer rows empty.
    alone = {None: n, 1: 1, 3: 2}[chunk_size]
    every = {None: n, 1: n, 3: 4}[chunk_size]
    others = {None: n, 1: n - 1, 3: 4}[chunk_size]
    expected = {0: every, 3: alone, 5: others, 8: alone}
    assert done == [expected.get(t, 0) for t in range(10)]


@dataclasses.dataclass(frozen=True)
class Drafted(Learner):
    """The same decision in two parts: the cheap one decides every other time."""

    def draft(self, learner, memory, obs, ctx):
        needs = memory["acts"] % 2 == 1
        memory = {**memory, "acts": memory["acts"] + 1}
        return Decision(0.5 * obs[:2], memory), memory, needs

    def act(self, learner, memory, obs, ctx):
        action = jnp.tanh(jax.random.normal(ctx.key, (2,)) + memory["acts"] + obs[:2])
        return Decision(action, {**memory, "sum": memory["sum"] + action.sum()})


@dataclasses.dataclass(frozen=True)
class InOne(Learner):
    """What Drafted does, without a draft."""

    def act(self, learner, memory, obs, ctx):
        cheap, memory, needs = Drafted().draft(learner, memory, obs, ctx)
        full = Drafted().act(learner, memory, obs, ctx)
        both = [(decision.action, decision.memory) for decision in (full, cheap)]
        return Decision(*jax.tree.map(lambda a, b: jnp.where(needs, a, b), *both))


@pytest.mark.parametrize(
    ("kind", "chunk_size"),
    [*[(Learner, c) for c in (None, 1, 3, 8)], *[(Drafted, c) for c in (1, 3, 8)]],
)
def test_chunks_give_the_same_as_computing_all(kind, chunk_size):
    n = 5

    def run(cls, chunk):
        level = cls(n_updates=0, buffer_size=50, chunk_size=chunk)
        hierarchy = lrl.Hierarchy([level, ActionRepeatLevel(3)], Spaces())
        return jax.jit(ticks_of(hierarchy, n, n_ticks=9))(jax.random.key(2))

    expected = run(InOne if kind is Drafted else kind, 0)
    actual = run(kind, chunk_size)
    for (path, a), (_, b) in zip(leaves(actual), leaves(expected), strict=True):
        np.testing.assert_allclose(
            a.view(np.float32) if "words" in path else a,
            b.view(np.float32) if "words" in path else b,
            rtol=1e-5,
            atol=1e-6,
            err_msg=path,
        )


# --- levels that do not inherit, environments -----------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Stranger:
    """Has nothing of Level but `act`."""

    value: float
    buffer_size: int = 6

    def act(self, learner, memory, obs, ctx):
        return Decision(jnp.full(2, self.value), memory)


@dataclasses.dataclass(frozen=True, slots=True)
class SlottedStranger:
    """The same without a __dict__."""

    value: float
    buffer_size: int = 6

    def act(self, learner, memory, obs, ctx):
        return Decision(jnp.full(2, self.value), memory)


@pytest.mark.parametrize("cls", [Stranger, SlottedStranger])
def test_a_level_need_not_inherit(cls):
    hierarchy = lrl.Hierarchy([cls(0.25), ActionRepeatLevel(2)], Spaces())
    state, action = play(hierarchy, hierarchy.init(jax.random.key(0), 2), 4)
    np.testing.assert_array_equal(action, np.full((2, 2), 0.25))
    rows = buffers.stored(state.levels[0].buffer)
    assert len(rows["rew"]) and (rows["elapsed_env_steps"] <= 2).all()
    assert type(hierarchy.levels[0]).__name__ == cls.__name__
    assert hash(hierarchy.levels[0]) == hash(lrl.Hierarchy([cls(0.25)], Spaces()).levels[0])


@pytest.mark.parametrize("name", ["MountainCarContinuous-v0", "CartPole-v1"])
def test_random_hierarchy_on_gymnax(name):
    env, params = gymnax.make(name)
    hierarchy = lrl.RandomHierarchy(env, env_params=params)
    carry = lrl.init_carry(hierarchy, jax.random.key(0), 8)
    carry, out = lrl.rollout(hierarchy, carry, n_steps=60, record=True)
    acts = np.asarray(out.transitions.act)
    if name == "CartPole-v1":
        assert acts.dtype == np.int32 and set(acts.ravel().tolist()) == {0, 1}
        assert 0.4 < acts.mean() < 0.6 and int(out.metrics["n_episodes"]) > 5
    else:
        assert acts.shape == (60, 8, 1) and -1 <= acts.min() < -0.9 < 0.9 < acts.max() <= 1


def test_random_hierarchy_on_a_gymnasium_vector_env():
    envs = gymnasium.make_vec("CartPole-v1", num_envs=3, vectorization_mode="sync")
    hierarchy = lrl.RandomHierarchy(envs)
    state = hierarchy.init(jax.random.key(0), 3)
    obs, _ = envs.reset(seed=0)
    for _ in range(5):
        state, action = hierarchy.get_action(state, obs)
        obs, rew, terminated, truncated, _ = envs.step(np.asarray(action))
        state = hierarchy.process_transition(state, obs, rew, terminated, truncated)
    assert int(state.n_total_env_steps) == 15
    single = lrl.RandomHierarchy(envs.envs[0])
    assert single.env_spec.action_space == hierarchy.action_space
    envs.close()


def test_device_and_constant():
    device = jax.devices()[0]
    hierarchy = lrl.Hierarchy([ConstantLevel(np.array([0.5, -1.0]))], Spaces(), device=device)
    state = hierarchy.init(jax.random.key(0), 2)
    assert all(x.devices() == {device} for x in jax.tree.leaves(state))
    _, action = hierarchy.get_action(state, np.zeros((2, 3), np.float32))
    np.testing.assert_array_equal(action, [[0.5, -1.0]] * 2)


def test_device_names():
    hierarchy = lrl.Hierarchy([ConstantLevel(np.array([0.5, -1.0]))], Spaces(), device="cpu")
    state = hierarchy.init(jax.random.key(0), 2)
    assert all(x.devices() == {jax.devices("cpu")[0]} for x in jax.tree.leaves(state))


def test_save_and_load_with_keys_of_another_kind(tmp_path):
    hierarchy = shared()
    state = play(hierarchy, hierarchy.init(jax.random.key(0, impl="rbg"), 2), 3)[0]
    hierarchy.save(state, tmp_path / "rbg")
    loaded = hierarchy.load(tmp_path / "rbg")
    assert jax.random.key_impl(loaded.stream.key) == jax.random.key_impl(state.stream.key)
    for (_, a), (_, b) in zip(leaves(state), leaves(loaded), strict=True):
        np.testing.assert_array_equal(a, b)


def test_bounds_of_long_boxes_can_be_handed_on():
    """They are kept as one number."""
    image = Box(0, 255, (9, 9, 3), "uint8")
    assert Box(image.low, image.high, (243,), "uint8") == Box(0, 255, (243,), "uint8")
    assert Box(image.low_array, image.high_array, image.shape, image.dtype) == image
    assert dataclasses.replace(image, shape=(3,)) == Box(0, 255, (3,), "uint8")
    with pytest.raises(ValueError, match="one for each entry"):
        Box((0, 0), 255, (9, 9, 3))


def test_the_largest_floats_are_no_bounds():
    assert not Box(-3.4e38, 3.4e38, (2,)).is_bounded
    assert Box(-1e6, 1e6, (2,)).is_bounded
    with pytest.raises(ValueError, match="unbounded"):
        Box(-3.4e38, 3.4e38, (2,)).sample(jax.random.key(0))
