"""Planning with a model that is only ever rolled out: costs of plans, known and learned models."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lrl_jax import struct
from lrl_jax.planners.common import PlanState
from lrl_jax.settings import (
    check_choice,
    check_flag,
    check_float,
    check_function,
    check_hashable,
    check_int,
    optional,
    put_checked,
)
from lrl_jax.spaces import Space


class Rollout(struct.Node):
    """Predicted outcome of N plans under M models with P particles each.

    Predictors may return another class with these fields.
    """

    state: Any  # [N, M, P, H+1, D], or a pytree of [N, M, P, H+1, ...] for a known model
    rew: jax.Array  # [N, M, P, H]
    term_prob: jax.Array | None = None  # [N, M, P, H] probability to end at that step
    value: jax.Array | None = None  # [N, M, P] of the last state


AuxReward = Callable[[Any, jax.Array], jax.Array]


def plan_cost(
    rollout: Any,
    plans: jax.Array,
    *,
    use_value: bool = False,
    use_termination: bool = True,
    aux_rewards: tuple[tuple[float, AuxReward], ...] = (),
) -> jax.Array:
    """Cost of plans from their predicted outcomes.

    Minus the undiscounted sum over the horizon of reward h times the probability of being alive
    before step h, minus, with `use_value`, the probability of being alive at the end times the
    value of the last state; averaged over models and particles; minus the auxiliary rewards.

    Args:
        rollout: `Rollout`, or anything with its fields.
        plans: [N, H, *A].
        use_value: whether the value of the last state counts.
        use_termination: whether termination probabilities count; else all plans stay alive.
        aux_rewards: pairs (weight, fn), fn(rollout, plans) -> [N].

    Returns:
        [N] float32.

    Raises:
        ValueError: if a field that is asked for is missing or has the wrong shape.
    """
    rew = rollout.rew
    if rew.ndim != 4 or rew.shape[0] != plans.shape[0] or rew.shape[3] != plans.shape[1]:
        raise ValueError(
            f"rewards of shape {rew.shape} do not fit {plans.shape[0]} plans of {plans.shape[1]} "
            f"steps: a rollout's rew is [N, models, particles, horizon]."
        )
    end = 1.0
    if use_termination:
        if rollout.term_prob is None:
            raise ValueError("use_termination needs a rollout with term_prob; it is None.")
        rew, end = _while_alive(rew, rollout.term_prob)
    ret = rew.sum(-1)
    if use_value:
        if rollout.value is None:
            raise ValueError("use_value needs a rollout with value; it is None.")
        ret = ret + jnp.where(end > 0, end * rollout.value, 0.0)
    cost = -ret.mean((1, 2))
    for weight, fn in aux_rewards:
        extra = fn(rollout, plans)
        if extra.shape != cost.shape:
            raise ValueError(
                f"auxiliary reward {getattr(fn, '__name__', fn)} has shape {extra.shape}, "
                f"expected one number per plan, {cost.shape}."
            )
        cost = cost - weight * extra
    return cost


def _while_alive(rew: jax.Array, term_prob: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Rewards [..., H] times the probability of being alive before, and that of the end [...]."""
    alive = jnp.cumprod(1.0 - term_prob, axis=-1)
    before = jnp.concatenate([jnp.ones_like(alive[..., :1]), alive[..., :-1]], -1)
    # Where nothing is left alive a reward counts for nothing, whatever the model makes of it.
    return jnp.where(before > 0, rew * before, 0.0), alive[..., -1]


def ensemble_disagreement(rollout: Any, plans: jax.Array) -> jax.Array:
    """Auxiliary reward [N]: variance over models of the mean predicted state.

    Averaged over particles first, summed over state entries and steps; 0 with a single model.
    """
    del plans
    total = jnp.zeros(rollout.rew.shape[0], jnp.float32)
    for state in jax.tree.leaves(rollout.state):
        state = state.reshape(*state.shape[:4], -1)
        total += state.mean(2).var(1)[:, 1:].sum((1, 2))
    return total


