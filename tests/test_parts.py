"""Parts of predictors as plain settings, and what of an observation they take by name."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrl_jax as lrl
from lrl_jax.env_spec import GoalIndices, env_spec
from lrl_jax.levels import ActionRepeatLevel, PlannerLevel, RandomLevel
from lrl_jax.models import ProbabilisticEnsemble
from lrl_jax.nets import RewardFunction, ValueFunction
from lrl_jax.obs_maps import GoalParts
from lrl_jax.planners import CEM
from lrl_jax.predictors import (
    IdentityEncoder,
    IndexEncoder,
    LinearEncoder,
    PredictorFactory,
    RewardPredictor,
    StaticPredictor,
    get_default_predictor_factory,
)
from lrl_jax.spaces import Box
from lrl_jax.training import preset

BOX = Box(-1, 1, (2,))
MAZE = lrl.make("Maze2D-Large-v0")[0]
OPTIMIZER = CEM(horizon=2, num_samples=8, n_iterations=1, elite_ratio=0.5)


class Inertia:
    """Observations: position, velocity, goal, in that order."""

    name = "inertia"
    default_params = None
    goal_indices = {"achieved_goal": (0, 2), "desired_goal": (4, 6)}

    def observation_space(self, params):
        return Box(-1, 1, (6,))

    def action_space(self, params):
        return BOX


class NoGoals(Inertia):
    goal_indices = None


def small(**parts) -> PredictorFactory:
    plain = {
        "partial_model": ProbabilisticEnsemble(n_modes=2, hidden=(8,)),
        "partial_val_func": None,
        "partial_rew_func": RewardFunction(hidden=(8,)),
        "partial_encoder": IndexEncoder(state=(0, 2), context=(2, 4)),
        "partial_predictor": RewardPredictor(learn_encoder=False),
    }
    return PredictorFactory(**(plain | parts))


# ------------------------------------------------------------------------ settings


def test_settings_are_filled_in_and_kept():
    model = ProbabilisticEnsemble(n_modes=2, hidden=(8,))
    factory = small(partial_model=model, partial_val_func=ValueFunction(hidden=(8,)))
    predictor = factory(4, BOX)
    assert predictor.model == dataclasses.replace(
        model, latent_state_dim=2, context_dim=2, action_space=BOX
    )
    assert (predictor.latent_state_dim, predictor.context_dim) == (2, 2)
    assert predictor.val_func == ValueFunction(hidden=(8,))
    assert not predictor.learn_encoder and predictor.mapped_env_obs_shape == (4,)
    assert model.latent_state_dim is None  # parts are not changed
    state = predictor.init(jax.random.key(0))
    assert predictor.value(state, jnp.ones((1, 2)), jnp.ones((1, 2))).shape == (1,)


@pytest.mark.parametrize(
    ("part", "given"),
    [
        ("model", functools.partial(ProbabilisticEnsemble, n_modes=2, hidden=[8])),
        ("rew_func", functools.partial(RewardFunction, hidden=(8,))),
        ("encoder", functools.partial(IndexEncoder, [0, 2], context=[[2, 4]])),
        ("predictor", functools.partial(RewardPredictor, learn_encoder=False)),
    ],
)
def test_partials_of_settings_become_settings(part, given):
    factory = small(**{f"partial_{part}": given})
    assert factory == small() and hash(factory) == hash(small())
    assert factory(4, BOX) == small()(4, BOX)


def test_classes_and_functions_are_accepted():
    with_class = small(partial_predictor=StaticPredictor, partial_rew_func=RewardFunction)
    assert with_class(4, BOX).rew_func == RewardFunction()
    assert isinstance(with_class(4, BOX), StaticPredictor)

    def model(latent_state_dim, context_dim, action_space):
        return ProbabilisticEnsemble(latent_state_dim, context_dim, action_space, hidden=(8,))

    def encoder(**keywords):
        assert set(keywords) == {"mapped_env_obs_shape"}
        return IndexEncoder((0, 2), (2, 4))

    built = small(partial_model=model, partial_encoder=encoder)(4, BOX)
    assert built.model == ProbabilisticEnsemble(2, 2, BOX, hidden=(8,))
    assert built.encoder == IndexEncoder((0, 2), (2, 4))


class Linear(nn.Module):
    """A reward of somebody else, whose size has no default."""

    context_dim: int
    scale: float = 1.0

    @nn.compact
    def __call__(self, state, context, action):
        return self.scale * nn.Dense(1)(context)[..., 0]


@dataclasses.dataclass(frozen=True)
class Half:
    """An encoder of somebody else, as settings."""

    at: int
    latent_state_dim: int | None = None

    def __call__(self, obs):
        return obs[..., : self.at], obs[..., self.at :]


def test_parts_of_others():
    make = [small(partial_rew_func=functools.partial(Linear, scale=2.0)) for _ in range(2)]
    assert make[0] == make[1] and hash(make[0]) == hash(make[1])
    assert make[0](4, BOX).rew_func == Linear(2, 2.0)
    factory = small(partial_encoder=Half(1), latent_state_dim=1, context_dim=3)
    predictor = factory(4, BOX)
    assert predictor.encoder == Half(1, 1)
    state, context = predictor.encode(predictor.init(jax.random.key(0)), jnp.arange(4.0)[None])
    np.testing.assert_array_equal(state, [[0]])
    np.testing.assert_array_equal(context, [[1, 2, 3]])


def test_a_learned_encoder_is_filled_in():
    factory = small(partial_encoder=LinearEncoder(constant_dims=(3,)), latent_state_dim=3)
    predictor = dataclasses.replace(factory, context_dim=1)(4, BOX)
    assert predictor.encoder == LinearEncoder((4,), 3, 1, (3,))
    alone = small(partial_encoder=LinearEncoder(latent_state_dim=3))(4, BOX)
    assert alone.context_dim == 0
    assert small(partial_encoder=IdentityEncoder())(4, BOX).latent_state_dim == 4


ONES = jnp.ones((1, 2))


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda: ProbabilisticEnsemble().action_dim, ("latent_state_dim", "action_space")),
        (lambda: ProbabilisticEnsemble().init(jax.random.key(0)), ("context_dim",)),
        (lambda: ProbabilisticEnsemble(2, action_space=BOX).network, ("context_dim",)),
        (lambda: ProbabilisticEnsemble().encode_action(ONES), ("action_space",)),
        (lambda: ProbabilisticEnsemble().heads({}, ONES, ONES, ONES), ("action_space",)),
        (lambda: ProbabilisticEnsemble().init_directions(jax.random.key(0)), ("action_space",)),
        (lambda: RewardPredictor().init(jax.random.key(0)), ("model", "encoder")),
        (lambda: RewardPredictor().encode(None, ONES), ("model", "latent_state_dim")),
        (lambda: RewardPredictor()._value({}, ONES, ONES), ("model", "encoder")),
        (lambda: RewardPredictor().rollout_latent(None, ONES, ONES, ONES), ("model",)),
        (lambda: StaticPredictor().predict(None, ONES, ONES), ("model", "context_dim")),
        (lambda: IndexEncoder(context=(2, 4))(ONES), ("latent_state_dim",)),
        (lambda: IndexEncoder(state="achieved_goal")(ONES), ("latent_state_dim",)),
        (lambda: LinearEncoder().init(jax.random.key(0), ONES), ("mapped_env_obs_shape",)),
    ],
)
def test_unfinished_parts_say_what_they_do_not_know(call, names):
    with pytest.raises(ValueError, match="PredictorFactory") as caught:
        call()
    assert all(name in str(caught.value) for name in names)


def test_the_class_of_before_is_refused_with_the_new_way():
    with pytest.raises(ImportError, match=r"ProbabilisticEnsemble\(n_modes=4\)"):
        from lrl_jax.predictors import Partial  # noqa: F401


# --------------------------------------------------------------------- parts by name


def planner(factory, **settings) -> PlannerLevel:
    return PlannerLevel(factory, optimizer=OPTIMIZER, buffer_size=64, n_updates=0, **settings)


def encoded(level, obs, *, maps=None, env=None, below=None):
    """State and context of an observation of the environment's entries 0, 1, 2, ..."""
    levels = [level, ActionRepeatLevel(3)] if below is None else below
    hierarchy = lrl.Hierarchy(levels, env or Inertia(), env_obs_maps=maps)
    i = levels.index(level)
    predictor = level._predictor(hierarchy.specs[i])
    state, context = predictor.encoder(jnp.asarray(obs, jnp.float32)[None])
    return state[0].tolist(), context[0].tolist()


