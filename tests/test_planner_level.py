"""PlannerLevel: when it plans, what it remembers, what its predictor learns from."""

import dataclasses
import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrl_jax import buffers
from lrl_jax.buffers import Replay, Row, rows
from lrl_jax.hierarchies.gating import chunk_of
from lrl_jax.hierarchies.stepping import Rewards
from lrl_jax.levels import Context
from lrl_jax.levels.base import LevelSpec
from lrl_jax.levels.planner_level import PlannerLevel, WithInput
from lrl_jax.planners import CEM, ICEM, CategoricalCEM, Rollout, stillness
from lrl_jax.spaces import Box, Discrete

OPTIMIZER = ICEM(horizon=4, num_samples=32, elite_ratio=0.125, n_iterations=2)
SPACE = Box(-1, 1, (2,))


@dataclasses.dataclass(frozen=True)
class FakePredictor:
    """State moves by the action; the reward is minus the distance to the context."""

    shape: tuple
    space: Any

    def init(self, key):
        return {"steps": jnp.zeros(()), "calls": jnp.zeros(())}

    def observe_env_steps(self, ps, n):
        return {**ps, "steps": n}

    def encode(self, ps, obs):
        return obs[:, :2], obs[:, 2:]

    def rollout_latent(
        self, ps, s, c, act, *, key, deterministic, mode, with_value, with_termination
    ):
        assert (key is None) == deterministic and mode in ("heaviest", "mean")
        if isinstance(self.space, Discrete):
            act = 0.5 * jnp.stack([act - 1, act - 1], -1).astype(jnp.float32)
        states = s[:, None] + jnp.cumsum(act, 1)
        rew = -jnp.abs(states - c[:, None, :2]).sum(-1)
        states = jnp.concatenate([s[:, None], states], 1)[:, None, None]
        term = jnp.zeros_like(rew)[:, None, None] if with_termination else None
        value = -states[..., -1, 0] if with_value else None
        return Rollout(states, rew[:, None, None], term, value)

    def learn(self, ps, replay, n, batch, model_batch, steps, *, model_mask_fn):
        found, mask = replay.fresh()  # all rows, [T, 1]
        found = jax.tree.map(lambda x: x[:batch, 0], found)
        assert mask[:batch].all()
        mask = jnp.ones(batch, bool) if model_mask_fn is None else model_mask_fn(found)
        info = {"reward": found.rew, "mask": mask, "obs": found.obs}
        return {**ps, "calls": ps["calls"] + n}, (jnp.zeros(()), info)


@dataclasses.dataclass(frozen=True)
class Scalars(FakePredictor):
    """The same with what a predictor is to return: scalars."""

    def learn(self, *args, **keywords):
        ps, (loss, info) = super().learn(*args, **keywords)
        return ps, (loss, {"reward": info["reward"].sum(), "mask": info["mask"].sum()})


def make(space=SPACE, obs_dim=4, **settings):
    level = PlannerLevel(Scalars, **{"optimizer": OPTIMIZER, **settings})
    spec = LevelSpec(0, (obs_dim,), space)
    level.check(spec)
    return level, level.init_learner(jax.random.key(0), spec)


def context(key=None, steps=0, training=True, level_input=None):
    """What a level knows that has no neighbours."""
    return Context(key, jnp.float32(steps), level_input, jnp.asarray(training), training=training)


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def decide(level, learner, steps, seed, n_decisions, n):
    """Run `draft` for n instances over decisions; returns actions and modes [T, n, ...]."""

    def tick(memory, key):
        keys = jax.random.split(key, n)
        decision, memory, needs = jax.vmap(
            lambda m, k: level.draft(learner, m, jnp.zeros(4), context(k, steps))
        )(memory, keys)
        return memory, (decision.action, needs, decision.store["planning_mode"])

    memory = jax.vmap(lambda _: level.init_memory(learner))(jnp.arange(n))
    return jax.lax.scan(tick, memory, jax.random.split(jax.random.key(seed), n_decisions))[1]


