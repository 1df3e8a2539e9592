"""Infos of vector environments: final ones, those of some instances, success in them."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np


def with_final(info: dict[str, Any], done: np.ndarray) -> dict[str, Any]:
    """What SAME_STEP keeps under `final_info`, at its usual place for the steps that ended."""
    final = info.get("final_info")
    if not isinstance(final, dict):
        return info
    merged = dict(info)
    for name, values in final.items():
        if not isinstance(values, np.ndarray):
            continue
        old = info.get(name)
        if isinstance(old, np.ndarray) and old.shape == values.shape:
            mask = done.reshape(-1, *[1] * (values.ndim - 1))
            merged[name] = np.where(mask, values, old)
        elif old is None:
            merged[name] = values
    return merged


def rows_of(info: dict[str, Any], mask: np.ndarray) -> dict[str, Any]:
    """A vector environment's info of the instances in `mask` [n] alone."""
    if mask.all():
        return info

    def rows(values):
        if isinstance(values, dict):
            return rows_of(values, mask)
        is_rows = isinstance(values, np.ndarray) and values.shape[:1] == mask.shape
        return values[mask] if is_rows else values

    return {name: rows(values) for name, values in info.items()}


def merged(infos: list[dict[str, Any]]) -> dict[str, Any]:
    """Infos of vector environments of one instance each as that of one with all of them.

    Of entries that some lack only the mask is included, as in vector environments.
    Where shapes differ, the entry is an array of objects.
    """
    shared = set.intersection(*map(set, infos)) if infos else set()
    columns = {name: [info[name] for info in infos] for name in sorted(shared)}
    return {
        name: _joined(values)
        for name, values in columns.items()
        if all(isinstance(x, np.ndarray) for x in values)
    }


def _joined(columns: list[np.ndarray]) -> np.ndarray:
    """Arrays [1, ...] as one."""
    if len({x.shape[1:] for x in columns}) == 1:
        return np.concatenate(columns)
    return _objects([x[0] for x in columns])


def _objects(rows: Any) -> np.ndarray:
    out = np.full(len(rows), None, object)
    for i, row in enumerate(rows):
        out[i] = row
    return out


def tolerate_differing(vector: Any) -> None:
    """Let a vector environment gather infos whose shapes or types differ between instances.

    Gymnasium's own way takes the shape and the type of the first: others raise, and fractions are
    cut to whole numbers.

    Args:
        vector: a SyncVectorEnv or AsyncVectorEnv.
    """
    vars(vector).setdefault("_add_info", functools.partial(_add_info, vector))


def _add_info(vector: Any, infos: dict[str, Any], info: dict[str, Any], i: int) -> dict[str, Any]:
    for name, value in info.items():
        old, new = infos.get(name), np.asarray(value) if _is_numeric(value) else None
        if not isinstance(old, np.ndarray) or old.dtype == object:
            continue
        if new is None or new.shape != old.shape[1:]:
            infos[name] = _objects(old)
        elif not np.can_cast(new.dtype, old.dtype, "same_kind"):
            infos[name] = old.astype(np.result_type(old, new))
    return type(vector)._add_info(vector, infos, info, i)


def _is_numeric(value: Any) -> bool:
    return isinstance(value, bool | int | float | np.generic | np.ndarray)


def success_in(info: dict[str, Any], n: int) -> tuple[np.ndarray, np.ndarray]:
    """Success in a vector environment's info, and whether the info reports it, new bools [n].

    It is `is_success` or `success`, one flag per instance, 0 or 1; text, dicts, several flags and
    other numbers do not count as a report.
    """
    success, told = np.zeros(n, bool), np.zeros(n, bool)
    for name in ("is_success", "success"):
        values, said = info.get(name), info.get(f"_{name}", np.ones(n, bool))
        if not isinstance(values, np.ndarray | list) or len(values) != n or len(said) != n:
            continue
        for i in np.flatnonzero(said):
            flag = np.asarray(values[i])
            if flag.size == 1 and flag.dtype.kind in "biuf" and flag.item() in (0, 1):
                success[i], told[i] = bool(flag.item()), True
        if told.any():
            break
    return success, told
