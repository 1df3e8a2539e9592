"""Every Python block of the README runs, in order, in one namespace."""

import re
from pathlib import Path

import jax
import pytest

README = Path(__file__).parents[1] / "README.md"


def python_blocks(text):
    """(first line, source) of each fenced block marked as Python."""
    pattern = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return [(text[: m.start(1)].count("\n"), m.group(1)) for m in pattern.finditer(text)]


@pytest.fixture
def quick_compilation():
    """Most of the time is compilation, and what runs is small."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.mark.usefixtures("quick_compilation")
def test_the_python_blocks_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # runs and checkpoints go where the block says, under here
    blocks = python_blocks(README.read_text())
    assert len(blocks) >= 10
    namespace = {"__name__": "readme"}
    for line, source in blocks:
        # Blank lines in front, so that a traceback names the README's own line.
        exec(compile("\n" * line + source, str(README), "exec"), namespace)
    assert (tmp_path / "runs" / "smoke" / "summary.json").is_file()


def test_fences_are_closed_and_name_their_language():
    fences = re.findall(r"^```(.*)$", README.read_text(), re.MULTILINE)
    assert len(fences) % 2 == 0
    assert set(fences[::2]) <= {"python", "bash"} and set(fences[1::2]) == {""}
