"""Training: configs and presets, pure train functions, runs with their folders."""

from lrl_jax.setting_trees import OfRun, with_settings
from lrl_jax.training.comparing import Comparison, compare
from lrl_jax.training.config import TrainConfig, from_json, load_config, to_json
from lrl_jax.training.loading import load_run, load_trainer
from lrl_jax.training.presets import DEFAULT_PRESET, PRESETS, preset
from lrl_jax.training.report import report
from lrl_jax.training.run import Interrupted, train
from lrl_jax.training.serial import register
from lrl_jax.training.summary import Summary
from lrl_jax.training.train import Trainer, make_train, take_seed

#: The name of `train` in earlier versions.
run_training = train

_AGENTS = ("DQNAgent", "PlannerAgent", "SACAgent", "SkillAgent", "TDMPC2Agent")


def __getattr__(name: str) -> object:
    """Name the successors of names of earlier versions."""
    if name in _AGENTS:
        raise ImportError(
            f"{name} is gone: a run is of levels, lrl.TrainConfig(levels=(...), env=...). Presets "
            f"have those that agents built, lrl_jax.training.preset('smoke'); change their "
            f"settings by path, with_settings(config, {{'levels.0.optimizer.horizon': 20}})."
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "DEFAULT_PRESET",
    "PRESETS",
    "Comparison",
    "Interrupted",
    "OfRun",
    "Summary",
    "TrainConfig",
    "Trainer",
    "compare",
    "from_json",
    "load_config",
    "load_run",
    "load_trainer",
    "make_train",
    "preset",
    "register",
    "report",
    "run_training",
    "take_seed",
    "to_json",
    "train",
    "with_settings",
]
