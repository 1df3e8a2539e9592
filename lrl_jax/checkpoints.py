"""Checkpoints on disk: a pytree of arrays and what is known about it, whole or refused.

A checkpoint is a folder with the arrays (`arrays/`, written by orbax) and a manifest. The manifest
holds the shape and dtype of every leaf, the size and SHA-256 of every file, and in its first line
its own SHA-256. All of that is compared before anything is parsed or inflated, so a byte that
flipped, a file that is missing, cut short or foreign, and arrays of other shapes are refused.

A new checkpoint is written to `NAME.part`, and the two swap once the new one is complete and on
the disk. Killed at any moment, a program leaves a whole checkpoint that `read` finds and the next
`write` puts back in its place.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrl_jax import __version__
from lrl_jax.devices import wait_for_processes

#: Of the folder's layout. 1 and 2 had settings.json instead of the manifest.
FORMAT = 3
MANIFEST = "lrl_jax_checkpoint"
ARRAYS = "arrays"
#: What a manifest holds until the checkpoint is whole; marks the folder as ours.
_UNFINISHED = b"unfinished\n"
#: Endings of the names of what is next to a checkpoint while it is replaced.
_PART, _OLD = ".part", ".replaced"


# ---------------------------------------------------------------------- writing


def write(path: str | os.PathLike, tree: Any, meta: dict[str, Any], *, kind: str) -> None:
    """Write a checkpoint; an older one at the same place is replaced once the new one is whole.

    Where several processes hold the arrays, all of them call this with the same path, on a disk
    that they share. A symbolic link is followed: what it points to is replaced.

    Args:
        path: a folder that does not exist, is empty, or holds a checkpoint.
        tree: a pytree of arrays of any shapes and dtypes, typed keys included.
        meta: plain JSON; keys are texts.
        kind: what it is of, such as "hierarchy"; `read` has to ask for the same.

    Raises:
        ValueError: if anything else is at `path`, or next to it under the names that are needed
            while writing, or `path` is the working directory or holds it.
        TypeError: if `meta` is not JSON.
    """
    path = _resolved(path)
    text = json.dumps(meta)
    part, old = (path.with_name(path.name + ending) for ending in (_PART, _OLD))
    for place in (path, part, old):
        _refuse_foreign(place)
    wait_for_processes(f"checked {path}")
    first = jax.process_index() == 0
    if first:
        _recover(path)
        part.mkdir(parents=True)
        (part / MANIFEST).write_bytes(_UNFINISHED)
    wait_for_processes(f"begin {path}")
    leaves = _named_leaves(tree)
    _write_arrays(part / ARRAYS, leaves)
    wait_for_processes(f"arrays {path}")
    if first:
        content = {
            "format": FORMAT,
            "version": __version__,
            "kind": kind,
            "meta": json.loads(text),
            "leaves": signatures(tree),
            "files": {name: _digest(part / name, flush=True) for name in _files(part)},
        }
        _write_manifest(part, json.dumps(content, indent=1).encode())
        if path.exists():
            os.replace(path, old)
        os.replace(part, path)
        _flush(path.parent)
        _remove(old)
    wait_for_processes(f"end {path}")


def _resolved(path: str | os.PathLike) -> Path:
    resolved = Path(os.path.realpath(path))
    if resolved.name.endswith((_PART, _OLD)):
        raise ValueError(
            f"{os.fspath(path)!r} ends with {resolved.suffix!r}, as temporary folders do while a "
            f"checkpoint is replaced: take another name."
        )
    if not os.fspath(path) or resolved in (here := Path.cwd().resolve(), *here.parents):
        raise ValueError(
            f"a checkpoint needs its own folder, got {os.fspath(path)!r}, which is the "
            f"working directory or holds it: name a folder, such as 'checkpoints/latest'."
        )
    return resolved


def _refuse_foreign(place: Path) -> None:
    """Refuse a place that holds anything but a checkpoint, whole or not, of any format."""
    if not place.exists() and not place.is_symlink():
        return
    foreign = [place.name]
    if place.is_dir() and not place.is_symlink():
        names = {p.name for p in place.iterdir()}
        if MANIFEST in names:
            try:
                foreign = sorted(set(_files(place)) - set(_parsed(place / MANIFEST)["files"]))
            except ValueError:  # not finished, or damaged
                foreign = sorted(n for n in names - {MANIFEST} if not n.startswith(ARRAYS))
        elif "settings.json" in names:  # before format 3
            is_old = names == {"settings.json", ARRAYS} and (place / ARRAYS / "_METADATA").is_file()
            foreign = [] if is_old else sorted(names)
        else:
            foreign = sorted(names)
    if foreign:
        raise ValueError(
            f"{place} holds something that is not a checkpoint ({', '.join(foreign[:5])}), and a "
            f"checkpoint would replace it: save to another place, or move it away."
        )


def _recover(path: Path) -> None:
    """Restore what a killed program left next to `path`, and remove the rest."""
    found = _found(path)
    if found is not None and found != path:
        os.replace(found, path)
    for ending in (_PART, _OLD):
        _remove(path.with_name(path.name + ending))
    if found is None and path.is_dir():
        path.rmdir()  # it is empty


def _remove(folder: Path) -> None:
    """Remove a checkpoint, the manifest last: it marks what is left as ours."""
    if folder.is_dir():
        for child in folder.iterdir():
            if child.name != MANIFEST:
                shutil.rmtree(child) if child.is_dir() else child.unlink()
        (folder / MANIFEST).unlink(missing_ok=True)
        folder.rmdir()


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _named_leaves(tree: Any) -> dict[str, Any]:
    leaves = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        leaves[jax.tree_util.keystr(path)] = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    return leaves


def _signature(leaf: Any) -> str:
    """Shape and dtype, such as "float32 [3, 8]"; of keys with their implementation."""
    return f"{leaf.dtype} {list(leaf.shape)}"


def signatures(tree: Any) -> dict[str, str]:
    """Shape and dtype of each leaf by its name, as checkpoints keep them."""
    return {name: _signature(leaf) for name, leaf in _named_leaves(tree).items()}


def other_leaves(found: dict[str, str], wanted: dict[str, str], found_as: str) -> list[str]:
    """How the signatures of one tree differ from those that are wanted, by name."""
    out = [f"{name} is missing (here {wanted[name]})" for name in wanted if name not in found]
    out += [
        f"{name} is unknown here ({found_as} {found[name]})" for name in found if name not in wanted
    ]
    return out + [
        f"{name} was {found_as} {found[name]}, here {wanted[name]}"
        for name in wanted
        if name in found and found[name] != wanted[name]
    ]


def _write_arrays(folder: Path, leaves: dict[str, Any]) -> None:
    """Write leaves by position, keys as their data; empty ones are left out.

    What is spread over several processes stays so: each writes its part.
    """
    import orbax.checkpoint as ocp

    arrays = {}
    for i, leaf in enumerate(leaves.values()):
        data = jax.random.key_data(leaf) if _is_key(leaf) else leaf
        if data.size:
            whole = getattr(data, "is_fully_addressable", True)
            arrays[f"{i:05d}"] = np.asarray(data) if whole else data
    if arrays:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(folder, arrays)


def _write_manifest(folder: Path, content: bytes) -> None:
    new = folder / (ARRAYS + ".manifest")
    new.write_bytes(hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
    _flush(new)
    os.replace(new, folder / MANIFEST)
    for inner, _, _ in os.walk(folder):
        _flush(Path(inner))


def _files(folder: Path) -> list[str]:
    """Files in a checkpoint except its manifest, at any depth, by their paths in it."""
    found = (p for p in folder.rglob("*") if p.is_symlink() or not p.is_dir())
    names = (p.relative_to(folder).as_posix() for p in found)
    return sorted(name for name in names if name != MANIFEST)


def _digest(file: Path, flush: bool = False) -> list[Any]:
    """Size and SHA-256 of a file; `flush` sees that it is on the disk."""
    with file.open("rb") as opened:
        if flush:
            os.fsync(opened.fileno())
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return [file.stat().st_size, digest]


def _flush(place: Path) -> None:
    handle = os.open(place, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove(path: str | os.PathLike) -> None:
    """Remove a checkpoint, and what writing it has left next to it.

    Raises:
        ValueError: if anything else is there.
    """
    path = _resolved(path)
    places = [path.with_name(path.name + ending) for ending in ("", _PART, _OLD)]
    for place in places:
        _refuse_foreign(place)
    for place in places:
        _remove(place)


# ---------------------------------------------------------------------- reading


def exists(path: str | os.PathLike) -> bool:
    """Whether a checkpoint was finished at `path`: what `read` would take, if it is intact."""
    return _found(Path(os.path.realpath(path))) is not None


def names(folder: str | os.PathLike) -> list[str]:
    """Names of the checkpoints that were finished in a folder, sorted; [] if there is none."""
    folder = Path(folder)
    if not folder.is_dir():
        return []
    found = {p.name.removesuffix(_PART).removesuffix(_OLD) for p in folder.iterdir()}
    return sorted(name for name in found if name and exists(folder / name))


def read_meta(path: str | os.PathLike, *, kind: str) -> dict[str, Any]:
    """The metadata written with the arrays, verified by its checksum.

    Raises:
        FileNotFoundError: if there is no checkpoint at `path`.
        ValueError: if it is damaged, of another kind, or of a format this version cannot read.
    """
    return _manifest(path, kind)[1]["meta"]


def read_signatures(path: str | os.PathLike, *, kind: str) -> dict[str, str]:
    """Shape and dtype of each leaf by its name; see `read_meta`."""
    return _manifest(path, kind)[1]["leaves"]


def read(
    path: str | os.PathLike,
    target: Any,
    *,
    kind: str,
    defaults: Mapping[str, Any] | None = None,
    ignored: Collection[str] = (),
) -> Any:
    """Read the arrays of a checkpoint into the structure of `target`.

    Args:
        path: as given to `write`.
        target: the tree that was written, or one like it of arrays or ShapeDtypeStructs. Leaves
            that are NumPy arrays there are so in the result, all others are JAX arrays.
        kind: as given to `write`.
        defaults: leaves that the checkpoint may lack, by the names that `signatures` gives them.
        ignored: names of leaves, no keys, that the checkpoint may have and `target` has not.

    Raises:
        FileNotFoundError: if there is no checkpoint at `path`.
        ValueError: if it is damaged, of another kind or format, or its leaves are not those of
            `target`, with the file or the leaves and the reason.
    """
    folder, manifest = _manifest(path, kind)
    wanted, saved = _named_leaves(target), manifest["leaves"]
    given = {name: x for name, x in (defaults or {}).items() if name not in saved}
    stored = {name: x for name, x in wanted.items() if name not in given}
    taken = {name: x for name, x in saved.items() if name in wanted or name not in ignored}
    differences = other_leaves(taken, {k: _signature(x) for k, x in stored.items()}, "saved")
    if differences:
        more = f"; and {len(differences) - 8} more" if len(differences) > 8 else ""
        raise ValueError(
            f"the checkpoint at {folder} holds other arrays: {'; '.join(differences[:8])}{more}."
        )
    _verify_files(folder, manifest["files"])
    leaves = _read_arrays(folder / ARRAYS, stored, saved) | given
    return jax.tree.unflatten(jax.tree.structure(target), [leaves[name] for name in wanted])


def _found(path: Path) -> Path | None:
    """Where the latest complete checkpoint of `path` is, which may be next to it; None without."""
    if (path / MANIFEST).is_file() or (path / "settings.json").is_file():
        return path
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        return None
    part, old = (path.with_name(path.name + ending) for ending in (_PART, _OLD))
    if (part / MANIFEST).is_file() and (part / MANIFEST).read_bytes() != _UNFINISHED:
        return part
    return old if (old / MANIFEST).is_file() or (old / "settings.json").is_file() else None


def _manifest(path: str | os.PathLike, kind: str) -> tuple[Path, dict[str, Any]]:
    """Folder and manifest of a checkpoint of that kind."""
    given = Path(os.path.abspath(path))
    folder = _found(Path(os.path.realpath(path)))
    if folder is None or not (folder / MANIFEST).is_file():
        raise FileNotFoundError(f"no checkpoint at {given} ({MANIFEST} is missing).")
    manifest = _parsed(folder / MANIFEST)
    if manifest["format"] != FORMAT:
        raise ValueError(
            f"the checkpoint at {given} has format {manifest['format']} and was written by lrl_jax "
            f"{manifest['version']}; this is {__version__}, which reads format {FORMAT}: install "
            f"that version."
        )
    if manifest["kind"] != kind:
        raise ValueError(
            f"the checkpoint at {given} is of a {manifest['kind']}, not of a {kind}: load it as "
            f"a {manifest['kind']}."
        )
    return folder, manifest


def _parsed(file: Path) -> dict[str, Any]:
    digest, _, content = file.read_bytes().partition(b"\n")
    if digest + b"\n" == _UNFINISHED:
        raise ValueError(f"{file.parent} is not a whole checkpoint: writing it was cut short.")
    if hashlib.sha256(content).hexdigest().encode() != digest:
        raise ValueError(f"{file} is damaged: its checksum does not fit what it holds.")
    return json.loads(content)


def _verify_files(folder: Path, files: dict[str, list[Any]]) -> None:
    """Refuse files that are missing, foreign, or other than they were written."""
    present = _files(folder)
    problems = [f"{name} is missing" for name in files if name not in present]
    problems += [f"{name} does not belong to it" for name in present if name not in files]
    if not problems:
        for name, (size, digest) in files.items():
            if (found := (folder / name).stat().st_size) != size:
                problems.append(f"{name} has {found} bytes, but {size} were written")
            elif _digest(folder / name)[1] != digest:
                problems.append(f"{name} is not what was written (its checksum differs)")
    if problems:
        raise ValueError(f"the checkpoint at {folder} is damaged: {'; '.join(problems[:5])}.")


def _read_arrays(folder: Path, wanted: dict[str, Any], saved: dict[str, str]) -> dict[str, Any]:
    """Leaves by name; `saved` has all signatures in the order in which they were written."""
    import orbax.checkpoint as ocp

    places = {name: f"{i:05d}" for i, name in enumerate(saved)}
    abstract = {}
    others = {name: _of_signature(saved[name]) for name in saved if name not in wanted}
    for name, leaf in (wanted | others).items():  # orbax reads all or none
        data = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
        if math.prod(data.shape):
            abstract[places[name]] = np.zeros(data.shape, data.dtype)
    arrays = {}
    if abstract:
        with ocp.StandardCheckpointer() as checkpointer:
            arrays = checkpointer.restore(folder, abstract)
    return {name: _leaf(leaf, arrays.get(places[name])) for name, leaf in wanted.items()}


def _of_signature(signature: str) -> jax.ShapeDtypeStruct:
    dtype, shape = signature.split(" ", 1)
    return jax.ShapeDtypeStruct(tuple(json.loads(shape)), jnp.dtype(dtype))


def _leaf(target: Any, data: np.ndarray | None) -> Any:
    if data is None:  # nothing was stored for an empty leaf
        empty = jax.eval_shape(jax.random.key_data, target) if _is_key(target) else target
        data = np.zeros(empty.shape, empty.dtype)
    if _is_key(target):
        return jax.random.wrap_key_data(jnp.asarray(data), impl=_impl(target))
    return np.asarray(data) if isinstance(target, np.ndarray | np.generic) else jnp.asarray(data)


def _impl(keys: Any) -> Any:
    """Implementation of keys, of which shape and dtype are enough."""
    found = []
    jax.eval_shape(lambda x: found.append(jax.random.key_impl(x)), keys)
    return found[0]
