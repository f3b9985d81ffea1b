"""One TOML file, the environment and the command line -> `NodeConfig`.

Later sources win: defaults, file, `DENGINE_SM__SECTION__FIELD` variables, overrides.
TOML has no null, so an interval of `[snapshot]` is switched off with `"off"`.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from dengine_sm.errors import ConfigError
from dengine_sm.snapshot.policy import AnyOf, EveryBytes, EveryEntries, EverySeconds, SnapshotPolicy
from dengine_sm.structuring import nearest, structure

ENV_PREFIX = "DENGINE_SM__"
OFF = "off"
MIB = 1024 * 1024

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+\Z")

_Validator = Callable[[Any, "attrs.Attribute[Any]", Any], None]


def _at_least(minimum: float, *, or_none: bool = False) -> _Validator:
    def check(_section: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if value is None and or_none:
            return
        # `not >=` rather than `<`, so that nan is refused too.
        if isinstance(value, bool) or not value >= minimum:
            raise ValueError(f"{attribute.name}: expected at least {minimum}, observed {value!r}")

    return check


def _positive(_section: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if value is not None and (isinstance(value, bool) or not value > 0):
        raise ValueError(f"{attribute.name}: expected more than 0, observed {value!r}")


def _one_of(*allowed: str) -> _Validator:
    def check(_section: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if value not in allowed:
            expected = ", ".join(allowed)
            raise ValueError(f"{attribute.name}: expected one of {expected}, observed {value!r}")

    return check


def _not_blank(_section: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if not str(value).strip():
        raise ValueError(f"{attribute.name}: expected a name, observed {value!r}")


def _host_and_port(_section: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    split_listen(value, name=attribute.name)


def split_listen(listen: str, *, name: str = "listen") -> tuple[str, int]:
    """Split `HOST:PORT`; an IPv6 host stands in brackets, port 0 means any free one.

    Raises:
        ValueError: the text has another form.
    """
    host, colon, port = listen.rpartition(":")
    bare_ipv6 = ":" in host and not (host.startswith("[") and host.endswith("]"))
    digits = port.isascii() and port.isdigit()
    if not colon or not host or bare_ipv6 or not digits or int(port) > 65535:
        raise ValueError(
            f"{name}: expected HOST:PORT such as '127.0.0.1:9081' or '[::1]:9081', "
            f"observed {listen!r}"
        )
    return host, int(port)


@attrs.frozen
class NodeSection:
    """`[node]`: the node itself."""

    name: str = attrs.field(default="node-1", validator=_not_blank)
    """Shown in messages and in `status`."""
    data_dir: Path = Path("dengine-data")
    """Holds log, state and snapshots; a relative path starts at the working directory."""
    max_in_flight: int = attrs.field(default=8192, validator=_at_least(1))
    """Proposals that may wait for commit and apply; more of them wait their turn."""
    max_batch_entries: int = attrs.field(default=4096, validator=_at_least(1))
    """Proposals that share one append to the log."""
    max_batch_bytes: int = attrs.field(default=4 * MIB, validator=_at_least(1))
    """Bytes of commands that share one append; one larger command goes alone."""
    apply_chunk_entries: int = attrs.field(default=1024, validator=_at_least(1))
    """Entries handed to the state machine in one `apply_chunk`."""


@attrs.frozen
class StateMachineSection:
    """`[state_machine]`: which backend, and how far to check it at start."""

    backend: str = attrs.field(default="file", validator=_not_blank)
    """Name of an installed backend; `dengine-sm backends` lists them."""
    validate: str = attrs.field(
        default="preflight", validator=_one_of("preflight", "structure", "off")
    )
    """`preflight` (runs the backend in a temporary directory), `structure` or `off`."""
    require_certificate: str = attrs.field(default=OFF, validator=_one_of(OFF, "standard", "deep"))
    """Profile of the conformance kit that the backend must have passed; `off` asks for none."""
    certificate: Path = Path("certificate.json")
    """The certificate that says so; a relative path starts at `[node] data_dir`."""
    options: dict[str, Any] = attrs.field(factory=dict)
    """The backend's own options, checked by the loader against what it accepts."""


