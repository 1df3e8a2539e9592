"""Predictor whose reward function trains the encoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from lrl_jax import buffers
from lrl_jax.loggers import write_scalars
from lrl_jax.models import masked_covariance, standardizer_loss, update_running_std
from lrl_jax.nets import apply_function
from lrl_jax.predictors.base import Predictor
from lrl_jax.predictors.checks import check_gamma
from lrl_jax.predictors.compiled import compiled
from lrl_jax.predictors.optim import adam_update, clip_per_tensor, init_adam
from lrl_jax.predictors.targets import n_step_windows, valid_starts
from lrl_jax.predictors.types import ModelBatch, PredictorState, TargetBatch
from lrl_jax.randomness import Salt
from lrl_jax.schedules import Schedule, check_setting
from lrl_jax.settings import (
    check_flag,
    check_float,
    check_int,
    check_positive,
    optional,
    put_checked,
)

LEARNING_RATES = {  # part of the parameters: setting
    "encoder": "encoder_lr",
    "model": "model_lr",
    "reward": "reward_lr",
    "value": "value_lr",
    "standardizer": "delta_standardizer_lr",
}


@dataclasses.dataclass(frozen=True)
class RewardPredictor(Predictor):
    """Predictor that learns the encoder through the reward function.

    In addition to the attributes of `Predictor`:

    Attributes:
        gamma: discount factor of value targets.
        tau: soft update rate of the target value network.
        k_steps: transitions K of a sampled trajectory that are trained on.
        n_steps: largest number of rewards in a value target.
        learn_encoder: whether the reward's gradient reaches the encoder.
        consistency_loss_weight, value_loss_weight, rew_loss_weight: of the losses of the model,
            the value and the reward.
        delta_standardizer_lr, encoder_lr, reward_lr, model_lr, value_lr: learning rates of Adam; a
            number, which becomes a leaf of the state, or a schedule of environment steps.
        encoder_warm_up: number of first calls of `learn` that only count: nothing is learned, the
            encoder included, as in LayeredRL's code. They return 0.0 and {}, or zeros where `learn`
            is traced.
        delta_standardizer: whether W is learned; it stays the identity otherwise.
        clip_grad_max_norm: largest norm of each tensor's gradient; None for no clipping.
        smdp_discount: discount by gamma^elapsed_env_steps, not by gamma for each decision.
        state_noise: std of noise on the states that the model starts from in training, in units of
            the running std of changes; the state it has to reach stays the true one. Teaches the
            model to lead back from where its own errors have led, such as into a wall.
    """

    gamma: float = 0.99
    tau: float = 0.005
    k_steps: int = 1
    n_steps: int = 1
    learn_encoder: bool = True
    consistency_loss_weight: float = 1.0
    value_loss_weight: float = 1.0
    rew_loss_weight: float = 1.0
    delta_standardizer_lr: Schedule | float = 0.001
    encoder_lr: Schedule | float = 0.0003
    reward_lr: Schedule | float = 0.0003
    model_lr: Schedule | float = 0.0003
    value_lr: Schedule | float = 0.0003
    encoder_warm_up: int = 20
    delta_standardizer: bool = True
    clip_grad_max_norm: float | None = 20.0
    smdp_discount: bool = dataclasses.field(default=False, kw_only=True)
    state_noise: float = dataclasses.field(default=0.0, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        put_checked(self, check_setting, ("gamma", "tau"), 0.0, 1.0)
        put_checked(self, check_setting, tuple(LEARNING_RATES.values()))
        weights = ("consistency_loss_weight", "value_loss_weight", "rew_loss_weight")
        put_checked(self, check_float, (*weights, "state_noise"), 0.0)
        put_checked(self, check_int, ("k_steps", "n_steps"), 1)
        put_checked(self, check_int, ("encoder_warm_up",), 0)
        put_checked(self, check_flag, ("learn_encoder", "delta_standardizer", "smdp_discount"))
        put_checked(self, optional(check_positive), ("clip_grad_max_norm",))

    def _settings(self):
        names = ("gamma", "tau", *LEARNING_RATES.values())
        return {name: v for name in names if not callable(v := getattr(self, name))}

    def _init_opt_state(self, params):
        return init_adam(params)

    # ---------------------------------------------------------------- sampling

    def compute_targets(
        self,
        ps: PredictorState,
        buffer: Any,
        batch_size: int,
        k_steps: int,
        n_steps: int,
        gamma: Any = 0.99,
        *,
        key: jax.Array | None = None,
    ) -> TargetBatch:
        """Sample partial trajectories and compute their n-step value targets.

        An episode that has not ended in the buffer is treated like a truncated one: the target
        bootstraps from the last stored row's own next observation.

        Args:
            ps: state.
            buffer: a level's view of its rows, or a replay buffer.
            batch_size: number of partial trajectories, B.
            k_steps: transitions of each, K; n_steps - 1 further ones are drawn.
            n_steps: largest number of rewards in a target.
            gamma: discount factor.
            key: consumed; the state's own key by default.
        """
        k_steps, n_steps = (check_int("k_steps", k_steps, 1), check_int("n_steps", n_steps, 1))
        check_int("batch_size", batch_size, 1)
        check_gamma(gamma)
        key = ps.key if key is None else key
        # Only what is read: handing the many arrays of a whole state to compiled code takes longer
        # than the targets themselves.
        ps = ps.replace(opt_state=None, params={"encoder": ps.params["encoder"]})
        gamma = np.float32(gamma) if isinstance(gamma, int | float) else gamma
        sizes = (batch_size, k_steps, n_steps)
        gamma = jnp.asarray(gamma, jnp.float32)
        return self._compute_targets(ps, buffers.as_replay(buffer), *sizes, gamma, key)

    @compiled("batch_size", "k_steps", "n_steps")
    def _compute_targets(self, ps, replay, batch_size, k_steps, n_steps, gamma, key) -> TargetBatch:
        n_rows = k_steps + n_steps - 1
        pieces, mask = replay.pieces(key, batch_size, n_rows)
        rows = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), pieces)  # [B, L]
        length, mask = mask.sum(0, dtype=jnp.int32), mask.T
        reward, terminated = rows.rew.astype(jnp.float32), rows.terminated.astype(bool)
        stored_until = jnp.arange(n_rows) >= length[:, None] - 1
        done = terminated | rows.truncated.astype(bool) | stored_until
        discount = jnp.broadcast_to(jnp.asarray(gamma, jnp.float32), reward.shape)
        if self.smdp_discount:
            discount = discount ** rows.elapsed_env_steps.astype(jnp.float32)
        # Pass where each window ends, not its value: the network then sees K points, not K + n - 1.
        column = jnp.broadcast_to(jnp.arange(n_rows), reward.shape)
        total, product, (end, end_terminated) = n_step_windows(
            reward, done, discount, (column, terminated), n_steps
        )
        valid = valid_starts(done, k_steps) & mask[:, :k_steps]
        obs_next = self._flat_obs(rows.obs_next)
        # A row's own observation where there is one: what a predictor sees may hold the level's
        # input, which changes between rows.
        followed = mask[:, 1:k_steps, None]
        inner = jnp.where(
            followed, self._flat_obs(rows.obs[:, 1:k_steps]), obs_next[:, : k_steps - 1]
        )
        first = self._flat_obs(rows.obs[:, :1])
        obs = jnp.concatenate([first, inner, obs_next[:, k_steps - 1 : k_steps]], axis=1)
        state, context = self.encode(ps, obs)
        value = total
        if self.val_func is not None:
            obs_end = jnp.take_along_axis(obs_next, end[..., None], axis=1)
            bootstrap = self.value(ps, *self.encode(ps, obs_end), target=True)
            value = total + product * jnp.where(end_terminated, 0.0, bootstrap)
        planning = rows.stored.get("planning_mode", jnp.ones(reward.shape, bool))
        return TargetBatch(
            rew=reward[:, :k_steps],
            value=jnp.where(valid, value, 0.0),
            validity_mask=valid,
            terminated=terminated[:, :k_steps],
            planning_mode=planning[:, :k_steps].astype(bool),
            act=self.model.encode_action(rows.act)[:, :k_steps],
            contexts=context[:, :k_steps],
            state=state,
            obs=obs,
            indices=pieces.id,
            traj_len=length,
        )

    @compiled("batch_size", "model_mask_fn")
    def sample_model_batch(
        self,
        ps: PredictorState,
        buffer: Any,
        batch_size: int,
        *,
        key: jax.Array | None = None,
        model_mask_fn: Callable | None = None,
    ) -> ModelBatch:
        """Sample single rows to train the model on.

        Args:
            ps: state.
            buffer: a level's view of its rows, or a replay buffer.
            batch_size: number of rows, B.
            key: consumed; the state's own key by default.
            model_mask_fn: maps rows [B] to bool [B], rows that count.
        """
        check_int("batch_size", batch_size, 1)
        key, replay = ps.key if key is None else key, buffers.as_replay(buffer)
        rows = replay.sample(key, batch_size, rewarded=False)
        state, context = self.encode(ps, rows.obs)
        state_next, context_next = self.encode(ps, rows.obs_next)
        valid = jnp.broadcast_to(replay.size > 0, (batch_size,))
        if model_mask_fn is not None:
            valid = valid & jnp.asarray(model_mask_fn(rows)).astype(bool)
        return ModelBatch(
            state=state,
            state_next=state_next,
            act=self.model.encode_action(rows.act),
            terminated=rows.terminated.astype(bool),
            context=context,
            context_next=context_next,
            validity_mask=valid,
        )

    # ---------------------------------------------------------------- learning

    @compiled()
    def loss(
        self,
        ps: PredictorState,
        batch: TargetBatch,
        model_batch: ModelBatch,
        *,
        params: dict[str, Any] | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Weighted sum of the losses, each a sum over valid rows divided by their number.

        Args:
            ps: state.
            batch: for reward and value.
            model_batch: for the model and the delta standardizer.
            params: used instead of those of `ps`, to differentiate with respect to them.

        Returns:
            The loss, and a dict of its terms and of the progress of the symmetry-breaking start.
        """
        params = ps.params if params is None else params
        return self._loss(ps, batch, model_batch, model_batch, params)

    def _loss(self, ps, batch, model_batch, start, params):
        """`loss`, with the model starting from the states of the batch `start`."""
        self._check_bound()
        k_steps = batch.rew.shape[1]
        valid = batch.validity_mask.astype(bool)
        # Finite inputs on rows that do not count: a NaN would reach the gradient through `where`.
        if self.learn_encoder and jax.tree.leaves(params["encoder"]):
            state, context = apply_function(self.encoder, params["encoder"], batch.obs[:, :k_steps])
        else:
            state, context = batch.state[:, :k_steps], batch.contexts
        state, context, act = (
            jnp.where(valid[..., None], x, 0.0) for x in (state, context, batch.act)
        )
        reward, target = (jnp.where(valid, x, 0.0) for x in (batch.rew, batch.value))
        rew_loss = value_loss = jnp.zeros((), jnp.float32)
        if self.rew_func is not None:
            error = self._reward(params["reward"], state, context, act) - reward
            rew_loss = _masked_mean(jnp.square(error), valid)
        if self.val_func is not None:
            detached = jax.lax.stop_gradient((state, context))
            error = self._value(params["value"], *detached) - target
            value_loss = _masked_mean(jnp.square(error), valid & batch.planning_mode)
        model_loss, info = self.model.loss(params["model"], ps.sigma_d, *_model_rows(start))
        delta = jax.lax.stop_gradient(model_batch.state_next - model_batch.state)
        mask = model_batch.validity_mask.astype(bool)
        total = (
            self.consistency_loss_weight * model_loss
            + self.value_loss_weight * value_loss
            + self.rew_loss_weight * rew_loss
        )
        w = params["standardizer"]
        if self.delta_standardizer:
            whitening = standardizer_loss(w, masked_covariance(delta, mask))
            info["standardizer_loss"] = whitening
            total = total + whitening
        info["mean_abs_delta"] = _masked_mean(jnp.abs(delta).mean(-1), mask)
        diagonal = jax.lax.stop_gradient(jnp.diagonal(w))
        info |= {f"standardizer_diag_{i}": diagonal[i] for i in range(min(8, len(diagonal)))}
        info |= {"model_loss": model_loss, "value_loss": value_loss, "reward_loss": rew_loss}
        info["loss"] = total
        return total, info

    def learn(
        self,
        ps: PredictorState,
        buffer: Any,
        n_steps: int,
        batch_size: int,
        model_batch_size: int,
        n_total_env_steps: int | jax.Array,
        *,
        model_mask_fn: Callable | None = None,
    ) -> tuple[PredictorState, tuple[jax.Array, dict[str, jax.Array]]]:
        """Sample batches, compute losses, update all parts.

        Args:
            ps: state; its key is advanced.
            buffer: a level's view of its rows, or a replay buffer.
            n_steps: gradient steps.
            batch_size: partial trajectories, for reward and value.
            model_batch_size: rows, for the model.
            n_total_env_steps: total of environment steps so far, for schedules and the start.
            model_mask_fn: maps rows [B] to bool [B], rows the model learns from.

        Returns:
            The new state, and (loss, info), means over the gradient steps; 0.0 and {} during
            `encoder_warm_up`, zeros where the call is traced.
        """
        sizes: dict[str, Any] = {
            "n_steps": check_int("n_steps", n_steps, 1),
            "batch_size": check_int("batch_size", batch_size, 1),
            "model_batch_size": check_int("model_batch_size", model_batch_size, 1),
        }
        sizes["n_total_env_steps"] = jnp.asarray(n_total_env_steps, jnp.float32)
        ps, result = self._learn(
            ps, buffers.as_replay(buffer), model_mask_fn=model_mask_fn, **sizes
        )
        return ps, self._told(ps, *result)

    def _told(self, ps: PredictorState, loss: Any, info: dict[str, Any]) -> tuple[Any, dict]:
        """Loss and info as `learn` returns them; written where that is due and on the host."""
        if isinstance(loss, Tracer) or not (self.encoder_warm_up or self.writer):
            return loss, info
        n_calls = int(ps.n_learn_calls)
        if n_calls <= self.encoder_warm_up:
            return 0.0, {}
        if self.writer is not None and n_calls % self.log_interval == 0:
            scalars = {f"predictor/{name}": float(value) for name, value in info.items()}
            write_scalars(self.writer, int(ps.n_total_env_steps), scalars)
        return loss, info

    @compiled("n_steps", "batch_size", "model_batch_size", "model_mask_fn")
    def _learn(
        self, ps, replay, n_steps, batch_size, model_batch_size, n_total_env_steps, model_mask_fn
    ):
        ps = self.observe_env_steps(ps, n_total_env_steps)
        active = ps.n_learn_calls >= self.encoder_warm_up if self.encoder_warm_up else True
        ps = ps.replace(n_learn_calls=ps.n_learn_calls + 1)

        def step(ps, _):
            key, key_batch, key_model = jax.random.split(ps.key, 3)
            sizes = (batch_size, self.k_steps, self.n_steps)
            gamma = self.setting(ps, "gamma")
            batch = self.compute_targets(ps, replay, *sizes, gamma, key=key_batch)
            model_batch = self.sample_model_batch(
                ps, replay, model_batch_size, key=key_model, model_mask_fn=model_mask_fn
            )
            return self._update(ps.replace(key=key), batch, model_batch, active, key_model)

        if n_steps == 1:
            ps, told = step(ps, None)
        else:
            ps, told = jax.lax.scan(step, ps, None, length=n_steps)
            told = jax.tree.map(jnp.mean, told)
        return ps, jax.tree.map(lambda x: jnp.where(active, x, 0.0), told)

    def _disturbed(self, ps, model_batch, key):
        """The batch with noise on the states it starts from; consumes `key`."""
        noise = jax.random.normal(key, model_batch.state.shape, jnp.float32)
        state = model_batch.state + self.state_noise * ps.sigma_d * noise
        return model_batch.replace(state=state)

    def _update(self, ps, batch, model_batch, active, key=None):
        """One gradient step; where `active` is False, nothing is learned."""
        delta = model_batch.state_next - model_batch.state
        mask = model_batch.validity_mask & active
        running = update_running_std(ps.running_std, delta, mask, self.model.running_std_momentum)
        ps = ps.replace(running_std=running)
        start = model_batch
        if self.state_noise and key is not None:
            start = self._disturbed(ps, model_batch, jax.random.fold_in(key, Salt.NOISE))

        def loss_fn(params):
            return self._loss(ps, batch, model_batch, start, params)

        (loss, info), grads = jax.value_and_grad(loss_fn, has_aux=True)(ps.params)
        grads = clip_per_tensor(grads, self.clip_grad_max_norm)
        rates = {part: self.setting(ps, name) for part, name in LEARNING_RATES.items()}
        params, opt_state = adam_update(grads, ps.opt_state, ps.params, rates, active)
        tau = jnp.where(active, self.setting(ps, "tau"), 0.0)
        target = jax.tree.map(lambda t, p: t + tau * (p - t), ps.target_value, params["value"])
        return ps.replace(params=params, opt_state=opt_state, target_value=target), (loss, info)


def _masked_mean(x, mask):
    """Sum of `x` over the mask divided by the number of its entries; 0 for an empty one."""
    return jnp.where(mask, x, 0.0).sum() / jnp.maximum(mask.sum(dtype=jnp.float32), 1.0)


def _model_rows(batch: ModelBatch):
    rows = (batch.state, batch.context, batch.act, batch.state_next)
    rows = jax.lax.stop_gradient(rows)
    return *rows, batch.terminated, batch.validity_mask
