"""Settings as a tree of frozen dataclasses and tuples: by path, and in fractions of a run."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from lrl_jax.settings import OfRun

__all__ = [
    "OfRun",
    "bind_env",
    "full_path",
    "get",
    "resolve",
    "unresolved",
    "walk",
    "with_settings",
]


def _is_record(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _parts(value: Any) -> list[tuple[str, Any]]:
    """Names and values of what is right below; none for a plain value."""
    if isinstance(value, OfRun):
        return []
    if _is_record(value):
        return [(f.name, getattr(value, f.name)) for f in dataclasses.fields(value) if f.init]
    if isinstance(value, tuple):
        return [(str(i), part) for i, part in enumerate(value)]
    return []


def walk(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """All (path, value) of a tree of settings, records before what they hold."""
    yield path, tree
    for name, part in _parts(tree):
        yield from walk(part, f"{path}.{name}" if path else name)


def _rebuilt(tree: Any, change: Callable[[Any], Any]) -> Any:
    """The tree with `change` applied from the leaves up; the same objects where nothing changes."""
    if not isinstance(tree, OfRun):
        parts = dict(_parts(tree))
        changed = {k: _rebuilt(v, change) for k, v in parts.items()}
        different = {k: v for k, v in changed.items() if v is not parts[k]}
        if different and _is_record(tree):
            tree = dataclasses.replace(tree, **different)
        elif different:
            tree = tuple(changed.values())
    return change(tree)


def resolve(tree: Any, total_steps: int) -> Any:
    """Put numbers of environment steps instead of fractions of a run of `total_steps`."""
    return _rebuilt(tree, lambda x: x.steps(total_steps) if isinstance(x, OfRun) else x)


def bind_env(tree: Any, env: Any) -> Any:
    """The tree with what it takes from the environment: objects become their `bind_env(env)`."""

    def change(value):
        bind = getattr(value, "bind_env", None)
        return value if bind is None or isinstance(value, type) else bind(env)

    return _rebuilt(tree, change)


def unresolved(tree: Any) -> list[str]:
    """Paths of the fractions of a run in a tree."""
    return [path for path, value in walk(tree) if isinstance(value, OfRun)]


def get(tree: Any, path: str) -> Any:
    """The setting at a path such as "levels.0.optimizer.horizon".

    Raises:
        ValueError: if there is none, with the names that are there.
    """
    value, done = tree, []
    for name in path.split("."):
        parts = dict(_parts(value))
        if name not in parts:
            close = difflib.get_close_matches(name, parts, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            place = ".".join(done) or type(tree).__name__
            raise ValueError(
                f"there is no setting {path!r}: {hint}{place} has "
                f"{', '.join(parts) or 'no settings below it'}."
            )
        value = parts[name]
        done.append(name)
    return value


def full_path(tree: Any, path: str) -> str:
    """The path of a setting that may be named without what is between.

    "levels.0.learning_rate" means "levels.0.algorithm.learning_rate" where that is the only
    setting of the name below level 0.

    Raises:
        ValueError: if there is no such setting, or several.
    """
    try:
        get(tree, path)
    except ValueError:
        above, _, name = path.rpartition(".")
        below = get(tree, above) if above else tree
        found = [p for p, _ in walk(below) if p.rpartition(".")[2] == name]
        if not found:
            raise
        paths = [f"{above}.{p}" if above else p for p in found]
        if len(paths) > 1:
            raise ValueError(f"{path!r} may be any of {', '.join(paths)}: name one.") from None
        return paths[0]
    return path


def with_settings(tree: Any, changes: Mapping[str, Any]) -> Any:
    """A copy of the tree with other values at some paths; see `full_path`.

    Changes of one record are made at once, so that they only have to fit together. A change below
    another one, or one by name alone, is made to what those before it put in.

    Raises:
        ValueError, TypeError: for a path that is not there, or a value that is refused.
    """
    together: dict[str, Any] = {}
    for path, value in changes.items():
        if not _is_there(tree, path) or any(_overlap(path, other) for other in together):
            tree, together = _replaced(tree, together), {}
        together[full_path(tree, path)] = value
    return _replaced(tree, together)


def _is_there(tree: Any, path: str) -> bool:
    try:
        get(tree, path)
    except ValueError:
        return False
    return True


def _overlap(path: str, other: str) -> bool:
    return f"{path}.".startswith(f"{other}.") or f"{other}.".startswith(f"{path}.")


def _replaced(tree: Any, changes: Mapping[str, Any]) -> Any:
    """The tree with values at full paths, none of which is below another."""
    if not changes:
        return tree
    if "" in changes:
        return changes[""]
    below: dict[str, dict[str, Any]] = {}
    for path, value in changes.items():
        name, _, rest = path.partition(".")
        below.setdefault(name, {})[rest] = value
    parts = dict(_parts(tree))
    new = {name: _replaced(parts[name], deeper) for name, deeper in below.items()}
    if _is_record(tree):
        return dataclasses.replace(tree, **new)
    return tuple({**parts, **new}.values())
