"""Environments whose values are known, so that a learner's values can be compared with them.

All probes are one environment with different parameters: a learner compiles once for all of them,
and they can be trained side by side under vmap over the parameters.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import environment, spaces

BEST = 0.5  # the best continuous action, or its size where its sign is the context's


@struct.dataclass
class ProbeState:
    context: jax.Array  # [] float32, -1 or 1; 1 where there is none
    time: jax.Array  # [] int32, steps taken


@struct.dataclass
class ProbeParams:
    """The reward of a step is constant + by_context * context + by_action * quality(action).

    The quality of an action is 1 at best: 1 - (a - BEST)^2, or whether it is action 1. With
    `context_decides` the best action is BEST * context, or action 1 at context 1 and 0 at -1.
    """

    length: int = 1  # steps of an episode
    terminates: bool = True  # an episode terminates; it is truncated otherwise
    has_context: bool = False  # the observation's first entry is -1 or 1, drawn at the reset
    flips: bool = False  # the context changes its sign at each step
    shows_time: bool = False  # the observation's second entry tells the steps left
    only_last: bool = False  # no reward but at the last step
    constant: float = 0.0
    by_context: float = 0.0
    by_action: float = 0.0
    context_decides: bool = False


class Probe(environment.Environment[ProbeState, ProbeParams]):
    """See ProbeParams. Observation: float32 [2], context and share of the steps left.

    The context is 1 where there is none: networks without biases at the start are dead at zeros.
    """

    def __init__(self, continuous: bool):
        super().__init__()
        self.continuous = continuous

    @property
    def default_params(self):
        return ProbeParams()

    def action_space(self, params=None):
        return spaces.Box(-1.0, 1.0, (1,)) if self.continuous else spaces.Discrete(2)

    def observation_space(self, params=None):
        return spaces.Box(-1.0, 1.0, (2,))

    def reset_env(self, key, params):
        sign = jnp.where(jax.random.bernoulli(key), 1.0, -1.0)
        state = ProbeState(
            jnp.where(params.has_context, sign, 1.0).astype(jnp.float32), jnp.zeros((), jnp.int32)
        )
        return self.observe(key, state, None, params), state

    def step_env(self, key, state, action, params):
        is_last = state.time + 1 >= params.length
        rew = params.constant + params.by_context * state.context
        rew = rew + params.by_action * self.quality(action, state.context, params)
        rew = jnp.where(params.only_last & ~is_last, 0.0, rew)
        context = jnp.where(params.flips, -state.context, state.context)
        state = ProbeState(context, state.time + 1)
        obs = self.observe(key, state, action, params)
        return obs, state, rew.astype(jnp.float32), is_last & params.terminates, {}

    def quality(self, action, context, params):
        sign = jnp.where(params.context_decides, context, 1.0)
        if self.continuous:
            return 1.0 - (action[0] - BEST * sign) ** 2
        return (action == (sign > 0)).astype(jnp.float32)

    def observe(self, key, state, action, params):
        left = jnp.where(params.shows_time, 1.0 - state.time / params.length, 0.0)
        return jnp.stack([state.context, left]).astype(jnp.float32)

    def is_truncated(self, state, params):
        return (state.time >= params.length) & jnp.logical_not(params.terminates)


@dataclasses.dataclass(frozen=True)
class Case:
    """Parameters, and what is true of a perfect learner.

    Attributes:
        params: of the probe.
        obs: observations that are decided on.
        values: gamma -> the value of each.
        signs: sign of the best action at each (+1: BEST or action 1), () where all are as good.
    """

    params: ProbeParams
    obs: tuple[tuple[float, float], ...]
    values: object
    signs: tuple[int, ...] = ()


ONE, BOTH = ((1.0, 0.0),), ((-1.0, 0.0), (1.0, 0.0))

CASES = {
    "constant reward": Case(ProbeParams(constant=1.0), ONE, lambda g: [1.0]),
    "reward by observation": Case(
        ProbeParams(has_context=True, by_context=1.0), BOTH, lambda g: [-1.0, 1.0]
    ),
    "delayed reward": Case(
        ProbeParams(length=2, shows_time=True, only_last=True, constant=1.0),
        ((1.0, 1.0), (1.0, 0.5)),
        lambda g: [g, 1.0],
    ),
    "reward by action": Case(ProbeParams(by_action=1.0), ONE, lambda g: [1.0], (1,)),
    "truncation": Case(
        ProbeParams(length=3, terminates=False, constant=1.0), ONE, lambda g: [1.0 / (1.0 - g)]
    ),
    "termination": Case(
        ProbeParams(length=3, shows_time=True, constant=1.0),
        ((1.0, 1.0), (1.0, 2 / 3), (1.0, 1 / 3)),
        lambda g: [1.0 + g + g**2, 1.0 + g, 1.0],
    ),
    "action by observation": Case(
        ProbeParams(has_context=True, by_action=1.0, context_decides=True),
        BOTH,
        lambda g: [1.0, 1.0],
        (-1, 1),
    ),
    # The next episode starts in a context of its own: only the true final observation, where the
    # context is the other one, gives these values.
    "truncation elsewhere": Case(
        ProbeParams(terminates=False, has_context=True, flips=True, by_context=1.0),
        BOTH,
        lambda g: [-1.0 / (1.0 + g), 1.0 / (1.0 + g)],
    ),
}


def stacked_params() -> ProbeParams:
    """Parameters of all cases, leaves [len(CASES)]."""
    return jax.tree.map(lambda *x: jnp.asarray(np.stack(x)), *(c.params for c in CASES.values()))


def stacked_obs() -> jax.Array:
    """Observations of all cases, [len(CASES), most, 2]; the first fills up where there are less."""
    most = max(len(case.obs) for case in CASES.values())
    rows = [[*case.obs, *[case.obs[0]] * (most - len(case.obs))] for case in CASES.values()]
    return jnp.asarray(rows, jnp.float32)
