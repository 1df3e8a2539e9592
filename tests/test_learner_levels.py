"""Levels that learn with an algorithm: properties that hold for all of them, at every place."""

import dataclasses
import functools
import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrl_jax as lrl
from lrl_jax import buffers
from lrl_jax.algorithms import DQN, SAC, TDMPC2, Features
from lrl_jax.algorithms.base import from_unit, to_unit
from lrl_jax.hierarchies import stepping
from lrl_jax.levels import (
    ActionRepeatLevel,
    DQNLevel,
    LearnerLevel,
    RandomLevel,
    SACLevel,
    TDMPC2Level,
)
from lrl_jax.nets.two_hot import TwoHot
from lrl_jax.planners.mppi import MPPI
from lrl_jax.spaces import Box, Discrete, mapped_space

OBS = Box((-1, 0, -math.inf), (1, 4, math.inf), (3,))
INPUT = Box(-2, 2, (2,))
COMMON = {"buffer_size": 64, "batch_size": 8, "warm_up_steps": 0, "update_interval": 2}

TINY_TDMPC2 = TDMPC2(
    latent_dim=8,
    group_size=4,
    hidden=(16,),
    encoder_hidden=(16,),
    n_critics=2,
    two_hot=TwoHot(num_bins=11),
    planner=MPPI(num_samples=8, num_policy_samples=2, num_elites=3, n_iterations=2, horizon=2),
)

# name -> (level, algorithm, action space)
LEARNERS: dict[str, tuple[type[LearnerLevel], Any, Any]] = {
    "sac": (SACLevel, SAC(hidden=(16,)), Box((-1, 0), (1, 3), (2,))),
    "dqn": (DQNLevel, DQN(hidden=(16,), epsilon=0.5), Discrete(4)),
    "tdmpc2": (TDMPC2Level, TINY_TDMPC2, Box((-1, 0), (1, 3), (2,))),
}
NAMES = sorted(LEARNERS)


def at_places(*places):
    """Every learner at every place; those that compile for half a minute only alone, by default."""
    return [
        pytest.param(
            name, place, marks=pytest.mark.slow if (name == "tdmpc2" and place != "alone") else ()
        )
        for name in NAMES
        for place in places
    ]


@dataclasses.dataclass(frozen=True)
class Spaces:
    """All that a hierarchy needs of an environment."""

    action: Any
    obs: Any = OBS
    name = "spaces"
    default_params = None

    def observation_space(self, params):
        return self.obs

    def action_space(self, params):
        return self.action


def make_level(name: str, **settings) -> LearnerLevel:
    cls, algorithm, _ = LEARNERS[name]
    return cls(algorithm, **{**COMMON, **settings})


@functools.cache
def hierarchy(name: str, place: str) -> lrl.Hierarchy:
    """The learner alone, above another level, or below one that sends an input."""
    action = LEARNERS[name][2]
    if place == "alone":
        levels = [make_level(name)]
    elif place == "above":
        levels = [make_level(name), ActionRepeatLevel(2)]
    else:
        levels = [RandomLevel(), make_level(name, level_input_space=INPUT, control_interval=3)]
    return lrl.Hierarchy(levels, Spaces(action))


def index(place: str) -> int:
    return 1 if place == "below" else 0


def transition(n: int, seed: int, p_end: float = 0.15):
    rng = np.random.default_rng(seed)
    return (
        rng.uniform(-1, 1, (n, 3)).astype(np.float32),
        rng.normal(size=n).astype(np.float32),
        rng.random(n) < p_end,
        rng.random(n) < p_end,
    )


def play(h: lrl.Hierarchy, state, ticks: int, seed: int = 0, learn: bool = True):
    n, actions = state.n_env_instances, []
    for t in range(ticks):
        step = transition(n, 100 * seed + t)
        state, action = h.get_action(state, step[0])
        actions.append(np.asarray(action))
        state = h.process_transition(state, *step)
        if learn:
            state, _ = h.learn(state)
    return state, np.stack(actions)


