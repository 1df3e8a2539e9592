"""README and documentation: code runs, links lead somewhere, every public name is there.

Guides and notebooks run where the site is built, `make docs`.
"""

import importlib
import inspect
import re
import runpy
import types
from pathlib import Path

import jax
import pytest

import lrl_jax

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "notebooks"
PAGES = [ROOT / "README.md", *sorted(FOLDER.rglob("*.md"))]
SOURCES = [*PAGES, ROOT / "CHANGELOG.md", *sorted(FOLDER.glob("*.ipynb"))]


def name_of(page):
    return page.relative_to(ROOT).as_posix()


def python_blocks(text):
    """(first line, source) of each fenced block marked as Python."""
    pattern = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return [(text[: m.start(1)].count("\n"), m.group(1)) for m in pattern.finditer(text)]


WITH_CODE = [page for page in PAGES if python_blocks(page.read_text())]


@pytest.fixture
def quick_compilation():
    """Most of the time is compilation, and what runs is small."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize("page", WITH_CODE, ids=name_of)
def test_the_python_blocks_run(page, tmp_path, monkeypatch):
    """In order, in one namespace per page; what a page writes goes into a temporary folder."""
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("page")  # where dataclasses and pickles look for their module
    monkeypatch.setitem(__import__("sys").modules, "page", module)
    for line, source in python_blocks(page.read_text()):
        # Blank lines in front, so that a traceback names the page's own line.
        exec(compile("\n" * line + source, str(page), "exec"), module.__dict__)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_fences_are_closed_and_name_their_language(page):
    fences = re.findall(r"^(```.*)$", page.read_text(), re.MULTILINE)
    assert len(fences) % 2 == 0
    known = r"```(python|bash|text|\{(code-cell|image|toctree|include|literalinclude|eval-rst)\}.*)"
    assert [x for x in fences[::2] if not re.fullmatch(known, x)] == []
    assert set(fences[1::2]) <= {"```"}


@pytest.mark.parametrize("page", sorted((FOLDER / "guides").glob("*.md")), ids=name_of)
def test_guides_are_executed(page):
    """All of their Python is in cells, and Sphinx takes the page for a notebook."""
    text = page.read_text()
    assert text.startswith("---\nfile_format: mystnb\nkernelspec:\n  name: python3\n---\n")
    assert "```{code-cell} python\n" in text and not python_blocks(text)


def test_the_readme_is_short_and_names_the_two_commands():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 200
    assert "\nmake train " in text and "\nmake test " in text


# ------------------------------------------------------------------------ links


def links(page):
    """(target, anchor) of links and pictures in a page that are not addresses on the web."""
    text = page.read_text()
    text = re.sub(r"^```(python|bash|text).*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    found = re.findall(r"\]\(<?([^)\s>]+)>?\)", text)
    found += re.findall(r"^```\{(?:image|include|literalinclude)\} (\S+)", text, re.MULTILINE)
    for link in found:
        if not re.match(r"[a-z]+:", link):
            target, _, anchor = link.partition("#")
            yield target, anchor


def anchors(page):
    """Names that a page's headings and labels can be linked by."""
    text = page.read_text()
    headings = re.findall(r"^#{1,3} (.*)$", text, re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
    return slugs | set(re.findall(r"^\((\S+)\)=$", text, re.MULTILINE))


@pytest.mark.parametrize("page", SOURCES, ids=name_of)
def test_links_lead_somewhere(page):
    for target, anchor in links(page):
        found = (page.parent / target).resolve() if target else page
        assert found.exists(), f"{target} is not there"
        if anchor:
            assert anchor in anchors(found), f"{target} has no heading {anchor}"


def test_every_page_is_in_the_contents():
    listed = set()
    for page in PAGES[1:]:
        for tree in re.findall(r"^```\{toctree\}\n(.*?)^```$", page.read_text(), re.M | re.S):
            names = [x for x in tree.splitlines() if x and not x.startswith(":")]
            listed |= {(page.parent / x).resolve() for x in names}
    pages = {p.with_suffix("") for p in [*PAGES[1:], *FOLDER.glob("*.ipynb")]}
    assert listed == pages - {FOLDER / "index"}


def test_pictures_are_what_their_script_draws():
    for name, draw in runpy.run_path(str(FOLDER / "pictures" / "draw.py"))["PICTURES"].items():
        assert (FOLDER / "pictures" / name).read_text() == draw(), f"run draw.py again: {name}"


# -------------------------------------------------------------------- reference


def documented_modules():
    """Modules whose members the reference takes from their docstrings."""
    text = "".join(page.read_text() for page in (FOLDER / "reference").glob("*.md"))
    return set(re.findall(r"automodule:: (\S+)", text))


def public_names(module):
    """Names of `__all__`, or what a module without one defines."""
    own = (k for k, v in vars(module).items() if getattr(v, "__module__", None) == module.__name__)
    names = getattr(module, "__all__", None) or [k for k in own if k[0] != "_"]
    return [k for k in names if not inspect.ismodule(getattr(module, k)) and k[0] != "_"]


def test_every_public_module_is_in_the_reference():
    packages = {f"lrl_jax.{p.parent.name}" for p in (ROOT / "lrl_jax").glob("*/__init__.py")}
    modules = {f"lrl_jax.{k}" for k in lrl_jax.__all__ if inspect.ismodule(getattr(lrl_jax, k))}
    assert packages | modules <= documented_modules()


def test_every_name_at_the_top_is_in_the_reference():
    text = (FOLDER / "reference" / "lrl_jax.md").read_text()
    for name in public_names(lrl_jax):
        assert re.search(rf"`{name} <lrl_jax\.|lrl_jax\.{name}$", text, re.MULTILINE), name


@pytest.mark.parametrize("module", sorted(documented_modules()))
def test_every_public_name_has_what_the_reference_shows(module):
    """Sphinx leaves out what has no docstring; data need a `#:` comment there, or an entry."""
    loaded = importlib.import_module(module)
    source = inspect.getsource(loaded)
    pages = [page.read_text() for page in (FOLDER / "reference").glob("*.md")]
    text = next(page for page in pages if f"automodule:: {module}\n" in page)
    for name in public_names(loaded):
        value = getattr(loaded, name)
        if callable(value):
            # A dataclass without a docstring gets its signature for one.
            doc = value.__doc__ or ""
            assert doc and not doc.startswith(f"{name}("), f"{module}.{name} has no docstring"
        else:
            is_commented = re.search(rf"^#: .*\n{name}\b", source, re.MULTILINE)
            has_entry = f".. data:: {name}\n" in text
            assert bool(is_commented) != has_entry, f"{module}.{name} needs one entry"


def test_methods_of_bases_that_are_not_public_are_in_the_reference():
    """Such as `Collector.save`: the page of their module asks Sphinx for inherited methods."""
    for module in documented_modules():
        loaded = importlib.import_module(module)
        public = [getattr(loaded, name) for name in public_names(loaded)]
        classes = [x for x in public if inspect.isclass(x) and x.__module__.startswith("lrl_jax")]
        hidden = {
            base
            for cls in classes
            for base in cls.__mro__[1:]
            if base.__module__.startswith("lrl_jax.collectors") and base not in classes
        }
        if any(callable(x) and not n.startswith("_") for b in hidden for n, x in vars(b).items()):
            pages = [page.read_text() for page in (FOLDER / "reference").glob("*.md")]
            text = next(page for page in pages if f"automodule:: {module}\n" in page)
            assert ":inherited-members:" in text, (module, hidden)


# ---------------------------------------------------------------- plain English

#: Habits of translated prose, and what to write for them; the test names the lines.
HABITS = {
    r"exactly so many|\bso many\b": "an exact number of; this many",
    r"\bpretends?\b": "as if",
    r"\balike\b": "the same",
    r"\bbeside\b": "next to, besides, in addition to",
    r"\bof (its|their|one's) own\b": "its own ..., a separate ...",
    r", but for\b|\bbut for (the|its|a|one|an)\b": "except",
    r"\bwhoever\b": "the one that",
    r"\b(told|tells?) apart\b": "distinguished",
    r"\bbehind (the|its|a|an|it|them|rows?|each|one|those|that)\b": "after",
    r"\b(one|two|some|keys?|functions?|rows?|line|future|flag|number|reward|draws?) an? "
    r"(instance|tick|environment|level|episode|agent|second|update|chunk|device|ring)\b": "per",
}


@pytest.mark.parametrize("habit", HABITS)
def test_prose_is_plain(habit):
    sources = [*SOURCES, ROOT / "benchmarks" / "SCALE.md"]
    sources += sorted((ROOT / "lrl_jax").rglob("*.py"))
    found = [
        f"{name_of(source)}:{number}: {line.strip()}"
        for source in sources
        for number, line in enumerate(source.read_text().splitlines(), 1)
        if re.search(habit, line) and '"image/png"' not in line
    ]
    assert found == [], f"write: {HABITS[habit]}"
