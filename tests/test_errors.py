"""Wrong inputs: refused on the host, by name, with the numbers and the way out."""

import dataclasses
import functools
import math
from typing import Any

import gymnasium
import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrl_jax as lrl
from lrl_jax import buffers, planners
from lrl_jax.levels import (
    ActionRepeatLevel,
    ActionSequenceLevel,
    ConstantLevel,
    Decision,
    Level,
    PlannerLevel,
    RandomLevel,
)
from lrl_jax.predictors import PredictorFactory, RewardPredictor
from lrl_jax.predictors.factory import get_default_predictor_factory
from lrl_jax.spaces import Box, Discrete

N = 3
NAN = math.nan
BOX = Box(-1, 1, (2,))


class Spaces:
    """All that a hierarchy needs of an environment."""

    name = "spaces"
    default_params = None

    goal_indices = {"achieved_goal": (0, 2), "desired_goal": (2, 4)}

    def __init__(self, action=BOX, obs=None):
        self.action, self.obs = action, obs if obs is not None else Box(-10, 10, (4,))

    def observation_space(self, params):
        return self.obs

    def action_space(self, params):
        return self.action


@dataclasses.dataclass(frozen=True)
class Plain(Level):
    """Any settings; repeats a part of its observation."""

    input: Any = None
    buffer_size: int = 12
    update_interval: int = 1
    n_updates: int = 0
    control_interval: int | None = None
    chunk_size: int | None = 0

    def input_space(self):
        return self.input

    def init_learner(self, key, spec):
        return {"w": jnp.zeros(3)}

    def act(self, learner, memory, obs, ctx):
        return Decision(obs[:2], memory)


@dataclasses.dataclass
class NotFrozen(Level):
    def act(self, learner, memory, obs, ctx):
        return Decision(obs[:2], memory)


@dataclasses.dataclass(frozen=True)
class WithoutAct(Level):
    size: int = 3


@dataclasses.dataclass(frozen=True)
class StrangerWithoutAct:
    size: int = 3


@dataclasses.dataclass(frozen=True)
class Unhashable(Plain):
    sizes: Any = ()


def build(*levels, env=None, **settings):
    return lrl.Hierarchy(list(levels), Spaces() if env is None else env, **settings)


@functools.cache
def shared() -> lrl.Hierarchy:
    return build(Plain(), ActionRepeatLevel(2, buffer_size=9))


def act(state, obs=None, mask=None):
    shared().get_action(state, np.zeros((N, 4), np.float32) if obs is None else obs, mask)


def process(state, **wrong):
    """process_transition with some arguments replaced."""
    right = {
        "obs_next": np.zeros((N, 4), np.float32),
        "rew": np.zeros(N, np.float32),
        "terminated": np.zeros(N, bool),
        "truncated": np.zeros(N, bool),
    }
    shared().process_transition(state, **(right | wrong))


def planner_level(**settings):
    factory = settings.pop("factory", get_default_predictor_factory)
    optimizer = planners.CEM(3, num_samples=8, elite_ratio=0.5, n_iterations=1)
    if factory is get_default_predictor_factory:
        factory = factory(lrl.make("Maze2D-Simple-v0"), 0)
    return PlannerLevel(factory, **{"optimizer": optimizer, **settings})


def learn_from_small_rings():
    """Pieces of 4 rows from rings of 2: said when the update is traced."""
    env, params = lrl.make("Maze2D-Simple-v0")
    default = get_default_predictor_factory(env, 0)
    held = RewardPredictor(learn_encoder=False, k_steps=4)
    factory = dataclasses.replace(default, partial_predictor=held)
    hierarchy = lrl.Hierarchy([planner_level(factory=factory, buffer_size=6)], env, params)
    hierarchy.learn(hierarchy.init(jax.random.key(0), 3))


def load_other(state, tmp_path):
    shared().save(state, tmp_path / "a")
    build(Plain(), ActionRepeatLevel(3, buffer_size=9)).load(tmp_path / "a")


def predictor(**settings):
    """The default predictor with some settings replaced."""
    default = get_default_predictor_factory(lrl.make("Maze2D-Simple-v0"), 0)
    held = RewardPredictor(learn_encoder=False, **settings)
    return dataclasses.replace(default, partial_predictor=held)(6, BOX)


def mountain_car():
    return gymnax.make("MountainCarContinuous-v0")


@functools.cache
def car_hierarchy():
    env, params = mountain_car()
    return lrl.Hierarchy([RandomLevel()], env, params)


