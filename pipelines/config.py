"""One configuration: frozen dataclasses in code, TOML on disk, `--set a.b=c` on the command line.

A configuration class is any frozen dataclass whose fields are booleans, numbers, strings, `Literal`s, tuples, optional
values of these, or further such dataclasses. Whatever is read is checked against the field's type, and a name that does
not exist is answered with the nearest one that does.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import tomllib
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin

from ..errors import LongtakeError
from ..errors import MissingPart as MissingPart

T = TypeVar("T")


class UsageError(LongtakeError):
    """The command or the configuration cannot be understood: exit code 2."""


class RunStopped(LongtakeError):
    """The run ended itself because of what happened in it: exit code 1."""


def to_tree(config: object) -> Any:
    """The configuration as dictionaries, lists and plain values; the inverse of `from_tree`."""
    if dataclasses.is_dataclass(config):
        return {f.name: to_tree(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, (tuple, list)):
        return [to_tree(item) for item in config]
    return config


def from_tree(cls: type[T], tree: object, where: str = "") -> T:
    """Build `cls` from a tree; what the tree leaves out keeps its default.

    Raises:
        UsageError: an unknown name, or a value of the wrong type; says which and where.
    """
    if not isinstance(tree, Mapping):
        raise UsageError(f"{where or 'configuration'} is a group of settings, not {tree!r}; set one of: {_names(cls)}")
    hints = typing.get_type_hints(cls)
    for name in tree:
        if name not in hints:
            near = nearest(str(name), hints)
            raise UsageError(f"no setting {_join(where, str(name))!r}.{near} Known there: {_names(cls)}")
    values = {name: _convert(hints[name], value, _join(where, name)) for name, value in tree.items()}
    try:
        return cls(**values)
    except (TypeError, ValueError, LongtakeError) as error:  # a missing field, or the class's own check
        raise UsageError(f"{where or 'configuration'}: {error}") from error


def resolve(
    cls: type[T], *, toml: Path | None = None, sets: Iterable[str] = (), given: Mapping[str, object] | None = None
) -> T:
    """The configuration of a run: defaults, then a TOML file, then `given` dotted names, then `a.b=c` assignments.

    Args:
        cls: the configuration's class, all of whose fields have defaults.
        toml: a TOML file with any part of it.
        sets: assignments "dotted.name=value"; the value is read as TOML, or taken as text where it is none.
        given: values by dotted name, of the right type already (the command line's own options).

    Raises:
        UsageError: a file that is no TOML, an unknown name, a wrong type.
    """
    tree: dict[str, Any] = {}
    if toml is not None:
        try:
            tree = tomllib.loads(toml.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise UsageError(f"no configuration file {toml}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"{toml} is not TOML: {error}") from error
    for name, value in (given or {}).items():
        _assign(cls, tree, name, value)
    for assignment in sets:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise UsageError(f"--set wants name=value, not {assignment!r}")
        _assign(cls, tree, name.strip(), _value(text.strip()))
    return from_tree(cls, tree)


def config_hash(config: object) -> str:
    """16 hex digits that change when any resolved value does."""
    return digest(to_tree(config))[:16]


def digest(tree: object) -> str:
    """sha256 of a tree of plain values, the same in every process."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def to_toml(config: object) -> str:
    """The resolved configuration as TOML that `resolve` reads back; a None is left out, being the default."""
    return "\n".join(_toml_lines(to_tree(config), ())) + "\n"


def nearest(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?`, or nothing where no known name is near."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def _toml_lines(tree: dict[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    if path:
        yield f"\n[{'.'.join(path)}]"
    for name, value in tree.items():
        if value is not None and not isinstance(value, dict):
            yield f"{name} = {_toml_value(value)}"
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _toml_lines(value, (*path, name))


def _toml_value(value: object) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_toml_value, value))}]"
    if isinstance(value, float):
        return repr(value)  # inf and nan read the same in TOML
    return json.dumps(value, ensure_ascii=False)


def _assign(cls: type, tree: dict[str, Any], dotted: str, value: object) -> None:
    """Put a value at a dotted name of the tree, after checking that the name leads somewhere."""
    parts = dotted.split(".")
    here: Any = cls
    for depth, part in enumerate(parts):
        hints = typing.get_type_hints(here) if dataclasses.is_dataclass(here) else {}
        if part not in hints:
            every = list(_dotted(cls))
            same_leaf = [name for name in every if name.split(".")[-1] == parts[-1]]
            hint = f" Did you mean {same_leaf[0]!r}?" if same_leaf else nearest(dotted, every)
            known = f" Known there: {_names(here)}" if hints else ""
            raise UsageError(f"no setting {'.'.join(parts[: depth + 1])!r}.{hint}{known}")
        here = hints[part]
    node = tree
    for part in parts[:-1]:
        node = node.setdefault(part, {})
    node[parts[-1]] = value


def _dotted(cls: type, prefix: str = "") -> Iterator[str]:
    """The dotted name of every leaf setting."""
    for name, hint in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            yield from _dotted(cast(type, hint), f"{prefix}{name}.")
        else:
            yield prefix + name


def _value(text: str) -> object:
    """`1`, `0.5`, `true`, `[1, 2]` and `"x"` as TOML reads them; anything else is the text itself."""
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text


def _convert(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type `hint` asks, or a UsageError that names the setting."""
    if dataclasses.is_dataclass(hint):
        return from_tree(cast(type, hint), value, where)
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None or (value == "none" and str not in args):
            return None
        inner = [arg for arg in args if arg is not type(None)]
        return _convert(inner[0], value, where) if len(inner) == 1 else _first_fit(inner, value, where)
    if origin is Literal:
        if value in args:
            return value
        raise UsageError(
            f"{where} = {value!r} is none of {', '.join(map(str, args))}.{nearest(str(value), map(str, args))}"
        )
    if origin is tuple and isinstance(value, (list, tuple)):
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_convert(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
        if len(args) == len(value):
            return tuple(
                _convert(arg, item, f"{where}[{i}]") for i, (arg, item) in enumerate(zip(args, value, strict=True))
            )
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if hint in (bool, str) and isinstance(value, hint):
        return value
    if hint is str and isinstance(value, (int, float)):  # --set a.name=42: digits are text too
        return str(value)
    raise UsageError(f"{where} = {value!r}: wanted {getattr(hint, '__name__', hint)}")


def _first_fit(hints: list[Any], value: object, where: str) -> object:
    problems = []
    for hint in hints:
        try:
            return _convert(hint, value, where)
        except UsageError as error:
            problems.append(str(error))
    raise UsageError("; ".join(problems))


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _names(cls: Any) -> str:
    return ", ".join(typing.get_type_hints(cls))
