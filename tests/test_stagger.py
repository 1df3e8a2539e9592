"""Staggered first episodes."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrl_jax as lrl


@dataclasses.dataclass(frozen=True)
class StaggeredLevel(lrl.levels.Level):
    """Stands still, and asks for staggered episodes."""

    stagger: bool = True

    def act(self, learner, memory, obs, ctx):
        return lrl.levels.Decision(jnp.zeros(2), memory)


def first_lengths(stagger: bool, training: bool = True) -> np.ndarray:
    env, params = lrl.make("Maze2D-Simple-v0", max_steps=40)
    levels = [StaggeredLevel(stagger), lrl.levels.ActionRepeatLevel(5)]
    hierarchy = lrl.Hierarchy(levels, env, params)
    hierarchy = hierarchy if training else hierarchy.eval()
    carry = lrl.init_carry(hierarchy, jax.random.key(0), 64)
    _, out = lrl.rollout(hierarchy, carry, 80, record=True)
    truncated = np.asarray(out.transitions.truncated)
    first = truncated.argmax(0) + 1
    # Episodes behind the first have their whole length.
    assert all(truncated[f - 1 + 40, i] for i, f in enumerate(first) if f <= 40)
    return first


def test_first_episodes_are_cut_by_multiples_of_a_decision():
    lengths = first_lengths(True)
    assert set(lengths) <= set(range(5, 41, 5))
    assert len(set(lengths)) > 4


@pytest.mark.parametrize(("stagger", "training"), [(False, True), (True, False)])
def test_whole_episodes_without_stagger_and_in_tests(stagger, training):
    assert set(first_lengths(stagger, training)) == {40}