@attrs.frozen
class LogSection:
    """`[log]`: which commit log."""

    engine: str = attrs.field(default="embedded", validator=_not_blank)
    """Name of an installed commit log."""
    options: dict[str, Any] = attrs.field(factory=dict)
    """The log's own options."""


@attrs.frozen
class SnapshotSection:
    """`[snapshot]`: when to take snapshots and what to keep; the first trigger wins."""

    every_entries: int | None = attrs.field(default=100_000, validator=_at_least(1, or_none=True))
    """Entries applied since the last snapshot; None (`"off"` in TOML) never triggers."""
    every_bytes: int | None = attrs.field(default=256 * MIB, validator=_at_least(1, or_none=True))
    """Bytes of commands applied since the last snapshot; None (`"off"`) never triggers."""
    every_seconds: float | None = attrs.field(default=None, validator=_positive)
    """Seconds since the last snapshot, if anything was applied; None (`"off"`) never."""
    cleanup_retain_count: int = attrs.field(default=2, validator=_at_least(1))
    """Newest snapshots kept on disk."""
    keep_log_entries: int = attrs.field(default=1000, validator=_at_least(0))
    """Log entries kept behind the newest snapshot when the log is purged."""

    def policy(self) -> SnapshotPolicy:
        """Return the policy that these triggers make; never due if there is none."""
        policies: list[SnapshotPolicy] = []
        if self.every_entries is not None:
            policies.append(EveryEntries(self.every_entries))
        if self.every_bytes is not None:
            policies.append(EveryBytes(self.every_bytes))
        if self.every_seconds is not None:
            policies.append(EverySeconds(self.every_seconds))
        return AnyOf(policies)


@attrs.frozen
class ServerSection:
    """`[server]`: the gRPC service."""

    enabled: bool = True
    """False runs the node without a network service."""
    listen: str = attrs.field(default="127.0.0.1:9081", validator=_host_and_port)
    """`HOST:PORT`; port 0 takes any free port."""
    max_message_bytes: int = attrs.field(default=20 * MIB, validator=_at_least(1024))
    """Largest request and answer; larger ones are refused."""


@attrs.frozen
class NodeConfig:
    """Everything a node can be told; `NodeConfig()` is a working default."""

    node: NodeSection = attrs.field(factory=NodeSection)
    """The node itself."""
    state_machine: StateMachineSection = attrs.field(factory=StateMachineSection)
    """Which backend."""
    log: LogSection = attrs.field(factory=LogSection)
    """Which commit log."""
    snapshot: SnapshotSection = attrs.field(factory=SnapshotSection)
    """When to take snapshots and what to keep."""
    server: ServerSection = attrs.field(factory=ServerSection)
    """The gRPC service."""


_SECTIONS: Mapping[str, type] = {
    "node": NodeSection,
    "state_machine": StateMachineSection,
    "log": LogSection,
    "snapshot": SnapshotSection,
    "server": ServerSection,
}


@attrs.frozen
class _Setting:
    path: tuple[str, ...]
    """Section, field, and below `options` any number of keys."""
    value: Any
    source: str
    """Names the file, variable or override in messages."""
    text: str | None = None
    """The text as given, when `value` was guessed from it."""


