"""Training: configs and presets, pure train functions, runs with their folders."""

from lrl_jax.setting_trees import OfRun, with_settings
from lrl_jax.training.config import TrainConfig, from_json, load_config, to_json
from lrl_jax.training.loading import load_run, load_trainer
from lrl_jax.training.presets import DEFAULT_PRESET, PRESETS, preset
from lrl_jax.training.run import Interrupted, train
from lrl_jax.training.serial import register
from lrl_jax.training.summary import Summary
from lrl_jax.training.train import Trainer, make_train, take_seed

#: The name of `train` in earlier versions.
run_training = train

__all__ = [
    "DEFAULT_PRESET",
    "PRESETS",
    "Interrupted",
    "OfRun",
    "Summary",
    "TrainConfig",
    "Trainer",
    "from_json",
    "load_config",
    "load_run",
    "load_trainer",
    "make_train",
    "preset",
    "register",
    "run_training",
    "take_seed",
    "to_json",
    "train",
    "with_settings",
]