def stillness(rollout: Any, plans: jax.Array) -> jax.Array:
    """Auxiliary reward [N]: minus the squared predicted changes of state.

    Averaged over models and particles, summed over state entries and steps. A learned reward has
    errors that differ from place to place, and may promise a little more next to a goal than at it.
    With a small weight on this one, a plan moves only where that pays; with a large one it does not
    take detours.
    """
    total = jnp.zeros(plans.shape[0], jnp.float32)
    for state in jax.tree.leaves(rollout.state):
        change = jnp.diff(state.reshape(*state.shape[:4], -1), axis=3)
        total -= (change**2).sum((3, 4)).mean((1, 2))
    return total


def check_aux_rewards(name: str, aux_rewards: Any) -> tuple[tuple[float, AuxReward], ...]:
    """Return pairs (weight, function) as a tuple of tuples; TypeError or ValueError otherwise."""
    pairs = []
    if not isinstance(aux_rewards, tuple | list):
        raise TypeError(f"{name} must be a tuple of (weight, function), got {aux_rewards!r}.")
    for pair in aux_rewards:
        try:
            weight, fn = pair
        except (TypeError, ValueError):
            raise TypeError(f"{name} holds pairs (weight, function), got {pair!r}.") from None
        fn = check_function(f"a function in {name}", fn)
        pairs.append((check_float(f"a weight in {name}", weight), fn))
    return tuple(pairs)


def check_optimizer(name: str, value: Any, *methods: str) -> Any:
    """Return an optimiser that has those methods; TypeError for anything else."""
    missing = [method for method in methods if not callable(getattr(value, method, None))]
    if missing or isinstance(value, type):
        raise TypeError(
            f"{name} must be CEM(horizon=15), ICEM, CategoricalCEM, or have the methods "
            f"{', '.join(methods)}, got {value!r}."
        )
    return check_hashable(name, value)


@dataclasses.dataclass(frozen=True)
class BlackboxPlanner:
    """An optimiser of plans together with the model it rolls them out in.

    Written for one instance; map it with `jax.vmap`.

    Attributes:
        optimizer: `CEM`, `ICEM` or `CategoricalCEM`.
        rollout_fn: (context, plans [N, H, *A], key) -> `Rollout`; a hashable callable.
            `context` is what the caller of `plan` gives: the state of a known model, or
            (parameters, latent state, context) of a predictor. The key is the same for all
            iterations of a plan, so that candidates meet the same chance events.
        aux_rewards: pairs (weight, fn), fn(rollout, plans) -> [N] added to the return.
        use_value: whether the value of the last state counts.
        use_termination: whether predicted terminations count; None: where a rollout has them.
    """

    optimizer: Any
    rollout_fn: Callable[[Any, jax.Array, jax.Array], Any]
    aux_rewards: tuple[tuple[float, AuxReward], ...] = ()
    use_value: bool = False
    use_termination: bool | None = None

    def __post_init__(self):
        put_checked(self, check_aux_rewards, ("aux_rewards",))
        put_checked(self, check_function, ("rollout_fn",))
        put_checked(self, check_optimizer, ("optimizer",), "init", "plan", "shift")
        put_checked(self, check_flag, ("use_value",))
        put_checked(self, optional(check_flag), ("use_termination",))

    def init(self, space: Space) -> PlanState:
        """State before the first plan."""
        return self.optimizer.init(space)

    def shift(self, plan_state: PlanState) -> PlanState:
        """Warm start of the next decision: move the kept plan by one step."""
        return self.optimizer.shift(plan_state)

    def cost(self, context: Any, plans: jax.Array, key: jax.Array) -> jax.Array:
        """Costs [N] of plans [N, H, *A]; consumes `key`."""
        rollout = self.rollout_fn(context, plans, key)
        use_termination = self.use_termination
        if use_termination is None:
            use_termination = rollout.term_prob is not None
        flags = {"use_value": self.use_value, "use_termination": use_termination}
        return plan_cost(rollout, plans, aux_rewards=self.aux_rewards, **flags)

    def plan(
        self, context: Any, plan_state: PlanState, key: jax.Array, space: Space
    ) -> tuple[jax.Array, PlanState, dict[str, jax.Array]]:
        """Search for a good plan from `context`; consumes `key`.

        Returns:
            plan [H, *A], the new state, the optimiser's scalars.
        """
        key, key_cost = jax.random.split(key)
        # Iterations are compared on the same draws. As data, since JAX takes a key that is used
        # again for a mistake.
        data, impl = jax.random.key_data(key_cost), jax.random.key_impl(key_cost)
        same = functools.partial(jax.random.wrap_key_data, data, impl=impl)
        return self.optimizer.plan(
            lambda plans: self.cost(context, plans, same()), plan_state, key, space
        )