def load_config(
    path: Path | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] = {},
) -> NodeConfig:
    """Merge defaults, a TOML file, the environment and overrides.

    Args:
        path: the file; None reads none.
        environ: variables to look at; None takes those of the process.
        overrides: values by dotted name, such as `server.listen`; None values are ignored.

    Raises:
        ConfigError: the file cannot be read, or any value is unknown or ill-typed;
            `problems` has one sentence for each, with where it comes from.
    """
    problems: list[str] = []
    settings = [
        *(_from_file(path, problems) if path is not None else ()),
        *_from_environ(os.environ if environ is None else environ),
        *(
            _Setting(tuple(name.split(".")), value, f"override {name!r}")
            for name, value in overrides.items()
            if value is not None
        ),
    ]
    sections: dict[str, dict[str, Any]] = {name: {} for name in _SECTIONS}
    for setting in settings:
        _merge(sections, setting, problems)
    if problems:
        raise _config_error(problems)
    built: dict[str, Any] = {
        name: structure(cls, sections[name], where=name) for name, cls in _SECTIONS.items()
    }
    return NodeConfig(**built)


def _config_error(problems: list[str]) -> ConfigError:
    count = f"{len(problems)} problem" + ("s" if len(problems) > 1 else "")
    bullets = "".join(f"\n  - {problem}" for problem in problems)
    return ConfigError(f"configuration has {count}:{bullets}", problems=problems)


def _from_file(path: Path, problems: list[str]) -> Iterator[_Setting]:
    source = str(path)
    try:
        document = tomllib.loads(path.read_bytes().decode())
    except OSError as exc:
        message = f"configuration file {source!r}: cannot be read: {exc.strerror}"
        raise ConfigError(message, problems=[message]) from exc
    except UnicodeDecodeError as exc:
        message = f"configuration file {source!r}: byte {exc.start} is not UTF-8"
        raise ConfigError(message, problems=[message]) from exc
    except tomllib.TOMLDecodeError as exc:
        # The decoder's own text ends with "(at line 3, column 5)".
        message = f"configuration file {source!r}: not TOML: {exc}"
        raise ConfigError(message, problems=[message]) from exc
    for section, table in document.items():
        if section in _SECTIONS and not isinstance(table, dict):
            problems.append(f"{source}: {section}: expected a table, observed {table!r}")
        elif section not in _SECTIONS or not table:
            yield _Setting((section,), table, source)
        else:
            yield from _from_table(section, table, source)


def _from_table(section: str, table: dict[str, Any], source: str) -> Iterator[_Setting]:
    for field, value in table.items():
        if field == "options" and isinstance(value, dict):
            for name, option in value.items():
                yield _Setting((section, field, name), option, source)
        else:
            yield _Setting((section, field), value, source)


def _from_environ(environ: Mapping[str, str]) -> Iterator[_Setting]:
    for variable in sorted(environ):
        if variable.startswith(ENV_PREFIX):
            path = tuple(variable.removeprefix(ENV_PREFIX).lower().split("__"))
            text = environ[variable]
            yield _Setting(path, parse_scalar(text), f"environment {variable}", text)