def collector(**settings):
    env, params = mountain_car()
    return lrl.Collector(car_hierarchy(), env, env_params=params, **settings)


def other_collector():
    env, params = gymnax.make("CartPole-v1")
    return lrl.Collector(car_hierarchy(), env, env_params=params)


def carry_of(**wrong):
    env, params = mountain_car()
    right = {"key": jax.random.key(0), "n_env_instances": 2}
    return lrl.init_carry(car_hierarchy(), **(right | wrong))


def rollout_of(**wrong):
    env, params = mountain_car()
    right = {"carry": carry_of(), "n_steps": 2}
    return lrl.rollout(car_hierarchy(), **(right | wrong))


def f32(*shape):
    return np.zeros(shape, np.float32)


KEY = jax.random.key(0)
RINGS = {"a": jax.ShapeDtypeStruct((), jnp.float32)}
INF_BOX = Box(-math.inf, math.inf, (2,))

# What is wrong: (call of the state, error, what the message must contain).
TABLE = {
    # --- arguments of get_action and process_transition
    "obs without instances": (
        lambda s: act(s, f32(4)),
        ValueError,
        ("obs", "(4,)", "(3, 4)", "obs[None]"),
    ),
    "obs of other instances": (
        lambda s: act(s, f32(5, 4)),
        ValueError,
        ("(5, 4)", "(3, 4)", "set_n_env_instances"),
    ),
    "obs of another width": (lambda s: act(s, f32(3, 6)), ValueError, ("(3, 6)", "(3, 4)")),
    "obs of ints": (
        lambda s: act(s, np.zeros((3, 4), int)),
        TypeError,
        ("obs", "int64", "floats", "convert"),
    ),
    "state and obs exchanged": (
        lambda s: shared().get_action(f32(3, 4), s),
        TypeError,
        ("HierarchyState", "ndarray", "first argument"),
    ),
    "state of another hierarchy": (
        lambda s: build(Plain()).get_action(s, f32(3, 4)),
        ValueError,
        ("2 levels", "has 1", "init"),
    ),
    "mask of another shape": (
        lambda s: act(s, mask=np.ones(4, bool)),
        ValueError,
        ("mask", "(4,)", "(3,)"),
    ),
    "mask of ints": (lambda s: act(s, mask=np.ones(3, int)), TypeError, ("mask", "bools")),
    "obs_next without instances": (
        lambda s: process(s, obs_next=f32(4)),
        ValueError,
        ("obs_next", "(4,)", "(3, 4)", "obs_next[None]"),
    ),
    "one reward for all": (lambda s: process(s, rew=0.5), ValueError, ("rew", "()", "(3,)")),
    "rewards of ints": (
        lambda s: process(s, rew=np.zeros(3, int)),
        TypeError,
        ("rew", "int64", "floats"),
    ),
    "terminated as floats": (
        lambda s: process(s, terminated=f32(3)),
        TypeError,
        ("terminated", "float32", "bools"),
    ),
    "truncated of another shape": (
        lambda s: process(s, truncated=np.zeros((3, 1), bool)),
        ValueError,
        ("truncated", "(3, 1)", "(3,)"),
    ),
    "mask of another shape, at a transition": (
        lambda s: process(s, mask=np.ones((3, 3), bool)),
        ValueError,
        ("mask", "(3, 3)", "(3,)"),
    ),
    # --- init and the number of instances
    "a key that is not typed": (
        lambda s: shared().init(jax.random.PRNGKey(0), N),
        TypeError,
        ("typed key", "jax.random.key(0)"),
    ),
    "a seed for a key": (lambda s: shared().init(0, N), TypeError, ("jax.random.key(0)", "0")),
    "many keys": (
        lambda s: shared().init(jax.random.split(KEY, 5), N),
        ValueError,
        ("single key", "(5,)"),
    ),
    "no instances": (
        lambda s: shared().init(KEY, 0),
        ValueError,
        ("n_env_instances", "at least 1", "0"),
    ),
    "half an instance": (
        lambda s: shared().init(KEY, 1.5),
        ValueError,
        ("n_env_instances", "whole", "1.5"),
    ),
    "less buffer than instances": (
        lambda s: shared().init(KEY, 10),
        ValueError,
        ("buffer_size=9", "level 1", "10 instances"),
    ),
    "set_n to less than one": (
        lambda s: shared().set_n_env_instances(s, -2),
        ValueError,
        ("n_env_instances", "-2"),
    ),
    "set_n beyond the buffer": (
        lambda s: shared().set_n_env_instances(s, 11),
        ValueError,
        ("buffer_size=9", "11 instances"),
    ),
    "too few learners": (
        lambda s: shared().init(KEY, N, learners=[None]),
        ValueError,
        ("learners", "1", "2 levels"),
    ),
    "a learner of another level": (
        lambda s: shared().init(KEY, N, learners=[{"w": jnp.zeros(5)}, None]),
        ValueError,
        ("level 0", "(5,)", "(3,)"),
    ),
    "no learner at all": (
        lambda s: shared().init(KEY, N, learners=["best", None]),
        TypeError,
        ("level 0", "'best'", "state.levels[0].learner"),
    ),
    "learn on something else": (
        lambda s: shared().learn(s.levels),
        TypeError,
        ("HierarchyState", "tuple"),
    ),
    # --- stacking levels
    "no levels": (lambda s: build(), ValueError, ("non-empty list", "[]")),
    "one level without a list": (
        lambda s: lrl.Hierarchy(Plain(), Spaces()),
        ValueError,
        ("list of levels", "Plain"),
    ),
    "a class for a level": (lambda s: build(Plain), TypeError, ("instance", "Plain")),
    "not frozen": (lambda s: build(NotFrozen()), TypeError, ("NotFrozen", "frozen=True")),
    "without act": (lambda s: build(WithoutAct()), TypeError, ("WithoutAct", "act")),
    "a stranger without act": (
        lambda s: build(StrangerWithoutAct()),
        TypeError,
        ("StrangerWithoutAct", "act"),
    ),
    "not hashable": (
        lambda s: build(Unhashable(sizes=[1, 2])),
        TypeError,
        ("Unhashable", "hashable", "tuples"),
    ),
    "an input at the top": (
        lambda s: build(ActionRepeatLevel(2)),
        ValueError,
        ("level 0", "ActionRepeatLevel", "Box(-1, 1, shape=(2,))", "on top"),
    ),
    "no input below the top": (
        lambda s: build(RandomLevel(), RandomLevel()),
        ValueError,
        ("level 1", "RandomLevel", "level 0"),
    ),
    "an action that does not fit": (
        lambda s: build(ConstantLevel([1.0]), Plain(BOX)),
        ValueError,
        ("level 0", "(1,)", "(2,)"),
    ),
    "an action outside a Discrete space": (
        lambda s: build(ConstantLevel(3), env=Spaces(Discrete(3))),
        ValueError,
        ("3", "Discrete(3)"),
    ),
    "random on an unbounded space": (
        lambda s: build(RandomLevel(), env=Spaces(INF_BOX)),
        ValueError,
        ("level 0", "unbounded", "bound"),
    ),
    "a negative buffer_size": (
        lambda s: build(Plain(buffer_size=-1)),
        ValueError,
        ("buffer_size", "at least 0", "-1"),
    ),
    "an update_interval of 0": (
        lambda s: build(Plain(update_interval=0)),
        ValueError,
        ("update_interval", "at least 1", "0"),
    ),
    "n_updates of a half": (
        lambda s: build(Plain(n_updates=0.5)),
        ValueError,
        ("n_updates", "whole", "0.5"),
    ),
    "a control_interval of 0": (
        lambda s: build(Plain(), Plain(BOX, control_interval=0)),
        ValueError,
        ("control_interval", "at least 1", "0"),
    ),
    "a negative chunk_size": (
        lambda s: build(Plain(chunk_size=-4)),
        ValueError,
        ("chunk_size", "at least 0", "-4"),
    ),
    "too many maps": (
        lambda s: build(Plain(), env_obs_maps=[None, None]),
        ValueError,
        ("env_obs_maps", "2 entries", "1 levels"),
    ),
    "a map that fails": (
        lambda s: build(Plain(), env_obs_maps=[lambda obs: obs @ jnp.zeros((7, 7))]),
        ValueError,
        ("env_obs_maps[0]", "(4,)"),
    ),
    "a map to two arrays": (
        lambda s: build(Plain(), env_obs_maps=[lambda obs: (obs[:2], obs[2:])]),
        TypeError,
        ("env_obs_maps[0]", "one array", "float"),
    ),
    "another mapped shape": (
        lambda s: build(Plain(), env_obs_maps=[lambda o: o[:3]], mapped_env_obs_shapes=[(-2,)]),
        ValueError,
        ("mapped_env_obs_shapes[0]", "(2,)", "(3,)", "(4,)"),
    ),
    # --- levels of the library
    "NaN as an action": (
        lambda s: build(ConstantLevel([NAN, 0.0])),
        ValueError,
        ("ConstantLevel", "not finite", "nan"),
    ),
    "an empty sequence": (lambda s: ActionSequenceLevel([]), ValueError, ("at least one", "()")),
    "a repeat of 0": (
        lambda s: ActionSequenceLevel([[1.0]], repeat=0),
        ValueError,
        ("repeat", "at least 1", "0"),
    ),
    "an interval below 1": (
        lambda s: ActionRepeatLevel(0),
        ValueError,
        ("control_interval", "at least 1", "0"),
    ),
    "a NaN interval": (lambda s: ActionRepeatLevel(NAN), ValueError, ("control_interval", "nan")),
    "an endless interval": (
        lambda s: ActionRepeatLevel(math.inf),
        ValueError,
        ("control_interval", "inf"),
    ),
    "no interval": (lambda s: ActionRepeatLevel(None), ValueError, ("control_interval", "None")),
    # --- spaces and environments
    "a box with NaN": (lambda s: Box(NAN, 1, (2,)), ValueError, ("low", "NaN")),
    "bounds exchanged": (lambda s: Box(1, -1, (2,)), ValueError, ("above", "1.0", "-1.0")),
    "an empty Discrete": (lambda s: Discrete(0), ValueError, ("at least one", "0")),
    "MultiDiscrete actions": (
        lambda s: build(Plain(), env=Spaces(gymnasium.spaces.MultiDiscrete([2, 3]))),
        TypeError,
        ("MultiDiscrete", "Box or Discrete"),
    ),
    "a Discrete from 1": (
        lambda s: build(Plain(), env=Spaces(gymnasium.spaces.Discrete(3, start=1))),
        TypeError,
        ("starts at 1", "from 0"),
    ),
    "actions of bytes": (
        lambda s: build(Plain(), env=Spaces(gymnasium.spaces.Box(0, 255, (2,), dtype=np.uint8))),
        TypeError,
        ("uint8", "floats"),
    ),
    "observations of text": (
        lambda s: build(Plain(), env=Spaces(obs=gymnasium.spaces.Text(4))),
        TypeError,
        ("Text", "observations Box"),
    ),
    "no environment": (lambda s: build(Plain(), env=object()), TypeError, ("object", "make(id)")),
    "an unknown id": (lambda s: lrl.make("Maze2D-Huge-v0"), ValueError, ("Maze2D-Huge-v0",)),
    # --- buffers
    "a ring for less than a row": (
        lambda s: buffers.create(RINGS, 8, 7),
        ValueError,
        ("buffer_size=7", "8 instances", ">= 8"),
    ),
    "rings smaller than a trajectory": (
        lambda s: buffers.sample_partial_trajectories(buffers.create(RINGS, 2, 6), KEY, 5, 4),
        ValueError,
        ("4 rows", "3", "2 instances", "8 or more"),
    ),
    "a buffer smaller than a trajectory": (
        lambda s: learn_from_small_rings(),
        ValueError,
        ("4 rows", "3 instances", "12 or more"),
    ),
    # --- rollout and Collector
    "carry of something else": (
        lambda s: rollout_of(carry=s),
        TypeError,
        ("init_carry", "HierarchyState"),
    ),
    "a rollout of no steps": (
        lambda s: rollout_of(n_steps=0),
        ValueError,
        ("n_steps", "at least 1", "0"),
    ),
    "a learn_interval of 0": (
        lambda s: rollout_of(learn_interval=0),
        ValueError,
        ("learn_interval", "at least 1", "0"),
    ),
    "an untyped key for a rollout": (
        lambda s: carry_of(key=jax.random.PRNGKey(1)),
        TypeError,
        ("typed key",),
    ),
    "a state of other instances": (
        lambda s: carry_of(state=car_hierarchy().init(KEY, 4)),
        ValueError,
        ("4 instances", "2", "set_n_env_instances"),
    ),
    "an environment with other spaces": (
        lambda s: other_collector(),
        ValueError,
        ("obs_space", "(2,)", "(4,)", "CartPole", "build a hierarchy"),
    ),
    "a collector without a hierarchy": (
        lambda s: lrl.Collector(RandomLevel(), mountain_car()[0]),
        TypeError,
        ("Hierarchy", "RandomLevel"),
    ),
    "no step to take": (
        lambda s: collector().collect(n_steps=400, n_steps_start=400),
        ValueError,
        ("n_steps_start=400", "n_steps=400"),
    ),
    "a negative start": (
        lambda s: collector().collect(n_steps=4, n_steps_start=-1),
        ValueError,
        ("n_steps_start", "at least 0", "-1"),
    ),
    "a test_interval of 0": (
        lambda s: collector().collect(n_steps=4, test_interval=0),
        ValueError,
        ("test_interval", "at least 1", "0"),
    ),
    "a checkpoint_interval of 0": (
        lambda s: collector(checkpoint_interval=0),
        ValueError,
        ("checkpoint_interval", "at least 1", "0"),
    ),
    "a collector without instances": (
        lambda s: collector(n_env_instances=0),
        ValueError,
        ("n_env_instances", "at least 1", "0"),
    ),
    "a state of other instances for a collector": (
        lambda s: collector(n_env_instances=2, state=car_hierarchy().init(KEY, 4)).reset(),
        ValueError,
        ("4 instances", "2", "set_n_env_instances"),
    ),
    # --- planners
    "a horizon of 0": (
        lambda s: planners.CEM(horizon=0),
        ValueError,
        ("horizon", "at least 1", "0"),
    ),
    "one elite": (
        lambda s: planners.CEM(5, num_samples=10, elite_ratio=0.1),
        ValueError,
        ("num_samples=10", "1 elites", "at least 2", "raise"),
    ),
    "a NaN sigma": (lambda s: planners.ICEM(5, sigma=NAN), ValueError, ("sigma", "finite", "nan")),
    "an unknown return_mode": (
        lambda s: planners.CEM(5, return_mode="median"),
        ValueError,
        ("return_mode", "best", "median"),
    ),
    "a probability above 1": (
        lambda s: planner_level(switch_random_prob=1.5),
        ValueError,
        ("switch_random_prob", "[0, 1]", "1.5"),
    ),
    "a NaN warm up": (
        lambda s: planner_level(warm_up_steps=NAN),
        ValueError,
        ("warm_up_steps", "finite", "nan"),
    ),
    "a planner without a buffer": (
        lambda s: planner_level(buffer_size=0),
        ValueError,
        ("buffer_size", "at least 1", "0"),
    ),
    "a planner of boxes over Discrete": (
        lambda s: build(planner_level(), env=Spaces(Discrete(3))),
        TypeError,
        ("Discrete(3)", "CategoricalCEM"),
    ),
    "no predictor factory": (
        lambda s: planner_level(factory=7),
        TypeError,
        ("predictor_factory", "callable", "7"),
    ),
    # --- predictors
    "a gamma above 1": (lambda s: predictor(gamma=1.01), ValueError, ("gamma", "[0, 1]", "1.01")),
    "a NaN tau": (lambda s: predictor(tau=NAN), ValueError, ("tau", "finite", "nan")),
    "no steps": (lambda s: predictor(k_steps=0), ValueError, ("k_steps", "at least 1", "0")),
    "clipping at 0": (
        lambda s: predictor(clip_grad_max_norm=0),
        ValueError,
        ("clip_grad_max_norm", "(0, inf]", "0"),
    ),
    "part that is not a function": (
        lambda s: PredictorFactory(3, None, None, dict, dict),
        TypeError,
        ("partial_model", "functools.partial", "3"),
    ),
}


