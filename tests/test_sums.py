"""Returns keep the digits that float32 alone would lose, and bounds that leave none warn."""

import math

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments import environment, spaces

import lrl_jax as lrl
from lrl_jax.algorithms import Scale
from lrl_jax.collectors.records import Sums
from lrl_jax.exact import Sum

FIRST, EACH, LENGTH = 1e6, 0.01, 500


class Tiny(environment.Environment):
    """A large reward, then small ones."""

    default_params = environment.EnvParams(max_steps_in_episode=LENGTH)

    def get_obs(self, state, params=None, key=None):
        return jnp.zeros(1)

    def reset_env(self, key, params):
        return jnp.zeros(1), environment.EnvState(time=jnp.int32(0))

    def step_env(self, key, state, action, params):
        rew = jnp.where(state.time == 0, FIRST, EACH).astype(jnp.float32)
        state = environment.EnvState(time=state.time + 1)
        return jnp.zeros(1), state, rew, jnp.bool_(False), {}

    def action_space(self, params=None):
        return spaces.Discrete(2)

    def observation_space(self, params=None):
        return spaces.Box(-1, 1, (1,))


class TinyGym(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.time = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.time += 1
        rew = FIRST if self.time == 1 else EACH
        return np.zeros(1, np.float32), rew, False, self.time == LENGTH, {}


RETURN = FIRST + (LENGTH - 1) * EACH


def test_sums_are_exact_over_a_hundred_thousand_steps():
    rng = np.random.default_rng(0)
    x = np.where(rng.random(100_000) < 1e-3, 1e5, 0.1) * rng.choice([1, 1, -1], 100_000)
    x = x.astype(np.float32)

    @jax.jit
    def total(x):
        zero = Sum(jnp.zeros(()), jnp.zeros(()))
        return jax.lax.scan(lambda s, x: (s.plus(x), None), zero, x)[0].value

    for values in (x, np.full(100_000, 0.1, np.float32), np.append(np.float32(1e6), x[:5000])):
        assert float(total(values)) == pytest.approx(math.fsum(values), rel=1e-6, abs=1e-3)


def test_sums_begin_anew_with_an_episode():
    sums = Sums.zero(2)
    no = jnp.zeros(2, bool)
    for _ in range(3):
        sums, _ = sums.after(jnp.float32([0.1, 0.2]), no, no, no)
    sums, episodes = sums.after(jnp.float32([1.0, 1.0]), jnp.array([True, False]), no, no)
    np.testing.assert_allclose(episodes.episode_return, [1.3, 1.6], rtol=1e-6)
    np.testing.assert_allclose(sums.episode_return.value, [0.0, 1.6], rtol=1e-6)


def test_returns_of_rollouts_evaluations_and_collectors():
    agent = lrl.RandomHierarchy(Tiny())
    carry = lrl.init_carry(agent, jax.random.key(0), 2)
    metrics = lrl.rollout(agent, carry, LENGTH)[1].metrics
    assert float(metrics["return_sum"]) == pytest.approx(2 * RETURN, rel=1e-7)
    assert float(metrics["reward_mean"]) * LENGTH == pytest.approx(RETURN, rel=1e-6)
    episodes = lrl.evaluate(agent, carry.hierarchy, jax.random.key(1), 2)
    np.testing.assert_allclose(episodes.episode_return, RETURN, rtol=1e-7)
    for env, n in ((Tiny(), 2), (TinyGym(), 1)):
        collector = lrl.Collector(lrl.RandomHierarchy(env), n_env_instances=n)
        stats = collector.collect(n_steps=LENGTH)
        np.testing.assert_allclose(stats.returns, np.full(n, RETURN), rtol=1e-7)
        assert stats["mean_reward"] * LENGTH == pytest.approx(RETURN, rel=1e-6)


@pytest.mark.parametrize(("high", "warns"), [(1e10, True), (1e3, False), (np.inf, False)])
def test_bounds_that_leave_networks_nothing_to_see_warn(high, warns, recwarn):
    scale = Scale.of(lrl.spaces.Box([-1.0, -high], [1.0, high], (2,)))
    assert np.asarray(scale(jnp.array([1.0, 0.0]))).tolist() == [1.0, 0.0]
    messages = [str(w.message) for w in recwarn.list]
    assert [f"[-{high:g}, {high:g}] (entries [1])" in m for m in messages] == [True] * warns