def parse_scalar(text: str) -> Any:
    """Read a TOML number, boolean, string or array; any other text is itself."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if len(parsed) == 1 else text


def format_scalar(value: Any) -> str:
    """Return a text that `parse_scalar` reads back as the value."""
    if isinstance(value, str) and parse_scalar(value) == value:
        return value
    return _toml_value(value)


def parse_options(options: Iterable[str]) -> dict[str, Any]:
    """Read `K=V` options of a command line into a table.

    Raises:
        ValueError: one of them has another form.
    """
    parsed: dict[str, Any] = {}
    for option in options:
        key, equals, text = option.partition("=")
        if not equals or not key:
            raise ValueError(f"expected K=V, observed {option!r}")
        parsed[key] = parse_scalar(text)
    return parsed


def _merge(sections: dict[str, dict[str, Any]], setting: _Setting, problems: list[str]) -> None:
    section, *rest = setting.path
    if section not in _SECTIONS:
        problems.append(
            f"{setting.source}: unknown section {section!r}; {_expected(section, _SECTIONS)}"
        )
        return
    if not rest:
        # An empty table in a file is fine; a variable that names only a section is not.
        if setting.value != {}:
            problems.append(f"{setting.source}: {section}: names a section; a field is missing")
        return
    field, *below = rest
    cls = _SECTIONS[section]
    fields = attrs.fields_dict(cls)
    if field not in fields:
        problems.append(
            f"{setting.source}: {section}: unknown field {field!r}; {_expected(field, fields)}"
        )
    elif field == "options":
        _merge_option(sections[section], below, setting, problems)
    elif below:
        problems.append(f"{setting.source}: {section}.{field}: has no fields below it")
    else:
        accepted, found = _checked(cls, field, setting)
        problems.extend(found)
        if not found:
            sections[section][field] = accepted


def _expected(name: str, known: Iterable[str]) -> str:
    names = list(known)
    near = nearest(name, names)
    hint = f"; did you mean {near!r}?" if near else ""
    return f"accepted: {', '.join(names)}{hint}"


def _checked(cls: type, field: str, setting: _Setting) -> tuple[Any, tuple[str, ...]]:
    """Structure one field alone, so that each problem names its own source."""
    section = setting.path[0]
    value = setting.value
    if setting.text is not None and not isinstance(value, str):
        attrs.resolve_types(cls)
        if attrs.fields_dict(cls)[field].type in (str, Path):
            # `DENGINE_SM__NODE__NAME=7` reads as a number, but the field wants text.
            value = setting.text
    if value == OFF and section == "snapshot" and field.startswith("every_"):
        value = None
    try:
        structure(cls, {field: value}, where=f"{setting.source}: {section}")
    except ConfigError as exc:
        # The validators name their field, for those who construct a section by hand.
        named = (problem.replace(f"{field}: {field}:", f"{field}:") for problem in exc.problems)
        return None, tuple(named)
    return value, ()


def _merge_option(
    section: dict[str, Any], path: list[str], setting: _Setting, problems: list[str]
) -> None:
    where = ".".join(setting.path[:2])
    if not path and not isinstance(setting.value, dict):
        problems.append(f"{setting.source}: {where}: expected a table, observed {setting.value!r}")
        return
    table = section.setdefault("options", {})
    if not path:
        table.update(setting.value)
        return
    for name in path[:-1]:
        below = table.get(name)
        # A copy, so that tables of the caller's file or overrides stay as they were.
        table[name] = dict(below) if isinstance(below, dict) else {}
        table = table[name]
    table[path[-1]] = setting.value


def config_to_dict(config: NodeConfig) -> dict[str, dict[str, Any]]:
    """Return the config as nested dicts of JSON values; None stays None."""
    return {
        section: {
            field: str(value) if isinstance(value, Path) else value
            for field, value in attrs.asdict(getattr(config, section), recurse=False).items()
        }
        for section in _SECTIONS
    }


def config_to_toml(config: NodeConfig) -> str:
    """Return a TOML file that `load_config` reads back as an equal config."""
    blocks = []
    for section, fields in config_to_dict(config).items():
        options = fields.pop("options", {})
        blocks.append(_table(section, fields))
        if options:
            blocks.append(_table(f"{section}.options", options))
    return "\n".join(blocks)


def _table(name: str, fields: Mapping[str, Any]) -> str:
    lines = [f"{_toml_key(key)} = {_toml_value(value)}\n" for key, value in fields.items()]
    return f"[{name}]\n" + "".join(lines)


def _toml_key(key: str) -> str:
    return key if _BARE_KEY.match(key) else _toml_string(key)


def _toml_string(text: str) -> str:
    # JSON's escapes are TOML's, except that TOML wants DEL escaped as well.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _toml_value(value: Any) -> str:
    match value:
        case None:
            return _toml_string(OFF)
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case list() | tuple():
            return "[" + ", ".join(_toml_value(item) for item in value) + "]"
        case dict():
            items = (f"{_toml_key(key)} = {_toml_value(item)}" for key, item in value.items())
            return "{" + ", ".join(items) + "}"
        case _ if hasattr(value, "isoformat"):
            return str(value.isoformat())
    return _toml_string(str(value))
