"""Options of the command line for every setting of a config, at any depth."""

from __future__ import annotations

import ast
import dataclasses
import types
import typing
from collections.abc import Sequence
from typing import Annotated, Any

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from lrl_jax.setting_trees import OfRun, full_path, get, walk, with_settings
from lrl_jax.training import TrainConfig

#: Mappings of a config: an option for each of their names.
_MAPPINGS = ("env_settings", "env_params", "sweep")
_APART = (*_MAPPINGS, "obs_maps")


def parse(config: TrainConfig, args: Sequence[str], prog: str, about: str) -> TrainConfig:
    """Change a config as options say: `--levels.0.optimizer.horizon 20`.

    Args:
        config: the defaults.
        args: options and their values.
        prog, about: for the help.

    Raises:
        ValueError, TypeError: for values that the settings refuse.
        SystemExit: for options that do not exist, and for --help.
    """
    _refuse_agents(config, args)
    config, rest = _mappings(config, list(args))
    rest = [_full_name(config, option) for option in rest]
    config, rest = _numbers_for_schedules(config, rest)
    mirror = _mirror(config)
    parsed = tyro.cli(tyro.conf.AvoidSubcommands[mirror], args=rest, prog=prog, description=about)
    changes = dict(_changes(config, parsed, ""))
    return _changed(config, changes)


def _refuse_agents(config: TrainConfig, args: Sequence[str]) -> None:
    """Refuse `--agent.NAME`, an option up to 0.1, and name its successor."""
    for option in args:
        if option.startswith("--agent."):
            name = option.removeprefix("--agent.").partition("=")[0].replace("-", "_")
            found = [p for p, _ in walk(config) if p.rpartition(".")[2] == name]
            now = " or ".join(f"--{p.replace('_', '-')}" for p in found)
            raise ValueError(
                f"{option.partition('=')[0]}: agents are gone, settings are those of their levels: "
                f"{now or 'see --help for all of them'}."
            )


def _changed(config: TrainConfig, changes: dict[str, Any]) -> TrainConfig:
    top = {name: value for name, value in changes.items() if "." not in name}
    deep = {name: value for name, value in changes.items() if "." in name}
    try:
        return dataclasses.replace(with_settings(config, deep), **top)
    except TypeError as error:  # a mistake of the user's, as a ValueError is
        raise ValueError(str(error)) from error


def _mappings(config: TrainConfig, args: list[str]) -> tuple[TrainConfig, list[str]]:
    """Take out the options of mappings, such as `--env-settings.backend spring`."""
    rest: list[str] = []
    found: dict[str, dict[str, Any]] = {}
    while args:
        option, _, value = args.pop(0).partition("=")
        name, _, key = option.removeprefix("--").partition(".")
        name = name.replace("-", "_")
        if not option.startswith("--") or name not in _MAPPINGS or not key:
            rest.append(f"{option}={value}" if value else option)
            continue
        values = [value] if value else []
        while not value and args and not args[0].startswith("--"):
            values.append(args.pop(0))
        if not values:
            raise ValueError(f"{option} needs a value.")
        literals = tuple(_literal(x) for x in values)
        key = key.replace("-", "_")
        found.setdefault(name, {})[key] = literals if name == "sweep" else _single(literals)
    for name, entries in found.items():
        old = getattr(config, name)
        old = dict(old) if isinstance(old, tuple) else {}
        config = dataclasses.replace(config, **{name: old | entries})
    return config, rest


def _single(values: tuple[Any, ...]) -> Any:
    return values[0] if len(values) == 1 else values


