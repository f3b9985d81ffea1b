"""An object against the contract's twenty methods: every finding, nothing raised.

Pure: nothing of the machine is called. Nor is `isinstance` asked, which would pass an
object whose `apply_chunk` is the integer 3.
"""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any

import attrs

from dengine_sm.contract import (
    CONTRACT_VERSION,
    StateMachine,
    SupportsGetMulti,
    SupportsQuery,
    SupportsScanPrefix,
)
from dengine_sm.errors import ContractViolationError

OPTIONAL_PROTOCOLS: tuple[type, ...] = (SupportsGetMulti, SupportsScanPrefix, SupportsQuery)

_Parameter = inspect.Parameter
_VARIADIC = (_Parameter.VAR_POSITIONAL, _Parameter.VAR_KEYWORD)


@attrs.frozen
class Finding:
    """One place where a machine breaks the contract."""

    clause_or_method: str
    expected: str
    observed: str
    location: str
    """`file:line` of what is at fault, or the best that is known of it."""

    def __str__(self) -> str:
        return (
            f"{self.clause_or_method}: expected {self.expected}, "
            f"observed {self.observed} ({self.location})"
        )


def check_structure(machine: object) -> list[Finding]:
    """Compare a machine's methods with the contract; calls none of them.

    Returns:
        Every finding, in the contract's order: a method that is missing, no method,
        sync instead of async or the reverse, that cannot be called as the contract
        calls it, or whose annotations contradict. Optional methods only when present.
    """
    findings: list[Finding] = []
    for name, specified in protocol_methods(StateMachine).items():
        findings += _check_method(machine, name, specified, optional=False)
    for protocol in OPTIONAL_PROTOCOLS:
        for name, specified in protocol_methods(protocol).items():
            findings += _check_method(machine, name, specified, optional=True)
    return findings


def protocol_methods(protocol: type) -> dict[str, Callable[..., Any]]:
    """Return the methods that a Protocol asks for, in its order."""
    return {
        name: value
        for name, value in vars(protocol).items()
        if inspect.isfunction(value) and not name.startswith("_")
    }


def violation(
    name: str, distribution: str | None, findings: Sequence[Finding]
) -> ContractViolationError:
    """Return the error that lists every finding of a backend.

    Args:
        name: the backend's, or the machine's class when no plugin registered it.
        distribution: name and version of what registered it, if anything did.
        findings: at least one.
    """
    subject = f"backend {name!r} ({distribution})" if distribution else f"state machine {name!r}"
    places = "1 place" if len(findings) == 1 else f"{len(findings)} places"
    bullets = "".join(f"\n  - {finding}" for finding in findings)
    return ContractViolationError(
        f"{subject} breaks contract {CONTRACT_VERSION} in {places}:{bullets}",
        name=name,
        findings=findings,
    )


def locate(machine: object, method: str | None = None) -> str:
    """Return `file:line` of a method, or of the class when it has none."""
    function = getattr(type(machine), method, None) if method else None
    if function is None and method:
        function = vars(machine).get(method) if hasattr(machine, "__dict__") else None
    code = getattr(_chain(function)[-1], "__code__", None) if callable(function) else None
    if isinstance(code, types.CodeType):
        return f"{code.co_filename}:{code.co_firstlineno}"
    cls = type(machine)
    try:
        return f"{inspect.getsourcefile(cls)}:{inspect.getsourcelines(cls)[1]}"
    except (OSError, TypeError):
        return f"class {cls.__module__}.{cls.__qualname__}"


def _check_method(
    machine: object, name: str, specified: Callable[..., Any], *, optional: bool
) -> list[Finding]:
    contract = inspect.signature(specified)
    parameters = list(contract.parameters.values())[1:]
    wants_async = inspect.iscoroutinefunction(specified)
    described = ("async " if wants_async else "") + f"def {name}{_names(parameters)}"
    at = locate(machine, name)
    try:
        method = getattr(machine, name)
    except AttributeError:
        return [] if optional else [Finding(name, described, "no such method", at)]
    except Exception as exc:
        return [Finding(name, described, f"{type(exc).__name__} on access: {exc}", at)]
    if not callable(method):
        return [Finding(name, described, f"{type(method).__name__} {method!r:.60}", at)]
    is_async = _is_async(method, wants_async)
    if is_async != wants_async:
        return [Finding(name, _kind(wants_async), _kind(is_async), at)]
    try:
        signature = inspect.signature(method)
    except (ValueError, TypeError):
        return []  # a builtin or extension function that does not tell
    problem = _call_problem(signature, parameters)
    if problem:
        observed = f"{_names(list(signature.parameters.values()))}; {problem}"
        return [Finding(name, _names(parameters), observed, at)]
    return _annotation_findings(name, specified, method, at)


def _kind(is_async: bool) -> str:
    return "async def" if is_async else "def"


def _chain(function: Any) -> list[Any]:
    """Return a callable and what it wraps, outermost first."""
    chain = [function]
    while len(chain) < 50:
        function = chain[-1]
        if isinstance(function, functools.partial | functools.partialmethod):
            chain.append(function.func)
        elif isinstance(function, types.MethodType | staticmethod | classmethod):
            chain.append(function.__func__)
        elif callable(inspect.getattr_static(function, "__wrapped__", None)):
            chain.append(function.__wrapped__)
        elif _is_callable_object(function):
            chain.append(type(function).__call__)
        else:
            break
    return chain


