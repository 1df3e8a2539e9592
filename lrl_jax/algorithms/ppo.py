"""Proximal policy optimisation (Schulman et al. 2017) as pure functions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from lrl_jax import struct
from lrl_jax.algorithms.base import Scheduled, init_settings, observe_schedules, present_settings
from lrl_jax.algorithms.masked import n_valid
from lrl_jax.algorithms.on_policy import advantages, permutations
from lrl_jax.algorithms.policy_heads import PolicyHead, policy_head
from lrl_jax.nets import activation_fn, check_compute_dtype, check_hidden
from lrl_jax.nets.orthogonal_mlp import Pair, init_orthogonal, mlp
from lrl_jax.schedules import check_setting
from lrl_jax.settings import (
    check_flag,
    check_float,
    check_int,
    check_positive,
    optional,
    put_checked,
)
from lrl_jax.spaces import Box, Discrete, Space

#: Rows whose values are computed at a time, so that they stay in fast memory.
PIECE = 4096
METRICS = ("policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction")
ERRORS = ("first_ratio_error", "log_prob_error")
MASK = -2  # column of the mask in the rows of an update
BETA1, BETA2 = 0.9, 0.999  # of Adam


class PPOBatch(struct.Node):
    """A rollout's rows in time order, as features: T rows of each of n instances.

    Attributes:
        obs, condition: features of what was decided on, float32 [T, n, X] and [T, n, C].
        act: actions as decided, [T, n, *A].
        log_prob: of the action under the policy that chose it, float32 [T, n].
        version: the `version` of that policy's state, int32 [T, n].
        rew: accumulated over the row, float32 [T, n].
        obs_next, condition_next: features of the true next observation, [T, n, X] and [T, n, C].
        terminated: bool [T, n].
        ended: terminated or truncated, bool [T, n].
        continues: the instance's next row begins where this one ends, with the same observation and
            condition, bool [T, n]: its value serves for both. False in the last row.
        elapsed_env_steps: environment steps of the row, int32 [T, n].
        mask: rows that count, bool [T, n]; those of an instance follow each other.
    """

    obs: jax.Array
    condition: jax.Array
    act: jax.Array
    log_prob: jax.Array
    version: jax.Array
    rew: jax.Array
    obs_next: jax.Array
    condition_next: jax.Array
    terminated: jax.Array
    ended: jax.Array
    continues: jax.Array
    elapsed_env_steps: jax.Array
    mask: jax.Array


class Adam(struct.Node):
    """State of Adam (Kingma and Ba 2015) over all parameters as one vector.

    Attributes:
        mean, square: moving averages of gradients and their squares, float32 [P].
        count: int32 [], steps so far.
    """

    mean: jax.Array
    square: jax.Array
    count: jax.Array


class PPOState(struct.Node):
    """What PPO learns.

    Attributes:
        actor: layers of the policy's network.
        log_std: log of the standard deviation of actions in units of their bounds, float32 [D];
            [0] for Discrete actions.
        critic: layers of the value's network.
        opt: state of Adam over actor and critic side by side, and `log_std`.
        version: int32 [], updates so far; rows remember it.
        settings: settings that are read while learning, float32 [] each.
        scheduled: those that are schedules, at their present value; see `present_settings`.
        action_space: what is decided (static).
    """

    actor: Any
    log_std: jax.Array
    critic: Any
    opt: Adam
    version: jax.Array
    settings: dict[str, jax.Array]
    scheduled: dict[str, jax.Array]
    action_space: Space = struct.field(pytree_node=False)

    @property
    def params(self) -> tuple[Pair, jax.Array]:
        """All that gradients are taken of."""
        return Pair.of(self.actor, self.critic), self.log_std


@dataclasses.dataclass(frozen=True)
class PPO:
    """Settings of PPO, and its functions.

    Networks take the features of observation and conditions side by side. Defaults are those of
    Schulman et al. 2017 and of the implementations that followed it.

    Attributes:
        hidden, activation: of actor and critic.
        gamma: discount of a decision, or of an environment step with `smdp_discount`.
        gae_lambda: share of later advantages in an advantage.
        clip: the ratio of new to old probability gains nothing outside 1 - clip to 1 + clip.
        value_clip: values gain nothing by moving further than this in one update; None for any.
        n_epochs: passes over the rollout.
        n_minibatches: steps of the optimiser per pass.
        value_coefficient, entropy_coefficient: weights in the loss.
        max_grad_norm: gradients are scaled down to this global norm.
        learning_rate: of Adam, a number or a schedule of environment steps.
        normalise_advantages: to mean 0 and standard deviation 1 over the rows of an update.
        smdp_discount: bootstrap with gamma ** elapsed_env_steps.
        adam_epsilon: added to the root of Adam's second moment.
        log_std_start: log of the standard deviation at the start, in units of the actions' bounds.
        compute_dtype: "bfloat16" multiplies in it; parameters and results stay float32.
    """

    hidden: tuple[int, ...] = (64, 64)
    activation: str | Callable = "tanh"
    gamma: float = 0.99
    gae_lambda: float = 0.95
    clip: Scheduled = 0.2
    value_clip: float | None = None
    n_epochs: int = 4
    n_minibatches: int = 4
    value_coefficient: float = 0.5
    entropy_coefficient: Scheduled = 0.0
    max_grad_norm: float = 0.5
    learning_rate: Scheduled = 3e-4
    normalise_advantages: bool = True
    smdp_discount: bool = False
    adam_epsilon: float = 1e-5
    log_std_start: float = 0.0
    compute_dtype: str = "float32"

    def __post_init__(self):
        object.__setattr__(self, "hidden", check_hidden(self.hidden))
        activation_fn(self.activation)
        check_compute_dtype(self.compute_dtype)
        put_checked(self, check_setting, ("gamma", "gae_lambda"), 0.0, 1.0)
        coefficients = ("clip", "value_coefficient", "entropy_coefficient")
        put_checked(self, check_setting, ("learning_rate", "max_grad_norm", *coefficients))
        put_checked(self, optional(check_setting), ("value_clip",))
        put_checked(self, check_int, ("n_epochs", "n_minibatches"), 1)
        put_checked(self, check_flag, ("normalise_advantages", "smdp_discount"))
        put_checked(self, check_positive, ("adam_epsilon",))
        put_checked(self, check_float, ("log_std_start",))

    def check(self, action_space: Space) -> None:
        """Refuse action spaces that PPO cannot act in.

        Raises:
            TypeError: for anything but a Box or a Discrete.
        """
        if not isinstance(action_space, Box | Discrete):
            raise TypeError(f"PPO decides in a Box or a Discrete space, got {action_space}.")

    # ------------------------------------------------------------------ state

    def init(
        self, key: jax.Array, obs_dim: int, condition_dim: int, action_space: Space
    ) -> PPOState:
        """Create the state for features of these sizes; consumes `key`."""
        self.check(action_space)
        head = policy_head(action_space)
        key_actor, key_critic = jax.random.split(key)
        dim = obs_dim + condition_dim
        actor = init_orthogonal(key_actor, dim, self.hidden, head.out_dim, 0.01)
        critic = init_orthogonal(key_critic, dim, self.hidden, 1, 1.0)
        log_std = head.init(self.log_std_start)
        zeros = jnp.zeros_like(ravel_pytree((Pair.of(actor, critic), log_std))[0])
        names = ["gamma", "gae_lambda", "clip", "value_coefficient", "entropy_coefficient"]
        names += ["max_grad_norm", "learning_rate"]
        names += [] if self.value_clip is None else ["value_clip"]
        return PPOState(
            actor=actor,
            log_std=log_std,
            critic=critic,
            opt=Adam(zeros, jnp.copy(zeros), jnp.zeros((), jnp.int32)),
            version=jnp.zeros((), jnp.int32),
            **init_settings(self, names),
            action_space=action_space,
        )

    def at(self, state: PPOState, total: jax.Array) -> PPOState:
        """The state with settings that are schedules at their value for `total` steps, []."""
        return observe_schedules(self, state, total)

    # ----------------------------------------------------------------- acting

    def act(
        self,
        state: PPOState,
        obs: jax.Array,
        condition: jax.Array,
        key: jax.Array,
        explores: bool | jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """Decide for one instance. Consumes `key`.

        Args:
            state: of `init`.
            obs, condition: features [X], [C].
            key: typed key.
            explores: draw from the policy, or take its mean or most probable action; bool [].

        Returns:
            Action [*A], in units of the action space and not clipped to it, and its log-probability
            [] under the policy (of a Box: its density in units of the bounds).
        """
        head = policy_head(state.action_space)
        x = jnp.concatenate([obs, condition], -1)
        out = mlp(state.actor, x, self.activation, self.compute_dtype)
        action = head.sample(out, state.log_std, key, explores)
        log_prob, _ = head.log_prob_entropy(out, state.log_std, head.encode(action))
        return action, log_prob

    def value(self, state: PPOState, obs: jax.Array, condition: jax.Array) -> jax.Array:
        """Value [*B] of features [*B, X], [*B, C]."""
        x = jnp.concatenate([obs, condition], -1)
        return mlp(state.critic, x, self.activation, self.compute_dtype)[..., 0]

    # --------------------------------------------------------------- learning

    def values(self, state: PPOState, batch: PPOBatch) -> tuple[jax.Array, jax.Array]:
        """Values of rows, and of their next observations, [T, n] each.

        Where a row continues, the next row's value is taken. Others are computed for pieces of the
        rollout that hold one that is needed.
        """
        n = batch.rew.shape[1]
        value = self._value_pieces(state, batch.obs, batch.condition, None)
        shifted = jnp.concatenate([value[1:], jnp.zeros((1, n), jnp.float32)])
        needed = batch.mask & ~batch.continues & ~batch.terminated
        other = self._value_pieces(state, batch.obs_next, batch.condition_next, needed)
        return value, jnp.where(batch.continues, shifted, other)

    def _value_pieces(self, state, obs, condition, needed):
        """Values [T, n] of features [T, n, .] in pieces along time that stay in fast memory."""
        t, n = obs.shape[:2]
        n_pieces = _divisor(t, math.ceil(t * n / PIECE))

        def values(args):
            return self.value(state, *args)

        def piece(args):
            if needed is None:
                return values(args[:2])
            zeros = jnp.zeros(args[0].shape[:2], jnp.float32)
            return jax.lax.cond(args[2].any(), values, lambda _: zeros, args[:2])

        split = lambda x: x.reshape(n_pieces, t // n_pieces, *x.shape[1:])  # noqa: E731
        args = (obs, condition) if needed is None else (obs, condition, needed)
        if n_pieces == 1:
            return piece(args)
        return jax.lax.map(piece, jax.tree.map(split, args)).reshape(t, n)

    def advantages(
        self, state: PPOState, batch: PPOBatch
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Values, advantages and value targets of rows, float32 [T, n] each."""
        value, next_value = self.values(state, batch)
        settings = present_settings(state)
        gamma = settings["gamma"]
        discount = (
            gamma ** batch.elapsed_env_steps.astype(jnp.float32) if self.smdp_discount else gamma
        )
        advantage, target = advantages(
            batch.rew,
            value,
            next_value,
            batch.terminated,
            batch.ended,
            discount,
            settings["gae_lambda"],
            batch.mask,
        )
        return value, advantage, target

    def update(
        self, state: PPOState, batch: PPOBatch, key: jax.Array
    ) -> tuple[PPOState, dict[str, jax.Array]]:
        """All epochs over a rollout.

        Args:
            state: of `init`.
            batch: rows of the rollout.
            key: typed key, consumed.

        Returns:
            The state, and scalars for logging: means over all minibatches, and for those rows of
            the first minibatch that the present policy chose, `first_ratio_error`, the mean of
            |ratio - 1|, which is 0, and `log_prob_error`, the mean difference between stored and
            recomputed log-probabilities: of rounding, or the rows are not what was decided on.
        """
        rows = self._rows(state, batch)
        size = rows.shape[0]
        per_minibatch = math.ceil(size / self.n_minibatches)
        missing = per_minibatch * self.n_minibatches - size
        rows = (
            jnp.concatenate([rows, jnp.zeros((missing, rows.shape[1]), jnp.float32)])
            if missing
            else rows
        )
        order = permutations(key, self.n_epochs, len(rows)).reshape(-1, per_minibatch)
        steps = jnp.arange(len(order), dtype=jnp.int32)
        n_rows = jnp.maximum(rows[:, MASK].at[order].get(mode="promise_in_bounds").sum(1), 1.0)
        count = state.opt.count + 1 + steps
        n_steps = count.astype(jnp.float32)
        settings = present_settings(state)
        rate = settings["learning_rate"] * jnp.sqrt(1.0 - BETA2**n_steps) / (1.0 - BETA1**n_steps)
        epsilon = self.adam_epsilon * jnp.sqrt(1.0 - BETA2**n_steps)
        params, unravel = ravel_pytree(state.params)

        def step(carry, minibatch):
            params, mean, square = carry
            index, n_rows, is_first, rate, epsilon = minibatch
            columns = rows.at[index].get(mode="promise_in_bounds").T

            def loss(params):
                return self._loss(state, unravel(params), columns, n_rows, is_first)

            grads, metrics = jax.grad(loss, has_aux=True)(params)
            norm = jnp.sqrt((grads * grads).sum())
            most = settings["max_grad_norm"]
            grads = grads * jnp.where(norm > most, most / norm, 1.0)
            mean = BETA1 * mean + (1.0 - BETA1) * grads
            square = BETA2 * square + (1.0 - BETA2) * grads * grads
            params = params - rate * mean / (jnp.sqrt(square) + epsilon)
            return (params, mean, square), metrics

        carry = (params, state.opt.mean, state.opt.square)
        minibatches = (order, n_rows, steps == 0, rate, epsilon)
        (params, mean, square), metrics = jax.lax.scan(step, carry, minibatches)
        pair, log_std = unravel(params)
        actor, critic = pair.split()
        state = state.replace(
            actor=actor,
            log_std=log_std,
            critic=critic,
            opt=Adam(mean, square, count[-1]),
            version=state.version + 1,
        )
        n = len(METRICS)
        means: dict[str, jax.Array] = dict(zip(METRICS, metrics[:, :n].mean(0), strict=True))
        return state, means | dict(zip(ERRORS, metrics[0, n:], strict=True))

    def _rows(self, state: PPOState, batch: PPOBatch) -> jax.Array:
        """All that the loss needs of a row side by side, float32 [T * n, .], for one gather."""
        value, advantage, target = self.advantages(state, batch)
        mask = batch.mask
        if self.normalise_advantages:
            n = n_valid(mask)
            advantage = advantage - advantage.sum() / n
            variance = jnp.where(mask, advantage**2, 0.0).sum() / n
            advantage = advantage / (jnp.sqrt(variance) + 1e-8)
        present = mask & (batch.version == state.version)
        action = policy_head(state.action_space).encode(batch.act)
        scalars = (batch.log_prob, value, advantage, target, mask, present)  # MASK is among them
        parts = [batch.obs, batch.condition, action, *(x[..., None] for x in scalars)]
        rows = jnp.concatenate([p.astype(jnp.float32) for p in parts], -1)
        rows = jnp.where(mask[..., None], rows, 0.0)
        return rows.reshape(-1, rows.shape[-1])

    def _loss(
        self,
        state: PPOState,
        params: Any,
        columns: jax.Array,
        n_rows: jax.Array,
        is_first: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """Loss [] of a minibatch, the columns of `_rows` [., B]; METRICS and ERRORS as a vector."""
        pair, log_std = params
        head: PolicyHead = policy_head(state.action_space)
        settings = present_settings(state)
        dim = columns.shape[0] - head.action_dim - 6
        x, action = columns[:dim], columns[dim : dim + head.action_dim]
        log_prob_old, value_old, advantage, target, mask, present = columns[-6:]
        out, value = pair.columns(x, self.activation, self.compute_dtype)
        value = value[0]

        log_prob, entropy = head.log_prob_entropy(out, log_std, action)
        log_prob_error = jnp.abs(log_prob - log_prob_old) * present
        # Rounding differs between acting and learning. Where the policy is still the same, so is
        # the probability.
        same = is_first & (present > 0)
        log_prob_old = jnp.where(same, jax.lax.stop_gradient(log_prob), log_prob_old)
        log_ratio = log_prob - log_prob_old
        ratio = jnp.exp(log_ratio)
        clip = settings["clip"]
        clipped = jnp.clip(ratio, 1.0 - clip, 1.0 + clip)
        policy_loss = -jnp.minimum(ratio * advantage, clipped * advantage)
        error = (value - target) ** 2
        if self.value_clip is not None:
            most = settings["value_clip"]
            near = value_old + jnp.clip(value - value_old, -most, most)
            error = jnp.maximum(error, (near - target) ** 2)

        # All sums over the batch are one product.
        away = jnp.abs(ratio - 1.0)
        each = (policy_loss, 0.5 * error, entropy, ratio - 1.0 - log_ratio)
        each = (*each, (away > clip).astype(jnp.float32), away * present, log_prob_error)
        means = jnp.stack([jnp.where(mask > 0, x, 0.0) for x in each]) @ (
            mask.astype(jnp.float32) / n_rows
        )
        loss = (
            means[0]
            + settings["value_coefficient"] * means[1]
            - settings["entropy_coefficient"] * means[2]
        )
        return loss, means


def _divisor(number: int, least: int) -> int:
    """The smallest divisor of `number` that is at least `least`, or `number`."""
    return next(d for d in range(min(least, number), number + 1) if number % d == 0)
