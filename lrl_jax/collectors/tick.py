"""One tick in vmapped gymnax environments: decide, step, settle."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from lrl_jax import devices, struct
from lrl_jax.collectors.preprocess import Preprocess
from lrl_jax.collectors.records import (
    Episodes,
    LevelTransitions,
    Sums,
    Transitions,
    closings,
    decisions,
    zeroed,
)
from lrl_jax.env_spec import check_params, env_spec, is_gymnasium
from lrl_jax.envs.stepping import reset_all, step_all, success_of
from lrl_jax.hierarchies import Hierarchy, HierarchyState, checks
from lrl_jax.hierarchies.gating import select
from lrl_jax.hierarchies.state import specs as state_specs
from lrl_jax.randomness import Salt, Stream
from lrl_jax.settings import check_int

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class RolloutCarry(struct.Node):
    """What a rollout carries from tick to tick.

    Attributes:
        env_state: state of the environments, leaves [n, ...].
        obs: next observation, [n, *obs_shape].
        hierarchy: HierarchyState of n instances.
        stream: random stream of the environments.
        sums: of the running episodes.
    """

    env_state: Any
    obs: jax.Array
    hierarchy: HierarchyState
    stream: Stream
    sums: Sums

    @property
    def n_env_instances(self) -> int:
        """Number of instances, n."""
        return self.sums.length.shape[0]


# ------------------------------------------------------- environment and parameters


def names_env_once(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Refuse calls in the order (hierarchy, env, params, ...) with the present call."""
    parameters = inspect.signature(function).parameters.values()
    plain = [p.replace(annotation=inspect.Parameter.empty) for p in parameters]
    signature = inspect.Signature(plain)

    @functools.wraps(function)
    def checked(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        if len(args) > 1 and callable(getattr(args[1], "step", None)):
            raise TypeError(
                f"environment and parameters are those of the hierarchy, unless others are given "
                f"by name: call {function.__name__}{signature}."
            )
        return function(*args, **kwargs)

    return checked


def own_env(hierarchy: Hierarchy, env: Any = None, env_params: Any = None) -> tuple[Any, Any]:
    """Environment and parameters of a loop: the hierarchy's, unless others are given.

    An environment other than the hierarchy's has its default parameters, unless others are given.

    Raises:
        ValueError, TypeError: if the hierarchy was not built for such an environment.
    """
    env = hierarchy.env if env is None else env
    check_params(env, env_params)
    if env_params is None and not is_gymnasium(env):
        own = hierarchy.env_params if env is hierarchy.env else None
        env_params = getattr(env, "default_params", None) if own is None else own
    check_env(hierarchy, env, env_params)
    return env, env_params


def traced_env(hierarchy: Hierarchy, env: Any, env_params: Any) -> tuple[Any, Any]:
    """The same for loops on the device, which Gymnasium's environments cannot be in."""
    env, env_params = own_env(hierarchy, env, env_params)
    if is_gymnasium(env):
        raise TypeError(
            f"{type(env).__name__} is a Gymnasium environment, which runs on the host: use "
            f"Collector(hierarchy, env) and its collect and evaluate."
        )
    return env, env_params


def check_env(hierarchy: Hierarchy, env: Any, params: Any) -> None:
    """Refuse an environment whose spaces are not those the hierarchy was built for."""
    if not callable(getattr(env, "step", None)) or not callable(getattr(env, "reset", None)):
        raise TypeError(f"{type(env).__name__} has no step and reset: pass a gymnax environment.")
    if env is hierarchy.env and (params is hierarchy.env_params or is_traced(params)):
        return
    if is_traced(params):  # bounds that depend on them are not known here
        params = env.default_params
    given, built = env_spec(env, params), hierarchy.env_spec

    def traits(spec, name):
        space = getattr(spec, name)
        # Bounds of observations only scale what networks see, so those may differ.
        return (space.shape, space.dtype) if name == "obs_space" else space

    for name in ("obs_space", "action_space"):
        if traits(given, name) != traits(built, name):
            raise ValueError(
                f"the hierarchy was built for {name} {getattr(built, name)}, but {given.name} has "
                f"{getattr(given, name)}: build a hierarchy for this environment."
            )


def is_traced(tree: Any) -> bool:
    """Whether some leaf is being transformed by JAX."""
    return any(isinstance(x, Tracer) for x in jax.tree.leaves(tree))


# ------------------------------------------------------------------------- carry


@names_env_once
def init_carry(
    hierarchy: Hierarchy,
    key: jax.Array,
    n_env_instances: int,
    state: HierarchyState | None = None,
    *,
    env: Any = None,
    env_params: Any = None,
) -> RolloutCarry:
    """Reset `n_env_instances` environments and start the hierarchy; consumes `key`.

    Args:
        hierarchy: acts in them.
        key: typed random key.
        n_env_instances: number of instances, n.
        state: HierarchyState of n instances, which begins a fresh episode; a new one if None.
        env: gymnax environment; the hierarchy's if None.
        env_params: its parameters; the hierarchy's if None, or the defaults of another `env`.
            Leaves [n, ...] with one axis more than the default's hold a value of each instance.

    Raises:
        ValueError: if the environment or the state does not fit.
        TypeError: for a key that is not typed, or Gymnasium's environments.
    """
    checks.typed_key(key)
    n = check_int("n_env_instances", n_env_instances, 1)
    return begun(hierarchy, *traced_env(hierarchy, env, env_params), key, n, state)


def begun(
    hierarchy: Hierarchy,
    env: Any,
    params: Any,
    key: jax.Array,
    n: int,
    state: HierarchyState | None = None,
) -> RolloutCarry:
    """`init_carry` in an environment that was checked."""
    stream_key, reset_key, state_key = jax.random.split(key, 3)
    if state is None:
        state = hierarchy.aligned(hierarchy.init(state_key, n), known=True)
    else:
        state = hierarchy.aligned(hierarchy.reset(checks.state_of(state, n)))
    reset_keys = Stream.create(reset_key).instance_keys(n)
    obs, env_state = reset_all(env, reset_keys, params)
    if hierarchy.training:
        stagger_key = jax.random.fold_in(reset_key, Salt.STAGGER)
        env_state = _stagger(hierarchy, env_state, params, stagger_key, state.n_total_env_steps)
    return RolloutCarry(
        env_state=jax.tree.map(_strong, env_state),
        obs=jnp.asarray(obs, hierarchy.env_spec.obs_space.dtype),
        hierarchy=state,
        stream=Stream.create(stream_key),
        sums=Sums.zero(n),
    )


def restarted(state: HierarchyState) -> tuple[HierarchyState, jax.Array]:
    """A state that continues in environments of another process, and a key for these.

    The key is from the state's own stream, so that no two starts are the same.
    """
    stream = state.stream
    return state.replace(stream=stream.advance()), stream.tick_key(Salt.RESTART)


def _stagger(hierarchy: Hierarchy, env_state: Any, params: Any, key: jax.Array, total: Any) -> Any:
    """Let first episodes begin late where a level asks for it (`stagger`).

    The clocks start so that the first episode of each instance lasts a random multiple of the
    ticks that the level's decisions last: instances do not begin and end their episodes together
    ever after. Nothing is changed but before any training step, where their `total` is 0.
    """
    interval, asked = 1, None
    for level in reversed(hierarchy.levels):
        asked = interval if level.stagger else asked
        interval *= level.control_interval or 1
    if asked is None:
        return env_state
    limit = getattr(params, "max_steps_in_episode", None)
    if limit is None or not hasattr(env_state, "time"):
        raise ValueError(
            "stagger=True needs an environment with a clock (state.time) and a limit "
            "(params.max_steps_in_episode): switch it off."
        )
    most = jnp.maximum(limit // asked, 1)
    length = asked * jax.random.randint(key, env_state.time.shape, 1, most + 1)
    is_first = (total.high == 0) & (total.low == 0)
    late = jnp.where(is_first, jnp.maximum(limit - length, 0), 0)
    return env_state.replace(time=env_state.time + late.astype(env_state.time.dtype))


def _strong(x: jax.Array) -> jax.Array:
    """Drop the weak type that environments' Python numbers leave, so that carries are stable."""
    return x if jnp.issubdtype(x.dtype, jax.dtypes.extended) else jnp.asarray(x, x.dtype)


def specs(carry: RolloutCarry) -> Any:
    """How a carry is split over the devices of a mesh; see `lrl_jax.devices`."""
    row = devices.by_instance(carry.n_env_instances)
    rows = jax.tree.map(lambda _: row, carry)
    return rows.replace(
        hierarchy=state_specs(carry.hierarchy), stream=jax.tree.map(lambda _: P(), carry.stream)
    )


def shard(carry: RolloutCarry, mesh: Mesh) -> RolloutCarry:
    """Split the instances of a carry over the devices of a mesh, with their replay.

    Rollouts of what comes back run on all of them. Learners become copies, large leaves are split
    (`devices.LARGE_LEAF`).

    Args:
        carry: of n instances.
        mesh: of `make_mesh`.

    Raises:
        ValueError: if the devices do not divide n evenly.
    """
    devices.check_divides(carry.n_env_instances, mesh.size)
    with devices.use(mesh):
        return jax.device_put(carry, devices.shardings(specs(carry), mesh))


# -------------------------------------------------------------------------- tick


class Step(struct.Node):
    """A step of the environments whose bookkeeping is still to be done, [n, ...] each."""

    obs_next: jax.Array
    rew: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    success: jax.Array
    told: jax.Array
    signals: dict[str, jax.Array]

    @classmethod
    def none(cls, obs: jax.Array, signals: tuple[str, ...]) -> Step:
        """A placeholder for the step before the first, for observations [n, ...]."""
        zeros, no = (jnp.zeros(obs.shape[0], kind) for kind in (jnp.float32, bool))
        return cls(jnp.zeros_like(obs), zeros, no, no, no, no, dict.fromkeys(signals, zeros))

    def recorded(self, obs: jax.Array, action: jax.Array, mask: jax.Array | None) -> Transitions:
        """As it is recorded, zero outside the mask."""
        valid = jnp.ones_like(self.terminated) if mask is None else mask
        step = (self.rew, self.terminated, self.truncated, self.obs_next)
        return zeroed(Transitions(obs, action, *step, valid), mask)


def signals_of(hierarchy: Hierarchy, info: dict[str, Any], n: int) -> dict[str, Any]:
    """The hierarchy's signals in the step's info, float32 [n] each, NumPy or JAX.

    Raises:
        ValueError: where the info lacks one, by name.
    """
    missing = [name for name in hierarchy.signals if name not in info]
    if missing:
        raise ValueError(
            f"the hierarchy's signals {missing} are not in the info of the environment's step, "
            f"which has {sorted(info)}."
        )
    out = {}
    for name in hierarchy.signals:
        values = info[name] if isinstance(info[name], jax.Array) else np.asarray(info[name])
        if values.size != n:
            raise ValueError(
                f"the signal {name!r} must be a number per instance, but has shape "
                f"{values.shape} for {n} instances."
            )
        out[name] = values.reshape(n).astype(np.float32)
    return out


def decided(
    hierarchy: Hierarchy, carry: RolloutCarry, mask: jax.Array | None, random: bool
) -> tuple[HierarchyState, jax.Array]:
    """The hierarchy's state and actions [n, ...] of the next step; random ones leave it alone."""
    if not random:
        return hierarchy.get_action(carry.hierarchy, carry.obs, mask)
    keys = carry.stream.instance_keys(carry.n_env_instances, salt=Salt.RANDOM_ACTION)
    return carry.hierarchy, jax.vmap(hierarchy.action_space.sample)(keys)


def decide_and_step(
    hierarchy: Hierarchy,
    env: Any,
    params: Any,
    carry: RolloutCarry,
    mask: jax.Array | None = None,
    random: bool = False,
    preprocess: Preprocess | None = None,
) -> tuple[RolloutCarry, Step, jax.Array]:
    """First half of a tick: decide and step the environments; see `tick`. Returns also actions."""
    n, space = carry.n_env_instances, hierarchy.action_space
    state, action = decided(hierarchy, carry, mask, random)
    keys = carry.stream.instance_keys(n, salt=Salt.STEP)
    obs, env_state, rew, terminated, truncated, info = step_all(
        env, keys, carry.env_state, space.clip(action), params
    )
    obs = obs.astype(carry.obs.dtype)
    obs_next = jnp.asarray(info["final_observation"], carry.obs.dtype)
    rew = jnp.asarray(rew, jnp.float32).reshape(n)
    terminated, truncated = (jnp.asarray(x, bool).reshape(n) for x in (terminated, truncated))
    if preprocess is not None:
        ids, done = jnp.arange(n), terminated | truncated
        obs_next, rew, terminated, truncated, info, action, may_end = preprocess.on_step(
            obs_next, rew, terminated, truncated, info, action, env_id=ids
        )
        if may_end:
            ended = (terminated | truncated) & ~done
            reset_keys = carry.stream.instance_keys(n, salt=Salt.RESET_BY_USER)
            again = reset_all(env, reset_keys, params)
            again = jax.tree.map(lambda x, y: x.astype(y.dtype), again, (obs, env_state))
            obs, env_state = select(ended, again, (obs, env_state))
            done = done | ended
        obs = select(done, preprocess.on_reset(obs, ids), obs_next)
    signals = signals_of(hierarchy, info, n)
    step = Step(obs_next, rew, terminated, truncated, *success_of(info, n), signals)
    env_state = jax.tree.map(lambda x, old: x.astype(old.dtype), env_state, carry.env_state)
    if mask is not None:
        env_state, obs = select(mask, (env_state, obs), (carry.env_state, carry.obs))
    carry = carry.replace(
        env_state=env_state, obs=obs, hierarchy=state, stream=carry.stream.advance()
    )
    return carry, step, action


def settle(
    hierarchy: Hierarchy,
    carry: RolloutCarry,
    step: Step,
    mask: jax.Array | None = None,
    random: bool = False,
) -> tuple[RolloutCarry, Episodes]:
    """Second half of a tick: the hierarchy's bookkeeping and the episodes' sums."""
    state = carry.hierarchy
    if not random:
        state = hierarchy.process_transition(
            state, step.obs_next, step.rew, step.terminated, step.truncated, mask, step.signals
        )
    done = step.terminated | step.truncated
    sums, episodes = carry.sums.after(step.rew, done, step.success, step.told, mask)
    return carry.replace(hierarchy=state, sums=sums), episodes


def full_tick(
    hierarchy: Hierarchy,
    env: Any,
    params: Any,
    carry: RolloutCarry,
    mask: jax.Array | None = None,
    *,
    random: bool = False,
    preprocess: Preprocess | None = None,
    levels: bool = False,
) -> tuple[RolloutCarry, Transitions, Episodes, tuple[LevelTransitions, ...] | None]:
    """`tick` of an environment that was checked; with `levels`, what each level did."""
    obs, active = carry.obs, carry.hierarchy.active_level
    carry, step, action = decide_and_step(hierarchy, env, params, carry, mask, random, preprocess)
    did = decisions(active, carry.hierarchy, mask) if levels else None
    carry, episodes = settle(hierarchy, carry, step, mask, random)
    if did is not None:
        done = step.terminated | step.truncated
        did = closings(did, carry.hierarchy.active_level, done, mask)
    return carry, step.recorded(obs, action, mask), episodes, did


@names_env_once
def tick(
    hierarchy: Hierarchy,
    carry: RolloutCarry,
    mask: jax.Array | None = None,
    *,
    env: Any = None,
    env_params: Any = None,
    random: bool = False,
    preprocess: Preprocess | None = None,
) -> tuple[RolloutCarry, Transitions, Episodes]:
    """One step of all instances, or of those in `mask`. Can be traced.

    Args:
        hierarchy: acts.
        carry: from `init_carry` or an earlier tick, n instances.
        mask: bool [n]; instances outside are left unchanged, bit for bit. All if None.
        env, env_params: see `init_carry`.
        random: act uniformly at random and leave the hierarchy alone.
        preprocess: sees the data first.

    Returns:
        The carry, the transitions [n, ...], and the episodes with this step.
    """
    env, params = traced_env(hierarchy, env, env_params)
    return full_tick(hierarchy, env, params, carry, mask, random=random, preprocess=preprocess)[:3]
