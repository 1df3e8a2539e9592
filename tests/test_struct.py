"""Pytrees with named fields."""

import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrl_jax import struct


class Point(struct.Node):
    x: jax.Array
    unit: str = struct.field(pytree_node=False, default="m")


class Moving(Point):
    speed: jax.Array | None = None


def test_a_node_is_a_frozen_pytree():
    node = Moving(jnp.zeros(2), speed=jnp.ones(2))
    assert [leaf.shape for leaf in jax.tree.leaves(node)] == [(2,), (2,)]
    moved = jax.jit(lambda p: p.replace(x=p.x + p.speed))(node)
    assert type(moved) is Moving and moved.unit == "m"
    np.testing.assert_array_equal(moved.x, [1, 1])
    with pytest.raises(dataclasses.FrozenInstanceError):
        node.x = jnp.ones(2)
    with pytest.raises(TypeError, match="z"):
        node.replace(z=1)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(moved)).x, [1, 1])


def test_static_fields_are_part_of_the_structure():
    a, b = Point(jnp.zeros(())), Point(jnp.zeros(()), unit="km")
    assert jax.tree.structure(a) != jax.tree.structure(b)
    assert jax.tree.structure(a) == jax.tree.structure(a.replace(x=jnp.ones(())))


def test_other_leaves_than_arrays():
    spec = struct.new(Point, jax.ShapeDtypeStruct((3,), jnp.float32), unit="cm")
    assert type(spec) is Point and spec.x.shape == (3,) and spec.unit == "cm"
