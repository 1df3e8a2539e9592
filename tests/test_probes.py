"""Learners find the values and actions of environments where both are known."""

import functools
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probes import BEST, CASES, Probe, stacked_obs, stacked_params

import lrl_jax as lrl
from lrl_jax.algorithms import DQN, SAC, TDMPC2
from lrl_jax.algorithms.base import to_unit
from lrl_jax.collectors import init_carry
from lrl_jax.levels import Context, DQNLevel, SACLevel, TDMPC2Level
from lrl_jax.nets.two_hot import TwoHot
from lrl_jax.planners.mppi import MPPI
from lrl_jax.predictors import RampSchedule

GAMMA = 0.8
N_INSTANCES, N_TICKS = 16, 1000  # one update a tick behind the warm up
RATE = RampSchedule(3e-3, 1e-4, N_INSTANCES * N_TICKS)
NETWORKS = {"hidden": (32, 32), "gamma": GAMMA, "tau": 0.05, "learning_rate": RATE}
REPLAY = {"buffer_size": 16384, "batch_size": 64, "update_interval": 16, "warm_up_steps": 4096}
# Fewer updates of fewer rows for TD-MPC2, which cost thirty times as much.
TDMPC2_TICKS = 450
TDMPC2_RATE = RampSchedule(3e-3, 1e-4, N_INSTANCES * TDMPC2_TICKS)
TDMPC2_REPLAY = {**REPLAY, "batch_size": 32, "warm_up_steps": 1024}


class Learner(NamedTuple):
    level: Any
    continuous: bool
    value: Callable  # (algorithm, state, features [B, X], greedy actions [B, ...]) -> [B]
    n_ticks: int = N_TICKS


def sac_value(algorithm, state, x, action):
    unit = to_unit(state.action_space, action)
    return algorithm.q_values(state.critics, x, unit).min(0)


def dqn_value(algorithm, state, x, action):
    return algorithm.q_values(state.params, state.action_space, x).max(-1)


def tdmpc2_value(algorithm, state, x, action):
    unit = to_unit(state.action_space, action)
    latent = algorithm.encode(state.params, x)
    return algorithm.q_values(state.params["q"], latent, unit, jnp.zeros((len(x), 0)))[1].min(0)


TDMPC2_SETTINGS = {
    "latent_dim": 16,
    "hidden": (32, 32),
    "encoder_hidden": (32,),
    "n_critics": 2,
    "planner": MPPI(horizon=2, num_samples=16, num_policy_samples=4, num_elites=4, n_iterations=2),
    "two_hot": TwoHot(num_bins=21, low=-3.0, high=3.0),  # values are from -1 to 5
    "gamma": GAMMA,
    "tau": 0.05,
    "learning_rate": TDMPC2_RATE,
    "policy_learning_rate": TDMPC2_RATE,
    "encoder_rate_factor": 1.0,
}

LEARNERS = {
    "SAC": Learner(
        SACLevel(SAC(temperature=1e-3, learn_temperature=False, **NETWORKS), **REPLAY),
        True,
        sac_value,
    ),
    "TDMPC2": Learner(
        TDMPC2Level(TDMPC2(**TDMPC2_SETTINGS), **TDMPC2_REPLAY, n_updates=2),
        True,
        tdmpc2_value,
        TDMPC2_TICKS,
    ),
    "DQN": Learner(DQNLevel(DQN(epsilon=0.5, **NETWORKS), **REPLAY), False, dqn_value),
    "DQN in bfloat16": Learner(
        DQNLevel(DQN(epsilon=0.5, compute_dtype="bfloat16", **NETWORKS), **REPLAY),
        False,
        dqn_value,
    ),
}


@functools.cache
def trained(name: str) -> Any:
    """Values [cases, obs] and greedy actions [cases, obs, ...] after training on all probes."""
    learner, env = LEARNERS[name], Probe(LEARNERS[name].continuous)
    hierarchy = lrl.Hierarchy([learner.level], env, env.default_params)

    def train(params, obs, key):
        carry = init_carry(hierarchy, key, N_INSTANCES, env_params=params)
        carry, out = lrl.rollout(hierarchy, carry, learner.n_ticks, learn=True, env_params=params)
        level, shared = learner.level, carry.hierarchy.levels[0].learner

        def greedy(obs):
            memory = level.init_memory(shared)
            steps, key = jnp.float32(N_INSTANCES * learner.n_ticks), jax.random.key(1)
            ctx = Context(key, steps, jnp.zeros(0), jnp.zeros((), bool), training=False)
            return level.act(shared, memory, obs, ctx).action

        action = jax.vmap(greedy)(obs)
        x = shared.see(obs)
        value = learner.value(level.algorithm, shared.state, x, action)
        return {"value": value, "action": action, "n_updates": out.metrics["level0/n_updates"]}

    keys = jax.random.split(jax.random.key(0), len(CASES))
    out = jax.jit(jax.vmap(train))(stacked_params(), stacked_obs(), keys)
    return types.SimpleNamespace(**jax.device_get(out))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", LEARNERS)
def test_values_are_the_true_ones(name, case):
    true = np.asarray(CASES[case].values(GAMMA))
    value = trained(name).value[list(CASES).index(case)][: len(true)]
    assert np.all(np.abs(value - true) <= 0.05 * np.maximum(1.0, np.abs(true))), (value, true)


@pytest.mark.parametrize("case", [name for name, case in CASES.items() if case.signs])
@pytest.mark.parametrize("name", LEARNERS)
def test_greedy_actions_are_the_best_ones(name, case):
    signs = np.asarray(CASES[case].signs)
    action = trained(name).action[list(CASES).index(case)][: len(signs)]
    if LEARNERS[name].continuous:
        np.testing.assert_allclose(action[:, 0], BEST * signs, atol=0.1)
    else:
        np.testing.assert_array_equal(action, signs > 0)


@pytest.mark.parametrize("name", LEARNERS)
def test_updates_are_made_after_the_warm_up_only(name):
    learner = LEARNERS[name]
    warm_up = int(learner.level.warm_up_steps) // N_INSTANCES
    expected = (learner.n_ticks - warm_up) * learner.level.n_updates
    assert np.all(np.abs(trained(name).n_updates - expected) <= learner.level.n_updates)
