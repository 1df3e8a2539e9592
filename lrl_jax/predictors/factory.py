"""Factory of predictors, which knows the dimensions of the parts it joins."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from lrl_jax import spaces
from lrl_jax.env_spec import goal_indices
from lrl_jax.models import ProbabilisticEnsemble
from lrl_jax.nets import RewardFunction, ValueFunction
from lrl_jax.predictors.base import Predictor
from lrl_jax.predictors.encoders import IndexEncoder, as_shape
from lrl_jax.predictors.reward_predictor import RewardPredictor


@dataclasses.dataclass(frozen=True)
class Partial:
    """Like functools.partial, but compared and hashed by what it holds.

    Attributes:
        func: what is called.
        args: first positional arguments.
        keywords: keyword arguments; stored as a tuple of pairs.
    """

    func: Callable
    args: tuple[Any, ...] = ()
    keywords: Any = ()

    def __post_init__(self):
        pairs = self.keywords
        if isinstance(pairs, Mapping):
            pairs = tuple(pairs.items())
        pairs = tuple(
            (name, tuple(value) if isinstance(value, list) else value)
            for name, value in sorted(pairs, key=lambda pair: pair[0])
        )
        object.__setattr__(self, "args", tuple(self.args))
        object.__setattr__(self, "keywords", pairs)

    def __call__(self, *args, **keywords):
        """Call the function with the held arguments and these."""
        return self.func(*self.args, *args, **{**dict(self.keywords), **keywords})


def _as_partial(name: str, part: Any) -> Any:
    if isinstance(part, functools.partial):
        return Partial(part.func, part.args, part.keywords)
    if not callable(part):
        raise TypeError(f"{name} must be a class, a functools.partial or a function, got {part!r}.")
    return part


def _held(part: Any) -> dict[str, Any]:
    return dict(part.keywords) if isinstance(part, Partial) else {}


def _call(part: Any, offered: dict[str, Any]) -> Any:
    """Call `part` with those of the offered keywords that it takes and does not hold."""
    func = part.func if isinstance(part, Partial) else part
    parameters = inspect.signature(func).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    held = _held(part)
    wanted = {
        name: value
        for name, value in offered.items()
        if name not in held and (takes_all or name in parameters)
    }
    return part(**wanted)


@dataclasses.dataclass(frozen=True)
class PredictorFactory:
    """Creates predictors once the observation's shape and the action space are known.

    Each part is a class, a function or a functools.partial of one; it is called with those of the
    named keywords that it takes.

    Attributes:
        partial_model: given latent_state_dim, context_dim, action_space.
        partial_val_func: given latent_state_dim, context_dim; None for no value function.
        partial_rew_func: given latent_state_dim, context_dim, action_dim; None for none.
        partial_encoder: given mapped_env_obs_shape, latent_state_dim, context_dim.
        partial_predictor: given model, val_func, rew_func, encoder, latent_state_dim, context_dim,
            mapped_env_obs_shape, device, writer.
        latent_state_dim, context_dim: None to take them from what `partial_predictor` or
            `partial_encoder` holds, or from the encoder it makes.
    """

    partial_model: Callable
    partial_val_func: Callable | None
    partial_rew_func: Callable | None
    partial_encoder: Callable
    partial_predictor: Callable
    latent_state_dim: int | None = None
    context_dim: int | None = None

    def __post_init__(self):
        for field in ("model", "val_func", "rew_func", "encoder", "predictor"):
            name = f"partial_{field}"
            part = getattr(self, name)
            if part is None and field in ("val_func", "rew_func"):
                continue
            object.__setattr__(self, name, _as_partial(name, part))

    def __call__(
        self, mapped_env_obs_shape: Any, action_space: Any, device: Any = None, writer: Any = None
    ) -> Predictor:
        """Create a predictor.

        Args:
            mapped_env_obs_shape: shape of one mapped observation.
            action_space: what the predictor's level decides.
            device: where `init` puts the state.
            writer: for the host loop.

        Raises:
            ValueError: if the latent state's dimension cannot be told.
        """
        shape = as_shape(mapped_env_obs_shape)
        action_space = spaces.from_any(action_space)
        dims = {}
        for name in ("latent_state_dim", "context_dim"):
            known = (
                getattr(self, name),
                _held(self.partial_predictor).get(name),
                _held(self.partial_encoder).get(name),
            )
            dims[name] = next((d for d in known if d is not None), None)
        given = {name: d for name, d in dims.items() if d is not None}
        encoder = _call(self.partial_encoder, {"mapped_env_obs_shape": shape, **given})
        for name in ("latent_state_dim", "context_dim"):
            if dims[name] is None:
                dims[name] = getattr(encoder, name, None)
            if dims[name] is None:
                raise ValueError(
                    f"{name} is not known: give it to the PredictorFactory, to partial_predictor "
                    f"or to partial_encoder."
                )
        model = _call(self.partial_model, {**dims, "action_space": action_space})
        value, reward = self.partial_val_func, self.partial_rew_func
        for_reward = {**dims, "action_dim": action_space.dim}
        offered = {
            "model": model,
            "val_func": None if value is None else _call(value, dims),
            "rew_func": None if reward is None else _call(reward, for_reward),
            "encoder": encoder,
            **dims,
            "mapped_env_obs_shape": shape,
        }
        offered |= {k: v for k, v in (("device", device), ("writer", writer)) if v is not None}
        return _call(self.partial_predictor, offered)


def get_default_predictor_factory(env: Any, sb_start_duration: float) -> PredictorFactory:
    """Factory of reward predictors for goal-based environments.

    The latent state is the achieved goal, the context the desired goal.

    Args:
        env: a goal-based environment, or (env, params).
        sb_start_duration: environment steps of the symmetry-breaking start; 0 for none.
    """
    env = env[0] if isinstance(env, tuple) else env
    indices = goal_indices(env)
    state, context = (tuple(indices[k]) for k in ("achieved_goal", "desired_goal"))
    return PredictorFactory(
        partial_model=Partial(
            ProbabilisticEnsemble, keywords={"sb_start_duration": sb_start_duration}
        ),
        partial_val_func=Partial(ValueFunction),
        partial_rew_func=Partial(RewardFunction),
        partial_encoder=Partial(IndexEncoder, keywords={"state": state, "context": context}),
        partial_predictor=Partial(RewardPredictor, keywords={"learn_encoder": False}),
    )
