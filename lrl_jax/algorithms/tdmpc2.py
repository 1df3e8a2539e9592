"""TD-MPC2 (Hansen et al. 2024) as pure functions: learning in latent space, planning by MPPI."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lrl_jax import struct
from lrl_jax.algorithms.base import (
    Batch,
    Scheduled,
    check_box_actions,
    init_settings,
    observe_schedules,
    optimised,
    present_settings,
    to_unit,
)
from lrl_jax.algorithms.latent_planning import LatentPlanner
from lrl_jax.algorithms.masked import row_means, update_scale
from lrl_jax.nets.normed_mlp import dropout_factors
from lrl_jax.nets.tdmpc2 import Params, pick_heads
from lrl_jax.planners.mppi import MPPI, MPPIMemory
from lrl_jax.schedules import check_setting
from lrl_jax.settings import check_flag, check_float, check_positive, put_checked
from lrl_jax.spaces import Box, Space

_SCHEDULED = (
    "learning_rate",
    "policy_learning_rate",
    "encoder_rate_factor",
    "gamma",
    "tau",
    "rho",
    "entropy_coefficient",
)


class TDMPC2State(struct.Node):
    """What TD-MPC2 learns.

    Attributes:
        params: parameters of each part, see `LatentModel`.
        target_q: moving average of params["q"].
        model_opt, policy_opt: states of the optimisers of all parts but the policy, and of it.
        scale: [] float32, running spread S of the values, by which the policy's are divided.
        settings: settings that are read while learning and planning, float32 [] each.
        scheduled: those that are schedules, at their present value; see `present_settings`.
        action_space, obs_dim, condition_dim: sizes (static).
    """

    params: Params
    target_q: Any
    model_opt: Any
    policy_opt: Any
    scale: jax.Array
    settings: dict[str, jax.Array]
    scheduled: dict[str, jax.Array]
    action_space: Box = struct.field(pytree_node=False)
    obs_dim: int = struct.field(pytree_node=False)
    condition_dim: int = struct.field(pytree_node=False)


@dataclasses.dataclass(frozen=True)
class TDMPC2(LatentPlanner):
    """Settings of TD-MPC2, and its functions; the defaults are the paper's.

    Attributes:
        (of `LatentModel` and `LatentPlanner`): networks and planning. The planner's horizon H is
            that of learning as well.
        gamma: discount of a decision, or of an environment step with `smdp_discount`.
        tau: rate of the moving averages of target critics and S.
        rho: weight of a step of the horizon, relative to the one before.
        learning_rate: of all parts but the policy, a number or a schedule of environment steps.
        encoder_rate_factor: the encoder learns at that multiple of it.
        policy_learning_rate: learning rate of the policy, a number or a schedule.
        entropy_coefficient: weight of the policy's entropy.
        consistency_weight, reward_weight, value_weight, termination_weight: of the losses.
        dropout: rate in the first layer of the critics.
        max_grad_norm: global norm that gradients are clipped to.
        smdp_discount: targets bootstrap with gamma to the power of the environment steps that a row
            took. Plans are rolled out by decisions, and discount by decisions.
    """

    gamma: Scheduled = 0.99
    tau: Scheduled = 0.01
    rho: Scheduled = 0.5
    learning_rate: Scheduled = 3e-4
    encoder_rate_factor: Scheduled = 0.3
    policy_learning_rate: Scheduled = 3e-4
    entropy_coefficient: Scheduled = 1e-4
    consistency_weight: float = 20.0
    reward_weight: float = 0.1
    value_weight: float = 0.1
    termination_weight: float = 0.05
    dropout: float = 0.01
    max_grad_norm: float = 20.0
    smdp_discount: bool = False

    def __post_init__(self):
        super().__post_init__()
        for name in _SCHEDULED:
            high = {"gamma": 1.0, "tau": 1.0, "rho": 1.0}.get(name, float("inf"))
            object.__setattr__(self, name, check_setting(name, getattr(self, name), 0.0, high))
        weights = ("consistency", "reward", "value", "termination")
        put_checked(self, check_float, tuple(f"{name}_weight" for name in weights), 0.0)
        put_checked(self, check_float, ("dropout",), 0.0, 0.5)
        put_checked(self, check_positive, ("max_grad_norm",))
        put_checked(self, check_flag, ("smdp_discount",))
        if self.planner.horizon < 2:
            raise ValueError(
                f"TD-MPC2 learns from pieces of as many rows as the planner's horizon, at least 2, "
                f"got horizon={self.planner.horizon}."
            )

    @classmethod
    def small(cls, **settings: Any) -> TDMPC2:
        """A preset that learns on a CPU; `settings` override it."""
        preset = dict(
            latent_dim=64,
            hidden=(128, 128),
            encoder_hidden=(128,),
            n_critics=2,
            planner=MPPI(num_samples=64, num_policy_samples=4, num_elites=8, n_iterations=4),
        )
        return cls(**{**preset, **settings})

    @property
    def sequence_length(self) -> int:
        """Rows of a piece of trajectory that an update takes: the horizon H."""
        return self.planner.horizon

    def check(self, action_space: Space) -> None:
        """Refuse action spaces that TD-MPC2 cannot act in."""
        check_box_actions("TD-MPC2", action_space)

    # ------------------------------------------------------------------ state

    def _optimizer(self, epsilon: float) -> optax.GradientTransformation:
        clip = optax.clip_by_global_norm(self.max_grad_norm)
        # On one vector: a few kernels, quick to compile, instead of several for each array.
        return optax.flatten(optax.chain(clip, optax.scale_by_adam(eps=epsilon)))

    @property
    def _model_optimizer(self) -> optax.GradientTransformation:
        return self._optimizer(1e-8)

    @property
    def _policy_optimizer(self) -> optax.GradientTransformation:
        return self._optimizer(1e-5)

    def init(
        self, key: jax.Array, obs_dim: int, condition_dim: int, action_space: Space
    ) -> TDMPC2State:
        """Create the state for features of these sizes; consumes `key`."""
        self.check(action_space)
        assert isinstance(action_space, Box)
        params = self.init_params(key, obs_dim, condition_dim, action_space.dim)
        return TDMPC2State(
            params=params,
            # A copy: the same arrays twice in a state cannot be donated.
            target_q=jax.tree.map(jnp.copy, params["q"]),
            model_opt=self._model_optimizer.init(_without_policy(params)),
            policy_opt=self._policy_optimizer.init(params["policy"]),
            scale=jnp.ones((), jnp.float32),
            **init_settings(self, _SCHEDULED, temperature=self.planner.temperature),
            action_space=action_space,
            obs_dim=obs_dim,
            condition_dim=condition_dim,
        )

    def init_memory(self, state: TDMPC2State) -> MPPIMemory:
        """What one instance remembers from decision to decision: the last plan's mean."""
        return self.planner.init(state.action_space.dim)

    def at(self, state: TDMPC2State, total: jax.Array) -> TDMPC2State:
        """Evaluate settings that are schedules at `total` environment steps, float32 []."""
        return observe_schedules(self, state, total)

    # ----------------------------------------------------------------- acting

    def act(
        self,
        state: TDMPC2State,
        memory: MPPIMemory,
        obs: jax.Array,
        condition: jax.Array,
        key: jax.Array,
        explores: bool | jax.Array,
    ) -> tuple[jax.Array, MPPIMemory]:
        """Plan for one instance and decide.

        Args:
            state: of `init`.
            memory: of `init_memory`, or of the last decision.
            obs: features [X].
            condition: features [C], or [H + 1, C] if they change over the horizon.
            key: typed key; evaluation does not use it.
            explores: whether to explore; else the same inputs give the same action.

        Returns:
            Action [*A] in units of the action space, and the memory.
        """
        return self.plan(state, memory, self.encode(state.params, obs), condition, key, explores)

    # --------------------------------------------------------------- learning

    def td_targets(
        self, state: TDMPC2State, batch: Batch, next_latents: jax.Array, key: jax.Array
    ) -> jax.Array:
        """r + gamma (1 - terminated) min of two random target Qs, of an action of the policy.

        A truncated row bootstraps.

        Args:
            state: of `init`.
            batch: rows [..., ...]; rewards, conditions and terminations are used.
            next_latents: encoded next observations, [..., L].
            key: consumed.

        Returns:
            [...] float32.
        """
        key_noise, key_heads = jax.random.split(key)
        shape = (*next_latents.shape[:-1], state.action_space.dim)
        noise = jax.random.normal(key_noise, shape, jnp.float32)
        heads = pick_heads(state.target_q, key_heads)
        value = self.next_value(state, heads, next_latents, batch.condition_next, noise)
        discount = batch.discount(present_settings(state)["gamma"], self.smdp_discount)
        return batch.rew + discount * value

    def next_value(
        self,
        state: TDMPC2State,
        heads: Any,
        latents: jax.Array,
        conditions: jax.Array,
        noise: jax.Array,
    ) -> jax.Array:
        """Least value [...] by `heads` of the policy's action for standard normal `noise`."""
        action, _ = self.policy(state.params, latents, conditions, noise)
        return self.q_values(heads, latents, action, conditions)[1].min(0)

    def model_loss(
        self,
        params: Params,
        settings: dict[str, jax.Array],
        batch: Batch,
        unit_actions: jax.Array,
        next_latents: jax.Array,
        targets: jax.Array,
        keep: jax.Array | None = None,
    ) -> tuple[jax.Array, tuple[jax.Array, dict[str, jax.Array]]]:
        """Loss of all parts but the policy.

        Args:
            params: parameters.
            settings: of the state.
            batch: rows [H, B].
            unit_actions: actions in [-1, 1], [H, B, A].
            next_latents: encoded next observations, [H, B, L].
            targets: of the critics, [H, B].
            keep: factors of dropout, see `q_values`.

        Returns:
            The loss, latent states [H + 1, B, L] rolled out from the first observation, and the
            losses by name.
        """
        latents = [self.encode(params, batch.obs[0])]
        for action in unit_actions:
            latents.append(self.next_latent(params, latents[-1], action))
        latents = jnp.stack(latents)
        z, z_next, c = latents[:-1], latents[1:], batch.condition
        reward_logits, _ = self.reward(params, z, unit_actions, c)
        q_logits, q = self.q_values(params["q"], z, unit_actions, c, keep)
        targets, next_latents = jax.lax.stop_gradient((targets, next_latents))
        # The bins of a target are the same for all heads.
        log_q = jax.nn.log_softmax(q_logits).mean(0)
        value_loss = -(self.two_hot.encode(targets) * log_q).sum(-1)
        errors = {
            "consistency": ((z_next - next_latents) ** 2).mean(-1),
            "reward": self.two_hot.cross_entropy(reward_logits, batch.rew),
            "value": value_loss,
        }
        horizon = len(unit_actions)
        share = settings["rho"] ** jnp.arange(horizon, dtype=jnp.float32) / horizon
        losses = {name: share @ row_means(x, batch.mask) for name, x in errors.items()}
        if self.learn_termination:
            logits = self.termination(params, z_next, batch.condition_next)
            error = optax.sigmoid_binary_cross_entropy(logits, batch.terminated)
            losses["termination"] = row_means(error, batch.mask).mean()
        loss: Any = sum(getattr(self, f"{name}_weight") * x for name, x in losses.items())
        metrics = {f"{name}_loss": x for name, x in losses.items()}
        metrics["q"] = row_means(q.mean(0), batch.mask)[0]
        return loss, (latents, metrics)

    def policy_loss(
        self,
        policy: Any,
        params: Params,
        settings: dict[str, jax.Array],
        scale: jax.Array,
        latents: jax.Array,
        conditions: jax.Array,
        mask: jax.Array,
        noise: jax.Array,
        heads: Any,
    ) -> tuple[jax.Array, tuple[jax.Array, dict[str, jax.Array]]]:
        """Minus values over S, minus the entropy, weighted by rho^t.

        Args:
            policy: its parameters, which the loss is a function of.
            params: of the other parts.
            settings: of the state.
            scale: S before these values.
            latents, conditions: [T, B, L], [T, B, C].
            mask: states that count, [T, B].
            noise: standard normal draws, [T, B, A].
            heads: critics, leaves [2, ...].

        Returns:
            The loss, S after the values of the first states, and scalars for logging.
        """
        latents, heads = jax.lax.stop_gradient((latents, heads))
        action, log_prob = self.policy({**params, "policy": policy}, latents, conditions, noise)
        value = self.q_values(heads, latents, action, conditions)[1].mean(0)
        scale = update_scale(scale, jax.lax.stop_gradient(value[0]), mask[0], settings["tau"])
        error = settings["entropy_coefficient"] * log_prob - value / scale
        steps = latents.shape[0]
        loss = (
            settings["rho"] ** jnp.arange(steps, dtype=jnp.float32) * row_means(error, mask)
        ).mean()
        entropy = -row_means(log_prob, mask)[0]
        return loss, (scale, {"policy_loss": loss, "entropy": entropy, "scale": scale})

    def update(
        self, state: TDMPC2State, batch: Batch, key: jax.Array, targets: jax.Array | None = None
    ) -> tuple[TDMPC2State, dict[str, jax.Array]]:
        """One step of the model, the policy, S and the target critics; consumes `key`.

        Args:
            state: of `init`.
            batch: rows [H, B], time major.
            key: typed key.
            targets: values that the critics learn, [H, B]; those of `td_targets` if None.

        Returns:
            The state, and scalars for logging.

        Raises:
            ValueError: if the batch is not of `sequence_length` rows.
        """
        if batch.rew.ndim != 2 or batch.rew.shape[0] != self.sequence_length:
            raise ValueError(
                f"TD-MPC2 learns from [{self.sequence_length}, B] rows, time major, got rewards "
                f"of shape {batch.rew.shape}: sample pieces of `sequence_length` rows."
            )
        settings = present_settings(state)
        keys = jax.random.split(key, 4)
        next_latents = self.encode(state.params, batch.obs_next)
        if targets is None:
            targets = self.td_targets(state, batch, next_latents, keys[0])
        keep = dropout_factors(
            keys[1], (self.n_critics, *batch.rew.shape, self.hidden[0]), self.dropout
        )
        actions = to_unit(state.action_space, batch.act)

        def model_loss(model):
            params = {**model, "policy": state.params["policy"]}
            return self.model_loss(params, settings, batch, actions, next_latents, targets, keep)

        model = _without_policy(state.params)
        (loss, (latents, metrics)), grads = jax.value_and_grad(model_loss, has_aux=True)(model)
        metrics |= {"model_loss": loss, "grad_norm": optax.global_norm(grads)}
        steps: Any
        steps, model_opt = optimised(self._model_optimizer, grads, state.model_opt)
        rates = dict.fromkeys(model, settings["learning_rate"])
        rates["encoder"] = rates["encoder"] * settings["encoder_rate_factor"]
        model = {name: _descend(model[name], steps[name], rates[name]) for name in model}

        # A state counts if the row that led there does; conditions after a piece's end do not.
        conditions = jnp.concatenate([batch.condition[:1], batch.condition_next])
        mask = jnp.concatenate([batch.mask[:1], batch.mask])
        noise = jax.random.normal(keys[2], (*mask.shape, state.action_space.dim), jnp.float32)
        (_, (scale, more)), grads = jax.value_and_grad(self.policy_loss, has_aux=True)(
            state.params["policy"],
            model,
            settings,
            state.scale,
            latents,
            conditions,
            mask,
            noise,
            pick_heads(model["q"], keys[3]),
        )
        step, policy_opt = optimised(self._policy_optimizer, grads, state.policy_opt)
        rate = settings["policy_learning_rate"]
        policy = _descend(state.params["policy"], step, rate)
        tau = settings["tau"]
        state = state.replace(
            params={**model, "policy": policy},
            target_q=jax.tree.map(lambda t, p: t + tau * (p - t), state.target_q, model["q"]),
            model_opt=model_opt,
            policy_opt=policy_opt,
            scale=scale,
        )
        return state, metrics | more


def _without_policy(params: Params) -> Params:
    return {name: part for name, part in params.items() if name != "policy"}


def _descend(params: Any, steps: Any, rate: jax.Array) -> Any:
    return jax.tree.map(lambda p, u: p - rate * u, params, steps)
