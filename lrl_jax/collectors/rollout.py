"""Rollouts of a hierarchy in vmapped gymnax environments, inside one jitted loop."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from lrl_jax import devices
from lrl_jax.collectors.preprocess import Preprocess
from lrl_jax.env_spec import env_spec
from lrl_jax.hierarchies import Hierarchy, HierarchyState, checks
from lrl_jax.hierarchies.gating import select
from lrl_jax.hierarchies.state import specs as state_specs
from lrl_jax.randomness import Stream
from lrl_jax.settings import check_int

# What keys of a tick are for, beside the steps of the environments.
_RANDOM, _ENDED_BY_USER = 0xA0, 0xA1


@struct.dataclass
class RolloutCarry:
    """What a rollout carries from tick to tick.

    Attributes:
        env_state: state of the environments, leaves [n, ...].
        obs: next observation, [n, *obs_shape].
        hierarchy: HierarchyState of n instances.
        stream: random stream of the environments.
        episode_return: reward of the running episodes, float32 [n].
        episode_length: their steps, int32 [n].
        episode_success: whether success was seen in them, bool [n].
    """

    env_state: Any
    obs: jax.Array
    hierarchy: HierarchyState
    stream: Stream
    episode_return: jax.Array
    episode_length: jax.Array
    episode_success: jax.Array


@struct.dataclass
class Transitions:
    """Recorded environment transitions, leaves [ticks, n, ...]; rows not valid are zero.

    Attributes:
        obs: observation acted on.
        act: action as decided.
        rew: float32.
        terminated: bool.
        truncated: bool.
        obs_next: next observation, the true final one at an episode's end.
        valid: bool, whether the instance took this step.
    """

    obs: jax.Array
    act: jax.Array
    rew: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    obs_next: jax.Array
    valid: jax.Array


@struct.dataclass
class Ended:
    """Per instance, the episode that ended in a tick, [n] each; zero where none did."""

    done: jax.Array  # bool
    episode_return: jax.Array  # float32
    length: jax.Array  # int32
    success: jax.Array  # bool, at any step of the episode
    success_at_end: jax.Array  # bool, at its last step


@struct.dataclass
class RolloutOutput:
    """Result of a rollout.

    Attributes:
        metrics: n_episodes, return_sum, length_sum, success_sum, reward_mean and level{i}/...,
            scalars; 0 without episodes or updates.
        transitions: Transitions, or None if not recorded.
    """

    metrics: dict[str, jax.Array]
    transitions: Transitions | None


def check_env(hierarchy: Hierarchy, env: Any, params: Any) -> None:
    """Refuse an environment whose spaces are not those the hierarchy was built for."""
    if not callable(getattr(env, "step", None)) or not callable(getattr(env, "reset", None)):
        raise TypeError(f"{type(env).__name__} has no step and reset: pass a gymnax environment.")
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


def init_carry(
    hierarchy: Hierarchy,
    env: Any,
    params: Any,
    key: jax.Array,
    n_env_instances: int,
    state: HierarchyState | None = None,
) -> RolloutCarry:
    """Reset `n_env_instances` environments and start the hierarchy; consumes `key`.

    Args:
        hierarchy: acts in them.
        env: gymnax environment.
        params: its parameters, its defaults if None.
        key: typed random key.
        n_env_instances: number of instances, n.
        state: HierarchyState of n instances that goes on with a fresh episode; a new one if None.

    Raises:
        ValueError: if the environment or the state does not fit.
    """
    checks.typed_key(key)
    n = check_int("n_env_instances", n_env_instances, 1)
    params = env.default_params if params is None else params
    check_env(hierarchy, env, params)
    stream_key, reset_key, state_key = jax.random.split(key, 3)
    if state is None:
        state = hierarchy.aligned(hierarchy.init(state_key, n), known=True)
    elif state.n_env_instances != n:
        raise ValueError(
            f"the state has {state.n_env_instances} instances, but {n} were asked for: use "
            f"hierarchy.set_n_env_instances(state, {n})."
        )
    else:
        state = hierarchy.aligned(hierarchy.reset(state))
    reset_keys = Stream.create(reset_key).instance_keys(n)
    obs, env_state = jax.vmap(env.reset, in_axes=(0, None))(reset_keys, params)
    if hierarchy.training:
        total = state.n_total_env_steps
        env_state = _stagger(
            hierarchy,
            env_state,
            params,
            jax.random.fold_in(reset_key, 0x57A6),
            (total.high == 0) & (total.low == 0),
        )
    return RolloutCarry(
        env_state=jax.tree.map(_strong, env_state),
        obs=jnp.asarray(obs, hierarchy.env_spec.obs_space.dtype),
        hierarchy=state,
        stream=Stream.create(stream_key),
        episode_return=jnp.zeros(n, jnp.float32),
        episode_length=jnp.zeros(n, jnp.int32),
        episode_success=jnp.zeros(n, bool),
    )


def specs(carry: RolloutCarry) -> Any:
    """How a carry is split over the devices of a mesh; see `lrl_jax.devices`."""
    row = devices.by_instance(carry.episode_length.shape[0])
    return RolloutCarry(
        env_state=jax.tree.map(lambda _: row, carry.env_state),
        obs=row,
        hierarchy=state_specs(carry.hierarchy),
        stream=jax.tree.map(lambda _: P(), carry.stream),
        episode_return=row,
        episode_length=row,
        episode_success=row,
    )  # pyright: ignore[reportArgumentType]


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
    devices.check_divides(carry.episode_length.shape[0], mesh.size)
    with devices.use(mesh):
        return jax.device_put(carry, devices.shardings(specs(carry), mesh))


def _stagger(
    hierarchy: Hierarchy, env_state: Any, params: Any, key: jax.Array, is_first: jax.Array
) -> Any:
    """Let first episodes begin late where a level asks for it (`stagger`).

    The clocks start so that the first episode of each instance lasts a random multiple of the
    ticks that the level's decisions last: instances do not begin and end their episodes together
    ever after. Nothing is changed unless `is_first`: before any training step.
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
    late = jnp.where(is_first, jnp.maximum(limit - length, 0), 0)
    return env_state.replace(time=env_state.time + late.astype(env_state.time.dtype))


