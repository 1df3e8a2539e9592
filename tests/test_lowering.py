"""Programs of the presets for GPUs and TPUs, lowered here and not compiled."""

import dataclasses
import importlib.util
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny

from lrl_jax.collectors import host_engine
from lrl_jax.levels import Decision, Level
from lrl_jax.training import PRESETS, TrainConfig, sessions
from lrl_jax.training.train import Trainer

PLATFORMS = ("cuda", "tpu")
#: Calls of the platforms' own libraries: a small linear system, of the delta standardizer.
ON_DEVICE = {"LuDecomposition", "cu_lu_pivots_to_permutation", "cusolver_getrf_ffi"}


def lowered(function: Any, *args: Any, platforms: tuple[str, ...] = PLATFORMS) -> str:
    """The module of a jitted function for all of the platforms, as text."""
    return function.trace(*args).lower(lowering_platforms=platforms).as_text()


def complaints(module: str) -> list[str]:
    """What would be slow on an accelerator: calls that are not known, and numbers of 64 bits."""
    calls = set(re.findall(r"custom_call @([\w.]+)", module)) - ON_DEVICE
    calls |= set(re.findall(r"stablehlo\.(infeed|outfeed|send|recv)\b", module))
    doubles = [line for line in module.splitlines() if re.search(r"[x<]f64\b", line)]
    return sorted(calls) + doubles[:3]


def of_training(config: TrainConfig, platforms: tuple[str, ...] = PLATFORMS) -> str:
    """The chunk of ticks and updates; on the host what lies between two of its steps."""
    trainer = Trainer.build(config)
    hierarchy, key = trainer.hierarchy, jax.random.key(0)
    if not trainer.on_host:
        chunk = hierarchy.jitted(sessions._chunk, trainer, 1, False, donate=0)
        return lowered(chunk, jax.eval_shape(trainer.init, key), platforms=platforms)
    n, obs = config.n_env_instances, hierarchy.env_spec.obs_space
    trainer.env.close()
    state = hierarchy.init(key, n)
    flat = host_engine._Flat.of(state)
    between = hierarchy.jitted(host_engine._between, flat, False, True, donate=0)
    seen, no = np.zeros((n, *obs.shape), obs.dtype), np.zeros(n, bool)
    step = (seen, np.zeros(n, np.float32), no, no, {})
    args = (flat.raw(state), (step, None), (seen, None))
    return lowered(between, *args, platforms=platforms)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_lowers_and_stays_on_the_accelerator(name):
    config = tiny(name)
    if name == "halfcheetah-sac" and importlib.util.find_spec("mujoco") is None:
        config = dataclasses.replace(config, env="gymnasium/Pendulum-v1")
    module = of_training(config)
    assert "stablehlo.while" in module  # of the updates
    assert complaints(module) == []


# ------------------------------------------------------- what the tests above find


@dataclasses.dataclass(frozen=True)
class OnTheHost(Level):
    """Asks the host what to do."""

    def act(self, learner, memory, obs, ctx):
        like = jax.ShapeDtypeStruct((2,), jnp.float32)
        action = jax.pure_callback(lambda x: x[:2], like, obs, vmap_method="sequential")
        return Decision(action, memory)


@dataclasses.dataclass(frozen=True)
class Doubles(Level):
    """Computes in 64 bits."""

    def act(self, learner, memory, obs, ctx):
        with jax.enable_x64(True):
            action = obs[:2] * np.array([0.1, 0.2], np.float64)
        return Decision(action.astype(jnp.float32), memory)


@pytest.mark.parametrize("level, says", [(OnTheHost(), "callback"), (Doubles(), "f64")])
def test_a_level_that_asks_the_host_or_computes_in_64_bits_is_found(level, says):
    config = dataclasses.replace(tiny("smoke"), levels=(level,))
    # For platforms that are not here, JAX itself refuses callbacks.
    (first, *_) = complaints(of_training(config, ("cpu",)))
    assert says in first