DEFAULT = get_default_predictor_factory(Inertia(), 0)


def test_the_default_keeps_the_velocity():
    assert encoded(planner(DEFAULT), range(6)) == ([0, 1, 2, 3], [4, 5])
    asked = get_default_predictor_factory(Inertia(), 0, "achieved_goal")
    assert encoded(planner(asked), range(6)) == ([0, 1], [4, 5])
    assert DEFAULT((6,), BOX).encoder(jnp.arange(6.0))[0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("state", "context", "want"),
    [
        (("achieved_goal", "desired_goal"), (), ([0, 1, 4, 5], [])),
        (("achieved_goal", (3, 4)), "desired_goal", ([0, 1, 3], [4, 5])),
        (None, ("achieved_goal",), ([2, 3, 4, 5], [0, 1])),
        (None, (), ([0, 1, 2, 3, 4, 5], [])),
        (None, (1, 3), ([0, 3, 4, 5], [1, 2])),
    ],
)
def test_parts_by_name(state, context, want):
    encoder = IndexEncoder(state=state, context=context)
    assert encoded(planner(small(partial_encoder=encoder)), range(6)) == want


def test_names_follow_a_map_that_picks_entries():
    def turned(obs):
        return jnp.concatenate([obs[4:], obs[2:3], obs[:2]])

    asked = get_default_predictor_factory(Inertia(), 0, "achieved_goal")
    seen = [4, 5, 2, 0, 1]
    assert encoded(planner(asked), seen, maps=[turned, None]) == ([0, 1], [4, 5])
    assert encoded(planner(DEFAULT), seen, maps=[turned, None]) == ([2, 0, 1], [4, 5])
    hides = lambda obs: obs[2:]  # noqa: E731
    assert encoded(planner(DEFAULT), [2, 3, 4, 5], maps=[hides, None]) == ([2, 3], [4, 5])


