"""Settings as plain JSON, which say whether a checkpoint belongs to a hierarchy."""

from __future__ import annotations

import dataclasses
import dis
import hashlib
import inspect
import json
import sys
import types
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import linen

from lrl_jax.env_spec import GoalIndices
from lrl_jax.levels.base import LevelSpec
from lrl_jax.spaces import Box

#: Functions of these are known by their names: their code changes with the version.
_LIBRARIES = {"jax", "jaxlib", "flax", "optax", "numpy", "lrl_jax"}
#: Bytecode is compared within one of these only.
_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}-O{sys.flags.optimize}"


@dataclasses.dataclass(frozen=True)
class ObsMap:
    """An observation map, described by what it makes of some observations.

    Attributes:
        function: from one observation.
        space: of the observations.
    """

    function: Callable
    space: Box


# --------------------------------------------------------------------- describe


def describe(value: Any) -> Any:
    """Settings as plain JSON, the same for equal settings in any process."""
    if isinstance(value, ObsMap):
        return {"function": _name(value.function), "values": _values(value)}
    parts = _parts(value)
    if parts is not None:
        kind, children = parts
        return {"type": kind, **{name: describe(child) for name, child in children.items()}}
    if isinstance(value, dict):
        return {str(k): describe(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [describe(v) for v in value]
    if isinstance(value, float) and not np.isfinite(value):
        return repr(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return describe(np.asarray(value).tolist())
    return _function(value, ())


def _parts(value: Any) -> tuple[str, dict[str, Any]] | None:
    """Name and settings of a dataclass or partial function; None of anything else."""
    if isinstance(value, type | ObsMap):
        return None
    if hasattr(value, "func") and hasattr(value, "keywords"):
        keywords = {str(name): x for name, x in dict(value.keywords).items()}
        return "partial", {"func": value.func, "args": value.args, "keywords": keywords}
    if not dataclasses.is_dataclass(value):
        return None
    if isinstance(value, GoalIndices):
        # "state" follows from the environment and the others, and earlier versions had none.
        value = dataclasses.replace(value, parts=tuple(p for p in value.parts if p[0] != "state"))
    skipped = {"above", "below"} if isinstance(value, LevelSpec) else set()
    if isinstance(value, linen.Module):
        skipped = {"name", "parent"}
    fields = (f.name for f in dataclasses.fields(value) if f.compare and f.name not in skipped)
    return type(value).__qualname__, {name: getattr(value, name, None) for name in fields}


def _name(function: Any) -> str:
    return getattr(function, "__name__", type(function).__qualname__)


def _function(function: Any, inside: tuple[int, ...]) -> Any:
    """A function by its code, and what that refers to; a name where there is no code.

    Names and numbers are the same in every version of Python, bytecode is only within one.
    """
    function = inspect.unwrap(function)
    owner = getattr(function, "__self__", None)
    if owner is not None and not isinstance(owner, types.ModuleType):
        return {"method": _name(function), "of": describe(owner)}
    code = getattr(function, "__code__", None)
    if code is None or id(code) in inside:
        return _name(function)
    inside = (*inside, id(code))

    def held(value: Any) -> Any:
        return _function(value, inside) if inspect.isfunction(value) else describe(value)

    defaults = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
    known = {
        "function": _name(function),
        "defaults": [held(x) for x in defaults],
        "closure": [held(_content(cell)) for cell in function.__closure__ or ()],
    }
    if (function.__module__ or "").split(".")[0] in _LIBRARIES:
        return known if known["defaults"] or known["closure"] else function.__qualname__
    names, numbers = _mentions(code)
    found = {name: function.__globals__[name] for name in names if name in function.__globals__}
    return {
        **known,
        "names": names,
        "constants": numbers,
        "globals": {name: held(x) for name, x in found.items() if _is_part(x, function)},
        "code": {_PYTHON: _digest(code, function.__doc__)},
    }


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None


def _is_part(value: Any, function: Any) -> bool:
    """Whether a global is part of what a function does: data, or a function of its module."""
    if inspect.isfunction(value):
        return value.__module__ == function.__module__
    if isinstance(value, list | tuple):
        return all(_is_part(x, function) for x in value)
    return isinstance(value, bool | int | float | str | np.ndarray | np.generic | jax.Array)


def _mentions(code: types.CodeType) -> tuple[list[str], list[str]]:
    """Names and numbers in a function's code, functions within it included."""
    names, numbers = set(code.co_names), set()
    for instruction in dis.get_instructions(code):
        if instruction.opname == "LOAD_SMALL_INT":
            numbers.add(repr(instruction.argval))

    def look(value: Any) -> None:
        if isinstance(value, types.CodeType):
            inner = _mentions(value)
            names.update(inner[0])
            numbers.update(inner[1])
        elif isinstance(value, tuple | frozenset):
            for x in value:
                look(x)
        elif isinstance(value, slice):
            look((value.start, value.stop, value.step))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            numbers.add(repr(value))

    look(code.co_consts)
    return sorted(names), sorted(numbers)


def _digest(code: types.CodeType, doc: str | None) -> str:
    def plain(value: Any) -> Any:
        if isinstance(value, types.CodeType):
            return _digest(value, None)
        if isinstance(value, frozenset):
            return sorted(map(repr, value))
        return None if doc is not None and value == doc else repr(value)

    consts = [plain(value) for value in code.co_consts]
    whole = [code.co_code.hex(), consts, code.co_names, code.co_varnames, code.co_freevars]
    return hashlib.sha256(json.dumps(whole).encode()).hexdigest()


def _values(observed: ObsMap) -> list[list[float]]:
    """What a map makes of some observations, [12, at most 16].

    The same in other processes and versions of Python and JAX, up to rounding.
    """
    space = observed.space
    try:
        device = jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        device = None
    with jax.default_device(device), jax.default_matmul_precision("highest"):
        out = jax.jit(jax.vmap(observed.function))(_observations(space))
    values = np.asarray(out, np.float64).reshape(len(out), -1)
    if values.shape[1] > 16:  # sums in which each entry has its part
        weights = _spread(values.shape[1] * 16).reshape(-1, 16) - 0.5
        values = values @ weights
    return values.tolist()


def _observations(space: Box) -> np.ndarray:
    """Observations of a space, small and large where it has no bounds, [12, *shape]."""
    scales = np.array([0.0, 1e-2, 0.1, 0.5, 1.0, 1.0, 2.0, 3.0, 10.0, 30.0, 1e2, 1e4])
    low, high = (np.asarray(x, np.float64) for x in space.bounds)
    share = _spread(len(scales) * low.size).reshape(len(scales), low.size)
    with np.errstate(over="ignore", invalid="ignore"):
        bounded = high - low < 1e30
        inside = np.where(bounded, low + share * (high - low), 0.0)
    free = np.clip((2.0 * share - 1.0) * scales[:, None], low, high)
    values = np.where(bounded, inside, free).reshape(len(scales), *space.shape)
    dtype = np.dtype(space.dtype)
    return (values > 0.5 if dtype.kind == "b" else values).astype(dtype)


def _spread(n: int) -> np.ndarray:
    """Numbers spread over (0, 1), the same everywhere, float64 [n]."""
    return np.modf(np.arange(1, n + 1) * 0.6180339887498949)[0]


# ---------------------------------------------------------------------- compare


def differences(saved: Any, value: Any, path: str = "") -> list[str]:
    """How settings differ from what was described before; fields that were not count as default.

    Args:
        saved: what `describe` returned, through JSON.
        value: settings.
        path: of them, for the messages.
    """
    parts = _parts(value)
    if parts is not None and isinstance(saved, dict):
        kind, children = parts
        if saved.get("type") != kind:
            return [f"{path}: saved {saved.get('type', saved)}, here {kind}"]
        known = {name: x for name, x in saved.items() if name != "type"}
        if kind == "partial":
            keywords = known.pop("keywords", {}), children.pop("keywords")
            offered = _parameters(value.func)
            return _of_parts(known, children, path, None) + _of_parts(
                *keywords, path, lambda name: offered.get(name, inspect.Parameter.empty)
            )
        return _of_parts(known, children, path, lambda name: _default(value, name, known))
    if isinstance(value, dict) and isinstance(saved, dict):
        return _of_parts(saved, {str(k): v for k, v in value.items()}, path, None)
    if isinstance(value, list | tuple) and isinstance(saved, list) and len(value) == len(saved):
        pairs = enumerate(zip(saved, value, strict=True))
        return [d for i, (a, b) in pairs for d in differences(a, b, f"{path}[{i}]")]
    here = json.loads(json.dumps(describe(value)))
    if isinstance(saved, dict) and isinstance(here, dict):
        return _of_functions(saved, here, path)
    return [] if saved == here else [f"{path}: saved {_short(saved)}, here {_short(here)}"]


def _of_parts(
    saved: dict[str, Any], children: dict[str, Any], path: str, default: Callable | None
) -> list[str]:
    out = []
    for name in dict.fromkeys([*saved, *children]):
        at = f"{path}.{name}" if path else name
        if name not in children:
            out.append(f"{at}: saved {_short(saved[name])}, unknown here")
        elif name in saved:
            out += differences(saved[name], children[name], at)
        else:
            fallback = inspect.Parameter.empty if default is None else default(name)
            if fallback is inspect.Parameter.empty:
                out.append(f"{at}: not saved, here {_short(describe(children[name]))}")
            else:
                out += differences(json.loads(json.dumps(describe(fallback))), children[name], at)
    return out


def _parameters(function: Any) -> dict[str, Any]:
    """Parameters of a function by name, with their defaults."""
    try:
        return {k: p.default for k, p in inspect.signature(function).parameters.items()}
    except (TypeError, ValueError):
        return {}


def _default(value: Any, name: str, known: dict[str, Any]) -> Any:
    """A setting's default, in addition to those in `known`; empty if it must be given."""
    if not dataclasses.is_dataclass(value):
        return inspect.Parameter.empty
    given = {
        f.name: getattr(value, f.name)
        for f in dataclasses.fields(value)
        if f.init and (f.name in known or not f.compare)
    }
    try:  # defaults may depend on other settings
        return getattr(type(value)(**given), name)
    except (TypeError, ValueError, AttributeError):
        return inspect.Parameter.empty


def _of_functions(saved: dict[str, Any], here: dict[str, Any], path: str) -> list[str]:
    """Functions differ if anything does that can be compared."""
    if "values" in saved and "values" in here:
        a, b = (np.asarray(x["values"], np.float64) for x in (saved, here))
        if a.shape == b.shape and np.allclose(a, b, 1e-4, 1e-6, equal_nan=True):
            return []
    elif _same_function(saved, here):
        return []
    names = (x.get("function", x.get("type", _short(x))) for x in (saved, here))
    return [f"{path}: saved {next(names)}, here {next(names)}, a function that does something else"]


def _same_function(saved: Any, here: Any) -> bool:
    if isinstance(saved, dict) and isinstance(here, dict):
        if "code" in saved and "code" in here:
            both = set(saved["code"]) & set(here["code"])
            if any(saved["code"][python] != here["code"][python] for python in both):
                return False
            saved, here = ({**x, "code": None} for x in (saved, here))
        return saved.keys() == here.keys() and all(_same_function(saved[k], here[k]) for k in saved)
    if isinstance(saved, list) and isinstance(here, list):
        return len(saved) == len(here) and all(map(_same_function, saved, here))
    return saved == here


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:100]}..."
