"""Settings in learners: what is swept stays swept, and kept learners take the new level's."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrl_jax as lrl
from lrl_jax.algorithms import DQN, PPO, SAC, TDMPC2
from lrl_jax.hierarchies.learners import is_setting
from lrl_jax.levels import (
    Decision,
    DQNLevel,
    Level,
    LevelSpec,
    PlannerLevel,
    PPOLevel,
    SACLevel,
    SPlaTESLevel,
    TDMPC2Level,
)
from lrl_jax.models import ProbabilisticEnsemble
from lrl_jax.planners import CEM
from lrl_jax.predictors import IndexEncoder, PredictorFactory, RewardPredictor
from lrl_jax.schedules import RampSchedule
from lrl_jax.spaces import Box, Discrete

SMALL: dict[str, Any] = {"buffer_size": 64, "batch_size": 4, "warm_up_steps": 0}


def pendulum(level):
    return lrl.Hierarchy([level], *lrl.make("Pendulum-v1"))


def cartpole(**settings):
    return lrl.Hierarchy(
        [DQNLevel(DQN(hidden=(4,), **settings), **SMALL)], *lrl.make("CartPole-v1")
    )


def carried(hierarchy, state):
    carry = lrl.init_carry(hierarchy, jax.random.key(0), state.n_env_instances, state=state)
    return lrl.rollout(hierarchy, carry, n_steps=4, learn=True)[0].hierarchy


def with_setting(state, **settings):
    learner = state.levels[0].learner
    new = learner.state.replace(settings={**learner.state.settings, **settings})
    return state.replace(
        levels=(state.levels[0].replace(learner=learner.replace(state=new)), *state.levels[1:])
    )


# --- kept learners --------------------------------------------------------------------------------


def test_a_kept_learner_learns_with_the_new_settings():
    old = pendulum(SACLevel(SAC(hidden=(4,), learning_rate=1e-2, gamma=0.9), **SMALL))
    new = pendulum(SACLevel(SAC(hidden=(4,), learning_rate=0.0, gamma=0.99), **SMALL))
    learner = carried(old, old.init(jax.random.key(0), 2)).levels[0].learner
    state = new.init(jax.random.key(1), 2, learners=[learner])
    after = carried(new, state).levels[0].learner.state
    assert {k: round(float(x), 4) for k, x in after.settings.items()} == {
        "gamma": 0.99,
        "learning_rate": 0.0,
        "tau": 0.005,
        "temperature_learning_rate": 0.001,
        "target_entropy": -1.0,
    }
    jax.tree.map(np.testing.assert_array_equal, after.actor, learner.state.actor)
    assert int(after.actor_opt.count) > int(learner.state.actor_opt.count) > 0


def test_from_a_schedule_to_a_number_and_back():
    number, schedule = cartpole(epsilon=0.25), cartpole(epsilon=RampSchedule(1.0, 0.5, 2.0))
    learners = [h.init(jax.random.key(0), 2).levels[0].learner for h in (number, schedule)]
    state = number.init(jax.random.key(1), 2, learners=learners[1:])
    assert float(carried(number, state).levels[0].learner.state.settings["epsilon"]) == 0.25
    state = schedule.init(jax.random.key(1), 2, learners=learners[:1])
    after = carried(schedule, state).levels[0].learner.state
    assert "epsilon" not in after.settings and float(after.scheduled["epsilon"]) == 0.5


@dataclasses.dataclass(frozen=True)
class Own(Level):
    """A user's level with learned numbers and a setting."""

    rate: float = 0.5

    def init_learner(self, key, spec):
        return {"w": jax.random.normal(key), "settings": {"rate": jnp.float32(self.rate)}}

    def act(self, learner, memory, obs, ctx):
        return Decision(learner["w"][None] * learner["settings"]["rate"], memory)


def test_levels_of_ones_own_follow_the_same_names():
    old, new = pendulum(Own(0.5)), pendulum(Own(0.25))
    kept = old.init(jax.random.key(0), 2).levels[0].learner
    for state in (
        new.init(jax.random.key(1), 2, learners=[kept]),
        new.with_learners(new.init(jax.random.key(1), 2), [kept]),
    ):
        learner = state.levels[0].learner
        assert learner["w"] == kept["w"] and float(learner["settings"]["rate"]) == 0.25
    # The same agent goes on with what it has: in workers, in tests, with other instances.
    state = old.init(
        jax.random.key(0), 2, learners=[{**kept, "settings": {"rate": 0.5 * kept["w"]}}]
    )
    assert float(state.levels[0].learner["settings"]["rate"]) == 0.5
    swept = state.replace(
        levels=(
            state.levels[0].replace(learner={"w": kept["w"], "settings": {"rate": 3 * kept["w"]}}),
        )
    )
    learner = swept.levels[0].learner
    for other in (
        old.set_n_env_instances(swept, 3),
        old.for_testing(swept, jax.random.key(0), 3),
        old.with_learners(state, [learner], with_settings=True),
    ):
        jax.tree.map(np.testing.assert_array_equal, other.levels[0].learner, learner)