def values(tree) -> list[np.ndarray]:
    """Leaves as arrays, keys as their data."""
    leaves = jax.tree.leaves(tree)
    is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)  # noqa: E731
    return [np.asarray(jax.random.key_data(x) if is_key(x) else x) for x in leaves]


def assert_close(a, b, **tolerance):
    for x, y in zip(values(a), values(b), strict=True):
        np.testing.assert_allclose(x, y, **tolerance)


def equal(a, b) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(values(a), values(b), strict=True))


@pytest.mark.parametrize("name,place", at_places("alone", "above", "below"))
def test_learns_at_any_place(name, place):
    h = hierarchy(name, place)
    first = h.init(jax.random.key(0), 4)
    state, actions = play(h, first, 8)
    learner, old = (s.levels[index(place)].learner for s in (state, first))
    assert not equal(learner.state, old.state)
    assert all(np.isfinite(x).all() for x in values(learner.state))
    assert jax.tree.structure(learner) == jax.tree.structure(old)
    chex.assert_trees_all_equal_shapes_and_dtypes(learner, old)
    space = LEARNERS[name][2]
    if isinstance(space, Discrete):
        assert set(np.unique(actions)) <= set(range(space.n))
    else:
        assert (actions >= space.low_array).all() and (actions <= space.high_array).all()


@pytest.mark.parametrize("name,place", at_places("alone", "below"))
def test_evaluation_is_deterministic_and_training_explores(name, place):
    h = hierarchy(name, place)
    state, _ = play(h, h.init(jax.random.key(0), 4), 4)  # as many as above: compiled once
    obs = np.broadcast_to(transition(1, 5)[0], (4, 3))
    if place == "below":  # the same input for all
        top = state.levels[0]
        state = state.replace(
            active_level=jnp.ones(4, jnp.int32),
            levels=(top.replace(action=jnp.full((4, 2), 0.5)), state.levels[1]),
        )
    memory = h.levels[index(place)].init_memory(state.levels[index(place)].learner)
    level_state = state.levels[index(place)]
    fresh = jax.tree.map(lambda x, y: jnp.broadcast_to(x, y.shape), memory, level_state.memory)
    levels = list(state.levels)
    levels[index(place)] = level_state.replace(memory=fresh)
    state = state.replace(levels=tuple(levels))
    _, greedy = h.eval().get_action(state, obs)
    assert all(np.array_equal(a, greedy[0]) for a in greedy)
    _, other = h.eval().get_action(state.replace(stream=h.init(jax.random.key(9), 4).stream), obs)
    np.testing.assert_array_equal(greedy, other)
    streams = [h.init(jax.random.key(seed), 4).stream for seed in range(4)]
    explored = [h.get_action(state.replace(stream=stream), obs)[1] for stream in streams]
    assert len({a.tobytes() for a in np.concatenate(explored)}) > 1


