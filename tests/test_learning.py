"""A planner learns its model and reaches goals that random actions do not, in an open maze."""

import functools
import types

import jax
import numpy as np
import pytest

import lrl_jax as lrl
from lrl_jax.collectors import evaluate
from lrl_jax.levels import ActionRepeatLevel, RandomLevel
from lrl_jax.training import PlannerAgent, TrainConfig, Trainer

OPEN = """
######
#....#
#....#
#....#
#....#
######
"""
MAX_STEPS = 60  # six decisions; the straight way takes five
EPISODES = 64

CONFIG = TrainConfig(
    agent=PlannerAgent(
        state="achieved_goal",
        horizon=6,
        num_samples=64,
        n_iterations=3,
        n_modes=2,
        hidden=(32, 32),
        periods=(8.0, 4.0),
        learning_rate=3e-3,
        final_learning_rate=1e-3,
        batch_size=128,
        model_batch_size=128,
        update_interval=32,
        n_updates=16,
        warm_up_steps=4000,
        buffer_size=10_000,
    ),
    n_env_instances=32,
    total_steps=12_800,
    round_ticks=20,
    test_interval=3200,
)


@functools.cache
def maze():
    env = lrl.envs.Maze2D(OPEN, starts=[(1.5, 1.5)], goals=[(4.5, 4.5)], max_steps=MAX_STEPS)
    return env, env.default_params


@functools.cache
def trained():
    """The trainer, the metrics of its chunks, and test episodes from before and after."""
    env, params = maze()
    levels = CONFIG.agent.levels(env, CONFIG.total_steps)
    trainer = Trainer(CONFIG, lrl.Hierarchy(levels, env, params), env, params)
    test = jax.jit(lambda state: trainer.test(state, jax.random.key(1), EPISODES))
    carry = trainer.init(jax.random.key(0))
    before = test(carry.hierarchy)
    chunk = jax.jit(trainer.chunk)
    metrics = []
    for _ in range(CONFIG.n_chunks):
        carry, out = chunk(carry)
        metrics.append(jax.device_get(out))
    return types.SimpleNamespace(
        trainer=trainer, metrics=metrics, before=before, after=test(carry.hierarchy)
    )


@functools.cache
def random_episodes():
    """Random actions, held as long as the planner's."""
    env, params = maze()
    levels = [RandomLevel(), ActionRepeatLevel(CONFIG.agent.action_repeat)]
    hierarchy = lrl.Hierarchy(levels, env, params)
    state = hierarchy.init(jax.random.key(0), 1)
    return evaluate(hierarchy, state, jax.random.key(2), EPISODES, max_steps=MAX_STEPS)


def test_a_trained_planner_reaches_goals_that_random_actions_do_not():
    random, planned = random_episodes(), trained().after
    assert np.all(planned.finished) and np.all(planned.length == MAX_STEPS)
    assert np.mean(random.success) < 0.2
    assert np.mean(planned.success) > np.mean(random.success) + 0.5
    # Dense rewards: it also gets there by a shorter way.
    assert np.mean(planned.episode_return) > 0.7 * np.mean(random.episode_return)


def test_training_made_the_difference():
    run = trained()
    assert np.mean(run.after.success) > np.mean(run.before.success) + 0.3
    assert np.mean(run.after.episode_return) > np.mean(run.before.episode_return)


@pytest.mark.parametrize("name, by", [("nll", 0.5), ("reward_loss", 0.0)])
def test_the_losses_of_model_and_reward_fall(name, by):
    losses = [m[f"level0/{name}"] for m in trained().metrics]
    assert np.all(np.isfinite(losses))
    assert losses[1] < losses[0] - by
    assert losses[-1] < losses[0] - by
    if name == "reward_loss":
        assert losses[-1] < 0.5 * losses[0]


def test_every_chunk_makes_the_updates_its_rows_owe():
    updates = sum(float(m["level0/n_updates"]) for m in trained().metrics)
    agent = CONFIG.agent
    rows = CONFIG.total_steps // agent.action_repeat  # 60 is a multiple: no row is cut short
    assert updates == rows // agent.update_interval * agent.n_updates
