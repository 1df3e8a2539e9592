"""Pytrees that predictors take and return."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from lrl_jax import struct
from lrl_jax.models import ModelStats, RunningStd
from lrl_jax.predictors.optim import AdamState


class PredictorState(struct.Node):
    """Everything of a predictor that changes.

    Attributes:
        params: dict of the parts `encoder`, `model`, `reward`, `value` and `standardizer` (the
            symmetric W, [D, D]); parts without parameters are {}.
        target_value: the target network's parameters, as `params["value"]`.
        opt_state: Adam's moments for `params`; None where nothing is learned.
        running_std: running std of d = s' - s.
        directions: matrix A [D, A] of the symmetry-breaking start.
        settings: float32 scalars: gamma, tau and the learning rates that are numbers.
        n_learn_calls: int32 [].
        n_total_env_steps: float32 [], where schedules are evaluated.
        key: random key of learning.
    """

    params: dict[str, Any]
    target_value: Any
    opt_state: AdamState | None
    running_std: RunningStd
    directions: jax.Array
    settings: dict[str, jax.Array]
    n_learn_calls: jax.Array
    n_total_env_steps: jax.Array
    key: jax.Array

    @property
    def sigma_d(self) -> jax.Array:
        """Running std [D] of d."""
        return self.running_std.std

    @property
    def W(self) -> jax.Array:
        """Delta standardizer [D, D]."""
        return self.params["standardizer"]

    @property
    def stats(self) -> ModelStats:
        """What the model's predictions need besides its parameters."""
        return ModelStats(self.sigma_d, self.W, self.directions, self.n_total_env_steps)


class Prediction(NamedTuple):
    """One-step prediction; B rows, M models, J modes."""

    mean: jax.Array  # [B, M, J, D] of the next latent state
    weights: jax.Array  # [B, M, J]
    std: jax.Array  # [B, M, J, D]
    reward: jax.Array  # [B]
    term_prob: jax.Array  # [B], mean over models


class Rollout(struct.Node):
    """Rollout with its uncertainty."""

    state: jax.Array  # [B, M, P, H + 1, D]
    state_mean: jax.Array  # [B, M, H + 1, D], of the predicted mixtures, over particles
    state_epistemic_var: jax.Array  # [B, H + 1, D], variance of that mean over models
    state_aleatoric_var: jax.Array  # [B, H + 1, D], variance within models, mean over models
    term_prob: jax.Array  # [B, M, P, H], of each step
    rew: jax.Array  # [B, M, P, H]


class TargetBatch(struct.Node):
    """Partial trajectories with value targets; entries that are not valid are to be ignored."""

    rew: jax.Array  # [B, K]
    value: jax.Array  # [B, K] n-step target, 0 where not valid
    validity_mask: jax.Array  # [B, K] bool, nothing ended before
    terminated: jax.Array  # [B, K] bool
    planning_mode: jax.Array  # [B, K] bool, chosen while planning
    act: jax.Array  # [B, K, A] encoded (one-hot for a Discrete space)
    contexts: jax.Array  # [B, K, C]
    state: jax.Array  # [B, K + 1, D]
    obs: jax.Array  # [B, K + 1, O]
    indices: jax.Array  # [K + n - 1, B] int32 row ids
    traj_len: jax.Array  # [B] int32, rows of the piece, at most K + n - 1


class ModelBatch(struct.Node):
    """Single rows to train the model on."""

    state: jax.Array  # [B, D]
    state_next: jax.Array  # [B, D]
    act: jax.Array  # [B, A] encoded
    terminated: jax.Array  # [B] bool
    context: jax.Array  # [B, C]
    context_next: jax.Array  # [B, C]
    validity_mask: jax.Array  # [B] bool