def test_other_shapes_are_named():
    small, large = (pendulum(SACLevel(SAC(hidden=(n,)), **SMALL)) for n in (4, 5))
    kept = small.init(jax.random.key(0), 2).levels[0].learner
    with pytest.raises(ValueError, match=r"level 0 has .*actor.*bias.* \(4,\).*needs.* \(5,\)"):
        large.init(jax.random.key(0), 2, learners=[kept])


# --- the names, in all levels ---------------------------------------------------------------------

BOX = Box(-1, 1, (2,))


def planner(predictor=None, **settings):
    keywords = {"learn_encoder": False, "encoder_warm_up": 0, **(predictor or {})}
    factory = PredictorFactory(
        partial_model=ProbabilisticEnsemble(n_models=1, hidden=(4,)),
        partial_val_func=None,
        partial_rew_func=None,
        partial_encoder=IndexEncoder(state=(0, 2), context=(2, 3)),
        partial_predictor=RewardPredictor(**keywords),
    )
    return PlannerLevel(factory, CEM(2, 40), **settings)


ABOVE = LevelSpec(0, (3,), BOX, latent_space=Box(-1, 1, (3,)))
SPEC = LevelSpec(1, (3,), BOX, obs_space=Box(-1, 1, (3,)), above=ABOVE)
LEVELS = {
    "sac": (lambda **s: SACLevel(SAC(hidden=(4,), **s)), {"gamma", "tau", "learning_rate"}),
    "dqn": (lambda **s: DQNLevel(DQN(hidden=(4,), **s)), {"gamma", "epsilon", "learning_rate"}),
    "ppo": (lambda **s: PPOLevel(PPO(hidden=(4,), **s)), {"gamma", "clip", "learning_rate"}),
    "tdmpc2": (
        lambda **s: TDMPC2Level(TDMPC2(hidden=(4,), latent_dim=8, **s)),
        {"gamma", "rho", "learning_rate"},
    ),
    "planner": (
        planner,
        {"warm_up_steps", "switch_random_prob", "resample_random_action_prob"},
    ),
    "predictor": (lambda **s: planner(s), {"gamma", "model_lr"}),
    "skills": (
        lambda **s: SPlaTESLevel("sac", control_interval=2, **s),
        {"warm_up_steps", "fixed_std", "momentum", "offset"},
    ),
}


@pytest.mark.parametrize("name", LEVELS)
def test_settings_show_in_leaves_named_settings_and_nowhere_else(name):
    make, settings = LEVELS[name]
    spec = dataclasses.replace(SPEC, action_space=Discrete(2)) if name == "dqn" else SPEC

    def learner(**values):
        level = make(**values)
        return jax.tree.leaves_with_path(level.init_learner(jax.random.key(0), spec))

    for setting in sorted(settings):
        pairs = zip(learner(**{setting: 0.25}), learner(**{setting: 0.5}), strict=True)
        differs = [path for (path, a), (_, b) in pairs if a.dtype == jnp.float32 and (a != b).any()]
        assert differs and all(is_setting(path) for path in differs), (setting, differs)


# --- sweeps ---------------------------------------------------------------------------------------


def test_what_is_swept_stays_swept():
    hierarchy = cartpole()  # epsilon is a schedule
    assert callable(hierarchy.levels[0].algorithm.epsilon)
    state = hierarchy.init(jax.random.key(0), 2)

    def trained(epsilon):
        swept = carried(hierarchy, with_setting(state, epsilon=epsilon))
        hierarchy.for_testing(swept, jax.random.key(0), 3)
        return swept.levels[0].learner.state.settings["epsilon"]

    values = jnp.array([0.0, 0.125, 0.5])
    np.testing.assert_array_equal(jax.vmap(trained)(values), values)


def test_numbers_of_several_hierarchies_can_be_stacked():
    """Learners of one key that differ in a number run side by side, also under a schedule."""
    values = [0.0, 0.125, 0.5]
    states = [cartpole(epsilon=x).init(jax.random.key(0), 2) for x in values]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *states)
    for hierarchy in (cartpole(epsilon=values[0]), cartpole()):
        after = jax.vmap(lambda s, h=hierarchy: carried(h, s))(stacked)
        np.testing.assert_array_equal(after.levels[0].learner.state.settings["epsilon"], values)
