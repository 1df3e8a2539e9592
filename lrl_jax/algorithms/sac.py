"""Soft actor-critic (Haarnoja et al. 2018) as pure functions."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lrl_jax import struct
from lrl_jax.algorithms.base import (
    Batch,
    Scheduled,
    check_box_actions,
    from_unit,
    init_settings,
    observe_schedules,
    optimised,
    present_settings,
    to_unit,
)
from lrl_jax.algorithms.masked import shares
from lrl_jax.nets import (
    MLP,
    TanhGaussianPolicy,
    activation_fn,
    apply_function,
    check_compute_dtype,
    check_hidden,
    tanh_gaussian,
)
from lrl_jax.schedules import check_setting
from lrl_jax.settings import (
    check_flag,
    check_float,
    check_int,
    check_order,
    check_positive,
    optional,
    put_checked,
)
from lrl_jax.spaces import Box, Space

_ADAM = optax.scale_by_adam()


class SACState(struct.Node):
    """What SAC learns.

    Attributes:
        actor: parameters of the policy.
        critics: parameters of the critics, leaves [n_critics, ...].
        target_critics: their moving average, of the same shapes.
        log_temperature: [] float32.
        actor_opt, critic_opt, temperature_opt: states of Adam.
        settings: settings that are read while learning, float32 [] each.
        scheduled: those that are schedules, at their present value; see `present_settings`.
        action_space: what is decided (static).
    """

    actor: Any
    critics: Any
    target_critics: Any
    log_temperature: jax.Array
    actor_opt: Any
    critic_opt: Any
    temperature_opt: Any
    settings: dict[str, jax.Array]
    scheduled: dict[str, jax.Array]
    action_space: Box = struct.field(pytree_node=False)

    @property
    def temperature(self) -> jax.Array:
        """Weight of the entropy, []."""
        return jnp.exp(self.log_temperature)


@dataclasses.dataclass(frozen=True)
class SAC:
    """Settings of SAC, and its functions.

    Networks take the features of observation and conditions side by side.

    Attributes:
        hidden, activation: of actor and critics.
        n_critics: critics, whose least value counts.
        gamma: discount of a decision, or of an environment step with `smdp_discount`.
        tau: rate of the target critics' moving average.
        learning_rate: of actor and critics, a number or a schedule of environment steps.
        temperature: weight of the entropy at the start, and throughout without `learn_temperature`.
        learn_temperature: whether the temperature is fitted to the target entropy.
        temperature_learning_rate: of the temperature, a number or a schedule.
        target_entropy: of the policy over actions in [-1, 1]; None for minus their number.
        log_std_min, log_std_max: range of the policy's log std.
        smdp_discount: bootstrap with gamma to the power of the environment steps that a row took.
        compute_dtype: "bfloat16" multiplies in it; parameters and results stay float32.
    """

    hidden: tuple[int, ...] = (256, 256)
    activation: str | Callable = "relu"
    n_critics: int = 2
    gamma: float = 0.99
    tau: float = 0.005
    learning_rate: Scheduled = 3e-4
    temperature: float = 0.1
    learn_temperature: bool = True
    temperature_learning_rate: Scheduled = 1e-3
    target_entropy: float | None = None
    log_std_min: float = -5.0
    log_std_max: float = 2.0
    smdp_discount: bool = False
    compute_dtype: str = "float32"

    #: Rows of a piece of trajectory that an update takes.
    sequence_length = 1

    def __post_init__(self):
        object.__setattr__(self, "hidden", check_hidden(self.hidden))
        activation_fn(self.activation)
        check_compute_dtype(self.compute_dtype)
        put_checked(self, check_int, ("n_critics",), 1)
        put_checked(self, check_setting, ("gamma", "tau"), 0.0, 1.0)
        put_checked(self, check_setting, ("learning_rate", "temperature_learning_rate"))
        put_checked(self, check_positive, ("temperature",))
        put_checked(self, optional(check_float), ("target_entropy",))
        put_checked(self, check_flag, ("learn_temperature", "smdp_discount"))
        put_checked(self, check_float, ("log_std_min", "log_std_max"))
        check_order(self, "log_std_min", "log_std_max")

    def check(self, action_space: Space) -> None:
        """Refuse action spaces that SAC cannot act in."""
        check_box_actions("SAC", action_space)

    def _actor(self, action_dim: int) -> TanhGaussianPolicy:
        return TanhGaussianPolicy(
            action_dim, self.hidden, self.activation, self.log_std_min, self.log_std_max
        )

    @property
    def _critic(self) -> MLP:
        return MLP(self.hidden, 1, self.activation)

    # ------------------------------------------------------------------ state

    def init(
        self, key: jax.Array, obs_dim: int, condition_dim: int, action_space: Space
    ) -> SACState:
        """Create the state for features of these sizes; consumes `key`."""
        self.check(action_space)
        assert isinstance(action_space, Box)
        key_actor, key_critic = jax.random.split(key)
        x = jnp.zeros((1, obs_dim + condition_dim), jnp.float32)
        action = jnp.zeros((1, action_space.dim), jnp.float32)
        actor = self._actor(action_space.dim).init(key_actor, x)["params"]
        critics = jax.vmap(
            lambda k: self._critic.init(k, jnp.concatenate([x, action], -1))["params"]
        )(jax.random.split(key_critic, self.n_critics))
        log_temperature = jnp.log(jnp.float32(self.temperature))
        entropy = -action_space.dim if self.target_entropy is None else self.target_entropy
        return SACState(
            actor=actor,
            critics=critics,
            # A copy: the same arrays twice in a state cannot be donated.
            target_critics=jax.tree.map(jnp.copy, critics),
            log_temperature=log_temperature,
            actor_opt=_ADAM.init(actor),
            critic_opt=_ADAM.init(critics),
            temperature_opt=_ADAM.init(log_temperature),
            **init_settings(
                self,
                ("gamma", "tau", "learning_rate", "temperature_learning_rate"),
                target_entropy=entropy,
            ),
            action_space=action_space,
        )

    def init_memory(self, state: SACState) -> tuple[()]:
        """Nothing is remembered from decision to decision."""
        del state
        return ()

    def at(self, state: SACState, total: jax.Array) -> SACState:
        """Evaluate settings that are schedules at `total` environment steps, float32 []."""
        return observe_schedules(self, state, total)

    # ----------------------------------------------------------------- acting

    def act(
        self,
        state: SACState,
        memory: Any,
        obs: jax.Array,
        condition: jax.Array,
        key: jax.Array,
        explores: bool | jax.Array,
    ) -> tuple[jax.Array, Any]:
        """Decide for one instance; the mean action unless `explores`. Consumes `key`.

        Args:
            state: of `init`.
            memory: of `init_memory`.
            obs, condition: features [X], [C].
            key: typed key.
            explores: whether to explore, bool []; may be traced.

        Returns:
            Action [*A] in units of the action space, and the memory.
        """
        mean, log_std = self._policy(state, jnp.concatenate([obs, condition], dtype=jnp.float32))
        if explores is False:
            unit = jnp.tanh(mean)
        else:
            noise = jnp.where(explores, jax.random.normal(key, mean.shape, jnp.float32), 0.0)
            unit, _ = tanh_gaussian(mean, log_std, noise)
        return from_unit(state.action_space, unit), memory

    def _policy(self, state, x):
        actor = self._actor(state.action_space.dim)
        return apply_function(actor, state.actor, x, compute_dtype=self.compute_dtype)

    # --------------------------------------------------------------- learning

    def q_values(self, critics: Any, x: jax.Array, unit_action: jax.Array) -> jax.Array:
        """Values [n_critics, B] of actions [B, A] in [-1, 1] for features [B, X + C]."""
        inputs = jnp.concatenate([x, unit_action], -1, dtype=jnp.float32)
        apply = functools.partial(apply_function, self._critic, compute_dtype=self.compute_dtype)
        return jax.vmap(lambda p: apply(p, inputs)[..., 0])(critics)

    def soft_value(
        self, state: SACState, obs: jax.Array, condition: jax.Array, key: jax.Array
    ) -> jax.Array:
        """Entropy-regularised value by the target critics at one drawn action.

        Args:
            state: of `init`.
            obs, condition: features [B, X], [B, C].
            key: consumed.

        Returns:
            min Q(x, a) - temperature * log pi(a | x), [B].
        """
        x = jnp.concatenate([obs, condition], -1, dtype=jnp.float32)
        mean, log_std = self._policy(state, x)
        action, log_prob = tanh_gaussian(
            mean, log_std, jax.random.normal(key, mean.shape, jnp.float32)
        )
        return least(self.q_values(state.target_critics, x, action)) - state.temperature * log_prob

    def targets(self, state: SACState, batch: Batch, key: jax.Array) -> jax.Array:
        """r + gamma (1 - terminated) V(x'), [B]; a truncated row bootstraps. Consumes `key`."""
        value = self.soft_value(state, batch.obs_next, batch.condition_next, key)
        discount = batch.discount(present_settings(state)["gamma"], self.smdp_discount)
        return batch.rew + discount * value

    def update(
        self, state: SACState, batch: Batch, key: jax.Array, targets: jax.Array | None = None
    ) -> tuple[SACState, dict[str, jax.Array]]:
        """One step of critics, actor, temperature and target critics; consumes `key`.

        Args:
            state: of `init`.
            batch: rows, leading axis [B].
            key: typed key.
            targets: values that the critics learn, [B]; `targets(...)` if None.

        Returns:
            The state, and scalars for logging.
        """
        key_target, key_actor = jax.random.split(key)
        if targets is None:
            targets = self.targets(state, batch, key_target)
        targets = jax.lax.stop_gradient(targets)
        settings, temperature = present_settings(state), state.temperature
        x = jnp.concatenate([batch.obs, batch.condition], -1, dtype=jnp.float32)
        action = to_unit(state.action_space, batch.act)
        weight = shares(batch.mask)

        def critic_loss(critics):
            q = self.q_values(critics, x, action)
            return ((q - targets) ** 2 * weight).sum(), q

        (loss, q), grads = jax.value_and_grad(critic_loss, has_aux=True)(state.critics)
        critics, critic_opt = _step(grads, state.critic_opt, state.critics, settings)
        noise = jax.random.normal(key_actor, (*x.shape[:-1], state.action_space.dim), jnp.float32)

        def actor_loss(actor):
            mean, log_std = self._policy(state.replace(actor=actor), x)
            drawn, log_prob = tanh_gaussian(mean, log_std, noise)
            value = least(self.q_values(critics, x, drawn))
            return ((temperature * log_prob - value) * weight).sum(), (log_prob * weight).sum()

        (loss_actor, log_prob), grads = jax.value_and_grad(actor_loss, has_aux=True)(state.actor)
        actor, actor_opt = _step(grads, state.actor_opt, state.actor, settings)
        state = state.replace(
            actor=actor,
            critics=critics,
            target_critics=jax.tree.map(
                lambda t, p: t + settings["tau"] * (p - t), state.target_critics, critics
            ),
            actor_opt=actor_opt,
            critic_opt=critic_opt,
        )
        if self.learn_temperature:
            state = _fit_temperature(state, log_prob)
        return state, {
            "critic_loss": loss,
            "actor_loss": loss_actor,
            "q": (q.mean(0) * weight).sum(),
            "entropy": -log_prob,
            "temperature": state.temperature,
        }


def least(values: jax.Array) -> jax.Array:
    """Least of values [n, ...] over the leading axis, with a gradient for that one.

    The derivative of `jnp.min` divides by the number of entries that equal the result. Compiled
    code may compute the entries a second time, rounded otherwise (seen on CPUs with jaxlib 0.10.2):
    none is equal then, and the gradient is NaN.
    """
    return functools.reduce(lambda a, b: jnp.where(a <= b, a, b), values)


def _step(grads, opt_state, params, settings):
    updates, opt_state = optimised(_ADAM, grads, opt_state)
    rate = settings["learning_rate"]
    return jax.tree.map(lambda p, u: p - rate * u, params, updates), opt_state


def _fit_temperature(state: SACState, log_prob: jax.Array) -> SACState:
    """Raise the temperature where the entropy is below its target, lower it above."""
    grad = -(log_prob + present_settings(state)["target_entropy"])
    update: Any
    update, opt = optimised(_ADAM, grad, state.temperature_opt)
    rate = present_settings(state)["temperature_learning_rate"]
    return state.replace(log_temperature=state.log_temperature - rate * update, temperature_opt=opt)