@pytest.mark.parametrize("name", NAMES)
def test_the_level_input_conditions_what_is_decided(name):
    level = make_level(name, level_input_space=INPUT)
    spec = hierarchy(name, "below").specs[1]
    learner = level.init_learner(jax.random.key(0), spec)
    obs = jnp.asarray(transition(1, 1)[0][0])
    algorithm = level.algorithm
    memory = level.init_memory(learner)

    def features_of(level_input):
        return learner.see(obs), learner.hear(level_input, ())

    (x, a), (y, b) = features_of(jnp.array([2.0, -2.0])), features_of(jnp.array([-2.0, 1.0]))
    np.testing.assert_array_equal(x, y)
    np.testing.assert_allclose(a, [1.0, -1.0])
    np.testing.assert_allclose(b, [-1.0, 0.5])
    if isinstance(LEARNERS[name][2], Box):
        first, _ = algorithm.act(learner.state, memory, x, a, jax.random.key(1), False)
        second, _ = algorithm.act(learner.state, memory, y, b, jax.random.key(1), False)
        assert np.abs(first - second).max() > 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_warm_up_acts_at_random_and_makes_no_updates(name):
    _, _, space = LEARNERS[name]
    level = make_level(name, warm_up_steps=32, update_interval=3, n_updates=2)
    h = lrl.Hierarchy([level], Spaces(space))
    start = h.init(jax.random.key(0), 8)
    state, actions = play(h, start, 3)
    assert equal(state.levels[0].learner, start.levels[0].learner)
    assert int(buffers.n_rows(state.levels[0].buffer)) == 24
    flat = actions.reshape(24, -1)
    if isinstance(space, Discrete):
        assert len(np.unique(flat)) == space.n
    else:
        # Uniform over the bounds, one draw an instance and tick.
        unit = np.asarray(to_unit(space, jnp.asarray(flat.reshape(24, *space.shape))))
        assert len(np.unique(unit[:, 0])) == 24
        assert np.abs(unit.mean()) < 0.25 and abs(unit.std() - 3**-0.5) < 0.15
    made = 0
    for t in range(4):
        state, _ = h.get_action(state, transition(8, t)[0])
        state = h.process_transition(state, *transition(8, t))
        state, metrics = h.learn(state)
        made += int(metrics["level0/n_updates"])
    # 32 steps are reached by the first of these ticks: 24 rows were forgiven, 32 are owed.
    assert made == (4 * 8) // 3 * 2


def batch_of(h: lrl.Hierarchy, state, key):
    """A batch that the first level's algorithm would learn from."""
    level, learner = h.levels[0], state.levels[0].learner
    ctx = stepping.context(h.levels, state, 0, key=key)
    replay = stepping.replay_of(h.levels, state, 0, ctx)
    return level.batch(learner, replay, *level.sample(replay, key))


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_a_batch(name):
    """Terminated, truncated, both or neither: what the algorithm is given."""
    level = make_level(name, batch_size=64, n_updates=0)
    h = lrl.Hierarchy([level], Spaces(LEARNERS[name][2]))
    state = h.init(jax.random.key(0), 4)
    seen = {}
    terminated = np.array([True, False, True, False])
    truncated = np.array([False, True, True, False])
    for t in range(6):
        obs, rew, *_ = transition(4, t)
        obs_next = transition(4, t + 50)[0]  # not what the next tick begins with
        state, _ = h.get_action(state, obs)
        last = t == 3
        state = h.process_transition(state, obs_next, rew, terminated & last, truncated & last)
        for i in range(4):
            seen[float(rew[i])] = (obs[i], obs_next[i], bool(terminated[i] and last))
    batch = batch_of(h, state, jax.random.key(1))
    scale = lambda obs: [obs[0], (obs[1] - 2) / 2, obs[2]]  # noqa: E731
    rows = jax.tree.map(lambda x: np.asarray(x).reshape(batch.mask.size, -1), batch)
    kinds = set()
    for b in np.flatnonzero(rows.mask[:, 0]):
        obs, obs_next, ends = seen[float(rows.rew[b, 0])]
        np.testing.assert_allclose(rows.obs[b], scale(obs), atol=1e-6)
        np.testing.assert_allclose(rows.obs_next[b], scale(obs_next), atol=1e-6)
        assert rows.terminated[b, 0] == ends
        kinds.add(ends)
    assert kinds == {True, False}