def test_random_in_the_warm_up_and_planning_right_after():
    level, learner = make(warm_up_steps=100, no_planning_steps=1000)
    for steps, planning in ((0, False), (99, False), (100, True), (500, True)):
        _, needs, mode = decide(level, learner, steps, 0, 3, 2)
        assert bool(needs.all()) == bool(needs.any()) == planning
        np.testing.assert_array_equal(needs, mode)


def test_only_noise_never_plans_in_training():
    level, learner = make(warm_up_steps=0, only_noise=True)
    assert not decide(level, learner, 1e6, 0, 3, 2)[1].any()


def test_alternation_is_each_instance_s_own_coin():
    settings = {"switch_planner_prob": 0.2, "switch_random_prob": 0.4, "no_planning_steps": 50}
    level, learner = make(warm_up_steps=10, alternate_with_noise=True, **settings)
    assert not decide(level, learner, 50, 0, 5, 8)[1].any()  # strictly more are needed
    _, needs, _ = decide(level, learner, 51, 0, 60, 400)
    needs = np.asarray(needs)
    before, after = needs[:-1], needs[1:]
    np.testing.assert_allclose(needs[0].mean(), 0.2, atol=0.07)  # an episode starts random
    np.testing.assert_allclose(after[~before].mean(), 0.2, atol=0.02)
    np.testing.assert_allclose(1 - after[before].mean(), 0.4, atol=0.02)
    together = np.corrcoef(after.T[:20].astype(float))[np.triu_indices(20, 1)]
    assert abs(together.mean()) < 0.05
    # In the warm up the coins are not even looked at.
    warming = learner.replace(settings={**learner.settings, "warm_up_steps": jnp.float32(99)})
    assert not decide(level, warming, 60, 0, 5, 8)[1].any()


@pytest.mark.parametrize("space", [SPACE, Discrete(50)])
def test_random_actions_are_redrawn_with_the_probability_else_held(space):
    optimizer = OPTIMIZER if space is SPACE else CategoricalCEM(4, 32, 0.125, 2)
    settings = {"optimizer": optimizer, "resample_random_action_prob": 0.25}
    level, learner = make(space, **settings)
    action, _, _ = decide(level, learner, 0, 0, 60, 200)
    changed = np.asarray(action[1:] != action[:-1]).reshape(59, 200, -1).any(-1)
    np.testing.assert_allclose(changed.mean(), 0.25, atol=0.02)
    flat = np.asarray(action, np.float64).reshape(60, 200, -1)
    assert len(np.unique(flat[0, :, 0])) > 30  # instances draw their own
    low, high = (-1, 1) if space is SPACE else (0, 49)
    assert flat.min() >= low and flat.max() <= high and flat.max() > 0.9 * high
    assert action.dtype == space.dtype


def test_resample_on_end_holds_for_an_episode():
    level, learner = make(resample_on_end=True)
    action, _, _ = decide(level, learner, 0, 0, 10, 20)
    assert (action == action[:1]).all() and len(np.unique(np.asarray(action[0]))) == 40


def test_evaluation_always_plans():
    level, learner = make(only_noise=True, warm_up_steps=1000)
    memory = level.init_memory(learner)
    ctx = context(jax.random.key(0), training=False)
    decision, memory, needs = level.draft(learner, memory, jnp.zeros(4), ctx)
    assert needs and memory.planning_mode and decision.store["planning_mode"]


@functools.partial(jax.jit, static_argnums=(0, 5))
def act(level, learner, memory, obs, key, training=True, level_input=None):
    ctx = context(key, 0, training, level_input)
    decision = level.act(learner, memory, obs, ctx)
    assert set(decision.store) == {"planning_mode"}
    return decision.action, decision.memory


def draft(level, learner, memory, obs, key, steps=0, training=True):
    decision, memory, needs = level.draft(learner, memory, obs, context(key, steps, training))
    return decision.action, memory, needs


