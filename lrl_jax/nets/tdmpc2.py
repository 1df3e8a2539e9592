"""The networks of TD-MPC2 (Hansen et al. 2024) as pure functions of their parameters."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from lrl_jax.nets.apply import apply_function
from lrl_jax.nets.mlp import check_hidden
from lrl_jax.nets.normed_mlp import NormedMLP
from lrl_jax.nets.precision import check_compute_dtype
from lrl_jax.nets.simnorm import check_groups
from lrl_jax.nets.tanh_gaussian import squash_log_std, tanh_gaussian
from lrl_jax.nets.two_hot import TwoHot
from lrl_jax.settings import (
    check_flag,
    check_float,
    check_int,
    check_kind,
    check_order,
    put_checked,
)

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class LatentModel:
    """Sizes of the networks, and what they compute.

    The encoder sees the observation, the dynamics latent state and action; all others see the
    condition as well. Actions are in [-1, 1]. Parameters are dicts with the keys "encoder",
    "dynamics", "reward", "q" (leaves [n_critics, ...]), "policy" and, with `learn_termination`,
    "termination".

    Attributes:
        latent_dim: entries L of a latent state, a multiple of `group_size`.
        group_size: entries of a group of SimNorm.
        hidden: hidden layers of all networks but the encoder.
        encoder_hidden: hidden layers of the encoder.
        n_critics: heads Q, at least 2.
        two_hot: bins of rewards and values.
        learn_termination: whether there is a termination head; without, nothing ever ends.
        log_std_min, log_std_max: range of the policy's log std.
        compute_dtype: "bfloat16" multiplies in it; parameters and results stay float32.
    """

    latent_dim: int = 512
    group_size: int = 8
    hidden: tuple[int, ...] = (512, 512)
    encoder_hidden: tuple[int, ...] = (256,)
    n_critics: int = 5
    two_hot: TwoHot = TwoHot()
    learn_termination: bool = True
    log_std_min: float = -10.0
    log_std_max: float = 2.0
    compute_dtype: str = dataclasses.field(default="float32", kw_only=True)

    def __post_init__(self):
        put_checked(self, check_int, ("latent_dim", "group_size"), 1)
        put_checked(self, check_int, ("n_critics",), 2)
        put_checked(self, check_float, ("log_std_min", "log_std_max"))
        check_groups(self.latent_dim, self.group_size)
        for name in ("hidden", "encoder_hidden"):
            hidden = check_hidden(getattr(self, name), name)
            if not hidden:
                raise ValueError(f"{name} needs at least one layer, got {hidden}.")
            object.__setattr__(self, name, hidden)
        put_checked(self, check_kind, ("two_hot",), TwoHot)
        put_checked(self, check_flag, ("learn_termination",))
        check_compute_dtype(self.compute_dtype)
        check_order(self, "log_std_min", "log_std_max")

    def _net(self, part: str, action_dim: int = 0) -> NormedMLP:
        latent, bins = self.latent_dim, self.two_hot.num_bins
        if part == "encoder":
            return NormedMLP(self.encoder_hidden, latent, self.group_size)
        if part == "dynamics":
            return NormedMLP(self.hidden, latent, self.group_size)
        if part in ("reward", "q"):
            return NormedMLP(self.hidden, bins, zero_last=True)
        return NormedMLP(self.hidden, 1 if part == "termination" else 2 * action_dim)

    def _apply(self, net: NormedMLP, params: Any, *args: Any) -> jax.Array:
        return apply_function(net, params, *args, compute_dtype=self.compute_dtype)

    def init_params(
        self, key: jax.Array, obs_dim: int, condition_dim: int, action_dim: int
    ) -> Params:
        """Create the parameters of all parts; consumes `key`."""
        latent = self.latent_dim
        sizes = {
            "encoder": obs_dim,
            "dynamics": latent + action_dim,
            "reward": latent + action_dim + condition_dim,
            "policy": latent + condition_dim,
            "termination": latent + condition_dim,
            "q": latent + action_dim + condition_dim,
        }
        if not self.learn_termination:
            del sizes["termination"]
        params = {}
        for part, part_key in zip(sizes, jax.random.split(key, len(sizes)), strict=True):
            net, x = self._net(part, action_dim), jnp.zeros((1, sizes[part]), jnp.float32)
            if part == "q":
                keys = jax.random.split(part_key, self.n_critics)
                params[part] = jax.vmap(lambda k, net=net, x=x: net.init(k, x)["params"])(keys)
            else:
                params[part] = net.init(part_key, x)["params"]
        return params

    def encode(self, params: Params, obs: jax.Array) -> jax.Array:
        """Latent states [..., L] of observations [..., X]."""
        return self._apply(self._net("encoder"), params["encoder"], obs)

    def next_latent(self, params: Params, latent: jax.Array, action: jax.Array) -> jax.Array:
        """Predicted next latent states [..., L] after actions [..., A]."""
        x = jnp.concatenate([latent, action], -1)
        return self._apply(self._net("dynamics"), params["dynamics"], x)

    def reward(
        self, params: Params, latent: jax.Array, action: jax.Array, condition: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Reward of actions [..., A]: logits [..., bins] and the number [...]."""
        x = _inputs(latent, action, condition)
        logits = self._apply(self._net("reward"), params["reward"], x)
        return logits, self.two_hot.decode(logits)

    def q_values(
        self,
        heads: Any,
        latent: jax.Array,
        action: jax.Array,
        condition: jax.Array,
        keep: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Values of actions by each head.

        Args:
            heads: parameters, leaves [Q, ...]: params["q"], the target's, or some of either.
            latent, action, condition: [..., L], [..., A], [..., C].
            keep: factors [Q, ..., hidden[0]] of dropout; None for none.

        Returns:
            Logits [Q, ..., bins] and the numbers [Q, ...].
        """
        x = _inputs(latent, action, condition)
        net = self._net("q")
        # Heads one by one: a product of two matrices each, which CPUs do faster than a batched one.
        logits = jnp.stack([
            self._apply(net, _head(heads, i), x, None if keep is None else keep[i])
            for i in range(len(jax.tree.leaves(heads)[0]))
        ])  # fmt: skip
        return logits, self.two_hot.decode(logits)

    def policy(
        self, params: Params, latent: jax.Array, condition: jax.Array, noise: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Actions [..., A] for standard normal `noise` [..., A] and their log density [...]."""
        x = _inputs(latent, condition)
        net = self._net("policy", noise.shape[-1])
        mean, raw = jnp.split(self._apply(net, params["policy"], x), 2, -1)
        return tanh_gaussian(mean, squash_log_std(raw, self.log_std_min, self.log_std_max), noise)

    def termination(self, params: Params, latent: jax.Array, condition: jax.Array) -> jax.Array:
        """Logits [...] of an episode having ended in these states; -inf without the head."""
        if not self.learn_termination:
            return jnp.full(latent.shape[:-1], -jnp.inf, jnp.float32)
        x = _inputs(latent, condition)
        return self._apply(self._net("termination"), params["termination"], x)[..., 0]


def _inputs(latent: jax.Array, *parts: jax.Array) -> jax.Array:
    """Put inputs side by side; a condition may lack the leading axes of the latent states."""
    lead = latent.shape[:-1]
    wide = [p if p.shape[:-1] == lead else jnp.broadcast_to(p, (*lead, p.shape[-1])) for p in parts]
    return jnp.concatenate([latent, *wide], -1, dtype=jnp.float32)


def _head(heads: Any, i: int) -> Any:
    return jax.tree.map(lambda p: p[i], heads)


def pick_heads(heads: Any, key: jax.Array) -> Any:
    """Draw two different heads of parameters [Q, ...], giving [2, ...]; consumes `key`.

    With two heads there is no choice, and nothing is drawn.
    """
    n = len(jax.tree.leaves(heads)[0])
    if n == 2:
        return heads
    chosen = two_of(n, key)

    def pick(p):
        return jnp.stack([jax.lax.dynamic_index_in_dim(p, i, keepdims=False) for i in chosen])

    return jax.tree.map(pick, heads)


def two_of(n: int, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Draw two different indices below `n`, at least 2, uniformly; consumes `key`."""
    u = jax.random.uniform(key, (2,), jnp.float32)
    first = jnp.minimum((u[0] * n).astype(jnp.int32), n - 1)
    step = jnp.minimum((u[1] * (n - 1)).astype(jnp.int32), n - 2)
    return first, (first + 1 + step) % n