@functools.cache
def some_state():
    hierarchy = shared()
    state = hierarchy.init(jax.random.key(0), N)
    state, _ = hierarchy.get_action(state, np.ones((N, 4), np.float32))
    ends = np.array([True, False, False])
    return hierarchy.process_transition(
        state, np.ones((N, 4), np.float32), np.ones(N, np.float32), ends, ends
    )


def bits(state) -> list[bytes]:
    """Every leaf of a state, bit for bit."""
    out = []
    for x in jax.tree.leaves(state):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x = jax.random.key_data(x)
        out.append(np.asarray(x).tobytes())
    return out


@pytest.mark.parametrize("name", TABLE)
def test_wrong_input(name):
    call, error, words = TABLE[name]
    state = some_state()
    before = bits(state)
    with pytest.raises(error) as caught:
        call(state)
    message = str(caught.value)
    assert type(caught.value) is error, "not what a colleague of the error raised"
    missing = [word for word in words if word not in message]
    assert not missing, f"{missing} not in: {message}"
    assert message.rstrip().endswith((".", "?")) or "\n" in message, message
    assert bits(state) == before


def test_checkpoint_of_another_hierarchy(tmp_path):
    state = some_state()
    before = bits(state)
    with pytest.raises(ValueError, match="other settings") as caught:
        load_other(state, tmp_path)
    assert "levels[1].control_interval: saved 2, here 3" in str(caught.value)
    assert bits(state) == before


def test_the_table_is_large_enough():
    assert len(TABLE) >= 30