@pytest.mark.parametrize("training", [True, False])
def test_act_plans_toward_the_goal_without_draft(training):
    level, learner = make(optimizer=CEM(4, 256, 0.125, n_iterations=8))
    memory, obs = level.init_memory(learner), jnp.array([0.0, 0.0, 0.6, -2.0])
    action, memory = act(level, learner, memory, obs, jax.random.key(0), training)
    np.testing.assert_allclose(action, [0.6, -1.0], atol=0.15)
    assert memory.planning_mode
    np.testing.assert_array_equal(memory.plan[0], action)
    states = level.planned_states(learner, memory, obs)
    assert states.shape == (5, 2)
    np.testing.assert_allclose(states[0], 0.0)
    np.testing.assert_allclose(states[-1], memory.plan.sum(0), rtol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_auxiliary_rewards_of_evaluation(training):
    """A large cost of moving keeps the body where it is."""
    settings = {"optimizer": CEM(4, 256, 0.125, n_iterations=8)}
    for aux, stays in (
        ({}, False),
        ({"aux_rewards": ((1e3, stillness),)}, True),
        ({"eval_aux_rewards": [(1e3, stillness)]}, not training),
        ({"aux_rewards": ((1e3, stillness),), "eval_aux_rewards": ()}, training),
    ):
        level, learner = make(**settings, **aux)
        memory, obs = level.init_memory(learner), jnp.array([0.0, 0.0, 0.6, -2.0])
        action, _ = act(level, learner, memory, obs, jax.random.key(0), training)
        assert (jnp.abs(action).max() < 0.2) == stays, aux


def test_kept_plan_is_shifted_by_a_decision_and_reset_by_a_random_one():
    level, learner = make(optimizer=CEM(4, 32, 0.125, n_iterations=1, alpha=1.0))  # means stay
    ramp = jnp.linspace(-0.6, 0.6, 8).reshape(4, 2)
    memory = level.init_memory(learner)
    memory = memory.replace(plan_state=memory.plan_state.replace(mean=ramp))
    obs, key = jnp.zeros(4), jax.random.key(0)
    _, planned = act(level, learner, memory, obs, key)
    np.testing.assert_allclose(planned.plan_state.mean, ramp[jnp.array([1, 2, 3, 3])], rtol=1e-6)
    action, noisy, needs = draft(level, learner, memory, obs, key)
    assert not needs and not noisy.planning_mode and not noisy.fresh
    chex.assert_trees_all_equal(noisy.plan_state, level.init_memory(learner).plan_state)
    np.testing.assert_array_equal(noisy.plan, jnp.broadcast_to(action, (4, 2)))
    _, kept, needs = draft(level, learner, memory, obs, key, steps=1e5)
    assert needs and kept.fresh
    chex.assert_trees_all_equal(kept.plan_state, memory.plan_state)


def test_memory_keeps_its_structure():
    level, learner = make(alternate_with_noise=True)
    memory = level.init_memory(learner)
    obs, key = jnp.zeros(4), jax.random.key(0)
    _, drafted, _ = draft(level, learner, memory, obs, key)
    _, planned = act(level, learner, drafted, obs, key)
    chex.assert_trees_all_equal_shapes_and_dtypes(memory, drafted, planned)
    assert not any(x.weak_type for x in jax.tree.leaves((memory, drafted, planned, learner)))


def make_row(**fields):
    row = {
        "obs": jnp.arange(4.0),
        "level_input": jnp.zeros(0),
        "act": jnp.zeros(2),
        "rew": jnp.float32(6.0),
        "obs_next": jnp.ones(4),
        "terminated": jnp.zeros((), bool),
        "truncated": jnp.zeros((), bool),
        "elapsed_env_steps": jnp.int32(3),
        "n_steps_in_control": jnp.int32(1),
        "hands_back": jnp.zeros((), bool),
        "stored": {"planning_mode": jnp.zeros((), bool)},
    }
    return Row(**{**row, **fields})


def test_rows_are_labelled_with_the_mode_of_their_decision():
    level, learner = make(warm_up_steps=10)
    memory, obs, key = level.init_memory(learner), jnp.zeros(4), jax.random.key(0)
    for steps in (0, 10):
        decision, _, _ = level.draft(learner, memory, obs, context(key, steps))
        assert set(decision.store) == {"planning_mode"}
        assert bool(decision.store["planning_mode"]) == (steps == 10)
    assert level.act(learner, memory, obs, context(key)).store == {"planning_mode": True}


def test_reward_is_per_environment_step():
    level, learner = make()
    found = jax.tree.map(lambda x: x[None], make_row())
    assert level.reward(learner, found, context()).tolist() == [2.0]


def fill(level, learner, found):
    """A view of rows as a hierarchy stores them."""
    buffer = None
    for row in found:
        fields = rows.to_fields(row)
        buffer = buffers.create(fields, 1, 8) if buffer is None else buffer
        buffer = buffers.add(buffer, jax.tree.map(lambda x: x[None], fields))
    return Replay(buffer, None, Rewards(learner, context(), level))


def test_learn_masks_short_rows_and_counts_an_update():
    level, learner = make(full_row_env_steps=3, batch_size=3)
    found = [
        make_row(),
        make_row(elapsed_env_steps=jnp.int32(2)),
        make_row(elapsed_env_steps=jnp.int32(1), terminated=jnp.ones((), bool)),
    ]
    replay = fill(level, learner, found)
    new, metrics = level.learn(learner, replay, context(jax.random.key(0)))
    assert new.ps["calls"] == 1
    assert {k: float(v) for k, v in metrics.items()} == {"loss": 0, "reward": 11, "mask": 2}
    level = dataclasses.replace(level, full_row_env_steps=None)
    assert level.learn(learner, replay, context(jax.random.key(0)))[1]["mask"] == 3


@pytest.mark.parametrize("input_space", [Box(-1, 1, (2,)), Discrete(2)])
def test_level_input_is_appended_to_what_the_predictor_sees(input_space):
    level = PlannerLevel(FakePredictor, optimizer=OPTIMIZER, level_input_space=input_space)
    learner = level.init_learner(jax.random.key(0), LevelSpec(1, (2,), SPACE, input_space))
    assert level.input_space() == input_space and learner.predictor.shape == (4,)
    discrete = isinstance(input_space, Discrete)
    level_input = jnp.int32(1) if discrete else jnp.array([1.0, -1.0])
    wanted = [0.0, 1.0] if discrete else [1.0, -1.0]
    np.testing.assert_array_equal(level._seen(learner, jnp.zeros(2), level_input), [0, 0, *wanted])
    action, memory = act(
        level,
        learner,
        level.init_memory(learner),
        jnp.zeros(2),
        jax.random.key(0),
        True,
        level_input,
    )
    assert action.shape == (2,) and memory.planning_mode
    row = make_row(obs=jnp.array([5.0, 6.0]), obs_next=jnp.zeros(2), level_input=level_input)
    replay = fill(level, learner, [row]).through(WithInput(input_space))
    found = replay.sample(jax.random.key(0), 1)
    np.testing.assert_array_equal(found.obs, [[5, 6, *wanted]])
    np.testing.assert_array_equal(found.obs_next, [[0, 0, *wanted]])


def test_observed_steps_reach_the_predictor():
    _, learner = make()
    assert learner.at(jnp.float32(7)).ps["steps"] == 7


def test_chunks_fill_the_device(monkeypatch):
    assert chunk_of(make()[0]) == 32
    assert chunk_of(make(optimizer=CEM(4, 300))[0]) == 4
    assert chunk_of(make(chunk_size=5)[0]) == 5
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert chunk_of(make(optimizer=CEM(4, 300))[0]) == 874
    assert chunk_of(make(chunk_size=5)[0]) == 5


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"predictor_factory": None}, TypeError, "not callable"),
        ({"buffer_size": 0}, ValueError, "buffer_size must be .* at least 1"),
        ({"switch_planner_prob": 1.5}, ValueError, "switch_planner_prob"),
        ({"warm_up_steps": -1}, ValueError, "warm_up_steps"),
        ({"no_planning_steps": float("nan")}, ValueError, "no_planning_steps"),
        ({"control_interval": 0}, ValueError, "control_interval"),
        ({"batch_size": 2.5}, ValueError, "batch_size must be a whole number"),
        ({"mode": "median"}, ValueError, "heaviest"),
        ({"aux_rewards": [1.0]}, TypeError, "^aux_rewards holds pairs"),
        ({"eval_aux_rewards": [1.0]}, TypeError, "eval_aux_rewards holds pairs"),
        ({"level_input_space": 3}, TypeError, "a Box or a Discrete"),
    ],
)
def test_bad_settings(settings, error, message):
    with pytest.raises(error, match=message):
        PlannerLevel(**{"predictor_factory": Scalars, **settings})


