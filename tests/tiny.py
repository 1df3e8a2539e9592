"""Presets as small as their settings can be made, for tests that build them."""

from __future__ import annotations

from typing import Any

from lrl_jax import setting_trees
from lrl_jax.levels import RandomLevel
from lrl_jax.planners import MPPI
from lrl_jax.training import TrainConfig, preset, with_settings

#: Settings by the last name of their paths; a preset's own numbers stay where they are less.
SMALL: dict[str, Any] = {
    "hidden": (8,),
    "encoder_hidden": (8,),
    "latent_dim": 8,
    "planner": MPPI(num_samples=8, num_policy_samples=2, num_elites=2, n_iterations=1),
    "n_critics": 2,
    "num_samples": 8,
    "n_iterations": 2,
    "horizon": 2,
    "n_minibatches": 1,
    "n_epochs": 1,
    "rollout_length": 8,
    "batch_size": 8,
    "model_batch_size": 8,
    "update_interval": 4,
    "n_updates": 1,
    "warm_up_steps": 8,
    "no_planning_steps": 8,
    "n_alternatives": 4,
    "n_modes": 2,
    "buffer_size": 64,
    "control_interval": 5,  # skills are compared over ten steps
}
RUN = {
    "n_env_instances": 2,
    "round_ticks": 8,
    "total_steps": 32,
    "test_interval": 16,
    "test_episodes": 2,
    "final_test_episodes": 2,
}


#: A run that learns nothing.
RANDOM = TrainConfig(
    (RandomLevel(),),
    "Pendulum-v1",
    env_params={"max_steps_in_episode": 4},
    n_env_instances=2,
    round_ticks=4,
    total_steps=24,
    test_interval=8,
    test_episodes=2,
    final_test_episodes=2,
)


def tiny(name: str, **settings: Any) -> TrainConfig:
    """A preset with small networks, buffers and searches, for a run of 32 steps.

    Args:
        name: of the preset.
        settings: of the config.
    """
    config = preset(name)
    changes: dict[str, Any] = {}
    for path, value in setting_trees.walk(config.levels):
        path, last = f"levels.{path}", path.rpartition(".")[2]
        # What a preset leaves out, such as a replay of no rows, stays out.
        if last == "elite_ratio":
            changes[path] = 0.5
        elif value and last in SMALL and path.rpartition(".")[0] not in changes:
            small = SMALL[last]
            changes[path] = min(value, small) if isinstance(small, int) else small
    return with_settings(config, {**changes, **RUN, **settings})
