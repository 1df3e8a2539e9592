"""Flax modules that levels and predictors share."""

from lrl_jax.nets.apply import apply_function, init_function
from lrl_jax.nets.dueling import DuelingMLP
from lrl_jax.nets.features import check_periods, fourier_features
from lrl_jax.nets.functions import RewardFunction, ValueFunction
from lrl_jax.nets.mixture import MixtureNetwork
from lrl_jax.nets.mlp import ACTIVATIONS, MLP, activation_fn, check_hidden
from lrl_jax.nets.normed_mlp import NormedMLP, mish
from lrl_jax.nets.precision import COMPUTE_DTYPES, check_compute_dtype
from lrl_jax.nets.simnorm import simnorm
from lrl_jax.nets.tanh_gaussian import TanhGaussianPolicy, squash_log_std, tanh_gaussian
from lrl_jax.nets.tdmpc2 import LatentModel
from lrl_jax.nets.two_hot import TwoHot, symexp, symlog

__all__ = [
    "ACTIVATIONS",
    "COMPUTE_DTYPES",
    "MLP",
    "DuelingMLP",
    "LatentModel",
    "MixtureNetwork",
    "NormedMLP",
    "RewardFunction",
    "TanhGaussianPolicy",
    "TwoHot",
    "ValueFunction",
    "activation_fn",
    "apply_function",
    "check_compute_dtype",
    "check_hidden",
    "check_periods",
    "fourier_features",
    "init_function",
    "mish",
    "simnorm",
    "squash_log_std",
    "symexp",
    "symlog",
    "tanh_gaussian",
]