@dataclasses.dataclass(frozen=True)
class KnownModelRollout:
    """`rollout_fn` of a known, deterministic model; the context is the state of one instance.

    Attributes:
        step_fn: (state, action) -> (next state, reward, probability to end), of one instance;
            the state is any pytree.
        value_fn: state -> value, or None.
    """

    step_fn: Callable[[Any, jax.Array], tuple[Any, jax.Array, jax.Array]]
    value_fn: Callable[[Any], jax.Array] | None = None

    def __post_init__(self):
        put_checked(self, check_function, ("step_fn",))
        put_checked(self, optional(check_function), ("value_fn",))

    def __call__(self, context: Any, plans: jax.Array, key: jax.Array) -> Rollout:
        """Roll out plans [N, H, *A] with M = P = 1; `key` is not used."""
        del key
        n = plans.shape[0]
        start = jax.tree.map(lambda x: jnp.broadcast_to(x, (n, *jnp.shape(x))), context)

        def step(state, action):
            following, reward, term_prob = jax.vmap(self.step_fn)(state, action)
            following = jax.tree.map(lambda new, old: new.astype(old.dtype), following, state)
            return following, (following, jnp.float32(reward), jnp.float32(term_prob))

        end, (states, rew, term_prob) = jax.lax.scan(step, start, jnp.moveaxis(plans, 1, 0))
        value = None if self.value_fn is None else jax.vmap(self.value_fn)(end)[:, None, None]
        states = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), start, states)

        def arrange(x):
            return jnp.moveaxis(x, 0, 1)[:, None, None]

        return Rollout(jax.tree.map(arrange, states), arrange(rew), arrange(term_prob), value)


@dataclasses.dataclass(frozen=True)
class PredictorRollout:
    """`rollout_fn` of a learned model; the context is (ps, s [1, D], c [1, C]).

    Attributes:
        predictor: what `rollout_latent` is called of.
        deterministic: whether states follow the model's prediction instead of samples of it.
        mode: prediction of a mixture, its "heaviest" component or its "mean".
        with_value: whether the value of the last state is computed.
        with_termination: whether termination probabilities are computed; with `hold` they then
            count within the steps that an action is held for.
        hold: steps of the model that each action of a plan is held for.
    """

    predictor: Any
    deterministic: bool = True
    mode: str = "heaviest"
    with_value: bool = False
    with_termination: bool = True
    hold: int = 1

    def __post_init__(self):
        put_checked(self, check_flag, ("deterministic", "with_value", "with_termination"))
        put_checked(self, check_choice, ("mode",), ("heaviest", "mean"))
        put_checked(self, check_int, ("hold",), 1)

    def __call__(self, context: Any, plans: jax.Array, key: jax.Array) -> Any:
        """Roll out plans [N, H, *A]; consumes `key` unless deterministic."""
        ps, s, c = context
        n = plans.shape[0]
        rollout = self.predictor.rollout_latent(
            ps,
            jnp.broadcast_to(s, (n, s.shape[-1])),
            jnp.broadcast_to(c, (n, c.shape[-1])),
            plans if self.hold == 1 else jnp.repeat(plans, self.hold, axis=1),
            key=None if self.deterministic else key,
            deterministic=self.deterministic,
            mode=self.mode,
            with_value=self.with_value,
            with_termination=self.with_termination,
        )
        return rollout if self.hold == 1 else _in_blocks(rollout, self.hold)


def _in_blocks(rollout: Any, size: int) -> Any:
    """A rollout whose steps are blocks of `size` steps each, every `size`-th state kept."""
    rew = rollout.rew.reshape(*rollout.rew.shape[:-1], -1, size)
    term_prob = rollout.term_prob
    if term_prob is not None:
        rew, alive = _while_alive(rew, term_prob.reshape(rew.shape))
        term_prob = 1.0 - alive
    return rollout.replace(
        state=rollout.state[..., ::size, :], rew=rew.sum(-1), term_prob=term_prob
    )
