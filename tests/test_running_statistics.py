"""Running normaliser and reward scaling: against NumPy, and as parts that any level takes."""

import dataclasses
import functools
import math
import warnings

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments import environment, spaces

import lrl_jax as lrl
from lrl_jax import buffers, devices
from lrl_jax.algorithms import DQN, PPO, SAC, TDMPC2
from lrl_jax.collectors.tick import specs
from lrl_jax.exact import Counter, Sum
from lrl_jax.hierarchies import Hierarchy
from lrl_jax.levels import (
    ActionRepeatLevel,
    Decision,
    DQNLevel,
    Level,
    PlannerLevel,
    PPOLevel,
    RandomLevel,
    SACLevel,
    SPlaTESLevel,
    TDMPC2Level,
)
from lrl_jax.models import ProbabilisticEnsemble, RunningMoments, RunningStatistics
from lrl_jax.nets import RewardFunction
from lrl_jax.planners import CEM, MPPI
from lrl_jax.predictors import IndexEncoder, PredictorFactory, RewardPredictor
from lrl_jax.spaces import Box

N, LENGTH = 4, 5
INF = math.inf
BOX = Box((-INF, -2.0, -INF), (INF, 2.0, INF), (3,))


class Far(environment.Environment):
    """Observations [300 + 40 x, x, time]; only the second has bounds. Rewards of about 50."""

    default_params = environment.EnvParams(max_steps_in_episode=LENGTH)

    def __init__(self, discrete=False):
        super().__init__()
        self.discrete = discrete

    def get_obs(self, state, params=None, key=None):
        x = jnp.sin(state.time.astype(jnp.float32) + state.start)
        time = state.time.astype(jnp.float32)
        return jnp.stack([300.0 + 40.0 * x, x, time])

    def reset_env(self, key, params):
        state = State(time=jnp.int32(0), start=jax.random.uniform(key, (), jnp.float32, 0.0, 6.0))
        return self.get_obs(state), state

    def step_env(self, key, state, action, params):
        state = State(time=state.time + 1, start=state.start)
        rew = 50.0 + 10.0 * jnp.ravel(action)[0].astype(jnp.float32)
        return self.get_obs(state), state, rew, jnp.zeros((), bool), {}

    def action_space(self, params=None):
        return spaces.Discrete(3) if self.discrete else spaces.Box(-1.0, 1.0, (2,))

    def observation_space(self, params=None):
        return spaces.Box(jnp.array([-INF, -2.0, -INF]), jnp.array([INF, 2.0, INF]), (3,))


class State(lrl.struct.Node):
    time: jax.Array
    start: jax.Array


ON = {"running_normaliser": True, "reward_scaling": True}
ROWS = {"buffer_size": 256, "batch_size": 8, "warm_up_steps": 8, "update_interval": N}
PLANS = MPPI(num_samples=8, num_policy_samples=2, num_elites=2, n_iterations=1, horizon=2)


FACTORY = PredictorFactory(
    partial_model=ProbabilisticEnsemble(hidden=(4,), n_models=2),
    partial_val_func=None,
    partial_rew_func=RewardFunction(hidden=(4,)),
    partial_encoder=IndexEncoder(state=(0, 3), context=()),
    partial_predictor=RewardPredictor(learn_encoder=False, encoder_warm_up=0),
)


def planner(env, **settings):
    search = CEM(horizon=2, num_samples=8, elite_ratio=0.25, n_iterations=1)
    more = {"model_batch_size": 8, **ROWS, **settings}
    return PlannerLevel(FACTORY, search, **more)


LEVELS = {
    "SAC": lambda env, **s: SACLevel(SAC(hidden=(8,)), **ROWS, **s),
    "DQN": lambda env, **s: DQNLevel(DQN(hidden=(8,)), **ROWS, **s),
    "TD-MPC2": lambda env, **s: TDMPC2Level(
        TDMPC2.small(hidden=(8, 8), encoder_hidden=(8,), latent_dim=8, planner=PLANS), **ROWS, **s
    ),
    "PPO": lambda env, **s: PPOLevel(
        PPO(hidden=(8,), n_minibatches=2, n_epochs=1), rollout_length=8, **s
    ),
    "planner": planner,
}