def _strong(x: jax.Array) -> jax.Array:
    """Drop the weak type that environments' Python numbers leave, so that carries are stable."""
    return x if jnp.issubdtype(x.dtype, jax.dtypes.extended) else jnp.asarray(x, x.dtype)


def success_of(info: dict[str, Any], n: int) -> jax.Array:
    """`is_success` or `success` of the step's info, bool [n]; False where it has neither."""
    for name in ("is_success", "success"):
        if name in info:
            return jnp.asarray(info[name]).reshape(n).astype(bool)
    return jnp.zeros(n, bool)


@struct.dataclass
class Pending:
    """A step of the environments whose bookkeeping is still to be done, [n, ...] each."""

    obs_next: jax.Array
    rew: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    success: jax.Array


def decide_and_step(
    hierarchy: Hierarchy,
    env: Any,
    params: Any,
    carry: RolloutCarry,
    mask: jax.Array | None = None,
    *,
    random: bool = False,
    preprocess: Preprocess | None = None,
) -> tuple[RolloutCarry, Pending, jax.Array]:
    """First half of a tick: decide and step the environments. Returns also the actions.

    Args:
        hierarchy, env, params, carry: see `rollout`.
        mask: bool [n]; instances outside are left as they are, bit for bit. All if None.
        random: act uniformly at random and leave the hierarchy alone.
        preprocess: sees the data first.
    """
    n = carry.episode_length.shape[0]
    space = hierarchy.action_space
    if random:
        state = carry.hierarchy
        action = jax.vmap(space.sample)(carry.stream.instance_keys(n, salt=_RANDOM))
    else:
        state, action = hierarchy.get_action(carry.hierarchy, carry.obs, mask)
    keys = carry.stream.instance_keys(n)
    obs, env_state, rew, terminated, truncated, info = jax.vmap(env.step, in_axes=(0, 0, 0, None))(
        keys, carry.env_state, space.clip(action), params
    )
    obs = obs.astype(carry.obs.dtype)
    obs_next = jnp.asarray(info["final_observation"], carry.obs.dtype)
    rew = jnp.asarray(rew, jnp.float32).reshape(n)
    terminated, truncated = (jnp.asarray(x, bool).reshape(n) for x in (terminated, truncated))
    if preprocess is not None:
        ids, done = jnp.arange(n), terminated | truncated
        obs_next, rew, terminated, truncated, info, action, may_end = preprocess.on_step(
            obs_next, rew, terminated, truncated, info, action, ids
        )
        if may_end:
            ended = (terminated | truncated) & ~done
            reset_keys = carry.stream.instance_keys(n, salt=_ENDED_BY_USER)
            again = jax.vmap(env.reset, in_axes=(0, None))(reset_keys, params)
            again = jax.tree.map(lambda x, y: x.astype(y.dtype), again, (obs, env_state))
            obs, env_state = select(ended, again, (obs, env_state))
            done = done | ended
        obs = select(done, preprocess.on_reset(obs, ids), obs_next)
    pending = Pending(obs_next, rew, terminated, truncated, success_of(info, n))
    env_state = jax.tree.map(lambda x, old: x.astype(old.dtype), env_state, carry.env_state)
    if mask is not None:
        env_state, obs = select(mask, (env_state, obs), (carry.env_state, carry.obs))
    carry = carry.replace(
        env_state=env_state, obs=obs, hierarchy=state, stream=carry.stream.advance()
    )
    return carry, pending, action


