"""Answers to calls with the words of other libraries or earlier versions: the word to use."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def answers(
    **instead: str,
) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """Decorator: refuse keywords by name, each with what to do instead.

    Args:
        **instead: keyword that is not taken, and the end of the sentence "keyword=...: ".
    """

    def decorate(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        name = function.__qualname__.removesuffix(".__init__")

        @functools.wraps(function)
        def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            for old in kwargs:
                if old in instead:
                    raise TypeError(f"{name} takes no {old}=: {instead[old]}.")
            return function(*args, **kwargs)

        return call

    return decorate
