"""Devices by name, and meshes of devices that share the instances between them.

Instances are independent, so each device steps its own: leaves [n, ...] are split over the mesh
axis `AXIS`, learners are copies. XLA's partitioner does the rest (Xu et al. 2021, "GSPMD"), except
three places where it would move whole buffers, which run as a program of each device on its own
part: writing replay, reading it, and deciding for active instances.

The mesh is that of the context (`jax.set_mesh`, or `use`); without one, all here does nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import jax
from jax.core import Tracer
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lrl_jax.settings import check_int

AXIS = "instances"
#: Axis of a mesh over which agents, trained side by side, are split.
AGENTS = "agents"
#: Leaves of a learner with this many entries or more are split over the devices, not copied.
LARGE_LEAF = 2**24


def resolve_device(device: Any) -> Any:
    """A device or sharding; a string such as "cpu" or "gpu:1" names one.

    Raises:
        TypeError: for anything else.
        ValueError: if there is no such device.
    """
    if device is None or isinstance(device, jax.Device | jax.sharding.Sharding):
        return device
    if not isinstance(device, str):
        raise TypeError(
            f'device must be a string such as "cpu" or "gpu:1", a jax.Device or a Sharding, got a '
            f"{type(device).__name__}."
        )
    platform, _, index = device.partition(":")
    platform = {"gpu": "cuda"}.get(platform, platform)
    found = jax.devices(platform)
    if index and not (index.isdigit() and int(index) < len(found)):
        raise ValueError(
            f"there is no device {device!r}: {platform} has {len(found)}, from 0 to "
            f"{len(found) - 1}."
        )
    return found[int(index or 0)]


def wait_for_processes(name: str) -> None:
    """Wait until all processes have come to this place, if there are several."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def make_mesh(n_devices: int | None = None, axis: str = AXIS) -> Mesh:
    """A mesh of devices over which instances are split.

    Args:
        n_devices: how many of all processes' devices, the first ones; None for all.
        axis: what is split, `AXIS` or `AGENTS`.

    Raises:
        ValueError: if there are not as many, or some processes would have none.
    """
    devices = jax.devices()
    n = len(devices) if n_devices is None else check_int("n_devices", n_devices, 1)
    if n > len(devices):
        raise ValueError(
            f"{n} devices were asked for, but there are {len(devices)} ({devices[0].platform}): "
            f"on a CPU, set JAX_NUM_CPU_DEVICES={n} in the environment before JAX is imported."
        )
    if len({device.process_index for device in devices[:n]}) < jax.process_count():
        raise ValueError(
            f"{n} devices leave some of the {jax.process_count()} processes without one: use all "
            f"{len(devices)}."
        )
    return jax.make_mesh((n,), (axis,), (AxisType.Auto,), devices=devices[:n])


def check_divides(n: int, n_devices: int) -> None:
    """Refuse numbers of instances that devices cannot share evenly."""
    if n % n_devices:
        lower = max(n - n % n_devices, n_devices)
        raise ValueError(
            f"{n} instances cannot be shared evenly by {n_devices} devices: use "
            f"n_env_instances={lower} or {n - n % n_devices + n_devices}."
        )


def use(mesh: Mesh | None) -> contextlib.AbstractContextManager:
    """Make `mesh` that of the context; None leaves the context unchanged."""
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def n_shards() -> int:
    """Devices that share the instances here; 1 within the program of one device."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if AXIS in mesh.manual_axes else mesh.shape.get(AXIS, 1)


def mesh_of(tree: Any) -> Mesh | None:
    """The mesh that the leaves of a tree are split over; None if they are on one device."""
    for leaf in jax.tree.leaves(tree):
        sharding = None if isinstance(leaf, Tracer) else getattr(leaf, "sharding", None)
        if isinstance(sharding, NamedSharding) and AXIS in sharding.mesh.axis_names:
            assert isinstance(sharding.mesh, Mesh)
            return sharding.mesh
    return None


# ---------------------------------------------------------------------- specs


def by_instance(n: int) -> P:
    """Spec of leaves [n, ...]: split where the devices divide n evenly."""
    return P(AXIS) if n % n_shards() == 0 else P()


def of_learner(learner: Any) -> Any:
    """Specs of a learner's leaves: a copy on each device, large ones split."""
    shards = n_shards()

    def spec(leaf):
        if leaf.size < LARGE_LEAF:
            return P()
        sizes = [(size, -axis) for axis, size in enumerate(leaf.shape) if size % shards == 0]
        return P(*[None] * -max(sizes)[1], AXIS) if sizes else P()

    return jax.tree.map(spec, learner)


def shardings(specs: Any, mesh: Mesh) -> Any:
    """Specs as shardings of that mesh."""
    is_leaf = lambda x: isinstance(x, P)  # noqa: E731
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=is_leaf)


# --------------------------------------------------------------- within programs


def pin(tree: Any, specs: Callable[[Any], Any]) -> Any:
    """Keep a tree split as `specs(tree)` says."""
    return tree if n_shards() == 1 else jax.lax.with_sharding_constraint(tree, specs(tree))


def place(tree: Any, spec: P) -> Any:
    """Keep all leaves split as `spec` says, wherever there is a mesh."""
    if jax.sharding.get_abstract_mesh().empty:
        return tree
    return jax.lax.with_sharding_constraint(tree, jax.tree.map(lambda _: spec, tree))


def split(tree: Any, axis: int = 0) -> Any:
    """Divide the rows of a batch between the devices, where they divide evenly.

    A loss over them is then a sum over devices, and so is its gradient.
    """

    def specs(tree):
        def spec(x):
            fits = x.ndim > axis and x.shape[axis] % n_shards() == 0
            return P(*[None] * axis, AXIS) if fits else P()

        return jax.tree.map(spec, tree)

    return pin(tree, specs)


def each(f: Callable, in_specs: Any, out_specs: Any) -> Callable:
    """`f` as a program that each device runs on its own part; `f` itself without a mesh."""
    if n_shards() == 1:
        return f
    return jax.shard_map(f, in_specs=in_specs, out_specs=out_specs, check_vma=False)