def settle(
    hierarchy: Hierarchy,
    carry: RolloutCarry,
    step: Pending,
    mask: jax.Array | None = None,
    *,
    random: bool = False,
) -> tuple[RolloutCarry, Ended]:
    """Second half of a tick: the hierarchy's bookkeeping and the episodes' sums."""
    state = carry.hierarchy
    if not random:
        state = hierarchy.process_transition(
            state, step.obs_next, step.rew, step.terminated, step.truncated, mask
        )
    valid = jnp.ones_like(step.terminated)
    if mask is not None:
        valid = jnp.broadcast_to(mask, valid.shape)
    done = (step.terminated | step.truncated) & valid
    success = step.success & valid
    episode_return = carry.episode_return + jnp.where(valid, step.rew, 0.0)
    episode_length = carry.episode_length + valid
    episode_success = carry.episode_success | success
    ended = Ended(
        done=done,
        episode_return=jnp.where(done, episode_return, 0.0),
        length=jnp.where(done, episode_length, 0),
        success=done & episode_success,
        success_at_end=done & success,
    )
    carry = carry.replace(
        hierarchy=state,
        episode_return=jnp.where(done, 0.0, episode_return),
        episode_length=jnp.where(done, 0, episode_length),
        episode_success=episode_success & ~done,
    )
    return carry, ended


def tick(
    hierarchy: Hierarchy,
    env: Any,
    params: Any,
    carry: RolloutCarry,
    mask: jax.Array | None = None,
    *,
    random: bool = False,
    preprocess: Preprocess | None = None,
) -> tuple[RolloutCarry, Transitions, Ended]:
    """One step of all instances, or of those in `mask`; see `decide_and_step`."""
    obs = carry.obs
    carry, pending, action = decide_and_step(
        hierarchy, env, params, carry, mask, random=random, preprocess=preprocess
    )
    carry, ended = settle(hierarchy, carry, pending, mask, random=random)
    transitions = _recorded(obs, action, pending)
    if mask is not None:
        transitions = transitions.replace(valid=mask)
        nothing = jax.tree.map(jnp.zeros_like, transitions)
        transitions = select(mask, transitions, nothing)
    return carry, transitions, ended


def _recorded(obs: jax.Array, action: jax.Array, step: Pending) -> Transitions:
    return Transitions(
        obs=obs,
        act=action,
        rew=step.rew,
        terminated=step.terminated,
        truncated=step.truncated,
        obs_next=step.obs_next,
        valid=jnp.ones_like(step.terminated),
    )


def _ticks(hierarchy, env, params, carry, sums, n_ticks, record, unroll):
    """Scan over ticks, each settling the step of the one before.

    What passes through the carry is computed once; used within its own iteration, a step would be
    computed again in every loop that XLA makes of the bookkeeping (a third of the time).
    """
    n = carry.episode_length.shape[0]

    def settled(carry, sums, pending, mask):
        carry, ended = settle(hierarchy, carry, pending, mask)
        rew = pending.rew if mask is None else jnp.where(mask, pending.rew, 0.0)
        return carry, _add(sums, rew, ended)

    def step(scanned, _):
        carry, sums, pending, is_pending = scanned
        carry, sums = settled(carry, sums, pending, is_pending)
        obs = carry.obs
        carry, pending, action = decide_and_step(hierarchy, env, params, carry)
        carry = devices.pin(carry, specs)
        out = _recorded(obs, action, pending) if record else None
        return (carry, sums, pending, jnp.ones((), bool)), out

    nothing = Pending(
        jnp.zeros_like(carry.obs), *(jnp.zeros(n, d) for d in (jnp.float32, bool, bool, bool))
    )
    start = (carry, sums, nothing, jnp.zeros((), bool))
    (carry, sums, pending, _), out = jax.lax.scan(step, start, length=n_ticks, unroll=unroll)
    return *settled(carry, sums, pending, None), out


