"""Settings by path, in fractions of a run, taken from the environment; frozen levels."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrl_jax as lrl
from lrl_jax import setting_trees
from lrl_jax.algorithms import SAC, Hindsight
from lrl_jax.levels import RandomLevel, SACLevel
from lrl_jax.obs_maps import Entries, GoalParts
from lrl_jax.schedules import PiecewiseLinearSchedule, RampSchedule
from lrl_jax.setting_trees import OfRun, resolve, with_settings
from lrl_jax.spaces import Box


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = 1.0
    steps: tuple = (1, 2)


@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Inner = Inner()
    levels: tuple = (Inner(2.0), Inner(3.0))


def test_settings_are_found_and_changed_by_path():
    tree = Outer()
    assert setting_trees.get(tree, "levels.1.rate") == 3.0
    changed = with_settings(tree, {"levels.1.rate": 5.0, "inner.steps.0": 7})
    assert changed.levels == (Inner(2.0), Inner(5.0)) and changed.inner.steps == (7, 2)
    assert tree == Outer() and changed.levels[0] is tree.levels[0]


@dataclasses.dataclass(frozen=True)
class Between:
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self):
        if self.low >= self.high:
            raise ValueError("low must be less than high")


def test_settings_of_one_record_change_at_once():
    tree = (Between(), Between(2.0, 3.0))
    # Either order, as neither change fits without the other.
    for changes in ({"0.low": 2.0, "0.high": 3.0}, {"0.high": -1.0, "0.low": -2.0}):
        new = with_settings(tree, changes)
        assert new == (Between(changes["0.low"], changes["0.high"]), tree[1])
    with pytest.raises(ValueError, match="low must be less"):
        with_settings(tree, {"0.low": 2.0, "1.low": 0.0})


def test_a_change_below_another_is_made_to_what_that_put_in():
    tree = Outer()
    new = with_settings(tree, {"inner": Inner(3.0, (5, 6)), "inner.steps.1": 7, "levels": ()})
    assert new == Outer(Inner(3.0, (5, 7)), ())
    assert with_settings(tree, {"inner.rate": 9.0, "inner": Inner()}) == tree
    short = {"inner.steps": (Inner(4.0),), "inner.rate": 6.0}
    assert with_settings(tree, short).inner == Inner(6.0, (Inner(4.0),))
    for above in ("inner", ""):  # by name alone, in what was put in
        deep = Outer(inner=(Between(5.0, 7.0),))
        named = {"inner": deep.inner, f"{above}.low".strip("."): 6.0}
        assert with_settings(tree, named).inner == (Between(6.0, 7.0),)
    assert with_settings(tree, {}) is tree


def test_a_setting_may_be_named_without_what_lies_between():
    levels = (RandomLevel(), SACLevel(SAC(), level_input_space=Box(-1, 1, (2,))))
    path = setting_trees.full_path(Outer(levels=levels), "levels.1.gamma")
    assert path == "levels.1.algorithm.gamma"
    with pytest.raises(ValueError, match="levels.0.rate, levels.1.rate|inner.rate"):
        setting_trees.full_path(Outer(), "rate")


def test_unknown_paths_are_refused_with_what_is_there():
    with pytest.raises(ValueError, match=r"did you mean 'rate'.* rate, steps"):
        with_settings(Outer(), {"inner.rat": 1.0})
    with pytest.raises(ValueError, match="no settings below"):
        setting_trees.get(Outer(), "inner.rate.x")


def test_fractions_of_a_run_become_steps():
    tree = Outer(Inner(OfRun(0.5)), (PiecewiseLinearSchedule((0.0, OfRun(0.25)), (1.0, 0.0)),))
    assert setting_trees.unresolved(tree) == ["inner.rate", "levels.0.steps.1"]
    done = resolve(tree, 1000)
    assert done.inner.rate == 500.0 and done.levels[0].steps == (0.0, 250.0)
    assert resolve(done, 2000) is done
    ramp = resolve(RampSchedule(1.0, 0.0, end=OfRun(1.0), start=OfRun(0.5)), 10)
    np.testing.assert_allclose(ramp(jnp.array([5.0, 7.5, 10.0])), [1.0, 0.5, 0.0])


def test_fractions_in_the_wrong_order_are_refused():
    with pytest.raises(ValueError, match="increasing"):
        PiecewiseLinearSchedule((OfRun(0.5), OfRun(0.5)), (1.0, 0.0))
    with pytest.raises(ValueError, match="increasing"):
        resolve(PiecewiseLinearSchedule((600.0, OfRun(0.5)), (1.0, 0.0)), 1000)


def test_a_hierarchy_refuses_fractions_of_a_run():
    env, params = lrl.make("Pendulum-v1")
    with pytest.raises(ValueError, match="level 0 .*warm_up_steps: only training"):
        lrl.Hierarchy([SACLevel(SAC(hidden=(8,)), warm_up_steps=OfRun(0.1))], env, params)


# ------------------------------------------------------------- what the environment gives


def test_hindsight_and_maps_take_the_goal_from_the_environment():
    env, params = lrl.make("Maze2D-Medium-v0")
    level = SACLevel(SAC(hidden=(8,)), hindsight=Hindsight(ratio=0.5))
    hierarchy = lrl.Hierarchy([level], env, params)
    assert hierarchy.levels[0].hindsight == Hindsight.of_env(env, 0.5)
    with pytest.raises(ValueError, match="sees a mapped observation"):
        lrl.Hierarchy([level], env, params, [Entries(0, 4)])
    parts = GoalParts(("desired_goal", "achieved_goal"))
    hierarchy = lrl.Hierarchy([RandomLevel()], env, params, [parts])
    np.testing.assert_array_equal(hierarchy.env_obs_maps[0](jnp.arange(6.0)), [2, 3, 0, 1])
    with pytest.raises(ValueError, match="no .'nothing'"):
        lrl.Hierarchy([RandomLevel()], env, params, [GoalParts("nothing")])


# ---------------------------------------------------------------------- frozen levels


def two_sacs(frozen):
    env, params = lrl.make("Pendulum-v1")
    skill = Box(-1.0, 1.0, (2,))
    sac, settings = SAC(hidden=(8,)), {"batch_size": 4, "warm_up_steps": 0, "buffer_size": 200}
    below = SACLevel(sac, level_input_space=skill, control_interval=2, **settings)
    return lrl.Hierarchy([SACLevel(sac, **settings), below], env, params, frozen=frozen)


def test_a_frozen_level_acts_as_in_evaluation_and_learns_nothing():
    hierarchy = two_sacs([1])
    carry = lrl.init_carry(hierarchy, jax.random.key(0), 2)
    after, out = lrl.rollout(hierarchy, carry, 8, learn=True, record="levels")
    assert out.metrics["level0/n_updates"] == 8.0 and "level1/n_updates" not in out.metrics

    def learners(c, i):
        return jax.tree.leaves(c.hierarchy.levels[i].learner.state.actor)

    assert all(map(np.array_equal, learners(carry, 1), learners(after, 1)))
    assert not all(map(np.array_equal, learners(carry, 0), learners(after, 0)))
    assert after.hierarchy.levels[1].buffer is None
    # What it did is what the policy's mean is for what it saw and heard.
    level, learner = hierarchy.levels[1], carry.hierarchy.levels[1].learner
    did, obs = out.levels[1], out.transitions.obs
    for t, i in ((0, 0), (3, 1)):
        seen = learner.see(obs[t, i])
        heard = learner.hear(did.level_input[t, i], ())
        mean, _ = level.algorithm.act(learner.state, (), seen, heard, jax.random.key(9), False)
        np.testing.assert_allclose(did.act[t, i], mean, atol=1e-6)


def test_frozen_levels_are_checked():
    with pytest.raises(ValueError, match="at most 1"):
        two_sacs([2])
    with pytest.raises(ValueError, match="nothing would be"):
        two_sacs([0, 1])
