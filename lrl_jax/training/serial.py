"""Settings as plain JSON and back, without importing or evaluating what a file names."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from lrl_jax import (
    algorithms,
    levels,
    models,
    nets,
    obs_maps,
    planners,
    predictors,
    schedules,
    spaces,
)
from lrl_jax.setting_trees import OfRun, walk

_OWN = (algorithms, levels, models, nets, obs_maps, planners, predictors, schedules, spaces)
_registered: dict[str, Any] = {}


def _library() -> dict[str, Any]:
    """All settings classes of the library by name, and the functions that can be settings."""
    found: dict[str, Any] = {"OfRun": OfRun}
    for module in _OWN:
        public = getattr(module, "__all__", ())
        for name, value in vars(module).items():
            if _is_settings(value) or (inspect.isfunction(value) and name in public):
                found[name] = value
    return found


def register(*classes: Any) -> Any:
    """Let `load_run` and `resume` know classes of your own: levels, their settings, functions.

    Can be used as a decorator.

    Args:
        classes: frozen dataclasses, environment classes, or functions that settings may hold.

    Returns:
        The class, if there is one.

    Raises:
        ValueError: for a name that is taken by another class.
    """
    for each in classes:
        name = getattr(each, "__qualname__", None)
        if name is None:
            raise TypeError(f"register takes classes and functions, got {each!r}.")
        taken = {**_library(), **_registered}.get(name)
        # A notebook's cell that is run again defines the same class again.
        if taken is not None and getattr(taken, "__module__", None) != each.__module__:
            raise ValueError(f"{name} is taken by {taken}: give your class another name.")
        _registered[name] = each
    return classes[0] if len(classes) == 1 else None


def known(classes: Iterable[Any] = ()) -> dict[str, Any]:
    """What names in a file refer to: the library's, registered and given ones.

    Where two that are given share a name, as lambdas do, it refers to neither.
    """
    names = {**_library(), **_registered}
    given: dict[str, Any] = {}
    for each in classes:
        name = each.__qualname__
        given[name] = each if given.get(name, each) is each else _Ambiguous(name)
    return {**names, **given}


@dataclasses.dataclass(frozen=True)
class _Ambiguous:
    """A name of several classes or functions; settings that hold it are not to be used."""

    name: str


def classes_of(tree: Any) -> list[Any]:
    """Classes and functions that a tree of settings is made of."""
    found = []
    for _, value in walk(tree):
        if dataclasses.is_dataclass(value):
            found.append(type(value))
        elif inspect.isfunction(value) or inspect.isclass(value):
            found.append(value)
    return list(dict.fromkeys(found))


def encode(value: Any) -> Any:
    """A tree of settings as plain JSON; `decode` undoes it.

    Raises:
        TypeError: for a value that no file can hold.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": repr(value)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init
        }
        return {"class": type(value).__qualname__, **fields}
    if isinstance(value, list | tuple):
        return [encode(x) for x in value]
    if isinstance(value, Mapping):
        return {"mapping": {str(k): encode(x) for k, x in value.items()}}
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return encode(np.asarray(value).tolist())
    if isinstance(value, np.dtype) or (isinstance(value, type) and issubclass(value, np.generic)):
        return {"dtype": np.dtype(value).name}
    if callable(value) and hasattr(value, "__qualname__"):
        return {"function": value.__qualname__}
    return {"object": type(value).__qualname__}


def decode(value: Any, names: Mapping[str, Any], where: str = "") -> Any:
    """Undo `encode`; lists become tuples, fields that are missing take their defaults.

    Args:
        value: plain JSON.
        names: classes and functions that it may contain, see `known`.
        where: path, for messages.

    Raises:
        ValueError: for a class that is not known, or a field that it does not have.
    """
    if isinstance(value, list):
        return tuple(decode(x, names, f"{where}.{i}") for i, x in enumerate(value))
    if not isinstance(value, dict):
        return value
    if "class" in value:
        return _record(dict(value), names, where)
    if "float" in value:
        return float(value["float"])
    if "dtype" in value:
        return np.dtype(value["dtype"])
    if "mapping" in value:
        return {k: decode(x, names, f"{where}.{k}") for k, x in value["mapping"].items()}
    if "function" in value:
        return _named(value["function"], names, where)
    raise ValueError(
        f"{where} is {value.get('object', value)!r}, which a file cannot hold: pass it again "
        f"(env=... for an environment)."
    )


def _record(fields: dict[str, Any], names: Mapping[str, Any], where: str) -> Any:
    """A dataclass from its fields in JSON."""
    name = fields.pop("class")
    cls: Any = _named(name, names, where)
    if not _is_settings(cls):
        raise ValueError(f"{where} is a {name}, which is not a dataclass here: {cls!r}.")
    there = {f.name for f in dataclasses.fields(cls) if f.init}
    unknown = sorted(set(fields) - there)
    if unknown:
        raise ValueError(f"{where} has settings that {name} does not know: {unknown}.")
    return cls(**{k: decode(x, names, f"{where}.{k}") for k, x in fields.items()})


def _is_settings(cls: Any) -> bool:
    return inspect.isclass(cls) and dataclasses.is_dataclass(cls)


def ambiguous(tree: Any) -> list[str]:
    """Paths in a decoded tree of names that refer to more than one thing."""
    return [path for path, value in walk(tree) if isinstance(value, _Ambiguous)]


def _named(name: str, names: Mapping[str, Any], where: str) -> Any:
    if name not in names:
        raise ValueError(
            f"{where} is a {name}, which is not known here and is not looked for: pass it, "
            f"classes=[{name}], or call lrl_jax.register({name}) before."
        )
    return names[name]