def _sums(n: int) -> dict[str, jax.Array]:
    return {
        "n_episodes": jnp.zeros(n, jnp.int32),
        "return_sum": jnp.zeros(n, jnp.float32),
        "length_sum": jnp.zeros(n, jnp.int32),
        "success_sum": jnp.zeros(n, jnp.int32),
        "reward_sum": jnp.zeros(n, jnp.float32),
    }


def _add(sums: dict[str, jax.Array], rew: jax.Array, ended: Ended) -> dict[str, jax.Array]:
    return {
        "n_episodes": sums["n_episodes"] + ended.done,
        "return_sum": sums["return_sum"] + ended.episode_return,
        "length_sum": sums["length_sum"] + ended.length,
        "success_sum": sums["success_sum"] + ended.success,
        "reward_sum": sums["reward_sum"] + rew,
    }


@dataclasses.dataclass(frozen=True)
class _Settings:
    """What a rollout is compiled for."""

    n_steps: int
    learn: bool
    record: bool
    learn_interval: int
    unroll: int


def _rollout(
    hierarchy: Hierarchy, env: Any, settings: _Settings, params: Any, carry: RolloutCarry
) -> tuple[RolloutCarry, RolloutOutput]:
    def ticks(carry, sums, n_ticks):
        return _ticks(
            hierarchy, env, params, carry, sums, n_ticks, settings.record, settings.unroll
        )

    def round_of(n_ticks, scanned, _):
        carry, sums, transitions = ticks(*scanned, n_ticks)
        state, metrics = hierarchy.learn(carry.hierarchy)
        return (carry.replace(hierarchy=state), sums), (transitions, metrics)

    n = carry.episode_length.shape[0]
    sums, metrics = _sums(n), {}
    if not settings.learn:
        carry, sums, transitions = ticks(carry, sums, settings.n_steps)
    else:
        n_rounds, rest = divmod(settings.n_steps, settings.learn_interval)
        whole = functools.partial(round_of, settings.learn_interval)
        scanned, (transitions, metrics) = jax.lax.scan(whole, (carry, sums), length=n_rounds)
        transitions = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), transitions)
        if rest:
            scanned, (last, last_metrics) = round_of(rest, scanned, None)
            join = functools.partial(jax.tree.map, lambda a, b: jnp.concatenate([a, b]))
            transitions = join(transitions, last)
            metrics = join(metrics, jax.tree.map(lambda x: x[None], last_metrics))
        carry, sums = scanned
        metrics = mean_over_updates(metrics)
    carry = devices.pin(carry, specs)
    # Gathered first, so that sums are rounded alike however many devices there are.
    sums = devices.pin(sums, lambda sums: dict.fromkeys(sums, P()))
    totals = {name: value.sum() for name, value in sums.items()}
    totals["reward_mean"] = totals.pop("reward_sum") / (settings.n_steps * n)
    return carry, RolloutOutput(metrics=totals | metrics, transitions=transitions)


def mean_over_updates(metrics: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Combine metrics of several calls of learn, [rounds] each, weighted by their updates."""
    out = {}
    for name, value in metrics.items():
        level, _, short = name.partition("/")
        weight = metrics[f"{level}/n_updates"]
        if short == "n_updates":
            out[name] = value.sum()
        else:
            out[name] = (value * weight).sum() / jnp.maximum(weight.sum(), 1.0)
    return out


def rollout(
    hierarchy: Hierarchy,
    env: Any,
    params: Any,
    carry: RolloutCarry,
    n_steps: int,
    learn: bool = False,
    record: bool = False,
    *,
    learn_interval: int = 1,
    unroll: int = 1,
) -> tuple[RolloutCarry, RolloutOutput]:
    """Step all instances `n_steps` times in one `lax.scan`. Pure, jittable, donates nothing.

    Args:
        hierarchy: acts; in train mode it explores, stores and counts.
        env: gymnax environment.
        params: its parameters, its defaults if None.
        carry: from `init_carry` or an earlier rollout, n instances.
        n_steps: ticks.
        learn: make the updates owed every `learn_interval` ticks and at the end.
        record: return the transitions.
        learn_interval: ticks of a round.
        unroll: ticks that one iteration of the loop does.

    Returns:
        The carry and a RolloutOutput.
    """
    n_steps = check_int("n_steps", n_steps, 1)
    learn_interval = check_int("learn_interval", learn_interval, 1)
    if not isinstance(carry, RolloutCarry):
        raise TypeError(f"carry must come from init_carry, got {type(carry).__name__}.")
    settings = _Settings(n_steps, bool(learn), bool(record), learn_interval, unroll)
    run = hierarchy.jitted(_rollout, env, settings)
    with devices.use(devices.mesh_of(carry)):
        return run(params, carry)
