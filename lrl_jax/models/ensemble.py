"""Probabilistic ensemble: each member a mixture of Gaussians over the change of state."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrl_jax import spaces, struct
from lrl_jax.models import mixture, standardizer, symmetry
from lrl_jax.nets import (
    MixtureNetwork,
    activation_fn,
    apply_function,
    check_compute_dtype,
    check_hidden,
    check_periods,
    fourier_features,
)
from lrl_jax.settings import (
    check_bound,
    check_choice,
    check_flag,
    check_float,
    check_int,
    check_order,
    optional,
    put_checked,
)

MODES = ("heaviest", "mean")


class ModelStats(struct.Node):
    """What predictions need besides the network's parameters."""

    sigma_d: jax.Array  # [D] float32, unit of the network's outputs
    w: jax.Array  # [D, D] float32, delta standardizer
    directions: jax.Array  # [D, A] float32, the matrix A of the symmetry-breaking start
    n_total_env_steps: jax.Array  # [] float32


class MixturePrediction(struct.Node):
    """Mixture over d = s' - s in state units, members in front."""

    log_weight: jax.Array  # [M, ..., J], normalised
    mean: jax.Array  # [M, ..., J, D]
    std: jax.Array  # [M, ..., J, D]
    term_prob: jax.Array  # [M, ...]


