"""Settings of Sphinx for the documentation: `make docs` builds it into build/docs."""

import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import lrl_jax

project = "lrl_jax"
author = "The lrl_jax authors"
release = lrl_jax.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["build", "**.ipynb_checkpoints"]
html_theme = "furo"
html_title = f"lrl_jax {release}"

# Guides and notebooks are executed, and a page that fails stops the build. Most of the time is
# compilation, and what runs is small.
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_output_stderr = "remove"
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# One guide shows levels of the tests.
paths = [str(ROOT), str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]
os.environ["PYTHONPATH"] = os.pathsep.join(paths)
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_inherit_docstrings = False  # the protocol is described once, in Level
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_use_ivar = True
default_role = "code"  # docstrings put single backticks around code
maximum_signature_line_length = 88

linkcheck_timeout = 20
linkcheck_ignore = [r"http://localhost.*"]


def plain_text(app, what, name, obj, options, lines):
    """Escape what is markup in reStructuredText but was meant as plain text.

    Docstrings write shapes such as [*B, X], absolute values and powers without backticks.
    """
    for i, line in enumerate(lines):
        parts = re.split(r"(`+[^`]*`+)", line)
        parts[::2] = [re.sub(r"([*|]|(?<=\w)_(?!\w))", r"\\\1", part) for part in parts[::2]]
        lines[i] = "".join(parts)


def setup(app):
    """Run before napoleon, which has the default priority of 500."""
    app.connect("autodoc-process-docstring", plain_text, priority=400)
