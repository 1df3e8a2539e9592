"""Flax modules that levels and predictors share."""

from lrl_jax.nets.apply import apply_function, init_function
from lrl_jax.nets.dueling import DuelingMLP
from lrl_jax.nets.features import check_periods, fourier_features
from lrl_jax.nets.functions import RewardFunction, ValueFunction
from lrl_jax.nets.mixture import MixtureNetwork
from lrl_jax.nets.mlp import ACTIVATIONS, MLP, activation_fn, check_hidden
from lrl_jax.nets.tanh_gaussian import TanhGaussianPolicy, squash_log_std, tanh_gaussian

__all__ = [
    "ACTIVATIONS",
    "MLP",
    "DuelingMLP",
    "MixtureNetwork",
    "RewardFunction",
    "TanhGaussianPolicy",
    "ValueFunction",
    "activation_fn",
    "apply_function",
    "check_hidden",
    "check_periods",
    "fourier_features",
    "init_function",
    "squash_log_std",
    "tanh_gaussian",
]
