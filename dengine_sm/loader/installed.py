"""What is installed: entry points, the plugins behind them, and what they register.

Entry points are enumerated at every call, each plugin in a manager of its own, so that
a broken one is an item of the list and never in the way of the others.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

import attrs
import pluggy

from dengine_sm import hookspecs
from dengine_sm.errors import (
    BackendConflictError,
    BackendLoadError,
    BackendNotFoundError,
    PluginError,
)
from dengine_sm.hookspecs import (
    ENTRY_POINT_GROUP,
    PROJECT_NAME,
    Backend,
    CliCommand,
    LogEngine,
)
from dengine_sm.structuring import nearest

_HOOK_PREFIX = f"{PROJECT_NAME}_"
_BACKENDS_HOOK = "dengine_sm_backends"
_LOGS_HOOK = "dengine_sm_commit_logs"
_COMMANDS_HOOK = "dengine_sm_commands"
_HOOKS = (_BACKENDS_HOOK, _LOGS_HOOK, _COMMANDS_HOOK)

T = TypeVar("T", bound="Backend | LogEngine | CliCommand")


@attrs.frozen
class InstalledBackend:
    """A state machine backend of an installed plugin, or a plugin that did not load."""

    name: str
    """The backend's name; the entry point's for a plugin that did not load."""
    backend: Backend | None
    distribution: str
    version: str
    entry_point: str
    """`name = module` of the plugin."""
    error: PluginError | None = None
    """Why the plugin did not load, or who else claims the name."""


@attrs.frozen
class InstalledCommitLog:
    """A commit log of an installed plugin, or a plugin that did not load."""

    name: str
    """The log's name; the entry point's for a plugin that did not load."""
    engine: LogEngine | None
    distribution: str
    version: str
    entry_point: str
    error: PluginError | None = None


@attrs.frozen
class InstalledCommand:
    """A command of an installed plugin, or a plugin that did not load."""

    name: str
    """The command's name; the entry point's for a plugin that did not load."""
    command: CliCommand | None
    distribution: str
    version: str
    entry_point: str
    error: PluginError | None = None


Installed = TypeVar("Installed", InstalledBackend, InstalledCommitLog, InstalledCommand)


@attrs.frozen
class Plugin:
    """What one entry point gave."""

    entry_point: EntryPoint
    backends: tuple[Backend, ...] = ()
    engines: tuple[LogEngine, ...] = ()
    commands: tuple[CliCommand, ...] = ()
    error: BackendLoadError | None = None

    @property
    def distribution(self) -> str:
        """Name of the distribution that it was installed with."""
        return self.entry_point.dist.name if self.entry_point.dist else "unknown distribution"

    @property
    def version(self) -> str:
        """Version of the distribution."""
        return self.entry_point.dist.version if self.entry_point.dist else "0"

    @property
    def label(self) -> str:
        """Distribution and version."""
        return f"{self.distribution} {self.version}"

    def origin(self) -> dict[str, str]:
        """Return the fields that an installed backend, log or command shares."""
        entry_point = f"{self.entry_point.name} = {self.entry_point.value}"
        return {
            "distribution": self.distribution,
            "version": self.version,
            "entry_point": entry_point,
        }


def installed_backends() -> list[InstalledBackend]:
    """List the backends of every installed plugin, by name.

    Raises nothing for a broken plugin: it is listed with its error and without backend.
    """
    return _listed(InstalledBackend, lambda plugin: plugin.backends, "backend")


def installed_commit_logs() -> list[InstalledCommitLog]:
    """List the commit logs of every installed plugin, like `installed_backends`."""
    return _listed(InstalledCommitLog, lambda plugin: plugin.engines, "commit log")


def installed_commands() -> list[InstalledCommand]:
    """List the commands that plugins add to `dengine-sm`, like `installed_backends`."""
    return _listed(InstalledCommand, lambda plugin: plugin.commands, "command")


def find_backend(name: str) -> Backend:
    """Return the backend that is registered under a name.

    Raises:
        BackendNotFoundError: no plugin registers the name.
        BackendConflictError: two distributions do.
        BackendLoadError: the plugin whose entry point has this name does not load.
    """
    return find(name, lambda plugin: plugin.backends, "backend")[0]


def _listed(
    item_class: Callable[..., Installed], plugs: Callable[[Plugin], Sequence[T]], kind: str
) -> list[Installed]:
    plugins = _load_plugins()
    conflicts = _conflicts(plugins, plugs, kind)
    listed = []
    for plugin in plugins:
        origin = plugin.origin()
        if plugin.error:
            name = plugin.entry_point.name
            listed.append(item_class(name, None, error=plugin.error, **origin))
        for item in plugs(plugin):
            error = conflicts.get(item.name)
            listed.append(item_class(item.name, item, error=error, **origin))
    return sorted(listed, key=lambda item: (item.name, item.distribution))


def _load_plugins() -> list[Plugin]:
    found = entry_points(group=ENTRY_POINT_GROUP)
    return [_load_plugin(entry_point) for entry_point in found]


def _load_plugin(entry_point: EntryPoint) -> Plugin:
    bare = Plugin(entry_point)
    try:
        plugged = entry_point.load()
    except KeyboardInterrupt:
        raise
    except BaseException as exc:  # SystemExit, or a native library's panic
        error = _load_error(bare, f"importing {entry_point.value!r} failed: {told(exc)}")
        error.__cause__ = exc
        return attrs.evolve(bare, error=error)
    try:
        return _call_hooks(bare, plugged)
    except BackendLoadError as exc:
        return attrs.evolve(bare, error=exc)


def _call_hooks(plugin: Plugin, plugged: Any) -> Plugin:
    manager = pluggy.PluginManager(PROJECT_NAME)
    manager.add_hookspecs(hookspecs)
    try:
        manager.register(plugged, name=plugin.entry_point.name)
    except Exception as exc:
        raise _load_error(plugin, f"not a plugin: {told(exc)}") from exc
    implemented = {caller.name for caller in manager.get_hookcallers(plugged) or []}
    _check_hooks(plugin, plugged, implemented)
    backends: list[Backend] = []
    engines: list[LogEngine] = []
    commands: list[CliCommand] = []
    if _BACKENDS_HOOK in implemented:
        backends = _call_hook(plugin, _BACKENDS_HOOK, manager.hook.dengine_sm_backends, Backend)
    if _LOGS_HOOK in implemented:
        engines = _call_hook(plugin, _LOGS_HOOK, manager.hook.dengine_sm_commit_logs, LogEngine)
    if _COMMANDS_HOOK in implemented:
        commands = _call_hook(plugin, _COMMANDS_HOOK, manager.hook.dengine_sm_commands, CliCommand)
    return attrs.evolve(
        plugin, backends=tuple(backends), engines=tuple(engines), commands=tuple(commands)
    )


def _check_hooks(plugin: Plugin, plugged: Any, implemented: set[str]) -> None:
    """Refuse hooks that would never be called: misspelt, unmarked, or none at all."""
    problems = [
        f"{name!r} is marked as a hook, but there is no such hook{_hint(name)}"
        for name in sorted(implemented - set(_HOOKS))
    ]
    for name in dir(plugged):
        if not name.startswith(_HOOK_PREFIX) or name in implemented:
            continue
        function = inspect.getattr_static(plugged, name)
        if not inspect.isroutine(function) or _marked(function):
            continue
        missing = "is not marked with hookimpl" if name in _HOOKS else "is no hook"
        problems.append(f"function {name!r} {missing}{'' if name in _HOOKS else _hint(name)}")
    if not implemented and not problems:
        problems.append(
            f"no hook is implemented; expected {', '.join(_HOOKS[:-1])} or {_HOOKS[-1]}"
        )
    if problems:
        raise _load_error(plugin, "; ".join(problems))


def _marked(function: Any) -> bool:
    return hasattr(getattr(function, "__func__", function), f"{PROJECT_NAME}_impl")


def _hint(name: str) -> str:
    near = nearest(name, _HOOKS)
    return f"; did you mean {near!r}?" if near else f"; the hooks are {', '.join(_HOOKS)}"


def _call_hook(plugin: Plugin, hook: str, call: Callable[[], Any], kind: type[T]) -> list[T]:
    expected = f"expected an iterable of {kind.__name__}"
    try:
        returned = call()
        if not returned:  # pluggy leaves None out
            raise _load_error(plugin, f"hook {hook} returned None; {expected}")
        items: list[Any] = []
        for result in returned:
            if not isinstance(result, Iterable):
                raise _load_error(plugin, f"hook {hook} returned {result!r:.80}; {expected}")
            items += result
    except BackendLoadError:
        raise
    except Exception as exc:
        raise _load_error(plugin, f"hook {hook} failed: {told(exc)}") from exc
    names: set[str] = set()
    for item in items:
        if not isinstance(item, kind):
            raise _load_error(plugin, f"hook {hook} returned {item!r:.80} among others; {expected}")
        if not isinstance(item.name, str) or not item.name:
            raise _load_error(plugin, f"hook {hook}: name is {item.name!r}; expected a text")
        if item.name in names:
            raise _load_error(plugin, f"hook {hook} returned two items named {item.name!r}")
        names.add(item.name)
    return items


def _load_error(plugin: Plugin, what: str) -> BackendLoadError:
    return BackendLoadError(
        f"plugin {plugin.entry_point.name!r} ({plugin.label}): {what}",
        name=plugin.entry_point.name,
        distribution=plugin.label,
    )


def _conflicts(
    plugins: Sequence[Plugin], plugs: Callable[[Plugin], Sequence[T]], kind: str
) -> dict[str, BackendConflictError]:
    claims: dict[str, list[str]] = {}
    for plugin in plugins:
        for item in plugs(plugin):
            claims.setdefault(item.name, []).append(plugin.label)
    return {
        name: _conflict(name, sorted(labels), kind)
        for name, labels in claims.items()
        if len(labels) > 1
    }


def _conflict(name: str, labels: Sequence[str], kind: str) -> BackendConflictError:
    many = f"{len(labels)} distributions" if len(labels) > 2 else "two distributions"
    return BackendConflictError(
        f"{kind} name {name!r} is registered by {many}, {' and '.join(labels)}; "
        f"uninstall {'all but one' if len(labels) > 2 else 'one'} of them",
        name=name,
        distributions=labels,
    )


def find(name: str, plugs: Callable[[Plugin], Sequence[T]], kind: str) -> tuple[T, Plugin]:
    """Return what is registered under a name, and the plugin that it comes from.

    Args:
        name: as registered.
        plugs: which of a plugin's items to look at.
        kind: what they are, for messages.

    Raises:
        BackendNotFoundError: no plugin registers the name.
        BackendConflictError: two distributions do.
        BackendLoadError: the plugin whose entry point has this name does not load.
    """
    plugins = _load_plugins()
    conflict = _conflicts(plugins, plugs, kind).get(name)
    if conflict is not None:
        raise conflict
    for plugin in plugins:
        for item in plugs(plugin):
            if item.name == name:
                return item, plugin
    broken = [plugin.error for plugin in plugins if plugin.error is not None]
    for error in broken:
        if error.name == name:
            raise error
    installed = sorted({item.name for plugin in plugins for item in plugs(plugin)})
    raise _not_found(name, installed, broken, kind)


def _not_found(
    name: str, installed: Sequence[str], broken: Sequence[BackendLoadError], kind: str
) -> BackendNotFoundError:
    what = "state machine backend" if kind == "backend" else kind
    near = nearest(name, installed)
    hint = f". Did you mean {near!r}?" if near else ""
    failed = "".join(f"\n  - {error}" for error in broken)
    count = "1 plugin" if len(broken) == 1 else f"{len(broken)} plugins"
    note = f"\n{count} did not load:{failed}" if broken else ""
    return BackendNotFoundError(
        f"no {what} named {name!r}; installed: {', '.join(installed) or 'none'}{hint}{note}",
        name=name,
        installed=installed,
    )


def told(exc: BaseException) -> str:
    """Return an error of somebody else's code in a line."""
    return f"{type(exc).__name__}: {exc}"
