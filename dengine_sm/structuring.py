"""Plain tables to attrs classes, every problem reported at once; the only importer of cattrs.

cattrs chooses the hook for a type; the hooks here never coerce, so that "10" is not an
integer and True is not one either.
"""

from __future__ import annotations

import difflib
import enum
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import attrs
import cattrs

from dengine_sm.errors import ConfigError

T = TypeVar("T")

_COLLECTIONS: dict[Any, Callable[[Iterable[Any]], Any]] = {
    list: list,
    tuple: tuple,
    Sequence: tuple,
    set: set,
    frozenset: frozenset,
}
_MAX_SHOWN = 60


class _RejectedError(Exception):
    """Problems below one value, each with the path from that value."""

    def __init__(self, problems: Sequence[tuple[str, str]]) -> None:
        super().__init__(problems)
        self.problems = list(problems)

    def below(self, step: str) -> list[tuple[str, str]]:
        """Return the problems as seen from the owner of the value."""
        return [(_join(step, path), text) for path, text in self.problems]


def structure(cls: type[T], values: Mapping[str, Any], *, where: str) -> T:
    """Build an attrs class from a table.

    Args:
        cls: an attrs class; nested attrs classes, enums (by value), `Path`, unions,
            collections and the plain types are understood. Nothing is coerced, except
            that an int is taken for a float.
        values: the table; a key left out takes the field's default.
        where: the table's place in the user's file, such as `state_machine.options`;
            empty for the whole file.

    Raises:
        ConfigError: `problems` has every unknown key, wrong type and refused value.
        TypeError: `cls` itself cannot be structured; the class is at fault.
    """
    if not attrs.has(cls):
        raise TypeError(f"{cls!r}: expected an attrs class")
    try:
        return typing.cast(T, _converter().structure(values, cls))
    except _RejectedError as exc:
        problems = [f"{place}: {text}" if place else text for place, text in exc.below(where)]
    if len(problems) == 1:
        raise ConfigError(problems[0], problems=problems)
    bullets = "".join(f"\n  - {problem}" for problem in problems)
    raise ConfigError(
        f"{where or 'configuration'}: {len(problems)} problems:{bullets}", problems=problems
    )


def nearest(name: str, names: Iterable[str]) -> str | None:
    """Return the accepted name that `name` most likely meant, if one is near."""
    matches = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return matches[0] if matches else None


def _converter() -> cattrs.Converter:
    converter = cattrs.Converter()
    for plain, plain_hook in _PLAIN.items():
        converter.register_structure_hook(plain, _bind(plain_hook, converter))
    hooks: list[tuple[Callable[[Any], bool], Callable[[Any, Any, cattrs.Converter], Any]]] = [
        (lambda type_: typing.get_origin(type_) is typing.Literal, _literal),
        (lambda type_: isinstance(type_, type) and issubclass(type_, enum.Enum), _enum),
        (lambda type_: (typing.get_origin(type_) or type_) in _COLLECTIONS, _collection),
        (lambda type_: (typing.get_origin(type_) or type_) in (dict, Mapping), _mapping),
        (lambda type_: typing.get_origin(type_) in (typing.Union, types.UnionType), _union),
        (lambda type_: isinstance(type_, type) and attrs.has(type_), _attrs_class),
    ]
    for matches, hook in hooks:
        converter.register_structure_hook_func(matches, _bind(hook, converter))
    return converter


def _bind(
    hook: Callable[[Any, Any, cattrs.Converter], Any], converter: cattrs.Converter
) -> Callable[[Any, Any], Any]:
    return lambda value, type_: hook(value, type_, converter)


def _exact(value: Any, type_: Any, converter: cattrs.Converter) -> Any:
    if issubclass(type_, enum.Enum):  # cattrs dispatches an IntEnum as the int it is
        return _enum(value, type_, converter)
    if type(value) is not type_:
        raise _mismatch(type_, value)
    return value


def _float(value: Any, type_: Any, _converter: cattrs.Converter) -> float:
    if type(value) not in (int, float):
        raise _mismatch(type_, value)
    return float(value)


def _path(value: Any, type_: Any, _converter: cattrs.Converter) -> Path:
    if not isinstance(value, str | Path):
        raise _mismatch(type_, value)
    return Path(value)


_PLAIN: dict[type, Callable[[Any, Any, cattrs.Converter], Any]] = {
    bool: _exact,
    int: _exact,
    str: _exact,
    bytes: _exact,
    float: _float,
    Path: _path,
}


def _literal(value: Any, type_: Any, _converter: cattrs.Converter) -> Any:
    for choice in typing.get_args(type_):
        if type(choice) is type(value) and choice == value:
            return value
    raise _mismatch(type_, value)


def _enum(value: Any, type_: Any, _converter: cattrs.Converter) -> Any:
    for member in type_:
        if value is member or (type(member.value) is type(value) and member.value == value):
            return member
    raise _mismatch(type_, value)


