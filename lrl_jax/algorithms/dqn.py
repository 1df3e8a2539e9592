"""Deep Q-learning (Mnih et al. 2015), double (van Hasselt et al. 2016), as pure functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from lrl_jax import struct
from lrl_jax.algorithms.base import (
    Batch,
    Scheduled,
    init_settings,
    observe_schedules,
    optimised,
    present_settings,
)
from lrl_jax.algorithms.masked import shares
from lrl_jax.nets import (
    MLP,
    DuelingMLP,
    activation_fn,
    apply_function,
    check_compute_dtype,
    check_hidden,
)
from lrl_jax.schedules import RampSchedule, check_setting
from lrl_jax.settings import (
    check_choice,
    check_flag,
    check_int,
    check_positive,
    optional,
    put_checked,
)
from lrl_jax.spaces import Discrete, Space

_ADAM = optax.scale_by_adam()

LOSSES = ("huber", "squared")


class DQNState(struct.Node):
    """What DQN learns.

    Attributes:
        params: parameters of the network of action values.
        target_params: those of the target network.
        opt: state of Adam.
        since_target: int32 [], updates since the target network was last moved.
        settings: settings that are read while learning and acting, float32 [] each.
        scheduled: those that are schedules, at their present value; see `present_settings`.
        action_space: what is decided (static).
    """

    params: Any
    target_params: Any
    opt: Any
    since_target: jax.Array
    settings: dict[str, jax.Array]
    scheduled: dict[str, jax.Array]
    action_space: Discrete = struct.field(pytree_node=False)


@dataclasses.dataclass(frozen=True)
class DQN:
    """Settings of DQN, and its functions.

    The network takes the features of observation and conditions side by side.

    Attributes:
        hidden, activation: of the network.
        double: choose the next action by the online network, and value it by the target network;
            the target network does both without.
        dueling: split the network into value and advantages (Wang et al. 2016).
        gamma: discount of a decision, or of an environment step with `smdp_discount`.
        tau: share of the online network in the target network when that is moved; 1 copies it.
        target_interval: updates from one move of the target network to the next.
        learning_rate: a number or a schedule of environment steps.
        epsilon: probability of a uniformly random action in training, a number or a schedule.
        loss: "squared", half the square, or "huber", which is linear beyond errors of 1. Where
            values are far above 1, Huber hardly weighs the rare rows in which they are lost.
        max_grad_norm: gradients are scaled down to this global norm; None for any.
        smdp_discount: bootstrap with gamma to the power of the environment steps that a row took.
        compute_dtype: "bfloat16" multiplies in it; parameters and results stay float32.
    """

    hidden: tuple[int, ...] = (128, 128)
    activation: str | Callable = "relu"
    double: bool = True
    dueling: bool = False
    gamma: float = 0.99
    tau: float = 0.005
    target_interval: int = 1
    learning_rate: Scheduled = 1e-3
    epsilon: Scheduled = RampSchedule(1.0, 0.05, 10_000)
    loss: str = "squared"
    max_grad_norm: float | None = None
    smdp_discount: bool = False
    compute_dtype: str = "float32"

    #: Rows of a piece of trajectory that an update takes.
    sequence_length = 1

    def __post_init__(self):
        object.__setattr__(self, "hidden", check_hidden(self.hidden))
        activation_fn(self.activation)
        check_compute_dtype(self.compute_dtype)
        put_checked(self, check_flag, ("double", "dueling", "smdp_discount"))
        put_checked(self, check_setting, ("gamma", "tau", "epsilon"), 0.0, 1.0)
        put_checked(self, check_setting, ("learning_rate",))
        put_checked(self, check_int, ("target_interval",), 1)
        put_checked(self, check_choice, ("loss",), tuple(LOSSES))
        put_checked(self, optional(check_positive), ("max_grad_norm",))

    def check(self, action_space: Space) -> None:
        """Refuse action spaces that DQN cannot act in.

        Raises:
            TypeError: for anything but a Discrete.
        """
        if not isinstance(action_space, Discrete):
            raise TypeError(f"DQN decides in a Discrete space, got {action_space}: use SAC for it.")

    def _network(self, action_space: Discrete) -> nn.Module:
        if self.dueling:
            return DuelingMLP(action_space.n, self.hidden, self.activation)
        return MLP(self.hidden, action_space.n, self.activation)

    # ------------------------------------------------------------------ state

    def init(
        self, key: jax.Array, obs_dim: int, condition_dim: int, action_space: Space
    ) -> DQNState:
        """Create the state for features of these sizes; consumes `key`."""
        self.check(action_space)
        assert isinstance(action_space, Discrete)
        x = jnp.zeros((1, obs_dim + condition_dim), jnp.float32)
        params = self._network(action_space).init(key, x)["params"]
        return DQNState(
            params=params,
            # A copy: the same arrays twice in a state cannot be donated.
            target_params=jax.tree.map(jnp.copy, params),
            opt=_ADAM.init(params),
            since_target=jnp.zeros((), jnp.int32),
            **init_settings(self, ("gamma", "tau", "learning_rate", "epsilon")),
            action_space=action_space,
        )

    def init_memory(self, state: DQNState) -> tuple[()]:
        """Nothing is remembered from decision to decision."""
        del state
        return ()

    def at(self, state: DQNState, total: jax.Array) -> DQNState:
        """Evaluate settings that are schedules at `total` environment steps, float32 []."""
        return observe_schedules(self, state, total)

    # ----------------------------------------------------------------- acting

    def act(
        self,
        state: DQNState,
        memory: Any,
        obs: jax.Array,
        condition: jax.Array,
        key: jax.Array,
        explores: bool | jax.Array,
    ) -> tuple[jax.Array, Any]:
        """Decide for one instance: epsilon-greedy in training, else greedy. Consumes `key`.

        Args:
            state: of `init`.
            memory: of `init_memory`.
            obs, condition: features [X], [C].
            key: typed key.
            explores: whether to explore, bool []; may be traced.

        Returns:
            Action [], an integer of the action space, and the memory.
        """
        space = state.action_space
        q = self.q_values(state.params, space, jnp.concatenate([obs, condition], dtype=jnp.float32))
        action = jnp.argmax(q, -1).astype(space.dtype)
        if explores is not False:
            key_explore, key_action = jax.random.split(key)
            explore = (
                jax.random.uniform(key_explore, (), jnp.float32)
                < present_settings(state)["epsilon"]
            )
            action = jnp.where(explore & explores, space.sample(key_action), action)
        return action, memory

    # --------------------------------------------------------------- learning

    def q_values(self, params: Any, action_space: Discrete, x: jax.Array) -> jax.Array:
        """Values [..., A] of all actions for features [..., X + C]."""
        network = self._network(action_space)
        return apply_function(network, params, x, compute_dtype=self.compute_dtype)

    def next_value(self, state: DQNState, obs: jax.Array, condition: jax.Array) -> jax.Array:
        """Value [B] of features [B, X], [B, C] that targets take; see `double`."""
        x, space = jnp.concatenate([obs, condition], -1, dtype=jnp.float32), state.action_space
        q = self.q_values(state.target_params, space, x)
        if not self.double:
            return q.max(-1)
        return _of_action(q, jnp.argmax(self.q_values(state.params, space, x), -1))

    def targets(self, state: DQNState, batch: Batch, key: jax.Array) -> jax.Array:
        """r + gamma (1 - terminated) V(x'), [B]; a truncated row bootstraps.

        Equation of Double DQN in van Hasselt et al. 2016. `key` is not used.
        """
        del key
        value = self.next_value(state, batch.obs_next, batch.condition_next)
        discount = batch.discount(present_settings(state)["gamma"], self.smdp_discount)
        return batch.rew + discount * value

    def update(
        self, state: DQNState, batch: Batch, key: jax.Array, targets: jax.Array | None = None
    ) -> tuple[DQNState, dict[str, jax.Array]]:
        """One step of the network, and of the target network where it is due.

        Args:
            state: of `init`.
            batch: rows, leading axis [B].
            key: typed key, consumed.
            targets: values that the network learns, [B]; `targets(...)` if None.

        Returns:
            The state, and scalars for logging.
        """
        if targets is None:
            targets = self.targets(state, batch, key)
        targets = jax.lax.stop_gradient(targets)
        x = jnp.concatenate([batch.obs, batch.condition], -1, dtype=jnp.float32)
        weight = shares(batch.mask)

        def loss_fn(params):
            q = _of_action(self.q_values(params, state.action_space, x), batch.act)
            error = q - targets
            each = optax.huber_loss(error) if self.loss == "huber" else 0.5 * error**2
            return (each * weight).sum(), q

        (loss, q), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        if self.max_grad_norm is not None:
            scale = jnp.minimum(1.0, self.max_grad_norm / (optax.global_norm(grads) + 1e-12))
            grads = jax.tree.map(lambda g: g * scale, grads)
        updates, opt = optimised(_ADAM, grads, state.opt)
        settings = present_settings(state)
        rate = settings["learning_rate"]
        params = jax.tree.map(lambda p, u: p - rate * u, state.params, updates)
        state = self._move_target(state.replace(params=params, opt=opt))
        return state, {
            "q_loss": loss,
            "q": (q * weight).sum(),
            "epsilon": settings["epsilon"],
        }

    def _move_target(self, state: DQNState) -> DQNState:
        since = state.since_target + 1
        due = since >= self.target_interval
        share = jnp.where(due, present_settings(state)["tau"], 0.0)
        # In this form a share of 1 copies, and one of 0 keeps, bit for bit.
        target = jax.tree.map(
            lambda t, p: (1.0 - share) * t + share * p, state.target_params, state.params
        )
        return state.replace(target_params=target, since_target=jnp.where(due, 0, since))


def _of_action(q: jax.Array, action: jax.Array) -> jax.Array:
    """Entry of q [B, A] that belongs to each action [B]."""
    return jnp.take_along_axis(q, action[..., None], -1)[..., 0]