@pytest.mark.parametrize("name", NAMES)
def test_the_reward_hook_decides_what_is_learned(name):
    cls = LEARNERS[name][0]

    @dataclasses.dataclass(frozen=True)
    class Doubled(cls):
        def reward(self, learner, rows, ctx):
            return 2.0 * rows.rew + rows.obs_next[:, 0]

    level = Doubled(LEARNERS[name][1], **COMMON)
    h = lrl.Hierarchy([level], Spaces(LEARNERS[name][2]))
    state, _ = play(h, h.init(jax.random.key(0), 4), 6, learn=False)
    plain = batch_of(hierarchy(name, "alone"), state, jax.random.key(1))
    doubled = batch_of(h, state, jax.random.key(1))
    np.testing.assert_allclose(doubled.rew, 2.0 * plain.rew + plain.obs_next[..., 0], rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_learning_over_seeds_equals_a_loop(name):
    h = hierarchy(name, "alone")
    states = [play(h, h.init(jax.random.key(s), 4), 4, s)[0] for s in range(2)]
    # Another number of rows owed in each: the loop over updates is shared, the results are not.
    levels = states[1].levels[0]
    states[1] = states[1].replace(levels=(levels.replace(owed=levels.owed + 5),))
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *states)
    together, metrics = jax.vmap(h.learn)(stacked)
    for s, state in enumerate(states):
        alone, own = h.learn(state)
        assert_close(lrl.take_seed(together, s), alone, rtol=2e-4, atol=1e-5)
        assert float(metrics["level0/n_updates"][s]) == float(own["level0/n_updates"])


@pytest.mark.parametrize("name", NAMES)
def test_a_python_loop_compiles_once_and_rollouts_learn(name):
    h = hierarchy(name, "alone")
    state, _ = play(h, h.init(jax.random.key(0), 4), 2)
    for jitted in (h._get_action, h._process, h._learn):
        before = jitted._cache_size()
        state, _ = play(h, state, 2)
        assert jitted._cache_size() == before


@pytest.mark.parametrize("name", NAMES)
def test_save_and_load_go_on_as_if_nothing_had_happened(name, tmp_path):
    h = hierarchy(name, "below")
    state, _ = play(h, h.init(jax.random.key(0), 4), 5)
    h.save(state, tmp_path / "agent")
    loaded = h.load(tmp_path / "agent")
    a, b = (play(h, s, 3, seed=3) for s in (state, loaded))
    assert equal(a[0], b[0])
    np.testing.assert_array_equal(a[1], b[1])


@pytest.mark.parametrize("name", NAMES)
def test_leaves_can_be_donated(name):
    """No array is in the learner twice."""
    state = hierarchy(name, "alone").init(jax.random.key(0), 2)
    buffers_of = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(state.levels[0].learner.state)]
    assert len(set(buffers_of)) == len(buffers_of)


@pytest.mark.parametrize("name", NAMES)
def test_tests_may_have_more_instances_than_the_replay_has_rows(name):
    h = hierarchy(name, "alone")
    state = h.init(jax.random.key(0), 4)
    test_state = h.for_testing(state, jax.random.key(1), 1000)
    assert test_state.n_env_instances == 1000 and test_state.levels[0].buffer is None
    if name == "tdmpc2":
        with pytest.raises(ValueError, match="pieces of 2 rows do not fit into 1 rows"):
            h.init(jax.random.key(0), 64)


@pytest.mark.parametrize("name", NAMES)
def test_features_of_images_and_integers(name):
    """Observations come in their own shape and number type, and are scaled by their bounds."""
    images = Box(0, 255, (5, 5, 3), "uint8")
    h = lrl.Hierarchy([make_level(name)], Spaces(LEARNERS[name][2], images))
    state = h.init(jax.random.key(0), 2)
    obs = np.random.default_rng(0).integers(0, 256, (2, 5, 5, 3)).astype(np.uint8)
    state, _ = h.get_action(state, obs)
    assert state.levels[0].obs.dtype == np.uint8 and state.levels[0].obs.shape == obs.shape
    seen = state.levels[0].learner.see(state.levels[0].obs)
    np.testing.assert_allclose(seen, obs.reshape(2, -1) / 127.5 - 1, atol=1e-6)


def test_features():
    spaces = (Box((-1, 0), (1, 4), (2,)), Discrete(3), Box((0, -math.inf), (1, math.inf), (2,)))
    features = Features(spaces)
    assert features.dim == 7
    x = features(jnp.array([0.5, 4.0]), jnp.int32(2), jnp.array([0.25, 7.0]))
    np.testing.assert_allclose(x, [0.5, 1.0, 0, 0, 1, -0.5, 7.0])
    stacked = features(
        jnp.ones((5, 4, 2)), jnp.zeros((5, 4), jnp.int32), jnp.ones((5, 4, 2)), batch_shape=(5, 4)
    )
    assert stacked.shape == (5, 4, 7)
    assert Features()(batch_shape=(3,)).shape == (3, 0)
    with pytest.raises(ValueError, match="expected 3 values, got 1"):
        features(jnp.ones(2))


