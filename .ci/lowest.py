"""Print the requirements of `pyproject.toml` at their lowest versions, one a line."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
for requirement in project["dependencies"]:
    name, lowest = re.match(r"([\w.-]+)>=([\w.]+)", requirement).groups()
    print(f"{name}=={lowest}")