def _literal(text: str) -> Any:
    """A number, bool or None if the text is one, else the text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False, "none": None}.get(text.lower(), text)


def _full_name(config: TrainConfig, option: str) -> str:
    """The option in full where it names a setting of a level without what is between."""
    name, equals, value = option.partition("=")
    if not name.startswith("--levels."):
        return option
    try:
        path = full_path(config, name.removeprefix("--").replace("-", "_"))
    except ValueError:  # tyro knows better what may be meant, and flags such as --no-...
        return option
    return f"--{path}{equals}{value}"


def _numbers_for_schedules(config: TrainConfig, args: list[str]) -> tuple[TrainConfig, list[str]]:
    """Take out numbers given for settings that are schedules, or fractions of the run."""
    rest: list[str] = []
    while args:
        option, equals, value = args.pop(0).partition("=")
        path = option.removeprefix("--").replace("-", "_")
        number = value if equals else (args[0] if args else "")
        if option.startswith("--") and _is_schedule(config, path) and _is_number(number):
            if not equals:
                args.pop(0)
            config = with_settings(config, {path: float(number)})
        else:
            rest.append(f"{option}={value}" if equals else option)
    return config, rest


def _is_schedule(config: TrainConfig, path: str) -> bool:
    """Whether a number may replace the settings at a path."""
    above, _, name = path.rpartition(".")
    try:
        record, value = get(config, above) if above else config, get(config, path)
    except ValueError:
        return False
    hint = _hints(type(record)).get(name, Any)
    return dataclasses.is_dataclass(value) and callable(value) and _plain(hint) is float


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


# -------------------------------------------------------------------- the mirror


def _whole(text: str) -> int:
    number = float(text)
    if number != int(number):
        raise ValueError(f"{text} is not a whole number")
    return int(text) if text.lstrip("-").isdigit() else int(number)


#: Whole numbers, also as 1e6.
_Int = Annotated[
    int,
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="INT",
        instance_from_str=lambda args: _whole(args[0]),
        is_instance=lambda x: isinstance(x, int) and not isinstance(x, bool),
        str_from_instance=lambda x: [str(x)],
    ),
]


#: A number, or None for never, in place of a fraction of the run.
_Steps = Annotated[
    Any,
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="{None}|FLOAT",
        instance_from_str=lambda args: None if args[0].lower() == "none" else float(args[0]),
        is_instance=lambda x: x is None or isinstance(x, OfRun | int | float),
        str_from_instance=lambda x: [str(x)],
    ),
]


#: The same for the steps of a schedule.
_ManySteps = Annotated[
    Any,
    PrimitiveConstructorSpec(
        nargs="*",
        metavar="FLOAT [FLOAT ...]",
        instance_from_str=lambda args: tuple(float(x) for x in args),
        is_instance=lambda x: isinstance(x, tuple),
        str_from_instance=lambda x: [str(part) for part in x],
    ),
]


def _hints(cls: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls)
    except Exception:  # a user's class may name what it does not import
        return {}


def _mirror(record: Any) -> Any:
    """A dataclass whose fields have the types of a record's values, and these as defaults."""
    cls = type(record)
    hints = _hints(cls)
    fields = []
    for field in dataclasses.fields(record):
        if not field.init or field.name in _APART:
            continue
        kind, default = _type(getattr(record, field.name), hints.get(field.name, Any))
        if kind is not None:
            fields.append((field.name, kind, dataclasses.field(default=default)))
    made = dataclasses.make_dataclass(cls.__name__, fields, frozen=True)
    made.__doc__ = cls.__doc__
    return made


def _type(value: Any, hint: Any) -> tuple[Any, Any]:
    """Type and default of a setting as an option; None for what no text can say."""
    if isinstance(value, OfRun):
        return _Steps, value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        made = _mirror(value)
        return made, made()
    if isinstance(value, bool):
        return bool, value
    if isinstance(value, int | float):
        whole = isinstance(value, int) and _plain(hint) is not float
        return (_Int, value) if whole else (float, float(value))
    if isinstance(value, str):
        return _text(hint), value
    if isinstance(value, tuple):
        return _tuple_type(value, hint)
    plain = _plain(hint)
    if value is None and plain is not None:
        return typing.Optional[_Int if plain is int else plain], None  # noqa: UP045
    return None, value


def _tuple_type(value: tuple[Any, ...], hint: Any) -> tuple[Any, Any]:
    if any(isinstance(x, OfRun) for x in value):
        return _ManySteps, value
    if any(dataclasses.is_dataclass(x) for x in value):
        parts = [_type(x, Any) for x in value]
        if any(kind is None for kind, _ in parts):
            return None, value
        return tuple[tuple(kind for kind, _ in parts)], tuple(default for _, default in parts)
    kinds = {type(x) for x in value}
    if not value:  # what the class says that its parts are
        kinds = {x for x in typing.get_args(hint) if x is not Ellipsis}
    for kind, option in ((int, _Int), (float, float), (str, str)):
        if kinds == {kind}:
            return tuple[option, ...], value
    return (tuple[float, ...], value) if kinds == {int, float} else (None, value)


def _plain(hint: Any) -> Any:
    """The plain type in a union with None, schedules and the like; None without exactly one."""
    parts = typing.get_args(hint) if _is_union(hint) else (hint,)
    plain = [x for x in parts if x in (int, float, str, bool)]
    return float if float in plain else (plain[0] if len(plain) == 1 else None)


def _is_union(hint: Any) -> bool:
    return isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union


def _text(hint: Any) -> Any:
    """Choices, where the hint has them, else any text."""
    parts = typing.get_args(hint) if _is_union(hint) else (hint,)
    literals = [x for x in parts if typing.get_origin(x) is typing.Literal]
    return literals[0] if literals else str


def _changes(old: Any, new: Any, path: str) -> typing.Iterator[tuple[str, Any]]:
    """Paths and values of what was changed in a mirror of `old`."""
    if _is_mirror(old, new):
        pairs = [
            (f.name, getattr(old, f.name), getattr(new, f.name)) for f in dataclasses.fields(new)
        ]
    elif isinstance(new, tuple) and any(_is_mirror(a, b) for a, b in zip(old, new, strict=False)):
        pairs = [(str(i), a, b) for i, (a, b) in enumerate(zip(old, new, strict=True))]
    else:
        if old != new:
            yield path, new
        return
    for name, a, b in pairs:
        yield from _changes(a, b, f"{path}.{name}" if path else name)


def _is_mirror(old: Any, new: Any) -> bool:
    return dataclasses.is_dataclass(new) and type(new) is not type(old)
