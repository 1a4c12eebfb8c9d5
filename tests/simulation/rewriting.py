"""Changes one line of the engine for the duration of a `with` block.

All other tests replace no code of ours. Here that is the point: checks that can't tell a broken
engine from a correct one prove nothing.
"""

from __future__ import annotations
import __future__

import inspect
import sys
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import FunctionType, ModuleType
from typing import Any
from unittest.mock import patch


@dataclass(frozen=True)
class Edit:
    """In the function `name` of a module or class, `old` becomes `new`, and so do `more` pairs.

    The code must contain `old` exactly once: a mutant of code that has changed fails, and must be
    updated. `uses`: names that the new code needs.
    """

    owner: ModuleType | type
    name: str
    old: str
    new: str
    uses: Mapping[str, Any] = field(default_factory=dict)
    more: tuple[tuple[str, str], ...] = ()


@contextmanager
def rewritten(*edits: Edit) -> Iterator[None]:
    """The engine with all of these edits."""
    with ExitStack() as stack:
        for edit in edits:
            original: FunctionType = inspect.getattr_static(edit.owner, edit.name)
            stack.enter_context(replaced(edit.owner, original, _rewritten(original, edit)))
        yield


@contextmanager
def replaced(owner: ModuleType | type, original: FunctionType, new: object) -> Iterator[None]:
    """Put `new` wherever the gateway holds `original`."""
    holders = [owner, *_importers(original)] if isinstance(owner, ModuleType) else [owner]
    with ExitStack() as stack:
        for holder in holders:
            stack.enter_context(patch.object(holder, original.__name__, new))
        yield


def _rewritten(original: FunctionType, edit: Edit) -> object:
    source = textwrap.dedent(inspect.getsource(inspect.unwrap(original)))
    for old, new in ((edit.old, edit.new), *edit.more):
        if source.count(old) != 1:
            raise AssertionError(f"{old!r} is not once in {edit.name}: has the engine changed?")
        source = source.replace(old, new)
    flags = __future__.annotations.compiler_flag
    code = compile(source, inspect.getfile(inspect.unwrap(original)), "exec", flags=flags)
    names = _Globals(inspect.unwrap(original).__globals__, edit.uses)
    exec(code, names)  # noqa: S102  the source is ours
    made: object = names[edit.name]
    return made


class _Globals(dict[str, Any]):
    """A module's current globals, so that several edits work together, and a few names more."""

    def __init__(self, module: dict[str, Any], uses: Mapping[str, Any]) -> None:
        super().__init__(uses)
        self._module = module

    def __missing__(self, name: str) -> Any:
        return self._module[name]


def _importers(original: FunctionType) -> list[ModuleType]:
    return [
        module
        for name, module in list(sys.modules.items())
        if name.startswith("payments_app.")
        and name != original.__module__
        and getattr(module, original.__name__, None) is original
    ]
