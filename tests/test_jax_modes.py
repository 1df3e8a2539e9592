"""All levels in JAX's stricter modes, and without jit: no error, and numbers stay float32."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from gymnax.environments import environment, spaces
from user_levels import Manager, Options, PolicyOverOptions, Worker

import lrl_jax as lrl
from lrl_jax.algorithms import DQN, PPO, SAC, TDMPC2, Hindsight
from lrl_jax.levels import (
    ActionRepeatLevel,
    ActionSequenceLevel,
    ConstantLevel,
    DADSLevel,
    DQNLevel,
    PlannerLevel,
    PPOLevel,
    RandomLevel,
    SACLevel,
    SPlaTESLevel,
    TDMPC2Level,
)
from lrl_jax.models import ProbabilisticEnsemble
from lrl_jax.nets import RewardFunction, ValueFunction
from lrl_jax.planners import CEM, ICEM
from lrl_jax.predictors import RewardPredictor, get_default_predictor_factory

MAZE = lrl.make("Maze2D-Simple-v0")[0]


class Table(environment.Environment):
    """Observations [time, cue] and two actions, for levels with tables."""

    default_params = environment.EnvParams(max_steps_in_episode=6)

    def get_obs(self, state, params=None, key=None):
        time = jnp.asarray(state.time, jnp.float32)
        return jnp.stack([time, jnp.zeros_like(time)])

    def reset_env(self, key, params):
        state = environment.EnvState(time=jnp.int32(0))
        return self.get_obs(state), state

    def step_env(self, key, state, action, params):
        state = environment.EnvState(time=state.time + 1)
        rew = jnp.asarray(action, jnp.float32)
        return self.get_obs(state), state, rew, jnp.zeros((), bool), {}

    def action_space(self, params=None):
        return spaces.Discrete(2)

    def observation_space(self, params=None):
        return spaces.Box(0, 6, (2,))


def factory() -> Any:
    parts = get_default_predictor_factory(MAZE, 4)
    return dataclasses.replace(
        parts,
        partial_model=ProbabilisticEnsemble(hidden=(4,), n_models=2, sb_start_duration=4),
        partial_val_func=ValueFunction(hidden=(4,)),
        partial_rew_func=RewardFunction(hidden=(4,)),
        partial_predictor=RewardPredictor(learn_encoder=False, encoder_warm_up=1),
    )


SMALL: dict[str, Any] = {"buffer_size": 64, "batch_size": 4}
SAC4 = SAC(hidden=(4,))
TDMPC = TDMPC2.small()
PLAN: dict[str, Any] = {"model_batch_size": 4, "warm_up_steps": 4, **SMALL}


def planner(optimizer=CEM, **settings):
    optimizer = optimizer(horizon=2, num_samples=8, elite_ratio=0.5)
    return PlannerLevel(factory(), optimizer, **{**PLAN, **settings})


SKILL: dict[str, Any] = {"warm_up_steps": 4, "control_interval": 2, **SMALL}

STACKS: dict[str, tuple[Any, Any]] = {
    "random": (lambda: [RandomLevel(buffer_size=64), ActionRepeatLevel(2)], MAZE),
    "fixed": (
        lambda: [ConstantLevel([0.5, 0.0], buffer_size=64)],
        MAZE,
    ),
    "sequence": (lambda: [ActionSequenceLevel([[0.5, 0.0], [0.0, 0.5]], repeat=2)], MAZE),
    "planner": (lambda: [planner(use_value=True), ActionRepeatLevel(2)], MAZE),
    "icem": (lambda: [planner(ICEM, alternate_with_noise=True, use_termination=True)], MAZE),
    "sac": (
        lambda: [SACLevel(SAC4, warm_up_steps=4, hindsight=Hindsight(), **SMALL)],
        MAZE,
    ),
    "dqn": (lambda: [DQNLevel(DQN(hidden=(4,)), warm_up_steps=4, **SMALL)], Table()),
    "ppo": (lambda: [PPOLevel(PPO(hidden=(4,), n_epochs=1), rollout_length=4)], MAZE),
    "tdmpc2": (lambda: [TDMPC2Level(TDMPC, warm_up_steps=4, **SMALL)], MAZE),
    "splates": (lambda: [planner(), SPlaTESLevel(SAC4, **SKILL)], MAZE),
    "dads": (lambda: [planner(), DADSLevel(SAC4, **{**SKILL, "control_interval": 1})], MAZE),
    "options": (lambda: [PolicyOverOptions(), Options()], Table()),
    "hiro": (
        lambda: [
            Manager(SAC4, 2, learn_from=4, update_interval=4, n_updates=1),
            Worker(2, SAC4, 2, learn_from=4, update_interval=4, n_updates=1),
        ],
        MAZE,
    ),
}


SIMILAR = ("icem", "dads")  # to others, which are enough for most runs
QUICK = ("random", "options", "dqn")  # to compile, or to run without


def run(name: str, n_steps: int = 6) -> Any:
    """A rollout with learning, and an evaluation."""
    levels, env = STACKS[name]
    agent = lrl.Hierarchy(levels(), env)
    key = jax.random.key(0)
    carry = lrl.init_carry(agent, jax.random.fold_in(key, 0), 2)
    carry, out = lrl.rollout(agent, carry, n_steps, learn=True)
    key = jax.random.fold_in(key, 1)
    episodes = lrl.evaluate(agent, carry.hierarchy, key, 2, max_steps=2)
    return carry.hierarchy, out.metrics, episodes


def stacks(quick):
    marks = {True: (), False: pytest.mark.slow}
    return [pytest.param(name, marks=marks[quick(name)]) for name in STACKS]


MODES = {
    "x64": lambda: jax.enable_x64(True),
    "strict_promotion": lambda: jax.numpy_dtype_promotion("strict"),
    "key_reuse": lambda: jax.debug_key_reuse(True),
    "rbg": lambda: jax.default_prng_impl("rbg"),
}


@pytest.mark.parametrize("name", stacks(lambda name: name not in SIMILAR))
@pytest.mark.parametrize("mode", MODES)
def test_traced(mode, name):
    """Types and keys are looked at while tracing: nothing has to be compiled."""
    with MODES[mode]():
        out = jax.eval_shape(functools.partial(run, name))
    floats = [x for x in jax.tree.leaves(out) if jnp.issubdtype(x.dtype, jnp.floating)]
    if name != "options":  # whose tables are of JAX's default type
        assert {str(x.dtype) for x in floats} == {"float32"}


def test_these_modes_find_what_they_are_for():
    key = jax.random.key(0)

    with MODES["key_reuse"](), pytest.raises(jax.errors.KeyReuseError):
        jax.eval_shape(jax.jit(lambda key: jax.random.bits(key) + jax.random.bits(key)), key)
    with MODES["strict_promotion"](), pytest.raises(Exception, match="promotion"):
        jax.eval_shape(lambda x: x * jnp.int32(1), jnp.float32(1))
    with MODES["x64"]():
        assert jax.eval_shape(lambda: jnp.zeros(1)).dtype == jnp.float64


@pytest.mark.parametrize("name", stacks(lambda name: name in QUICK))
@pytest.mark.parametrize("mode", ["debug_nans", "disable_jit"])
def test_run(mode, name):
    with jax.debug_nans(True) if mode == "debug_nans" else jax.disable_jit():
        state, metrics, episodes = run(name, 4)
    assert int(state.n_total_env_steps) == 8 and episodes.length.tolist() == [2, 2]
    assert all(jnp.isfinite(x).all() for x in metrics.values())


def test_planning_in_the_middle_of_x64():
    """A plan is found in 64 bits too, of costs in 64 bits."""
    space = lrl.spaces.Box(-1, 1, (2,))
    cem = CEM(horizon=2, num_samples=32, elite_ratio=0.2)
    with jax.enable_x64(True):
        goal = jnp.array([0.5, -0.5])
        assert goal.dtype == jnp.float64
        plan, *_ = cem.plan(
            lambda plans: ((plans - goal) ** 2).sum((1, 2)),
            cem.init(space),
            jax.random.key(0),
            space,
        )
        assert plan.dtype == jnp.float32 and jnp.abs(plan - goal).max() < 0.2
