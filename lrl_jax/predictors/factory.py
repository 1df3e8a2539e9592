"""Factory of predictors, which knows the dimensions of the parts it joins."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

from lrl_jax import spaces
from lrl_jax.env_spec import GoalIndices, env_spec, goal_indices
from lrl_jax.models import ProbabilisticEnsemble
from lrl_jax.nets import RewardFunction, ValueFunction
from lrl_jax.predictors.base import Predictor
from lrl_jax.predictors.encoders import IndexEncoder, as_shape
from lrl_jax.predictors.reward_predictor import RewardPredictor
from lrl_jax.settings import check_int, check_kind, optional, put_checked

# Fields of parts that the factory fills in.
_FILLED = (
    "mapped_env_obs_shape",
    "goal_indices",
    "latent_state_dim",
    "context_dim",
    "action_space",
    "action_dim",
    "model",
    "val_func",
    "rew_func",
    "encoder",
)


@dataclasses.dataclass(frozen=True)
class _Partial:
    """Like functools.partial, but compared and hashed by what it holds."""

    func: Callable
    args: tuple[Any, ...]
    keywords: tuple[tuple[str, Any], ...]

    def __call__(self, **keywords):
        return self.func(*self.args, **{**dict(self.keywords), **keywords})


def _is_settings(part: Any) -> bool:
    """Whether a part is a dataclass (a flax module is one) and not a function that makes it."""
    return dataclasses.is_dataclass(part) and not isinstance(part, type | _Partial)


def _as_part(name: str, part: Any) -> Any:
    """A part as settings where possible, else as a hashable function that makes it."""
    if not callable(part) and not _is_settings(part):
        raise TypeError(
            f"{name} must be settings such as ProbabilisticEnsemble(n_modes=4), or a class, a "
            f"functools.partial or a function that makes it, got {part!r}."
        )
    func, args, keywords = part, (), {}
    if isinstance(part, functools.partial):
        func, args, keywords = part.func, part.args, part.keywords
    if isinstance(func, type) and dataclasses.is_dataclass(func):
        fields = {f.name: f for f in dataclasses.fields(func) if f.init}
        held = {*keywords, *list(fields)[: len(args)]}
        open_fields = [f for name, f in fields.items() if name not in held]
        if all(f.default is None if f.name in _FILLED else _has_default(f) for f in open_fields):
            return func(*args, **keywords)
    if isinstance(part, functools.partial):
        pairs = [(k, tuple(v) if isinstance(v, list) else v) for k, v in sorted(keywords.items())]
        return _Partial(func, tuple(args), tuple(pairs))
    return part


def _has_default(field: dataclasses.Field) -> bool:
    missing = dataclasses.MISSING
    return field.default is not missing or field.default_factory is not missing


def _held(part: Any, name: str) -> Any:
    """What a part already says about a dimension; None for nothing."""
    if _is_settings(part):
        return getattr(part, name, None)
    return dict(part.keywords).get(name) if isinstance(part, _Partial) else None


def call_with(function: Callable, *args: Any, **offered: Any) -> Any:
    """Call a function with those of the offered keywords that it names among its parameters."""
    parameters = inspect.signature(function).parameters
    return function(*args, **{k: v for k, v in offered.items() if k in parameters})


def _bind(part: Any, offered: dict[str, Any]) -> Any:
    """Fill in the fields of settings that are None, or call what makes the part.

    A function that takes any keyword gets the dimensions too, but not what it does not name.
    """
    if _is_settings(part):
        fields = {f.name for f in dataclasses.fields(part) if f.init}
        names = [n for n in offered if n in fields and getattr(part, n) is None]
        return dataclasses.replace(part, **{n: offered[n] for n in names}) if names else part
    held = dict(part.keywords) if isinstance(part, _Partial) else {}
    func = part.func if isinstance(part, _Partial) else part
    parameters = inspect.signature(func).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    wanted = {
        name: value
        for name, value in offered.items()
        if name not in held and (name in parameters or (takes_all and name != "goal_indices"))
    }
    skipped = len(part.args) if isinstance(part, _Partial) else 0
    missing = [
        p.name
        for p in list(parameters.values())[skipped:]
        if p.default is p.empty
        and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
        and p.name not in held
        and p.name not in wanted
    ]
    if missing:
        raise TypeError(
            f"{getattr(func, '__name__', func)} needs {missing}, but a PredictorFactory calls it "
            f"with keywords alone, of {sorted(offered)}: name its parameters so."
        )
    return part(**wanted)


@dataclasses.dataclass(frozen=True)
class PredictorFactory:
    """Creates predictors once the observation's shape and the action space are known.

    Each part is settings: a dataclass or flax module whose fields of the names below are filled in
    where they are None. It may also be a class, a function or a functools.partial of one that makes
    the part; that is called with those of the named keywords that it takes.

    Attributes:
        partial_model: given latent_state_dim, context_dim, action_space.
        partial_val_func: given latent_state_dim, context_dim; None for no value function.
        partial_rew_func: given latent_state_dim, context_dim, action_dim; None for none.
        partial_encoder: given mapped_env_obs_shape, latent_state_dim, context_dim, goal_indices.
        partial_predictor: given model, val_func, rew_func, encoder, latent_state_dim, context_dim,
            mapped_env_obs_shape, device, writer.
        latent_state_dim, context_dim: None to take them from what `partial_predictor` or
            `partial_encoder` holds, or from the encoder it makes.
        goal_indices: where goals are in the observation, for calls that do not say so.
    """

    partial_model: Any
    partial_val_func: Any
    partial_rew_func: Any
    partial_encoder: Any
    partial_predictor: Any
    latent_state_dim: int | None = None
    context_dim: int | None = None
    goal_indices: GoalIndices | None = None

    def __post_init__(self):
        put_checked(self, optional(check_int), ("latent_state_dim",), 1)
        put_checked(self, optional(check_int), ("context_dim",), 0)
        put_checked(self, optional(check_kind), ("goal_indices",), GoalIndices)
        for field in ("model", "val_func", "rew_func", "encoder", "predictor"):
            name = f"partial_{field}"
            part = getattr(self, name)
            if part is None and field in ("val_func", "rew_func"):
                continue
            object.__setattr__(self, name, _as_part(name, part))

    def __call__(
        self,
        mapped_env_obs_shape: Any,
        action_space: Any,
        device: Any = None,
        writer: Any = None,
        *,
        goal_indices: GoalIndices | None = None,
    ) -> Predictor:
        """Create a predictor.

        Args:
            mapped_env_obs_shape: shape of one mapped observation.
            action_space: what the predictor's level decides.
            device: where `init` puts the state.
            writer: for the host loop.
            goal_indices: where goals are in the mapped observation, the factory's by default.

        Raises:
            ValueError: if the latent state's dimension, or where goals are, cannot be inferred.
        """
        shape = as_shape(mapped_env_obs_shape)
        action_space = spaces.from_any(action_space)
        dims = {}
        for name in ("latent_state_dim", "context_dim"):
            known = (
                getattr(self, name),
                _held(self.partial_predictor, name),
                _held(self.partial_encoder, name),
            )
            dims[name] = next((d for d in known if d is not None), None)
        given = {name: d for name, d in dims.items() if d is not None}
        given["goal_indices"] = self.goal_indices if goal_indices is None else goal_indices
        encoder = _bind(self.partial_encoder, {"mapped_env_obs_shape": shape, **given})
        for name in ("latent_state_dim", "context_dim"):
            if dims[name] is None:
                dims[name] = getattr(encoder, name, None)
            if dims[name] is None:
                raise ValueError(
                    f"{name} is not known: give it to the PredictorFactory, to partial_predictor "
                    f"or to partial_encoder."
                )
        model = _bind(self.partial_model, {**dims, "action_space": action_space})
        value, reward = self.partial_val_func, self.partial_rew_func
        for_reward = {**dims, "action_dim": action_space.dim}
        offered = {
            "model": model,
            "val_func": None if value is None else _bind(value, dims),
            "rew_func": None if reward is None else _bind(reward, for_reward),
            "encoder": encoder,
            **dims,
            "mapped_env_obs_shape": shape,
        }
        offered |= {k: v for k, v in (("device", device), ("writer", writer)) if v is not None}
        return _bind(self.partial_predictor, offered)


def get_default_predictor_factory(
    env: Any, sb_start_duration: float, state: str | tuple[str, ...] | None = None
) -> PredictorFactory:
    """Factory of reward predictors for goal-based environments.

    The context is the desired goal. What else the level sees is the latent state: a model of the
    achieved goal alone knows no velocities.

    Args:
        env: a goal-based environment, or (env, params).
        sb_start_duration: environment steps of the symmetry-breaking start; 0 for none.
        state: name of the parts that are the latent state, such as "achieved_goal" where that is
            all there is to know; None for everything but the desired goal.
    """
    env, params = env if isinstance(env, tuple) else (env, None)
    goal_indices(env)  # refuses environments without goals
    return PredictorFactory(
        partial_model=ProbabilisticEnsemble(sb_start_duration=sb_start_duration),
        partial_val_func=ValueFunction(),
        partial_rew_func=RewardFunction(),
        partial_encoder=IndexEncoder(state=state, context="desired_goal"),
        partial_predictor=RewardPredictor(learn_encoder=False),
        goal_indices=env_spec(env, params).goal_indices,
    )
