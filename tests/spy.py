"""Functions that tell when they are called."""

from __future__ import annotations

from types import ModuleType

import pytest


def spied(monkeypatch: pytest.MonkeyPatch, module: ModuleType, *names: str) -> list[str]:
    """The names of these functions of a module as they are called, from now on."""
    calls: list[str] = []
    for name in names:
        original = getattr(module, name)

        def spy(*args, _name=name, _original=original, **kwargs):
            calls.append(_name)
            return _original(*args, **kwargs)

        monkeypatch.setattr(module, name, spy)
    return calls