def _collection(value: Any, type_: Any, converter: cattrs.Converter) -> Any:
    origin, arguments = typing.get_origin(type_) or type_, typing.get_args(type_)
    if not isinstance(value, list | tuple | set | frozenset):
        raise _mismatch(type_, value)
    items = list(value)
    item_types: Sequence[Any] = [arguments[0] if arguments else Any] * len(items)
    if origin is tuple and arguments and arguments[-1] is not Ellipsis:
        if len(arguments) != len(items):
            raise _RejectedError(
                [("", f"expected {len(arguments)} items, observed {len(items)}: {_show(value)}")]
            )
        item_types = arguments
    pairs = [(f"[{i}]", item, t) for i, (item, t) in enumerate(zip(items, item_types, strict=True))]
    return _COLLECTIONS[origin](_each(pairs, converter).values())


def _mapping(value: Any, type_: Any, converter: cattrs.Converter) -> dict[Any, Any]:
    if not isinstance(value, Mapping):
        raise _mismatch(type_, value)
    key_type, value_type = typing.get_args(type_) or (Any, Any)
    _each([(f"[{key!r}]", key, key_type) for key in value], converter)
    items = [(f"[{key!r}]", item, value_type) for key, item in value.items()]
    return dict(zip(value, _each(items, converter).values(), strict=True))


def _union(value: Any, type_: Any, converter: cattrs.Converter) -> Any:
    members = typing.get_args(type_)
    if value is None and types.NoneType in members:
        return None
    members = tuple(member for member in members if member is not types.NoneType)
    for member in members:
        try:
            return _one(value, member, converter)
        except _RejectedError as exc:
            if len(members) == 1 and any(path for path, _ in exc.problems):
                raise  # the place inside says more than "expected a table or None"
            if isinstance(value, Mapping) and attrs.has(member) and len(members) == 1:
                raise
    raise _mismatch(type_, value)


def _attrs_class(value: Any, cls: Any, converter: cattrs.Converter) -> Any:
    if isinstance(value, cls):
        return value
    if not isinstance(value, Mapping):
        raise _mismatch(cls, value)
    attrs.resolve_types(cls)
    fields = {field.alias: field for field in attrs.fields(cls) if field.init}
    problems = [("", _unknown(str(key), list(fields))) for key in value if key not in fields]
    arguments: dict[str, Any] = {}
    for name, field in fields.items():
        if name not in value:
            if field.default is attrs.NOTHING:
                problems.append((name, f"missing; expected {_type_name(field.type)}"))
            continue
        try:
            arguments[name] = _one(value[name], field.type, converter)
        except _RejectedError as exc:
            problems += exc.below(name)
    problems += _refusals(cls, fields, arguments)
    if problems:
        raise _RejectedError(problems)
    try:
        return cls(**arguments)
    except (ValueError, TypeError) as exc:
        raise _RejectedError([("", _reason(exc))]) from exc


def _refusals(
    cls: Any, fields: Mapping[str, Any], arguments: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """Run each field's validator; attrs itself would stop at the first refusal."""
    partial = cls.__new__(cls)
    for name, value in arguments.items():
        object.__setattr__(partial, fields[name].name, value)
    problems = []
    for name, value in arguments.items():
        field = fields[name]
        if field.validator is None or field.converter is not None:
            continue
        try:
            field.validator(partial, field, value)
        except AttributeError:
            continue  # it looks at another field; construction runs it again
        except (ValueError, TypeError) as exc:
            problems.append((name, _reason(exc)))
    return problems


def _each(items: Sequence[tuple[str, Any, Any]], converter: cattrs.Converter) -> dict[str, Any]:
    structured: dict[str, Any] = {}
    problems: list[tuple[str, str]] = []
    for step, value, type_ in items:
        try:
            structured[step] = _one(value, type_, converter)
        except _RejectedError as exc:
            problems += exc.below(step)
    if problems:
        raise _RejectedError(problems)
    return structured


def _one(value: Any, type_: Any, converter: cattrs.Converter) -> Any:
    if type_ is None or type_ is Any:
        return value
    return converter.structure(value, type_)


def _unknown(name: str, accepted: Sequence[str]) -> str:
    if not accepted:
        return f"unknown option {name!r}; none is accepted"
    near = nearest(name, accepted)
    hint = f"; did you mean {near!r}?" if near else ""
    return f"unknown option {name!r}; accepted: {', '.join(accepted)}{hint}"


def _mismatch(type_: Any, value: Any) -> _RejectedError:
    observed = "None" if value is None else f"{_type_name(type(value))} {_show(value)}"
    return _RejectedError([("", f"expected {_type_name(type_)}, observed {observed}")])


def _type_name(type_: Any) -> str:
    origin = typing.get_origin(type_)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type_name(member) for member in typing.get_args(type_))
    if origin is typing.Literal:
        return f"one of {', '.join(repr(choice) for choice in typing.get_args(type_))}"
    if type_ is types.NoneType:
        return "None"
    if not isinstance(type_, type) or origin is not None:
        return str(type_)
    if issubclass(type_, enum.Enum):
        return f"one of {', '.join(repr(member.value) for member in type_)}"
    if type_ is Path:
        return "a path"
    return "a table" if attrs.has(type_) or issubclass(type_, dict) else type_.__name__


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


def _reason(exc: Exception) -> str:
    return str(exc.args[0]) if exc.args else type(exc).__name__


def _join(step: str, path: str) -> str:
    if not step or not path:
        return step or path
    return f"{step}{path}" if path.startswith("[") else f"{step}.{path}"
