"""Operations of matrix products, counted in the traced program."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax
import numpy as np

import lrl_jax as lrl
from lrl_jax.training import TrainConfig
from lrl_jax.training.train import Trainer


def product_flops(function: Callable, *args: Any) -> float:
    """Operations of all matrix products of a call, those in loops of known length counted."""
    return _flops(jax.make_jaxpr(function)(*args).jaxpr)


def _flops(jaxpr: Any) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (left, _), _ = equation.params["dimension_numbers"]
            summed = np.prod([equation.invars[0].aval.shape[i] for i in left])
            total += 2.0 * float(summed) * float(np.prod(equation.outvars[0].aval.shape))
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        inner = [x for value in equation.params.values() for x in _jaxprs(value)]
        branches = [_flops(x) for x in inner]
        is_choice = equation.primitive.name == "cond"
        total += times * (max(branches) if is_choice and branches else sum(branches))
    return total


def _jaxprs(value: Any) -> list[Any]:
    """Those in a parameter of an equation."""
    if isinstance(value, tuple | list):
        return [x for one in value for x in _jaxprs(one)]
    value = getattr(value, "jaxpr", value)  # of a closed one
    return [value] if hasattr(value, "eqns") else []


@dataclasses.dataclass(frozen=True)
class LevelFlops:
    """Operations of a level's matrix products per environment step of training.

    Attributes:
        deciding: as if every decision were made in full, random ones included.
        learning: by updates, averaged over the run.
    """

    deciding: float
    learning: float


def of_training(config: TrainConfig) -> tuple[LevelFlops, ...]:
    """The cost of each level, the highest first, at the nominal length of its decisions."""
    trainer = Trainer.build(dataclasses.replace(config, seeds=1, sweep=(), devices=1))
    hierarchy, n = trainer.hierarchy, config.n_env_instances
    found: dict[tuple[int, str], float] = {}
    with contextlib.ExitStack() as stack:
        for kind in {type(level) for level in hierarchy.levels}:
            for name in ("act", "learn"):
                stack.enter_context(_counted(kind, name, hierarchy.levels, found))
        jax.eval_shape(lambda key: _few_steps(hierarchy, key, n), jax.random.key(0))
    result = []
    for i, (level, spec) in enumerate(zip(hierarchy.levels, hierarchy.specs_for(n), strict=True)):
        steps = spec.decision_env_steps or 1
        rows = level.update_interval
        if level.rollout_length is not None:
            rows = level.rollout_length * n
        within = min(level.learn_until, config.total_steps) - max(level.learn_from, 0.0)
        learning = found.get((i, "learn"), 0.0) * level.n_updates / (rows * steps)
        result.append(
            LevelFlops(
                found.get((i, "act"), 0.0) / steps,
                learning * max(within, 0.0) / config.total_steps,
            )
        )
    return tuple(result)


def per_step(config: TrainConfig) -> float:
    """Operations per environment step of training, of all levels."""
    return sum(level.deciding + level.learning for level in of_training(config))


def _few_steps(hierarchy: Any, key: jax.Array, n: int) -> Any:
    carry = lrl.init_carry(hierarchy, key, n)
    return lrl.rollout(hierarchy, carry, 2, learn=True)[0]


@contextlib.contextmanager
def _counted(
    kind: type, name: str, levels: tuple[Any, ...], found: dict[tuple[int, str], float]
) -> Iterator[None]:
    """Count what a method of the levels costs while a program is traced that calls it."""
    original = getattr(kind, name)

    def counting(self: Any, *args: Any) -> Any:
        flops = product_flops(lambda: original(self, *args))
        for i, level in enumerate(levels):
            if level is self:
                found[i, name] = max(found.get((i, name), 0.0), flops)
        return original(self, *args)

    with mock.patch.object(kind, name, counting):
        yield
