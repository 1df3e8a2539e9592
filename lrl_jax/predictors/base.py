"""Base of all predictors: encoder, dynamics model, reward and value function."""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from lrl_jax import buffers
from lrl_jax.devices import resolve_device
from lrl_jax.models import init_running_std, init_standardizer, mixture
from lrl_jax.nets import apply_function, init_function
from lrl_jax.predictors import rollouts
from lrl_jax.predictors.checks import check_call, check_std
from lrl_jax.predictors.compiled import compiled
from lrl_jax.predictors.encoders import as_shape
from lrl_jax.predictors.types import Prediction, PredictorState, Rollout
from lrl_jax.settings import check_bound, check_function, check_int, optional, put_checked


@dataclasses.dataclass(frozen=True)
class Predictor(abc.ABC):
    """Encoder, dynamics model, reward and value function, as pure functions of a state.

    Abstract: subclasses define `loss` and `learn`.

    Frozen and hashable: all that changes is in the `PredictorState`, which methods take first.
    Methods may be called inside jitted functions, or directly, when they compile themselves.

    A `PredictorFactory` fills in the parts and dimensions that are None.

    Attributes:
        model: dynamics and termination model, such as a `ProbabilisticEnsemble`.
        val_func: value V(s, c), a flax module or function; None for none. Q-functions are refused.
        rew_func: reward r(s, c, a), a flax module or function of encoded actions (one-hot for a
            Discrete space); None for none, rewards are 0 then.
        encoder: maps an observation to (latent state, context), a flax module or function.
        latent_state_dim: D.
        context_dim: C.
        device: where `init` puts the state; None for JAX's default.
        writer, log_interval: every `log_interval` calls of `learn`, its loss terms are written to
            `writer` (a logger, or a TensorBoard writer) as `predictor/{name}`, at the
            total of environment steps. Where `learn` is traced the host loop writes: collectors do.
        mapped_env_obs_shape: shape of one observation; None for a flat one of any size. An
            encoder with parameters needs it.
    """

    model: Any = None
    val_func: Any = None
    rew_func: Any = None
    encoder: Any = None
    latent_state_dim: Any = None
    context_dim: Any = None
    device: Any = dataclasses.field(default=None, compare=False, kw_only=True)
    writer: Any = dataclasses.field(default=None, compare=False, repr=False, kw_only=True)
    log_interval: int = dataclasses.field(default=10, compare=False, kw_only=True)
    mapped_env_obs_shape: tuple[int, ...] | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self):
        put_checked(self, optional(check_function), ("val_func", "rew_func", "encoder"))
        for name in ("val_func", "rew_func", "encoder"):
            if getattr(self, name) is not None:
                check_call(name, getattr(self, name))
        put_checked(self, check_int, ("log_interval",), 1)
        for name, least in (("latent_state_dim", 1), ("context_dim", 0)):
            if getattr(self, name) is None:
                continue
            put_checked(self, check_int, (name,), least)
            for part in (self.model, self.encoder):
                other = getattr(part, name, None)
                if other is not None and other != getattr(self, name):
                    raise ValueError(
                        f"{name}={getattr(self, name)}, but {type(part).__name__} has {other}: "
                        f"make them equal."
                    )
        shape = self.mapped_env_obs_shape
        if shape is None:
            shape = getattr(self.encoder, "mapped_env_obs_shape", None)
        if shape is not None:
            shape = as_shape(shape)
        object.__setattr__(self, "mapped_env_obs_shape", shape)

    # ------------------------------------------------------------------ state

    def _check_bound(self) -> None:
        check_bound(self, "model", "encoder", "latent_state_dim", "context_dim")

    def setting(self, ps: PredictorState, name: str) -> jax.Array:
        """Present value of a setting, float32: its leaf, or its schedule at the env steps."""
        if name in ps.settings:
            return ps.settings[name]
        value = getattr(self, name)
        return jnp.asarray(value(ps.n_total_env_steps) if callable(value) else value, jnp.float32)

    def _settings(self) -> dict[str, float]:
        """Settings that become float32 leaves of the state."""
        return {}

    def init(self, key: jax.Array) -> PredictorState:
        """Create the state; consumes `key`.

        Raises:
            ValueError: if the encoder has parameters and the observation's shape is not known, or
                it does not give the latent state and context it should.
        """
        self._check_bound()
        ps = self._init(key)
        return ps if self.device is None else jax.device_put(ps, resolve_device(self.device))

    @compiled()
    def _init(self, key):
        keys = jax.random.split(key, 6)
        state, context = (
            jnp.zeros((1, d), jnp.float32) for d in (self.latent_state_dim, self.context_dim)
        )
        action = jnp.zeros((1, self.model.action_dim), jnp.float32)
        value = init_function(self.val_func, keys[2], state, context)
        reward = init_function(self.rew_func, keys[1], state, context, action)
        params = {
            "encoder": self._init_encoder(keys[3]),
            "model": self.model.init(keys[0]),
            "reward": reward,
            "value": value,
            "standardizer": init_standardizer(self.latent_state_dim),
        }
        return PredictorState(
            params=params,
            # A copy: the same arrays twice in a state cannot be donated.
            target_value=jax.tree.map(jnp.copy, value),
            opt_state=self._init_opt_state(params),
            running_std=init_running_std(self.latent_state_dim),
            directions=self.model.init_directions(keys[4]),
            settings={k: jnp.asarray(v, jnp.float32) for k, v in self._settings().items()},
            n_learn_calls=jnp.zeros((), jnp.int32),
            n_total_env_steps=jnp.zeros((), jnp.float32),
            key=keys[5],
        )

    def _init_encoder(self, key):
        if self.mapped_env_obs_shape is None:
            if hasattr(self.encoder, "apply"):
                raise ValueError(
                    "an encoder with parameters needs the observation's shape: give "
                    "mapped_env_obs_shape=... to the predictor, or use a PredictorFactory."
                )
            return {}
        obs = jnp.zeros((1, math.prod(self.mapped_env_obs_shape)), jnp.float32)
        params = init_function(self.encoder, key, obs)
        got = jax.eval_shape(lambda p: apply_function(self.encoder, p, obs), params)
        want = ((1, self.latent_state_dim), (1, self.context_dim))
        if tuple(x.shape for x in got) != want:
            raise ValueError(
                f"the encoder maps {obs.shape} to shapes {tuple(x.shape for x in got)}, but "
                f"latent_state_dim and context_dim ask for {want}."
            )
        return params

    def _init_opt_state(self, params: Any) -> Any:
        return None

    def observe_env_steps(self, ps: PredictorState, n_total_env_steps: Any) -> PredictorState:
        """Tell the state the total number of environment steps, for schedules and the start."""
        return ps.replace(n_total_env_steps=jnp.asarray(n_total_env_steps, jnp.float32))

    # ------------------------------------------------------------- prediction

    def _flat_obs(self, obs):
        obs = jnp.asarray(obs)
        shape = self.mapped_env_obs_shape
        if shape is None:
            return obs
        n_axes = len(shape)
        if n_axes > obs.ndim or obs.shape[obs.ndim - n_axes :] != shape:
            if obs.ndim and obs.shape[-1] == math.prod(shape):
                return obs  # flat already
            raise ValueError(f"observations must end in shape {shape}, got {obs.shape}.")
        if n_axes == 1:
            return obs
        return obs.reshape(*obs.shape[: obs.ndim - n_axes], math.prod(shape))

    def encode(self, ps: PredictorState, obs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Encode observations [..., *obs shape] into (state [..., D], context [..., C])."""
        self._check_bound()
        return apply_function(self.encoder, ps.params["encoder"], self._flat_obs(obs))

    def reward(self, ps: PredictorState, state, context, action) -> jax.Array:
        """Expected reward [...] of latent states, contexts and encoded actions."""
        return self._reward(ps.params["reward"], state, context, action)

    def _reward(self, params, state, context, action):
        self._check_bound()
        if self.rew_func is None:
            return jnp.zeros(state.shape[:-1], jnp.float32)
        return apply_function(self.rew_func, params, state, context, action)

    def value(self, ps: PredictorState, state, context, target: bool = False) -> jax.Array:
        """Value [...] of latent states and contexts, of the target network if asked; 0 without."""
        params = ps.target_value if target else ps.params["value"]
        return self._value(params, state, context)

    def _value(self, params, state, context):
        self._check_bound()
        if self.val_func is None:
            return jnp.zeros(state.shape[:-1], jnp.float32)
        return apply_function(self.val_func, params, state, context)

    @compiled()
    def predict(self, ps: PredictorState, obs: jax.Array, act: jax.Array) -> Prediction:
        """Predict the next latent state, the reward and the termination.

        Args:
            ps: state.
            obs: [B, *obs shape].
            act: [B, *action shape].

        Returns:
            mean [B, M, J, D], weights [B, M, J], std [B, M, J, D], reward [B], term_prob [B].
        """
        state, context = self.encode(ps, obs)
        action = self.model.encode_action(act)
        out = self.model.predict(
            ps.params["model"], ps.stats, state[None], context[None], action[None]
        )
        return Prediction(
            mean=state[:, None, None] + jnp.moveaxis(out.mean, 0, 1),
            weights=jnp.exp(jnp.moveaxis(out.log_weight, 0, 1)),
            std=jnp.moveaxis(out.std, 0, 1),
            reward=self.reward(ps, state, context, action),
            term_prob=out.term_prob.mean(0),
        )

    @compiled()
    def predict_reward(self, ps: PredictorState, obs: jax.Array, act: jax.Array) -> jax.Array:
        """Predict the reward [B] of observations [B, *obs shape] and actions."""
        state, context = self.encode(ps, obs)
        return self.reward(ps, state, context, self.model.encode_action(act))

    @compiled("deterministic", "n_particles")
    def rollout(
        self,
        ps: PredictorState,
        obs: jax.Array,
        act: jax.Array,
        deterministic: bool = False,
        *,
        key: jax.Array | None = None,
        n_particles: int | None = None,
    ) -> tuple[Rollout, jax.Array]:
        """Roll the model out.

        Args:
            ps: state.
            obs: [B, *obs shape].
            act: [B, H, *action shape].
            deterministic: follow the model's `deterministic_mode` with one particle.
            key: consumed by a stochastic rollout, which needs it.
            n_particles: of a stochastic rollout; the model's by default.

        Returns:
            The rollout, and the contexts [B, C].
        """
        state, context = self.encode(ps, obs)
        return rollouts.rollout(
            self, ps, state, context, act, deterministic, key, n_particles
        ), context

    rollout_latent = rollouts.rollout_latent

    # -------------------------------------------------- standardized densities

    def standardized_mixture(
        self, ps: PredictorState, state: jax.Array, context: jax.Array, action: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Mixture over W d, which does not depend on the next state.

        Evaluate it once for each pair of state and action and pass it to
        `standardized_log_prob` for many next states.

        Args:
            ps: state.
            state: [..., D].
            context: [..., C].
            action: [..., *action shape].

        Returns:
            log weights [..., M * J] (normalised over members and modes), means W mean(d)
            [..., M * J, D], termination probability [...].
        """
        self._check_bound()
        action = self.model.encode_action(action)
        out = self.model.predict(
            ps.params["model"], ps.stats, state[None], context[None], action[None]
        )
        n_models = self.model.n_models
        log_weight = jnp.moveaxis(out.log_weight, 0, -2) - math.log(n_models)
        mean = jnp.moveaxis(out.mean, 0, -3) @ ps.W
        lead = mean.shape[:-3]
        size = n_models * self.model.n_modes
        return (
            log_weight.reshape(*lead, size),
            mean.reshape(*lead, size, self.latent_state_dim),
            out.term_prob.mean(0),
        )

    def standardized_log_prob(
        self,
        ps: PredictorState,
        log_weight: jax.Array,
        mean: jax.Array,
        state: jax.Array,
        next_state: jax.Array,
        fixed_std: float | jax.Array,
    ) -> jax.Array:
        """Log density [...] of next states under a mixture from `standardized_mixture`."""
        return mixture.fixed_std_log_prob((next_state - state) @ ps.W, log_weight, mean, fixed_std)

    def get_standardized_log_prob(
        self,
        ps: PredictorState,
        state: jax.Array,
        context: jax.Array,
        action: jax.Array,
        next_state: jax.Array,
        fixed_std: float | jax.Array,
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        """Log density of the next state in standardized space.

        log q(s'|s, a) = logsumexp over members and modes of
        [log w + log N(W d; W mean(d), fixed_std^2 I)] - log M, without log|det W|.

        Args:
            ps: state.
            state, next_state: [B, D].
            context: [B, C].
            action: [B, *action shape].
            fixed_std: in standardized units, of all dimensions [] or of each [D].

        Returns:
            Log density [B], termination probability [B], and a dict with `standardized_delta`
            [B, D].
        """
        std = check_std(fixed_std, self.latent_state_dim)
        return self._standardized_log_prob(ps, state, context, action, next_state, std)

    @compiled()
    def _standardized_log_prob(self, ps, state, context, action, next_state, std):
        log_weight, mean, term_prob = self.standardized_mixture(ps, state, context, action)
        log_prob = self.standardized_log_prob(ps, log_weight, mean, state, next_state, std)
        return log_prob, term_prob, {"standardized_delta": (next_state - state) @ ps.W}

    # ---------------------------------------------------------------- learning

    @staticmethod
    def sample_partial_trajectories(
        buffer: Any, batch_size: int, n_steps: int, device: Any = None, *, key: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Sample partial trajectories; consumes `key`.

        Args:
            buffer: a level's view of its rows, or a replay buffer.
            batch_size: number of them, B.
            n_steps: steps of each at most.
            device: unused, results are where the buffer is.
            key: random key.

        Returns:
            Row ids [n_steps, B], lengths int32 [B], and a mask float32 [B, n_steps], 1 within.
        """
        check_int("batch_size", batch_size, 1)
        check_int("n_steps", n_steps, 1)
        raw = buffers.as_replay(buffer).buffer
        return buffers.sample_partial_trajectories(raw, key, batch_size, n_steps)

    @abc.abstractmethod
    def loss(self, ps, batch, model_batch, *, params=None) -> Any:
        """Loss and individual terms; see the subclasses."""

    @abc.abstractmethod
    def learn(self, ps, buffer, n_steps, batch_size, model_batch_size, n_total_env_steps) -> Any:
        """Make updates; see the subclasses."""
