"""Rules that the sources follow: who imports whom, salts, private fields, classes.

The sources are parsed, not imported: an import within a function counts as any other.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from lrl_jax.randomness import Salt

PACKAGE = "lrl_jax"
ROOT = Path(__file__).parents[1] / PACKAGE

# Imports only point down.
_ABOVE_LEVELS = {"hierarchies", "collectors", "training", "cli"}
_ABOVE_PARTS = {"levels", "envs", *_ABOVE_LEVELS}
NEVER_IMPORTS = {
    "nets": {"models", "planners", "predictors", "algorithms", *_ABOVE_PARTS},
    "buffers": {"models", "planners", "predictors", "algorithms", *_ABOVE_PARTS},
    "models": {"planners", "predictors", "algorithms", *_ABOVE_PARTS},
    "planners": {"predictors", "algorithms", *_ABOVE_PARTS},
    "algorithms": _ABOVE_PARTS,
    "predictors": _ABOVE_PARTS,
    "levels": {"envs", *_ABOVE_LEVELS},
    "envs": {"levels", *_ABOVE_LEVELS},
    "checkpoints": {"models", "planners", "predictors", "algorithms", *_ABOVE_PARTS},
    "loggers": {"models", "planners", "predictors", "algorithms", *_ABOVE_PARTS},
    "hierarchies": {"envs", "collectors", "training", "cli"},
    "export": {"envs", "collectors", "training", "cli"},
    "collectors": {"training", "cli"},
    "training": {"cli"},
}

# Classes that are both instantiated and subclassed, with the reason.
BOTH_INSTANTIATED_AND_SUBCLASSED: dict[str, str] = {}

_SALTS = "lrl_jax/randomness.py"
_MAKES_INSTANCES = {"partial", "new"}  # their first argument is a class


@dataclasses.dataclass(frozen=True)
class Source:
    """A file of the package."""

    path: str  # such as "lrl_jax/levels/base.py"
    tree: ast.Module

    @property
    def module(self) -> str:
        """Dotted name of the module, for a package that of its folder."""
        parts = self.path.removesuffix(".py").split("/")
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @property
    def part(self) -> str:
        """The part of the package that it belongs to, such as "levels"."""
        return self.path.split("/")[1].removesuffix(".py")

    def at(self, node: ast.AST) -> str:
        """The place of a node."""
        return f"{self.path}:{getattr(node, 'lineno', 0)}"


def _source(path: str, text: str) -> Source:
    return Source(path, ast.parse(text, path))


def _sources() -> list[Source]:
    return [
        _source(path.relative_to(ROOT.parent).as_posix(), path.read_text())
        for path in sorted(ROOT.rglob("*.py"))
    ]


def _name(node: ast.AST | None) -> str:
    """The last part of a name: `c` of `a.b.c`, `c` of `c[T]`; "" if it is none."""
    if isinstance(node, ast.Subscript):
        return _name(node.value)
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _argument(call: ast.Call, position: int, name: str) -> ast.expr | None:
    """An argument by position or name; None if it is not given."""
    for keyword in call.keywords:
        if keyword.arg == name:
            return keyword.value
    return call.args[position] if len(call.args) > position else None


# ---------------------------------------------------------------------- imports


def _imports(source: Source) -> Iterator[tuple[ast.AST, str]]:
    """Dotted names that a file imports from this package, at any depth."""
    package = source.module.split(".")
    if not source.path.endswith("__init__.py"):
        package = package[:-1]
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*package[: len(package) + 1 - node.level], *filter(None, [base])])
            for alias in node.names:
                yield node, f"{base}.{alias.name}"
        elif isinstance(node, ast.Call) and _name(node.func) in ("import_module", "__import__"):
            given = _argument(node, 0, "name")
            if isinstance(given, ast.Constant) and isinstance(given.value, str):
                yield node, given.value


def upward_imports(sources: list[Source]) -> list[str]:
    """Imports of what stands above in the library."""
    found = []
    for source in sources:
        never = NEVER_IMPORTS.get(source.part)
        if never is None:
            continue
        for node, name in _imports(source):
            parts = name.split(".")
            if name == PACKAGE:
                found.append(f"{source.at(node)}: imports the whole package")
            elif parts[0] == PACKAGE and parts[1] in never:
                found.append(f"{source.at(node)}: {source.part} import {name}")
    return found


# ------------------------------------------------------------------------ salts


def _int_constants(sources: list[Source]) -> dict[str, set[str]]:
    """Names of each module that stand for an integer written there."""
    found = {}
    for source in sources:
        names = found.setdefault(source.module, set())
        for node in source.tree.body:
            if isinstance(node, ast.Assign):
                targets, value = node.targets, node.value
            elif isinstance(node, ast.AnnAssign):
                targets, value = [node.target], node.value
            else:
                continue
            for target in targets:
                pairs = [(target, value)]
                if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
                    pairs = list(zip(target.elts, value.elts, strict=True))
                names.update(
                    name.id
                    for name, number in pairs
                    if isinstance(name, ast.Name) and number is not None and _is_int(number)
                )
    return found


def _is_int(node: ast.AST) -> bool:
    """Whether an expression is an integer written with digits, such as 7, -7 or 2**20."""
    if isinstance(node, ast.UnaryOp):
        return _is_int(node.operand)
    if isinstance(node, ast.BinOp):
        return _is_int(node.left) and _is_int(node.right)
    return isinstance(node, ast.Constant) and type(node.value) is int


def _has_salt(node: ast.AST | None, constants: set[str], *, or_zero: bool = False) -> bool:
    """Whether an integer of the file's own enters the value: `7`, `START + i`, `uint32(7)`.

    What only masks or wraps a value (`x & 0xFF`, `x % 7`) does not, nor 0 with `or_zero`.
    """

    def among(*nodes: ast.AST) -> bool:
        return any(_has_salt(n, constants, or_zero=or_zero) for n in nodes)

    if node is None:
        return False
    if _is_int(node):
        return not (or_zero and isinstance(node, ast.Constant) and node.value == 0)
    if isinstance(node, ast.BinOp):
        masks = isinstance(node.op, ast.BitAnd | ast.Mod | ast.FloorDiv | ast.RShift)
        return among(node.left) if masks else among(node.left, node.right)
    if isinstance(node, ast.UnaryOp):
        return among(node.operand)
    if isinstance(node, ast.IfExp):
        return among(node.body, node.orelse)
    if isinstance(node, ast.Call):
        return among(*node.args)
    if isinstance(node, ast.Attribute) and _name(node.value) == "Salt":
        return False
    return isinstance(node, ast.Name | ast.Attribute) and _name(node) in constants


def invented_salts(sources: list[Source]) -> list[str]:
    """Integers of a file's own that tell random streams apart, outside `randomness.py`."""
    constants = _int_constants(sources)
    found = []
    for source in sources:
        if source.path == _SALTS:
            continue
        own = set(constants[source.module])
        for _, name in _imports(source):
            module, _, last = name.rpartition(".")
            if last in constants.get(module, ()):
                own.add(last)
            # Those of a module are read as its attributes.
            own |= {constant for constant in constants.get(name, ()) if constant.isupper()}
        for node in ast.walk(source.tree):
            if _salt_of(node, own):
                found.append(f"{source.at(node)}: {ast.unparse(node)}")
    return found