@pytest.mark.parametrize(
    ("env", "map_obs", "name", "reason"),
    [
        (Inertia(), lambda obs: obs[2:], "achieved_goal", "hides or repeats"),
        (Inertia(), lambda obs: obs[1:], "achieved_goal", "hides or repeats"),
        (Inertia(), lambda obs: obs[jnp.array([0, 1, 0, 1])], "achieved_goal", "repeats"),
        (Inertia(), lambda obs: 2 * obs, "achieved_goal", "more than pick"),
        (Inertia(), None, "goal", "no such part"),
        (NoGoals(), None, "achieved_goal", "inertia is not goal based"),
        (NoGoals(), lambda obs: 2 * obs, "achieved_goal", "inertia is not goal based"),
    ],
)
def test_names_that_are_nowhere_are_refused(env, map_obs, name, reason):
    factory = small(partial_encoder=IndexEncoder(state=name))
    with pytest.raises(ValueError, match=reason) as caught:
        lrl.Hierarchy([planner(factory), ActionRepeatLevel(3)], env, None, [map_obs, None])
    assert repr(name) in str(caught.value)


def test_names_need_the_places_of_goals():
    with pytest.raises(ValueError, match="among 6 entries"):
        DEFAULT((4,), BOX)  # the observation of something else
    with pytest.raises(ValueError, match="not known where"):
        small(partial_encoder=IndexEncoder(state="achieved_goal"))(6, BOX)


def test_subgoals_are_the_desired_goal():
    encoder = IndexEncoder(state="achieved_goal", context="desired_goal")
    settings = {"level_input_space": BOX, "control_interval": 2}
    towards = planner(small(partial_encoder=encoder), pursues_input=True, **settings)
    levels = [RandomLevel(), towards, ActionRepeatLevel(3)]
    assert encoded(towards, range(8), below=levels) == ([0, 1], [6, 7])
    beside = planner(small(partial_encoder=encoder), **settings)
    levels = [RandomLevel(), beside, ActionRepeatLevel(3)]
    assert encoded(beside, range(8), below=levels) == ([0, 1], [4, 5, 6, 7])
    rest = planner(small(partial_encoder=IndexEncoder(context="desired_goal")), **settings)
    levels = [RandomLevel(), rest, ActionRepeatLevel(3)]
    assert encoded(rest, range(8), below=levels, env=NoGoals()) == (list(range(6)), [6, 7])