def test_places_that_do_not_fit():
    unbounded = Box(-np.inf, np.inf, (2,))
    with pytest.raises(ValueError, match="unbounded.*warm_up_steps=0"):
        make(unbounded)
    level, learner = make(unbounded, warm_up_steps=0)
    assert decide(level, learner, 0, 0, 2, 2)[1].all()
    with pytest.raises(TypeError, match="CategoricalCEM"):
        make(Discrete(3))
    assert hash(make(aux_rewards=[[0.5, max]])[0])


@pytest.mark.parametrize("training", [True, False])
def test_a_planned_action_is_held_and_plans_look_further(training):
    level, learner = make(optimizer=CEM(2, 256, 0.125, n_iterations=8), hold=3, warm_up_steps=0)
    memory, obs = level.init_memory(learner), jnp.array([0.0, 0.0, 0.9, -1.5])
    actions, searched = [], []
    for t in range(7):
        key = jax.random.key(t)
        action, memory, needs = draft(level, learner, memory, obs, key, training=training)
        if needs:
            action, memory = act(level, learner, memory, obs, key, training)
        actions.append(np.asarray(action))
        searched.append(bool(needs))
    assert searched == [True, False, False, True, False, False, True]
    for t in (1, 2, 4, 5):
        np.testing.assert_array_equal(actions[t], actions[t - 1])
    # The model moves by the action in each of the six steps: the best first action is a third of
    # the way, or somewhat more, as the first three steps count too.
    states = level.planned_states(learner, memory, obs)
    assert states.shape == (3, 2)
    np.testing.assert_allclose(states[1], 3 * memory.plan[0], rtol=1e-5)


def test_held_rollouts_add_up():
    from lrl_jax.planners import PredictorRollout

    class Terminating(FakePredictor):
        def rollout_latent(self, *args, **keywords):
            rollout = super().rollout_latent(*args, **keywords)
            return rollout.replace(term_prob=jnp.full(rollout.rew.shape, 0.25))

    predictor = Terminating((4,), SPACE)
    plans = jax.random.uniform(jax.random.key(0), (5, 2, 2))
    context = (predictor.init(None), jnp.ones((1, 2)), jnp.zeros((1, 2)))
    held = PredictorRollout(predictor, hold=3)(context, plans, None)
    each = PredictorRollout(predictor)(context, jnp.repeat(plans, 3, 1), None)
    rew = np.asarray(each.rew).reshape(5, 1, 1, 2, 3)
    alive = 0.75 ** np.arange(3)
    np.testing.assert_allclose(held.rew, (rew * alive).sum(-1), rtol=1e-5)
    np.testing.assert_allclose(held.term_prob, 1 - 0.75**3, rtol=1e-6)
    np.testing.assert_array_equal(held.state, each.state[..., ::3, :])
    with pytest.raises(ValueError, match="hold"):
        make(hold=0)
