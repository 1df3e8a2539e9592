"""Check what a wheel and an sdist hold: `archives.py WHEEL SDIST`."""

import sys
import tarfile
import zipfile

WHEEL, SDIST = sys.argv[1:]
with zipfile.ZipFile(WHEEL) as archive:
    wheel = set(archive.namelist())
with tarfile.open(SDIST) as archive:
    sdist = {name.partition("/")[2] for name in archive.getnames()}

for name in ("LICENSE", "CHANGELOG.md", "py.typed"):
    for where, names in ((WHEEL, wheel), (SDIST, sdist)):
        if not any(each == name or each.endswith(f"/{name}") for each in names):
            raise SystemExit(f"{where} has no {name}.")
modules = {name for name in sdist if name.startswith("lrl_jax/") and name.endswith(".py")}
if not modules or not modules <= wheel:
    raise SystemExit(f"{WHEEL} lacks {sorted(modules - wheel)[:5]}.")
strangers = {name.partition("/")[0] for name in wheel} - {"lrl_jax"}
if any(not name.startswith("lrl_jax-") for name in strangers):
    raise SystemExit(f"{WHEEL} holds {strangers} beside lrl_jax.")
print(f"{len(wheel)} files in the wheel, {len(sdist)} in the sdist")
