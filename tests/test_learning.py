"""A planner learns its model and reaches goals that random actions do not, in an open maze."""

import functools
import types

import jax
import numpy as np
import pytest

import lrl_jax as lrl
from lrl_jax.collectors import evaluate
from lrl_jax.levels import RandomLevel
from lrl_jax.planners import ICEM
from lrl_jax.training import Trainer, preset, with_settings
from lrl_jax.training.presets import decayed

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

MAZE = lrl.envs.Maze2D(OPEN, starts=[(1.5, 1.5)], goals=[(4.5, 4.5)], max_steps=MAX_STEPS)
RATE = decayed(3e-3, 1e-3, 0.4)

PLANNER = {
    "optimizer": ICEM(6, num_samples=64, n_iterations=3, elite_ratio=0.13, return_mode="mean"),
    "predictor_factory.partial_model.n_modes": 2,
    "predictor_factory.partial_model.hidden": (32, 32),
    "predictor_factory.partial_model.periods": (8.0, 4.0),
    "predictor_factory.partial_rew_func.hidden": (32, 32),
    "predictor_factory.partial_rew_func.periods": (8.0, 4.0),
    "predictor_factory.partial_predictor.model_lr": RATE,
    "predictor_factory.partial_predictor.reward_lr": RATE,
    "batch_size": 128,
    "model_batch_size": 128,
    "update_interval": 32,
    "n_updates": 16,
    "warm_up_steps": 4000,
    "buffer_size": 10_000,
}
CONFIG = with_settings(
    preset("maze2d-medium-planner"),
    {
        **{f"levels.0.{path}": value for path, value in PLANNER.items()},
        "env": MAZE,
        "n_env_instances": 32,
        "total_steps": 12_800,
        "round_ticks": 20,
        "test_interval": 3200,
    },
)


@functools.cache
def trained():
    """The trainer, the metrics of its chunks, and test episodes from before and after."""
    trainer = Trainer.build(CONFIG)
    test = jax.jit(lambda state: trainer.test(state, jax.random.key(1), EPISODES))
    carry = trainer.init(jax.random.key(0))
    before = test(carry.hierarchy)
    chunk = jax.jit(trainer.chunk, static_argnums=1)
    metrics = []
    for n_rounds in CONFIG.chunks:
        carry, out = chunk(carry, n_rounds)
        metrics.append(jax.device_get(out))
    return types.SimpleNamespace(
        trainer=trainer, metrics=metrics, before=before, after=test(carry.hierarchy)
    )


@functools.cache
def random_episodes():
    """Random actions, held as long as the planner's."""
    hierarchy = lrl.Hierarchy([RandomLevel(), CONFIG.levels[1]], MAZE)
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
    planner, hold = CONFIG.levels
    rows = CONFIG.total_steps // hold.control_interval  # 60 is a multiple: no row is cut short
    assert updates == rows // planner.update_interval * planner.n_updates