def _salt_of(node: ast.AST, constants: set[str]) -> bool:
    """Whether an expression sets a random stream apart by an integer of the file's own."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitXor):  # a seed ^ a constant
        return _has_salt(node, constants)
    if not isinstance(node, ast.Call):
        return False
    function = _name(node.func)
    if function == "fold_in":
        return _has_salt(_argument(node, 1, "data"), constants)
    if function == "instance_keys":
        return _has_salt(_argument(node, 1, "salt"), constants)
    if function == "tick_key":
        return _has_salt(_argument(node, 0, "salt"), constants)
    if function in ("key", "PRNGKey", "seed") and ast.unparse(node.func) != "key":
        # With 0 any key will do.
        return _has_salt(_argument(node, 0, "seed"), constants, or_zero=True)
    return False


# --------------------------------------------------------------- private fields


def foreign_private_fields(sources: list[Source]) -> list[str]:
    """Private names of others that levels use."""
    public = {"_replace", "_asdict", "_fields"}  # of named tuples

    def is_private(name: str) -> bool:
        return name.startswith("_") and not name.startswith("__") and name not in public

    found = []
    for source in sources:
        if source.part != "levels":
            continue
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Attribute) and is_private(node.attr):
                owner = node.value
                own = _name(owner) in ("self", "cls") and isinstance(owner, ast.Name)
                if own or (isinstance(owner, ast.Call) and _name(owner.func) == "super"):
                    continue
                found.append(f"{source.at(node)}: {ast.unparse(node)}")
            elif isinstance(node, ast.ImportFrom):
                names = [alias.name for alias in node.names if is_private(alias.name)]
                found += [f"{source.at(node)}: {name} from {node.module}" for name in names]
            elif isinstance(node, ast.Call) and _name(node.func) in ("getattr", "setattr"):
                name = _argument(node, 1, "name")
                if (
                    isinstance(name, ast.Constant)
                    and isinstance(name.value, str)
                    and is_private(name.value)
                    and _name(_argument(node, 0, "object")) not in ("self", "cls")
                ):
                    found.append(f"{source.at(node)}: {ast.unparse(node)}")
    return found


# --------------------------------------------------------- private parts of others


def private_dependencies(sources: list[Source]) -> list[str]:
    """Private modules and names of other packages, which change without notice."""

    def is_private(dotted: str) -> bool:
        return any(x.startswith("_") and not x.endswith("__") for x in dotted.split("."))

    found = []
    for source in sources:
        foreign = set()  # names in this file that are of other packages
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Import):
                names = [(alias.name, alias.asname) for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [(f"{node.module}.{x.name}", x.asname or x.name) for x in node.names]
            else:
                continue
            for name, own in names:
                if name.partition(".")[0] != PACKAGE:
                    foreign.add(own or name.partition(".")[0])
                    if is_private(name) and name.partition(".")[0] != "__future__":
                        found.append(f"{source.at(node)}: imports {name}")
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Attribute) and is_private(node.attr):
                owner, _, _ = ast.unparse(node.value).partition(".")
                if owner in foreign:
                    found.append(f"{source.at(node)}: {ast.unparse(node)}")
    return found


# ---------------------------------------------------------------------- classes


def _makers(node: ast.ClassDef) -> set[str]:
    """Class methods that return an instance: those that call `cls`."""
    return {
        method.name
        for method in node.body
        if isinstance(method, ast.FunctionDef)
        and "classmethod" in map(_name, method.decorator_list)
        and any(isinstance(n, ast.Call) and _name(n.func) == "cls" for n in ast.walk(method))
    }


def _instantiated(call: ast.Call, makers: dict[str, set[str]]) -> Iterator[str]:
    """Names of classes that a call makes an instance of."""
    branches, function = [], call.func
    while isinstance(function, ast.IfExp):
        branches.append(function.body)
        function = function.orelse
    for branch in [*branches, function]:
        yield _name(branch)
        if isinstance(branch, ast.Attribute):
            owner = _name(branch.value)
            if branch.attr in makers.get(owner, ()):
                yield owner
    if _name(call.func) in _MAKES_INSTANCES and call.args:
        yield _name(call.args[0])


def half_abstract_classes(sources: list[Source]) -> list[str]:
    """Classes that are neither abstract nor final: instantiated here, subclassed there."""
    defined: dict[str, str] = {}
    subclassed: dict[str, list[str]] = {}
    makers: dict[str, set[str]] = {}
    for source in sources:
        for node in ast.walk(source.tree):
            if isinstance(node, ast.ClassDef):
                defined[node.name] = source.at(node)
                makers[node.name] = _makers(node)
                for base in map(_name, node.bases):
                    subclassed.setdefault(base, []).append(node.name)
    made: dict[str, str] = {}
    for source in sources:
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Call):
                for name in _instantiated(node, makers):
                    made.setdefault(name, source.at(node))
    return [
        f"{place}: {name} is made at {made[name]} and is the base of {', '.join(subclassed[name])}"
        for name, place in defined.items()
        if name in made and name in subclassed and name not in BOTH_INSTANTIATED_AND_SUBCLASSED
    ]


# ------------------------------------------------------------------------ tests

RULES = {
    "imports point down": upward_imports,
    "salts are in randomness.py": invented_salts,
    "levels keep their private fields": foreign_private_fields,
    "dependencies keep their private parts": private_dependencies,
    "classes are abstract or final": half_abstract_classes,
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_the_sources_follow_the_rules(rule):
    sources = _sources()
    assert len(sources) > 50
    found = rule(sources)
    assert not found, f"{len(found)} places: {rule.__doc__}\n" + "\n".join(found)


def test_exceptions_are_needed():
    defined = {
        node.name
        for source in _sources()
        for node in ast.walk(source.tree)
        if isinstance(node, ast.ClassDef)
    }
    assert set(BOTH_INSTANTIATED_AND_SUBCLASSED) <= defined


@pytest.mark.parametrize(
    ("path", "text", "n"),
    [
        ("lrl_jax/algorithms/a.py", "from lrl_jax.levels import base", 1),
        ("lrl_jax/algorithms/a.py", "from lrl_jax import buffers, envs, nets", 1),
        ("lrl_jax/algorithms/a.py", "def f():\n    import lrl_jax.envs.maze2d", 1),
        ("lrl_jax/algorithms/a.py", "import lrl_jax as lrl", 1),
        ("lrl_jax/algorithms/a.py", "from ..collectors import Collector", 1),
        ("lrl_jax/algorithms/a.py", "from .sac import SAC\nfrom lrl_jax.nets import MLP", 0),
        ("lrl_jax/algorithms/__init__.py", "from .. import training", 1),
        ("lrl_jax/collectors/a.py", "importlib.import_module('lrl_jax.training')", 1),
        ("lrl_jax/collectors/a.py", "from lrl_jax.hierarchies import Hierarchy", 0),
        ("lrl_jax/spaces.py", "import lrl_jax.training", 0),
    ],
)
def test_imports_are_found(path, text, n):
    assert len(upward_imports([_source(path, text)])) == n


@pytest.mark.parametrize(
    ("text", "n"),
    [
        ("import jax._src.core", 1),
        ("from jax._src import core", 1),
        ("from jax import _src", 1),
        ("import jax\njax._src.core", 1),
        ("import jax.numpy as jnp\ndef f():\n    return jnp.array._x", 1),
        ("from __future__ import annotations\nimport jax as _jax\n_jax.numpy.ones(3)", 0),
        ("import jax\njax.__version__", 0),
        ("from lrl_jax.a import _b\n_b._c", 0),
        ("self._jax", 0),
    ],
)
def test_private_parts_of_dependencies_are_found(text, n):
    assert len(private_dependencies([_source("lrl_jax/a.py", text)])) == n


@pytest.mark.parametrize(
    ("text", "n"),
    [
        ("jax.random.fold_in(key, 7)", 1),
        ("fold_in(key, jnp.uint32(7))", 1),
        ("_A, _B = 0xA0, 0xA1\njax.random.fold_in(key, data=_B)", 1),
        ("START = 128\nstream.instance_keys(n, START + i)", 1),
        ("stream.instance_keys(n, salt=0xA0)", 1),
        ("stream.tick_key(255)", 1),
        ("_TESTS = 3\nkey = jax.random.key(_TESTS)", 1),
        ("_TESTS = 3\nseed = self.seed ^ _TESTS", 1),
        ("from lrl_jax.b import LEARN\nstream.tick_key(LEARN + i)", 1),
        ("from lrl_jax import b\nstream.tick_key(b.LEARN + i)", 1),
        ("jax.random.fold_in(key, i)", 0),
        ("jax.random.fold_in(key, Salt.TEST)", 0),
        ("stream.tick_key(Salt.LEARN + i)", 0),
        ("from lrl_jax.b import LEARN\nstream.tick_key(Salt.LEARN + i)", 0),
        ("jax.random.fold_in(key, step & 0x7FFFFFFF)", 0),
        ("stream.instance_keys(n)", 0),
        ("jax.random.key(0)", 0),
        ("jax.random.key(0 if seed is None else seed)", 0),
        ("jax.random.key(seed + 1)", 1),
    ],
)
def test_salts_are_found(text, n):
    other = _source("lrl_jax/b.py", "LEARN: int = 128")
    assert len(invented_salts([other, _source("lrl_jax/a.py", text)])) == n
    assert not invented_salts([other, _source(_SALTS, text)])


def test_salts_stay_what_they_are():
    """What was saved goes on with the draws it would have had."""
    assert {name: int(salt) for name, salt in Salt.__members__.items()} == {
        "DECIDE": 0,
        "AFTER_TRANSITION": 64,
        "LEARN": 128,
        "STEP": 0,
        "RANDOM_ACTION": 0xA0,
        "RESET_BY_USER": 0xA1,
        "NONFINITE": 0xA2,
        "RESTART": 255,
        "NOISE": 1,
        "SHARED": 0x5EED,
        "RANDOM_MODE": 0x5EED,
        "STAGGER": 0x57A6,
        "DECISIONS": 0xDEC1,
        "COPY": 0x636F7079,
        "TEST": 0x7E57,
        "WORKER_TEST": 0xE7A1,
        "FINAL_TEST": 0xF17A,
        "INTERIM_TEST_ON_HOST": 2**30,
        "PICTURES": 1,
    }


@pytest.mark.parametrize(
    ("text", "n"),
    [
        ("level._noise", 1),
        ("self.below._noise", 1),
        ("from lrl_jax.levels.base import _with_defaults", 1),
        ("getattr(level, '_noise')", 1),
        ("self._noise + cls._count + super()._noise", 0),
        ("level.__dataclass_params__", 0),
    ],
)
def test_private_fields_are_found(text, n):
    assert len(foreign_private_fields([_source("lrl_jax/levels/a.py", text)])) == n
    assert not foreign_private_fields([_source("lrl_jax/nets/a.py", text)])


@pytest.mark.parametrize(
    ("made", "n"),
    [
        ("Base()", 1),
        ("a.Base()", 1),
        ("(Child if x else Base)()", 1),
        ("functools.partial(Base)", 1),
        ("struct.new(Base)", 1),
        ("Base.small()", 1),
        ("Child()", 0),
        ("Base.name()", 0),
        ("isinstance(x, Base)", 0),
    ],
)
def test_half_abstract_classes_are_found(made, n):
    classes = """
class Base:
    @classmethod
    def small(cls):
        return cls()

    @classmethod
    def name(cls):
        return cls.__name__

class Child(Base):
    pass
"""
    sources = [_source("lrl_jax/a.py", classes), _source("lrl_jax/b.py", made)]
    assert len(half_abstract_classes(sources)) == n