def test_unit_actions():
    box = Box((-1, 0), (1, 3), (2,))
    action = jnp.array([[0.5, 3.0], [-1.0, 0.0]])
    np.testing.assert_allclose(to_unit(box, action), [[0.5, 1.0], [-1.0, -1.0]])
    np.testing.assert_allclose(from_unit(box, to_unit(box, action)), action, atol=1e-6)
    square = Box(0, 2, (2, 3))
    assert from_unit(square, jnp.zeros((4, 6))).shape == (4, 2, 3)
    assert to_unit(square, jnp.zeros((4, 2, 3))).shape == (4, 6)


@pytest.mark.parametrize(
    "map_obs, low, high",
    [
        (None, (-1, 0, -math.inf), (1, 4, math.inf)),
        (lambda obs: obs[:2], (-1, 0), (1, 4)),
        (lambda obs: obs[::-1], (-math.inf, 0, -1), (math.inf, 4, 1)),
        (lambda obs: obs[jnp.array([1, 1])], (0, 0), (4, 4)),
        (lambda obs: 2.0 * obs[:1], (-math.inf,), (math.inf,)),
        (lambda obs: jnp.sort(obs)[:2], (-math.inf,) * 2, (math.inf,) * 2),
        (lambda obs: 0.5 * (obs[:1] + obs[2:]), (-math.inf,), (math.inf,)),
        (lambda obs: 2 * obs[1:2] - obs[:1], (-math.inf,), (math.inf,)),
    ],
)
def test_bounds_pass_through_maps_that_pick_entries(map_obs, low, high):
    box = mapped_space(map_obs, (len(low),), OBS.dtype, OBS)
    assert (box.low, box.high) == (low, high)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "settings, error, words",
    [
        ({"buffer_size": 0}, ValueError, "buffer_size"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"batch_size": 2.5}, ValueError, "batch_size"),
        ({"update_interval": 0}, ValueError, "update_interval"),
        ({"n_updates": -1}, ValueError, "n_updates"),
        ({"warm_up_steps": -1}, ValueError, "warm_up_steps"),
        ({"control_interval": 0}, ValueError, "control_interval"),
        ({"level_input_space": (2,)}, TypeError, "level_input_space"),
        ({"hindsight": 0.8}, TypeError, "hindsight"),
        ({"algorithm": "sac"}, TypeError, "algorithm"),
    ],
)
def test_bad_settings_of_a_level(name, settings, error, words):
    cls, algorithm, _ = LEARNERS[name]
    with pytest.raises(error, match=words):
        cls(**{"algorithm": algorithm, **settings})


@pytest.mark.parametrize("name", NAMES)
def test_action_spaces_that_do_not_fit(name):
    space = LEARNERS[name][2]
    other = Discrete(3) if isinstance(space, Box) else Box(-1, 1, (2,))
    with pytest.raises(TypeError, match=r"DQN|SAC"):
        lrl.Hierarchy([make_level(name)], Spaces(other))
    if isinstance(space, Box):
        with pytest.raises(ValueError, match="bound"):
            lrl.Hierarchy([make_level(name)], Spaces(Box(-math.inf, math.inf, (2,))))


def test_no_key_is_used_twice_by_a_level_that_drafts():
    with jax.debug_key_reuse(True):
        level = TDMPC2Level(TINY_TDMPC2, buffer_size=64, warm_up_steps=0, n_updates=0)
        hierarchy = lrl.Hierarchy([level], *lrl.make("Maze2D-Medium-v0"))
        state = hierarchy.init(jax.random.key(0), 2)
        _, action = hierarchy.get_action(state, jnp.ones((2, 6)))
    assert jnp.isfinite(action).all()