@dataclasses.dataclass(frozen=True)
class ProbabilisticEnsemble:
    """Settings of a probabilistic ensemble (Chua et al. 2018, members with mixtures).

    Actions of a Discrete space are one-hot encoded, those of a bounded Box mapped to [-1, 1].

    Attributes:
        latent_state_dim: D; None until a `PredictorFactory` fills it in, as the next two.
        context_dim: C.
        action_space: what the predictor's level decides.
        n_models: members M.
        n_modes: Gaussians J of each.
        hidden, activation: of each member's MLP.
        use_context: whether the context is an input. By default it is not, else skills would
            depend on the goal.
        learn_termination: whether there is a termination head; without, the probability is 0.
        log_std_min, log_std_max: bounds of the log std, in model units.
        running_std_momentum: of sigma_d, the unit of the outputs.
        partition_batch: give each member its own share of a training batch.
        deterministic_mode: what a deterministic rollout follows, the "heaviest" mode or the
            mixture's "mean" (at a wall the mean of two modes is a place that is never reached).
        n_particles: particles of a stochastic rollout, for each member.
        sb_start_duration: environment steps of the symmetry-breaking start; 0 for none. It should
            hold at least 900 model updates.
        sb_start_factor: factor f of its mean f W^-1 A z. With uniform z, Cov(W d) is the identity
            at sqrt(3).
        sb_start_std: its std in model units.
        periods: of the Fourier features of the state, in its units; none by default.
        compute_dtype: "bfloat16" multiplies in it; parameters and results stay float32.
    """

    latent_state_dim: Any = None
    context_dim: Any = None
    action_space: Any = None
    n_models: int = 1
    n_modes: int = 4
    hidden: tuple[int, ...] = (128, 128)
    activation: str | Callable = "relu"
    use_context: bool = False
    learn_termination: bool = True
    log_std_min: float = -10.0
    log_std_max: float = 10.0
    running_std_momentum: float = 0.001
    partition_batch: bool = False
    deterministic_mode: str = "heaviest"
    n_particles: int = 1
    sb_start_duration: float = 0.0
    sb_start_factor: float = math.sqrt(3.0)
    sb_start_std: float = 0.3
    periods: tuple[float, ...] = ()
    compute_dtype: str = "float32"

    def __post_init__(self):
        put_checked(self, check_int, ("n_models", "n_modes", "n_particles"), 1)
        put_checked(self, optional(check_int), ("latent_state_dim",), 1)
        put_checked(self, optional(check_int), ("context_dim",), 0)
        if self.action_space is not None:
            space = spaces.from_any(self.action_space, name="action_space")
            object.__setattr__(self, "action_space", space)
        put_checked(self, check_float, ("running_std_momentum",), 0.0, 1.0)
        start = ("sb_start_duration", "sb_start_factor", "sb_start_std")
        put_checked(self, check_float, start, 0.0)
        for name, check in (("hidden", check_hidden), ("periods", check_periods)):
            object.__setattr__(self, name, check(getattr(self, name)))
        activation_fn(self.activation)
        check_compute_dtype(self.compute_dtype)
        put_checked(self, check_choice, ("deterministic_mode",), MODES)
        put_checked(self, check_flag, ("use_context", "learn_termination", "partition_batch"))
        put_checked(self, check_float, ("log_std_min", "log_std_max"))
        check_order(self, "log_std_min", "log_std_max")

    def _check_bound(self) -> None:
        check_bound(self, "latent_state_dim", "context_dim", "action_space")

    @property
    def action_dim(self) -> int:
        """Width of an encoded action."""
        self._check_bound()
        return self.action_space.dim

    @property
    def network(self) -> MixtureNetwork:
        """The module of one member."""
        self._check_bound()
        return MixtureNetwork(
            self.latent_state_dim,
            self.n_modes,
            self.hidden,
            self.activation,
            self.log_std_min,
            self.log_std_max,
            self.learn_termination,
        )

    def encode_action(self, action: jax.Array) -> jax.Array:
        """Flatten actions [..., *shape] to float32 [..., A]; Discrete ones become one-hot.

        One-hot actions [..., n] of floats are left unchanged.
        """
        self._check_bound()
        action = jnp.asarray(action)
        if isinstance(self.action_space, spaces.Discrete):
            if jnp.issubdtype(action.dtype, jnp.floating):
                return action.astype(jnp.float32)
            return jax.nn.one_hot(action, self.action_space.n, dtype=jnp.float32)
        n_axes = len(self.action_space.shape)
        if n_axes != 1:
            action = action.reshape(*action.shape[: action.ndim - n_axes], self.action_dim)
        return action.astype(jnp.float32)

    def normalize_action(self, action: jax.Array) -> jax.Array:
        """Map encoded actions [..., A] of a bounded Box to [-1, 1]; others stay."""
        self._check_bound()
        space = self.action_space
        if isinstance(space, spaces.Discrete) or not space.is_bounded:
            return action
        low, high = space.bounds
        if np.all(low == -1.0) and np.all(high == 1.0):
            return action
        half = np.where(high > low, 0.5 * (high - low), 1.0).astype(np.float32)
        return (action - (0.5 * (low + high)).astype(np.float32)) / half

    def init(self, key: jax.Array) -> Any:
        """Parameters; each leaf has a leading axis M only for several members."""
        self._check_bound()
        size = self.latent_state_dim * (1 + 2 * len(self.periods)) + self.action_dim
        x = jnp.zeros((1, size + (self.context_dim if self.use_context else 0)), jnp.float32)
        if self.n_models == 1:
            return self.network.init(key, x)["params"]
        keys = jax.random.split(key, self.n_models)
        return jax.vmap(lambda k: self.network.init(k, x)["params"])(keys)

    def init_directions(self, key: jax.Array) -> jax.Array:
        """The matrix A [D, action_dim] of the symmetry-breaking start; consumes `key`."""
        self._check_bound()
        discrete = isinstance(self.action_space, spaces.Discrete)
        return symmetry.init_directions(key, self.latent_state_dim, self.action_dim, discrete)

    def heads(
        self, params: Any, state: jax.Array, context: jax.Array, action: jax.Array
    ) -> dict[str, Any]:
        """Outputs of the networks in model units.

        Args:
            params: from `init`.
            state: [M or 1, ..., D]; each member sees its own, or all the same.
            context: [M or 1, ..., C].
            action: encoded, [M or 1, ..., A].

        Returns:
            `MixtureNetwork`'s dict with a leading axis M.
        """
        parts = [fourier_features(state, self.periods), self.normalize_action(action)]
        if self.use_context:
            parts.insert(1, context)
        lead = np.broadcast_shapes(*(p.shape[:-1] for p in parts))
        x = jnp.concatenate([jnp.broadcast_to(p, (*lead, p.shape[-1])) for p in parts], -1)

        def apply(p, x):
            return apply_function(self.network, p, x, compute_dtype=self.compute_dtype)

        if self.n_models == 1:  # no batched matrix product for the common case
            return apply(params, x)
        if lead[0] == 1:
            return jax.vmap(apply, in_axes=(0, None))(params, x[0])
        return jax.vmap(apply)(params, x)

    def linear_map(self, stats: ModelStats) -> jax.Array | None:
        """The matrix f W^-1 A [D, action_dim] of the start; None if there is no start."""
        if not self.sb_start_duration:
            return None
        return self.sb_start_factor * (standardizer.inverse(stats.w) @ stats.directions)

    def linear_mean(self, linear_map: jax.Array, action: jax.Array) -> jax.Array:
        """Mean change [..., D] that the start predicts for encoded actions [..., A]."""
        return self.normalize_action(action) @ linear_map.T

    def network_share(self, stats: ModelStats) -> jax.Array:
        """Share of the network in predictions, in [0, 1], a scalar."""
        return symmetry.network_share(stats.n_total_env_steps, self.sb_start_duration)

    def predict(
        self,
        params: Any,
        stats: ModelStats,
        state: jax.Array,
        context: jax.Array,
        action: jax.Array,
        linear_map: jax.Array | None = None,
    ) -> MixturePrediction:
        """Predict the change of state, with the symmetry-breaking start.

        Args:
            params, stats: of the model.
            state, context, action: as in `heads`.
            linear_map: from `linear_map`, to compute it once for many calls.
        """
        out = self.heads(params, state, context, action)
        mean = out["mean"] * stats.sigma_d
        std = jnp.exp(out["log_std"])
        logit = out["term_logit"]
        term_prob = (
            jnp.zeros(out["log_weight"].shape[:-1], jnp.float32)
            if logit is None
            else jax.nn.sigmoid(logit)
        )
        if self.sb_start_duration:
            share = self.network_share(stats)
            linear_map = self.linear_map(stats) if linear_map is None else linear_map
            assert linear_map is not None  # as sb_start_duration is not 0
            linear = self.linear_mean(linear_map, action)[..., None, :]
            # share = 0 must give exactly the linear model, even if the network overflows.
            mean = jnp.where(share > 0, share * mean, 0.0) + (1.0 - share) * linear
            std = jnp.where(share > 0, share * std, 0.0) + (1.0 - share) * self.sb_start_std
            term_prob = share * term_prob
        return MixturePrediction(out["log_weight"], mean, std * stats.sigma_d, term_prob)

    def loss(
        self,
        params: Any,
        sigma_d: jax.Array,
        state: jax.Array,
        context: jax.Array,
        action: jax.Array,
        state_next: jax.Array,
        terminated: jax.Array,
        mask: jax.Array,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Negative log likelihood of d = s' - s, plus binary cross entropy of termination.

        The network's own: the symmetry-breaking start does not enter.

        Args:
            params: of the model.
            sigma_d: [D], unit of the outputs.
            state, context, action, state_next: [B, ...].
            terminated: [B] bool.
            mask: [B], rows that count. Sums over them are divided by their number.

        Returns:
            The loss, and a dict with `nll` and `termination_loss`.

        Raises:
            ValueError: if the batch is smaller than the number of members it is shared among.
        """
        rows = {"s": state, "c": context, "a": action, "s2": state_next, "t": terminated, "m": mask}
        n_shares = self.n_models if self.partition_batch else 1
        size = state.shape[0] // n_shares
        if size < 1:
            raise ValueError(
                f"a model batch of {state.shape[0]} rows cannot be shared among {n_shares} models."
            )
        # [shares, B / shares, ...]; rows left over by the division are not used.
        rows = {
            k: x[: size * n_shares].reshape(n_shares, size, *x.shape[1:]) for k, x in rows.items()
        }
        weight = jnp.broadcast_to(rows["m"].astype(jnp.float32), (self.n_models, size))
        n_valid = jnp.maximum(weight.sum(), 1.0)

        def average(x):
            return jnp.where(weight > 0, x, 0.0).sum() / n_valid

        out = self.heads(params, rows["s"], rows["c"], rows["a"])
        delta = (rows["s2"] - rows["s"]) / sigma_d
        # Rows outside the mask may hold anything; NaN would reach the gradient through `where`.
        delta = jnp.where(rows["m"].astype(bool)[..., None], delta, 0.0)
        log_q = mixture.log_prob(delta, out["log_weight"], out["mean"], out["log_std"])
        nll = average(jnp.sum(jnp.log(sigma_d)) - log_q)
        info = {"nll": nll, "termination_loss": jnp.zeros((), jnp.float32)}
        if out["term_logit"] is not None:
            logit, target = out["term_logit"], rows["t"].astype(jnp.float32)
            info["termination_loss"] = average(jax.nn.softplus(logit) - target * logit)
        return nll + info["termination_loss"], info
