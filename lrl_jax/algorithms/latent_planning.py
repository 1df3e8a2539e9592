"""Planning in a learned latent space: MPPI over the model's rewards and values."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lrl_jax.algorithms.base import from_unit, present_settings
from lrl_jax.nets.tdmpc2 import LatentModel, two_of
from lrl_jax.planners.mppi import MPPI, MPPIMemory
from lrl_jax.settings import check_kind, put_checked

TerminalValue = Callable[[jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class LatentPlanner(LatentModel):
    """Plans with the networks of a `LatentModel`, written for one instance.

    States have `params`, `settings` and `scheduled` with "gamma" and "temperature" between them,
    and `action_space`, as `TDMPC2State` has.

    Attributes:
        (of `LatentModel`): sizes of the networks.
        planner: how plans are searched.
    """

    planner: MPPI = MPPI()

    def __post_init__(self):
        super().__post_init__()
        put_checked(self, check_kind, ("planner",), MPPI)

    def plan(
        self,
        state: Any,
        memory: MPPIMemory,
        latent: jax.Array,
        condition: jax.Array,
        key: jax.Array,
        explores: bool | jax.Array,
        *,
        n_steps: jax.Array | int | None = None,
        terminal_value: TerminalValue | None = None,
    ) -> tuple[jax.Array, MPPIMemory]:
        """Decide from a latent state; see `TDMPC2.act`.

        Args:
            state: what was learned.
            memory: of `init_memory`, or of the last decision.
            latent: [L].
            condition: features [C], or [H + 1, C].
            key: typed key; evaluation does not use it.
            explores: whether to explore, bool []; may be traced.
            n_steps, terminal_value: see `evaluate_plans`.

        Returns:
            Action [*A] in units of the action space, and the memory.
        """
        planner, dim = self.planner, state.action_space.dim
        conditions = self._over_horizon(condition)
        # In evaluation, candidates are drawn from a fixed key: it is deterministic.
        if explores is False:
            key = jax.random.key(0)
        key_noise, key_heads, key_elite = jax.random.split(key, 3)
        shapes = (
            (planner.n_iterations, planner.num_drawn, planner.horizon, dim),
            (planner.horizon, planner.num_policy_samples, dim),
            (planner.num_samples, dim),
            (dim,),
        )
        draws, policy_noise, value_noise, action_noise = normals(key_noise, *shapes)
        weights = self.head_weights(key_heads)
        policy_plans = self.policy_plans(state, latent, conditions, policy_noise)

        def value_fn(plans):
            return self.evaluate_plans(
                state,
                latent,
                plans,
                conditions,
                value_noise,
                weights,
                n_steps=n_steps,
                terminal_value=terminal_value,
            )

        temperature = present_settings(state)["temperature"]
        fit, memory = planner.search(memory, policy_plans, draws, value_fn, temperature)
        unit = planner.exploit(fit)
        if explores is not False:
            gumbel = jax.random.gumbel(key_elite, (planner.num_elites,), jnp.float32)
            unit = jnp.where(explores, planner.explore(fit, gumbel, action_noise), unit)
        return from_unit(state.action_space, unit), memory

    def _over_horizon(self, condition):
        """Conditions [H + 1, C] of one that holds, [C], or of those given."""
        steps = self.planner.horizon + 1
        if condition.ndim == 1:
            return jnp.broadcast_to(condition, (steps, condition.shape[0]))
        if condition.shape[0] != steps:
            raise ValueError(
                f"conditions of shape {condition.shape} do not fit a horizon of {steps - 1}: give "
                f"[C], or [{steps}, C], one for each state of a plan."
            )
        return condition

    def head_weights(self, key: jax.Array) -> jax.Array:
        """Weights [n_critics], 1/2 for two heads drawn, else 0; consumes `key`.

        Under a vmap each instance draws its own heads: weighting the outputs of all heads keeps
        their parameters, and the products with them, shared.
        """
        if self.n_critics == 2:
            return jnp.full((2,), 0.5, jnp.float32)
        first, second = two_of(self.n_critics, key)
        index = jnp.arange(self.n_critics)
        return 0.5 * ((index == first) | (index == second)).astype(jnp.float32)

    def policy_plans(
        self, state: Any, latent: jax.Array, conditions: jax.Array, noise: jax.Array
    ) -> jax.Array:
        """Plans [P, H, A] of the policy, followed in the model.

        Args:
            state: what was learned.
            latent: where plans start, [L].
            conditions: [H + 1, C].
            noise: standard normal draws, [H, P, A].
        """
        x = jnp.broadcast_to(latent, (noise.shape[1], latent.shape[-1]))
        actions = []
        for t in range(noise.shape[0]):
            if t:
                x = self.next_latent(state.params, x, actions[-1])
            actions.append(self.policy(state.params, x, conditions[t], noise[t])[0])
        return jnp.stack(actions, 1)

    def evaluate_plans(
        self,
        state: Any,
        latent: jax.Array,
        plans: jax.Array,
        conditions: jax.Array,
        noise: jax.Array,
        head_weights: jax.Array,
        *,
        n_steps: jax.Array | int | None = None,
        terminal_value: TerminalValue | None = None,
    ) -> jax.Array:
        """Value of plans: discounted rewards while alive, and the value of the last state.

        sum over t < n of gamma^t alive_t R(z_t, a_t) + gamma^n alive_n V(z_n), with
        alive_{t+1} = alive_t (1 - termination(z_{t+1})).

        Args:
            state: what was learned.
            latent: where plans start, [L].
            plans: [N, H, A] in [-1, 1].
            conditions: [H + 1, C], of the states of a plan.
            noise: standard normal draws [N, A] of the policy's action in the last state.
            head_weights: [n_critics], as of `head_weights`.
            n_steps: steps n that count, 1 to H, may be traced; None for all.
            terminal_value: (last states [N, L], V by the critics [N]) -> V [N] to use instead.

        Returns:
            [N] float32.
        """
        params, gamma = state.params, present_settings(state)["gamma"]
        n, horizon, _ = plans.shape
        latents = [jnp.broadcast_to(latent, (n, latent.shape[-1]))]
        for t in range(horizon):
            latents.append(self.next_latent(params, latents[-1], plans[:, t]))
        # One call for all steps each: large products.
        steps = jnp.stack(latents)
        c = jnp.broadcast_to(conditions[:, None], (horizon + 1, n, conditions.shape[-1]))
        _, rewards = self.reward(params, steps[:-1], jnp.moveaxis(plans, 1, 0), c[:-1])
        discount = gamma ** jnp.arange(horizon + 1, dtype=jnp.float32)[:, None]
        if self.learn_termination:
            goes_on = jax.nn.sigmoid(-self.termination(params, steps[1:], c[1:]))
            alive = jnp.concatenate([jnp.ones((1, n), jnp.float32), jnp.cumprod(goes_on, 0)])
            discount = discount * alive
        if n_steps is None:
            end = horizon
        else:
            end = jnp.clip(n_steps, 1, horizon)
            rewards = jnp.where(jnp.arange(horizon)[:, None] < end, rewards, 0.0)
        last, condition = steps[end], conditions[end]
        discount_end = jnp.broadcast_to(discount, (horizon + 1, n))[end]
        action, _ = self.policy(params, last, condition, noise)
        value = head_weights @ self.q_values(params["q"], last, action, condition)[1]
        if terminal_value is not None:
            value = terminal_value(last, value)
        return (discount[:-1] * rewards).sum(0) + discount_end * value


def normals(key: jax.Array, *shapes: tuple[int, ...]) -> list[jax.Array]:
    """Standard normal draws of several shapes by one call; consumes `key`."""
    sizes = [math.prod(shape) for shape in shapes]
    flat = jax.random.normal(key, (sum(sizes),), jnp.float32)
    out, start = [], 0
    for size, shape in zip(sizes, shapes, strict=True):
        out.append(flat[start : start + size].reshape(shape))
        start += size
    return out