def test_a_factory_of_somebody_else_need_not_know_of_goals():
    asked = []

    def known(shape, action_space, *, goal_indices):
        asked.append(goal_indices)
        return small()(shape, action_space)

    for make in (known, lambda shape, space, **keywords: small(**keywords)(shape, space)):
        lrl.Hierarchy([planner(make), ActionRepeatLevel(3)], Inertia())
    assert asked[0] == env_spec(Inertia()).goal_indices
    assert asked[0]["desired_goal"] == (4, 5)


@pytest.mark.parametrize("goals", [{"achieved_goal": 3}, {"achieved_goal": (0, 1, 2)}, [1]])
def test_strange_goal_indices_do_not_matter_where_nobody_asks(goals):
    env = Inertia()
    env.goal_indices = goals
    assert env_spec(env).goal_indices.parts == ()
    assert GoalIndices.of_env(env, 6).dim == 6


@pytest.mark.parametrize(("env", "size"), [(Inertia(), 4), (MAZE, 2)])
def test_presets_see_all_of_the_state_once(env, size):
    """A point with inertia keeps its velocity; mazes, which say their position twice, do not."""
    config = preset("maze2d-large-three-levels").resolved()
    hierarchy = lrl.Hierarchy(config.levels, env, None, config.obs_maps)
    obs = jnp.arange(6.0)[None]
    seen = [hierarchy.see(i, obs)[0].tolist() for i in (1, 2)]
    assert seen == [[0, 1], list(range(size))]  # the follower's subgoals are achieved goals
    top, follower = (
        level._predictor(spec).encoder
        for level, spec in zip(hierarchy.levels[:2], hierarchy.specs[:2], strict=True)
    )
    assert (top.state, top.context) == (((0, size),), ((4, 6),) if size == 4 else ((2, 4),))
    assert (follower.state, follower.context) == (((0, 2),), ((2, 4),))


def test_the_state_in_parts_is_everything_but_the_desired_goal():
    class Split(Inertia):
        goal_indices = {"achieved_goal": (0, 2), "desired_goal": (2, 4)}

    encoder = IndexEncoder(state="state", context="desired_goal")
    split = planner(small(partial_encoder=encoder))
    assert encoded(split, range(6), env=Split()) == ([0, 1, 4, 5], [2, 3])
    seen = GoalParts("state").bind_env(Split())(jnp.arange(6.0))
    assert seen.tolist() == [0, 1, 4, 5]
    with pytest.raises(ValueError, match="'state' are not known.*hides or repeats"):
        encoded(split, [0, 1, 2, 3], env=Split(), maps=[lambda obs: obs[:4], None])
    Split.state_parts = ("speed",)
    assert env_spec(Split()).goal_indices.parts == ()


def test_rewards_that_see_the_change_to_the_goal():
    """A relative reward that is linear in its features knows a goal by the way there alone."""
    reward = RewardFunction(hidden=(), periods=(2.0,), relative=True)
    state, goal, action = jnp.array([0.3, -0.7, 5.0]), jnp.array([1.3, 0.3]), jnp.zeros(1)
    params = reward.init(jax.random.key(0), state, goal, action)
    (kernel,) = (x for x in jax.tree.leaves(params) if x.ndim == 2)
    # State and its sines, goal, action, the change and its sines.
    assert kernel.shape == (3 * 3 + 2 + 1 + 2 * 3, 1)
    only = jnp.zeros_like(kernel).at[12:].set(kernel[12:])
    params = jax.tree.map(lambda x: only if x.ndim == 2 else jnp.zeros_like(x), params)
    change = goal - state[:2]
    phase = jnp.pi * change
    features = jnp.concatenate([change, jnp.sin(phase), jnp.cos(phase)])
    value = reward.apply(params, state, goal, action)
    np.testing.assert_allclose(value, features @ kernel[12:, 0], rtol=1e-5)
    shifted = reward.apply(params, state + 1, goal + 1, action)
    np.testing.assert_allclose(shifted, value, atol=1e-5)
    with pytest.raises(ValueError, match="a context of 2 entries and a state of 1"):
        reward.init(jax.random.key(0), state[:1], goal, action)
    with pytest.raises(ValueError, match="use_context"):
        RewardFunction(use_context=False, relative=True)
