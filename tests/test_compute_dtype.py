"""Networks that multiply in bfloat16: all that is kept stays float32."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny

from lrl_jax.algorithms import DQN, PPO, SAC, TDMPC2
from lrl_jax.models import ProbabilisticEnsemble
from lrl_jax.nets import (
    MLP,
    DuelingMLP,
    MixtureNetwork,
    NormedMLP,
    RewardFunction,
    ValueFunction,
    apply_function,
    init_function,
)
from lrl_jax.nets.orthogonal_mlp import Pair, init_orthogonal, mlp
from lrl_jax.setting_trees import with_settings
from lrl_jax.training import PRESETS, preset, sessions, to_json
from lrl_jax.training.train import Trainer

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (32, 6))
PARTS = (X[:, :3], X[:, 3:])
MODULES = {
    "MLP": (MLP((64, 64), 3, "tanh"), (X,)),
    "DuelingMLP": (DuelingMLP(3, (64, 64), "tanh"), (X,)),
    "NormedMLP": (NormedMLP((64, 64), 16, group_size=8), (X,)),
    "MixtureNetwork": (MixtureNetwork(3, 2, (64, 64), "tanh"), (X,)),
    "RewardFunction": (RewardFunction(activation="tanh", use_context=False), (*PARTS, X)),
}


def check_alike(function, params):
    """`function(params, compute_dtype)`: outputs and gradients differ by rounding, no more."""

    @functools.partial(jax.jit, static_argnums=1)
    def computed(params, compute_dtype):
        """Outputs, and their derivatives backwards and forwards."""
        run = functools.partial(function, compute_dtype=compute_dtype)
        out, back = jax.vjp(run, params)
        waves = jax.tree.map(lambda x: jnp.cos(jnp.arange(x.size)).reshape(x.shape), out)
        return out, back(waves), jax.jvp(run, (params,), (params,))[1]

    exact, rounded = (jax.tree.leaves(computed(params, x)) for x in ("float32", "bfloat16"))
    for x, y in zip(exact, rounded, strict=True):
        assert x.dtype == y.dtype == jnp.float32 and jnp.isfinite(y).all()
        # Where terms cancel, the error is large beside a number, and not beside all of them.
        assert jnp.linalg.norm(y - x) <= 0.1 * jnp.linalg.norm(x)
    assert any((x != y).any() for x, y in zip(exact, rounded, strict=True))


@pytest.mark.parametrize("name", MODULES)
def test_modules_differ_by_rounding_alone(name):
    module, args = MODULES[name]
    params = init_function(module, KEY, *args)
    check_alike(
        lambda p, compute_dtype: apply_function(module, p, *args, compute_dtype=compute_dtype),
        params,
    )


def test_pairs_of_networks_differ_by_rounding_alone():
    first, second = (init_orthogonal(k, 6, (64, 64), 3, 1.0) for k in jax.random.split(KEY))
    check_alike(lambda p, compute_dtype: mlp(p, X, "tanh", compute_dtype), first)
    pair = Pair.of(first, second)
    check_alike(lambda p, compute_dtype: p.columns(X.T, "tanh", compute_dtype), pair)


def test_modules_bring_their_own():
    params = init_function(ValueFunction(), KEY, *PARTS)
    own = apply_function(ValueFunction(compute_dtype="bfloat16"), params, *PARTS)
    given = apply_function(ValueFunction(), params, *PARTS, compute_dtype="bfloat16")
    np.testing.assert_array_equal(own, given)
    assert (own != apply_function(ValueFunction(), params, *PARTS)).any()


# ---------------------------------------------------------------- in training

_MODEL = "levels.0.predictor_factory.partial_model.compute_dtype"
_REWARD = "levels.0.predictor_factory.partial_rew_func.compute_dtype"
TRAINED = {
    "pendulum-sac": ["levels.0.algorithm.compute_dtype"],
    "cartpole-dqn": ["levels.0.algorithm.compute_dtype"],
    "cartpole-ppo": ["levels.0.algorithm.compute_dtype"],
    "pendulum-tdmpc2": ["levels.0.algorithm.compute_dtype"],
    "smoke": [_MODEL, _REWARD],
}
N_OTHERS = {
    "pendulum-sac": 0,
    "cartpole-dqn": 0,
    "cartpole-ppo": 2,
    "pendulum-tdmpc2": 14,
    "smoke": 1,
}


def dots(module: str) -> tuple[list[str], list[str]]:
    """Products of a lowered module, those of bfloat16 and the rest."""
    lines = [line for line in module.splitlines() if "stablehlo.dot_general" in line]
    rounded = [x for x in lines if re.search(r": \(tensor<\S*bf16>, tensor<\S*bf16>\)", x)]
    return rounded, [x for x in lines if x not in rounded]


@pytest.mark.parametrize("name", TRAINED)
def test_training_multiplies_in_bfloat16_and_keeps_float32(name):
    config = with_settings(tiny(name), dict.fromkeys(TRAINED[name], "bfloat16"))
    trainer = Trainer.build(config)
    carry = jax.eval_shape(trainer.init, KEY)
    chunk: Any = trainer.hierarchy.jitted(sessions._chunk, trainer, 1, False, donate=0)
    traced = chunk.trace(carry)
    rounded, rest = dots(traced.lower(lowering_platforms=("cuda",)).as_text())
    # Backwards too: a network's products in float32 would be among the rest, which is what
    # TD-MPC2's bins, weights of losses and the like take.
    assert len(rounded) > 10 and len(rest) == N_OTHERS[name]
    after, _ = traced.out_info
    floats = [x for x in jax.tree.leaves((carry, after)) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert {str(x.dtype) for x in floats} == {"float32"}


def test_presets_are_as_they_were():
    for name in PRESETS:
        assert "bfloat16" not in to_json(preset(name))


@pytest.mark.parametrize(
    "make", [SAC, DQN, PPO, TDMPC2, ProbabilisticEnsemble, RewardFunction, ValueFunction]
)
def test_other_dtypes_are_refused(make):
    assert make(compute_dtype="bfloat16").compute_dtype == "bfloat16"
    with pytest.raises(ValueError, match="compute_dtype.*float32.*bfloat16.*float16"):
        make(compute_dtype="float16")