def _is_callable_object(function: Any) -> bool:
    return not inspect.isroutine(function) and inspect.isfunction(
        getattr(type(function), "__call__", None)  # noqa: B004 - the function, not callability
    )


def _is_async(method: Any, wanted: bool) -> bool:
    """Tell whether calling gives a coroutine; in doubt, what is wanted.

    A decorator may turn sync into async or back, so the outermost function decides; but
    one that only passes a coroutine through is itself a plain function.
    """
    chain = _chain(method)
    if inspect.iscoroutinefunction(method):
        return True
    outermost = next((link for link in chain if inspect.isfunction(link)), None)
    if outermost is None:
        return wanted  # a builtin or extension function does not tell
    if not wanted:
        return inspect.iscoroutinefunction(outermost)
    return any(inspect.iscoroutinefunction(link) for link in chain) or _returns_awaitable(outermost)


def _returns_awaitable(function: Any) -> bool:
    returned = _hints(function).get("return")
    origin = typing.get_origin(returned) or returned
    return isinstance(origin, type) and hasattr(origin, "__await__")


def _call_problem(signature: inspect.Signature, contract: Sequence[_Parameter]) -> str | None:
    """Say what keeps the contract's calls from being bound, if anything does."""
    own = signature.parameters
    names = [parameter.name for parameter in contract]
    takes_any_name = any(p.kind is _Parameter.VAR_KEYWORD for p in own.values())
    needed = [
        repr(p.name)
        for p in own.values()
        if p.default is _Parameter.empty and p.kind not in _VARIADIC and p.name not in names
    ]
    by_position = [p for p in contract if p.kind is not _Parameter.KEYWORD_ONLY]
    required = [p for p in contract if p.default is _Parameter.empty]
    calls: list[tuple[str, int, Sequence[_Parameter]]] = [
        ("by position", len(by_position), [p for p in contract if p not in by_position]),
        ("by the contract's names", 0, list(contract)),
        ("without the optional arguments", len(required), []),
    ]
    failed = [how for how, count, named in calls if not _binds(signature, count, named)]
    if not failed:
        mine = [name for name in own if name in names]
        expected_order = [p.name for p in by_position if p.name in own]
        swapped = [name for name in mine if name in expected_order] != expected_order
        return "parameters in another order" if swapped else None
    missing = [repr(n) for n in names if n not in own and not takes_any_name]
    only_positional = [
        repr(n) for n in names if n in own and own[n].kind is _Parameter.POSITIONAL_ONLY
    ]
    if len(needed) > len(missing):
        return f"{', '.join(needed)} {'has' if len(needed) == 1 else 'have'} no default"
    if missing:
        return f"no parameter named {' or '.join(missing)}"
    if only_positional:
        return f"{', '.join(only_positional)} cannot be given by name"
    return f"cannot be called {' or '.join(failed)}"


def _binds(signature: inspect.Signature, count: int, named: Sequence[_Parameter]) -> bool:
    try:
        signature.bind(*range(count), **{parameter.name: None for parameter in named})
    except TypeError:
        return False
    return True


def _names(parameters: Sequence[_Parameter]) -> str:
    plain = [
        parameter.replace(annotation=_Parameter.empty, default=parameter.default)
        for parameter in parameters
    ]
    try:
        return str(inspect.Signature(plain))
    except ValueError:
        return f"({', '.join(str(parameter) for parameter in plain)})"


def _annotation_findings(
    name: str, specified: Callable[..., Any], method: Any, at: str
) -> list[Finding]:
    expected, observed = _hints(specified), _hints(_chain(method)[-1])
    findings = []
    for parameter, wanted in expected.items():
        if parameter not in observed or wanted is types.NoneType:
            continue  # what comes back instead of None harms nobody
        if _contradict(wanted, observed[parameter]):
            place = "return" if parameter == "return" else f"parameter {parameter!r}"
            findings.append(
                Finding(
                    name,
                    f"{place}: {inspect.formatannotation(wanted)}",
                    inspect.formatannotation(observed[parameter]),
                    at,
                )
            )
    return findings


def _hints(function: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except Exception:
        return {}  # an annotation that cannot be resolved says nothing


def _contradict(expected: Any, observed: Any) -> bool:
    """Tell whether no value could suit both; in doubt, False."""
    wanted, found = _classes(expected), _classes(observed)
    if wanted is None or found is None:
        return False
    return not any(_related(one, other) for one in wanted for other in found)


def _classes(annotation: Any) -> set[type] | None:
    """Return the classes that an annotation names; None when it is not that simple."""
    if annotation is None:
        return {types.NoneType}
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        members = [_classes(member) for member in typing.get_args(annotation)]
        if any(member is None for member in members):
            return None
        return {cls for member in members if member for cls in member}
    cls = origin or annotation
    if cls is Any or not isinstance(cls, type) or getattr(cls, "_is_protocol", False):
        return None
    return {cls}


def _related(one: type, other: type) -> bool:
    if {one, other} == {int, float} or {one, other} <= {bytes, bytearray, memoryview}:
        return True
    try:
        return issubclass(one, other) or issubclass(other, one)
    except TypeError:
        return True