@functools.cache  # a hierarchy keeps what it has compiled
def hierarchy_of(name, **settings):
    env = Far(discrete=name == "DQN")
    return Hierarchy([LEVELS[name](env, **{**ON, **settings})], env)


def statistics(state, i=0):
    return state.levels[i].learner.statistics


def trained(hierarchy, n_steps=24, key=0, record=False):
    carry = lrl.init_carry(hierarchy, jax.random.key(key), N)
    return lrl.rollout(hierarchy, carry, n_steps, learn=True, record=record)


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def close(a, b, **tolerance):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, **tolerance)


@functools.cache
def trained_once(name):
    """Of the first random stream, with what it recorded: what many tests look at."""
    return trained(hierarchy_of(name), record=True)


# ---------------------------------------------------------------------- moments


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_moments_are_those_of_all_rows(offset):
    rng = np.random.default_rng(0)
    rows = (offset + rng.normal(0, [0.1, 1, 30], (40, 7, 3))).astype(np.float32)
    mask = rng.random((40, 7)) < 0.7
    moments, update = RunningMoments.zero(3), jax.jit(RunningMoments.update)
    for x, m in zip(rows, mask, strict=True):
        moments = update(moments, x, m)
    want = rows[mask].astype(np.float64)
    assert int(moments.count) == len(want)
    np.testing.assert_allclose(moments.mean.value, want.mean(0), rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(moments.variance.value, want.var(0), rtol=2e-3 if offset else 1e-5)


def test_rows_outside_the_mask_and_broken_ones_do_not_count():
    x = jnp.array([[1.0, 2.0], [jnp.nan, 0.0], [3.0, jnp.inf], [1e30, 0.0], [5.0, 4.0], [9, 9]])
    moments = RunningMoments.zero(2).update(x, jnp.arange(6) < 5)
    assert int(moments.count) == 2
    np.testing.assert_allclose(moments.mean.value, [3.0, 3.0])
    np.testing.assert_allclose(moments.variance.value, [4.0, 1.0])
    same(moments, moments.update(x, jnp.zeros(6, bool)))


def test_a_billion_rows_do_not_saturate():
    """Each step is below the last digit of float32: alone it would be lost."""

    def exactly(x):
        return Sum(jnp.full(1, x, jnp.float32), jnp.zeros(1, jnp.float32))

    n = 5_000_000_000
    count = Counter(jnp.uint32(n >> 32), jnp.uint32(n % 2**32))
    start = RunningMoments(count, exactly(1.0), exactly(1.0))
    batch, times = jnp.full((16, 1), 3.0), 20_000
    many = jax.lax.fori_loop(0, times, lambda i, m: m.update(batch, jnp.ones(16, bool)), start)
    more = 16 * times
    assert int(many.count) == n + more
    share = more / (n + more)
    many = jax.device_get(many)
    mean = many.mean.high.astype(np.float64) + many.mean.low.astype(np.float64)
    variance = many.variance.high.astype(np.float64) + many.variance.low.astype(np.float64)
    np.testing.assert_allclose(mean - 1.0, 2.0 * share, rtol=1e-2)
    np.testing.assert_allclose(variance - 1.0, share * (4.0 * (1 - share) - 1.0), rtol=1e-2)


def test_only_entries_without_bounds_are_normalised_and_clipped():
    found = RunningStatistics.of(BOX, running_normaliser=True, clip=1.5)
    x = jnp.array([[10.0, 1.0, -4.0], [20.0, 2.0, -4.0], [60.0, 0.5, -4.0]])
    np.testing.assert_array_equal(found.see(x)[:, 1], x[:, 1])
    np.testing.assert_array_equal(found.see(x)[:, 0], [1.5] * 3)  # nothing known: only clipped
    found = found.update(x, jnp.ones(3, bool))
    want = (x[:, 0] - 30.0) / np.std(x[:, 0])
    np.testing.assert_allclose(found.see(x)[:, 0], np.clip(want, -1.5, 1.5), rtol=1e-5)
    np.testing.assert_array_equal(found.see(x)[:, 1], x[:, 1])
    np.testing.assert_array_equal(found.see(x)[:, 2], 0.0)  # constant so far
    wide = RunningStatistics.of(Box(-1e9, 1e9, (1,)), running_normaliser=True)
    assert wide.normalised.all()


def test_what_is_not_asked_for_leaves_all_as_it_is():
    nothing = RunningStatistics.of(BOX)
    assert not jax.tree.leaves(nothing)
    x = jnp.arange(3)
    assert nothing.see(x) is x and nothing.scaled(x) is x
    assert nothing.update(x, jnp.ones((), bool)) is nothing
    with pytest.raises(ValueError, match="rows.discounted_return"):
        RunningStatistics.of(BOX, reward_scaling=True).update(x, jnp.ones((), bool))


# ------------------------------------------------------------------ in levels


def kept_rows(hierarchy, state, i=0):
    return buffers.stored(hierarchy.unaligned(state).levels[i].buffer)


@pytest.mark.parametrize("name", ["SAC", "PPO"])
def test_every_stored_row_counts_once(name):
    hierarchy = hierarchy_of(name)
    carry, out = trained_once(name)
    found = statistics(carry.hierarchy)
    obs = np.asarray(out.transitions.obs, np.float64)
    assert int(found.observations.count) == int(found.returns.count) == 24 * N
    np.testing.assert_allclose(found.observations.mean.value, obs.mean((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(found.observations.variance.value, obs.var((0, 1)), rtol=1e-4)
    learner = carry.hierarchy.levels[0].learner
    gamma, total, returns = float(hierarchy.levels[0].gamma(learner)), np.zeros(N), []
    for rew, end in zip(
        *(np.asarray(x) for x in (out.transitions.rew, out.transitions.truncated)), strict=True
    ):
        total = rew + gamma * total
        returns.append(total)
        total = np.where(end, 0.0, total)
    np.testing.assert_allclose(found.returns.mean.value[0], np.mean(returns), rtol=1e-5)
    np.testing.assert_allclose(found.returns.variance.value[0], np.var(returns), rtol=1e-4)
    # What is stored is raw.
    assert kept_rows(hierarchy, carry.hierarchy)["obs"][:, 0].mean() > 200.0
    assert kept_rows(hierarchy, carry.hierarchy)["rew"].mean() > 30.0


def test_networks_see_normal_numbers_and_scaled_rewards():
    hierarchy = hierarchy_of("SAC")
    carry, _ = trained_once("SAC")
    level, s = hierarchy.levels[0], carry.hierarchy.levels[0]
    ctx = lrl.levels.Context(key=jax.random.key(1), env_steps=jnp.float32(0))
    replay = buffers.Replay(hierarchy.unaligned(carry.hierarchy).levels[0].buffer)
    rows = replay.sample(jax.random.key(0), 64)
    batch = level.batch(s.learner, replay, rows, jnp.ones(64, bool))
    assert abs(float(batch.obs[:, 0].mean())) < 0.5 and 0.5 < float(batch.obs[:, 0].std()) < 1.5
    np.testing.assert_allclose(batch.obs[:, 1], rows.obs[:, 1] / 2.0, rtol=1e-6)  # by its bounds
    std = np.sqrt(float(s.learner.statistics.returns.variance.value[0]))
    np.testing.assert_allclose(level.reward(s.learner, rows, ctx), rows.rew / std, rtol=1e-4)
    assert math.isclose(
        float(level.reward(s.learner, rows.replace(rew=rows.rew * 1e6), ctx)[0]), 10
    )


def test_rows_of_several_steps_discount_by_their_length():
    level = SACLevel(
        SAC(hidden=(8,), gamma=0.5, smdp_discount=True), **{**ROWS, "update_interval": 1}, **ON
    )
    hierarchy = Hierarchy([level, ActionRepeatLevel(3)], Far())
    carry, _ = trained(hierarchy, 20)
    rows, found = kept_rows(hierarchy, carry.hierarchy), statistics(carry.hierarchy)
    assert set(rows["elapsed_env_steps"]) == {2, 3}  # episodes of five steps
    returns, total = [], 0.0
    for i in range(len(rows["rew"])):
        total = rows["rew"][i] + 0.5 ** rows["elapsed_env_steps"][i] * total
        returns.append(total)
        np.testing.assert_allclose(rows["discounted_return"][i], total, rtol=1e-5)
        total = 0.0 if rows["truncated"][i] else total
    assert int(found.returns.count) == len(returns)
    np.testing.assert_allclose(found.returns.variance.value[0], np.var(returns), rtol=1e-4)


def test_the_policy_that_rows_were_decided_by_has_a_ratio_of_one():
    """Statistics move behind an update: rows are learned from as they were seen."""
    hierarchy = hierarchy_of("PPO")
    carry = lrl.init_carry(hierarchy, jax.random.key(0), N)
    for _ in range(3):
        before = statistics(carry.hierarchy)
        carry, out = lrl.rollout(hierarchy, carry, 8, learn=True)
        assert float(out.metrics["level0/n_updates"]) == 1
        assert float(out.metrics["level0/first_ratio_error"]) == 0.0
        assert float(out.metrics["level0/log_prob_error"]) < 1e-4
        after = statistics(carry.hierarchy)
        assert int(after.observations.count) == int(before.observations.count) + 8 * N


def test_frozen_and_eval_keep_the_statistics():
    hierarchy = hierarchy_of("SAC")
    carry, _ = trained_once("SAC")
    tested, _ = lrl.rollout(hierarchy.eval(), carry, 8)
    same(statistics(tested.hierarchy), statistics(carry.hierarchy))
    frozen = Hierarchy([*hierarchy.levels, ActionRepeatLevel(2)], hierarchy.env, frozen=[0])
    state = frozen.init(jax.random.key(1), N, learners=[carry.hierarchy.levels[0].learner, None])
    begun = lrl.init_carry(frozen, jax.random.key(1), N, state)
    begun, _ = lrl.rollout(frozen, begun, 8, learn=True)
    same(statistics(begun.hierarchy), statistics(carry.hierarchy))


def test_they_stop_where_learning_does_and_go_on_in_the_warm_up():
    hierarchy = hierarchy_of("PPO", learn_from=32, learn_until=64)
    carry, out = trained(hierarchy, 8)
    assert float(out.metrics["level0/n_updates"]) == 1  # at its end the total is 32
    carry, _ = lrl.rollout(hierarchy, carry, 16, learn=True)
    assert int(statistics(carry.hierarchy).observations.count) == 32
    level = SACLevel(SAC(hidden=(8,)), **{**ROWS, "warm_up_steps": 1000}, **ON)
    hierarchy = Hierarchy([level], Far())
    carry, out = trained(hierarchy, 8)
    assert float(out.metrics["level0/n_updates"]) == 0
    assert int(statistics(carry.hierarchy).observations.count) == 32


@pytest.mark.parametrize("name", ["SAC", "PPO"])
def test_saved_and_loaded_go_on_to_the_bit(name, tmp_path):
    hierarchy = hierarchy_of(name)
    collector = lrl.Collector(hierarchy, hierarchy.env, n_env_instances=N)
    collector.reset(seed=0)
    collector.collect(n_steps=13, learn=True)
    collector.save(tmp_path / "run")
    again = lrl.Collector.load(tmp_path / "run", hierarchy, hierarchy.env)
    same(statistics(again.state), statistics(collector.state))
    for one in (collector, again):
        one.collect(n_steps=16, learn=True)
    same(statistics(again.state), statistics(collector.state))
    assert int(statistics(again.state).observations.count) > 0
    same(again.state.levels[0].discounted_return, collector.state.levels[0].discounted_return)


def test_seeds_under_vmap_are_those_of_a_loop():
    hierarchy = hierarchy_of("SAC")

    def run(key):
        carry = lrl.init_carry(hierarchy, key, N)
        carry, _ = lrl.rollout(hierarchy, carry, 12, learn=True)
        found = statistics(carry.hierarchy)
        parts = (found.observations, found.returns)
        return [(x.count.low, x.mean.value, x.variance.value) for x in parts]

    keys = jax.random.split(jax.random.key(0), 3)
    many, one = jax.jit(jax.vmap(run))(keys), jax.jit(run)
    for i in range(3):
        mine = jax.tree.map(lambda x, i=i: x[i], many)
        close(mine, one(keys[i]), rtol=1e-5, atol=1e-5)
    assert len(set(np.asarray(many[0][1][:, 0]))) == 3


def test_two_devices_have_the_statistics_of_one():
    hierarchy = hierarchy_of("SAC")

    def run(mesh):
        with devices.use(mesh):
            init = lambda key: devices.pin(lrl.init_carry(hierarchy, key, N), specs)  # noqa: E731
            carry = jax.jit(init)(jax.random.key(0))
            carry, _ = lrl.rollout(hierarchy, carry, 8, learn=True, learn_interval=8)
        return jax.device_get(statistics(carry.hierarchy))

    one, two = run(None), run(lrl.make_mesh(2))
    for x, y in ((one.observations, two.observations), (one.returns, two.returns)):
        assert int(x.count) == int(y.count) == 8 * N
        np.testing.assert_allclose(x.mean.value, y.mean.value, rtol=1e-4)
        np.testing.assert_allclose(x.variance.value, y.variance.value, rtol=1e-3)


def test_another_number_of_instances_counts_no_row_twice():
    hierarchy = hierarchy_of("SAC")
    carry, _ = trained_once("SAC")
    state = hierarchy.set_n_env_instances(hierarchy.unaligned(carry.hierarchy), 2)
    same(statistics(state), statistics(carry.hierarchy))
    carry = lrl.init_carry(hierarchy, jax.random.key(1), 2, state)
    carry, _ = lrl.rollout(hierarchy, carry, 4, learn=True)
    assert int(statistics(carry.hierarchy).observations.count) == 24 * N + 8


def test_rows_of_workers_count():
    hierarchy = hierarchy_of("SAC")
    worker, _ = lrl.rollout(hierarchy, lrl.init_carry(hierarchy, jax.random.key(0), N), 12)
    rows, _ = buffers.drain(hierarchy.unaligned(worker.hierarchy).levels[0].buffer)
    state = hierarchy.add_rows(hierarchy.init(jax.random.key(1), N), [rows], 12 * N)
    state, _ = hierarchy.learn(state)
    found = statistics(state)
    assert int(found.observations.count) == int(found.returns.count) == 12 * N
    np.testing.assert_allclose(found.observations.mean.value, rows["obs"].mean(0), rtol=1e-4)
    state, _ = hierarchy.learn(state)
    assert int(statistics(state).observations.count) == 12 * N


def test_the_planner_predicts_normalised_states():
    hierarchy = hierarchy_of("planner")
    carry, _ = trained_once("planner")
    learner = carry.hierarchy.levels[0].learner
    state, _ = learner.latent(carry.obs)
    want = learner.statistics.see(carry.obs)
    np.testing.assert_allclose(state, want)
    assert float(jnp.abs(state).max()) < 10.0
    assert int(learner.statistics.observations.count) == 24 * N
    assert int(learner.statistics.returns.count) == 24 * N
    assert hierarchy.specs[0].latent_space.bounds[0][0] == -INF
    # The model's own scale of changes is in these units: of one step, not of forty.
    assert float(learner.ps.sigma_d[0]) < 3.0


class Dicts(gymnasium.Env):
    """A goal-based Gymnasium environment without bounds, far from zero."""

    observation_space = gymnasium.spaces.Dict(
        {
            name: gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
            for name in ("observation", "achieved_goal", "desired_goal")
        }
    )
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def _obs(self):
        x = np.array([1000.0 + self.time, -5.0 * self.time])
        return {"observation": x, "achieved_goal": x + 1, "desired_goal": np.array([7.0, 7.0])}

    def reset(self, *, seed=None, options=None):
        self.time = 0
        return self._obs(), {}

    def step(self, action):
        self.time += 1
        return self._obs(), 100.0, False, self.time == 4, {}


@pytest.mark.parametrize("mapped", [False, True])
def test_dict_observations_and_observation_maps(mapped):
    env = gymnasium.vector.SyncVectorEnv([Dicts, Dicts])
    maps = [lambda obs: obs[jnp.array([4, 0])]] if mapped else None
    level = SACLevel(SAC(hidden=(8,)), **{**ROWS, "update_interval": 2}, **ON)
    hierarchy = Hierarchy([level], env, env_obs_maps=maps)
    collector = lrl.Collector(hierarchy, env)
    collector.reset(seed=0)
    collector.collect(n_steps=8, learn=True)
    found = statistics(collector.state).observations
    time = np.arange(4)
    goals = [1001.0 + time, 1.0 - 5.0 * time, np.full(4, 7.0), np.full(4, 7.0)]
    columns = np.stack([*goals, 1000.0 + time, -5.0 * time], -1)
    columns = columns[:, [4, 0]] if mapped else columns
    assert int(found.count) == 16
    np.testing.assert_allclose(found.mean.value, columns.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found.variance.value, columns.var(0), rtol=1e-4, atol=1e-6)


class Pictures(Far):
    """Images, which networks see by their bounds as ever."""

    def get_obs(self, state, params=None, key=None):
        return jnp.full((4, 4, 1), state.time, jnp.uint8)

    def observation_space(self, params=None):
        return spaces.Box(0, 255, (4, 4, 1), jnp.uint8)


def test_images_are_left_alone_and_a_normaliser_without_work_warns():
    level = SACLevel(SAC(hidden=(8,)), **ROWS, running_normaliser=True)
    with pytest.warns(UserWarning, match="every entry of its observation has finite bounds"):
        hierarchy = Hierarchy([level], Pictures())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        carry, _ = trained(hierarchy, 8)
    learner = carry.hierarchy.levels[0].learner
    obs = jnp.arange(32, dtype=jnp.uint8).reshape(2, 4, 4, 1) * 8
    want = obs.reshape(2, 16).astype(jnp.float32) / 127.5 - 1.0
    np.testing.assert_allclose(learner.see(obs), want, atol=1e-6)
    assert kept_rows(hierarchy, carry.hierarchy)["obs"].dtype == np.uint8


@pytest.mark.slow
def test_skills_under_a_planner_that_normalises():
    env = Far()
    skills = SPlaTESLevel(
        "sac", control_interval=2, running_normaliser=True, n_alternatives=4, **ROWS
    )
    hierarchy = Hierarchy([planner(env, **ON), skills], env)
    carry, out = trained(hierarchy, 16)
    for i, count in ((0, 32), (1, 64)):  # skills of two steps, cut short by episodes of five
        found = statistics(carry.hierarchy, i).observations
        assert int(found.count) >= count and float(found.mean.value[0]) > 200
    assert all(np.isfinite(x).all() for x in out.metrics.values())


# --------------------------------------------------------------- of one's own


@dataclasses.dataclass(frozen=True)
class Own(Level):
    """A user's level: a linear value of normalised observations, of scaled rewards."""

    buffer_size: int = 64
    update_interval: int = N
    n_updates: int = 1
    needs: tuple = ("return",)

    def init_learner(self, key, spec):
        return {
            "w": jnp.zeros(spec.obs_box.dim),
            "gamma": jnp.float32(0.9),
            "running": RunningStatistics.of(
                spec.obs_box, running_normaliser=True, reward_scaling=True
            ),
        }

    def act(self, learner, memory, obs, ctx):
        value = learner["running"].see(obs) @ learner["w"]
        return Decision(jnp.full(2, jnp.tanh(value)), memory)

    def update_statistics(self, learner, rows, mask, ctx):
        running = learner["running"].update(rows.obs, mask, rows.discounted_return)
        return {**learner, "running": running}

    def reward(self, learner, rows, ctx):
        return learner["running"].scaled(rows.rew)

    def learn(self, learner, replay, ctx):
        rows = replay.sample(ctx.key, 8)
        step = 0.01 * rows.rew @ learner["running"].see(rows.obs)
        return {**learner, "w": learner["w"] + step}, {"reward": rows.rew.mean()}


def test_a_level_of_ones_own():
    hierarchy = lrl.testing.check_level(Own(), Far(), n_env_instances=N, n_steps=4)
    carry, _ = trained(hierarchy)
    found = carry.hierarchy.levels[0].learner["running"]
    assert int(found.observations.count) == int(found.returns.count) == 24 * N
    assert 290 < float(found.observations.mean.value[0]) < 310


def test_mistakes_of_a_level_of_ones_own_are_named():
    @dataclasses.dataclass(frozen=True)
    class Forgets(Own):
        def update_statistics(self, learner, rows, mask, ctx):
            return {"w": learner["w"]}

    state = Hierarchy([Forgets()], Far()).init(jax.random.key(0), N)
    with pytest.raises((TypeError, ValueError), match="update_statistics"):
        Hierarchy([Forgets()], Far()).learn(state)

    @dataclasses.dataclass(frozen=True)
    class Takes(Own):
        def update_statistics(self, learner, rows):
            return learner

    with pytest.raises(TypeError, match="must take \\(learner, rows, mask, ctx\\)"):
        Hierarchy([Takes()], Far())

    @dataclasses.dataclass(frozen=True)
    class NoDiscount(Own):
        def init_learner(self, key, spec):
            learner = super().init_learner(key, spec)
            del learner["gamma"]
            return learner

    with pytest.raises(TypeError, match="has no entry gamma"):
        Hierarchy([NoDiscount()], Far()).init(jax.random.key(0), N)


# ----------------------------------------------------------- modes, settings


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize(
    "mode",
    [
        lambda: jax.enable_x64(True),
        lambda: jax.numpy_dtype_promotion("strict"),
        lambda: jax.debug_key_reuse(True),
    ],
    ids=["x64", "strict_promotion", "key_reuse"],
)
def test_numbers_stay_float32_in_stricter_modes(mode, name):
    with mode():
        hierarchy = hierarchy_of.__wrapped__(name)  # built in this mode too
        out = jax.eval_shape(lambda: trained(hierarchy, 8))
    floats = [x for x in jax.tree.leaves(out) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert {str(x.dtype) for x in floats} == {"float32"}


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="normaliser_clip"):
        SACLevel(normaliser_clip=0.0)
    with pytest.raises(ValueError, match="reward_scaling"):
        SPlaTESLevel("sac", reward_scaling=True)
    with pytest.raises(ValueError, match="pursues_input"):
        PlannerLevel(
            FACTORY,
            control_interval=2,
            level_input_space=Box(-1, 1, (3,)),
            pursues_input=True,
            reward_scaling=True,
        )
    with pytest.raises(TypeError, match="running_normaliser"):
        RunningStatistics.of(BOX, running_normaliser=1)


def test_a_kept_learner_takes_the_new_clip():
    carry, _ = trained_once("SAC")
    other = hierarchy_of("SAC", normaliser_clip=2.0)
    state = other.init(jax.random.key(1), N, learners=[carry.hierarchy.levels[0].learner])
    found = statistics(state)
    same(found.observations, statistics(carry.hierarchy).observations)
    assert float(found.settings["clip"]) == 2.0
    assert RandomLevel().update_statistics is None
