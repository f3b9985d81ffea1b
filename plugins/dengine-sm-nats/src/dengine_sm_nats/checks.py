"""Whether servers and a stream are set up so that what the log promises holds.

The `check_` functions are pure, over the JSON of the monitoring pages and of a stream's
configuration; they return all findings at once, none when nothing is wrong.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import attrs

from dengine_sm.errors import CommitLogError
from dengine_sm_nats.monitoring import MonitoringError, fetch_monitoring

if TYPE_CHECKING:
    from nats.js.api import StreamConfig

    from dengine_sm_nats.options import NatsLogOptions

__all__ = [
    "MINIMUM_VERSION",
    "REPLICAS_PAGE",
    "Finding",
    "check_replicas",
    "check_server",
    "check_stream",
    "check_version",
    "fetch_monitoring",
    "refuse_lazy_servers",
    "survey_server",
]

MINIMUM_VERSION = (2, 12, 3)
"""Jepsen found whole streams deleted and acknowledged messages lost up to 2.12.1; the repairs
of snapshots and of removed peers came with 2.12.3."""

RECOMMENDED_VERSION = (2, 15, 0)
"""Syncs a replicated stream once for many messages, so that `sync_interval: always` is cheap."""

REPLICAS_PAGE = "/jsz?streams=1&config=1"
"""The page that `check_replicas` reads, of every server."""

_SECOND_NS = 1_000_000_000
_MIN_DUPLICATE_WINDOW_NS = 120 * _SECOND_NS


@attrs.frozen
class Finding:
    """One thing that is not as the log needs it."""

    subject: str
    """Such as `server n0` or `stream 'dengine'`."""
    problem: str
    """What was observed."""
    expected: str
    reason: str
    """What breaks, in one sentence, or what to do."""

    def __str__(self) -> str:
        return f"{self.subject}: {self.problem}; expected {self.expected}. {self.reason}"


def check_server(
    varz: Mapping[str, Any],
    jsz: Mapping[str, Any],
    *,
    min_payload_bytes: int = 1 << 20,
    min_store_bytes: int = 1,
) -> list[Finding]:
    """Check how a server is set up.

    Args:
        varz: its page `/varz`.
        jsz: its page `/jsz`.
        min_payload_bytes: the largest message that the log publishes.
        min_store_bytes: how large the stream may become.
    """
    subject = f"server {varz.get('server_name', '?')}"
    findings = [
        *check_version(subject, str(varz.get("version", ""))),
        *_check_payload(subject, varz.get("max_payload", 0), min_payload_bytes),
    ]
    config = jsz.get("config") or {}
    if jsz.get("disabled") or not config:
        reason = "Without it nothing is stored or replicated."
        findings.append(Finding(subject, "JetStream is off", "jetstream { ... }", reason))
        return findings
    if not config.get("sync_always"):
        findings.append(_lazy_sync(subject, config.get("sync_interval", 0)))
    store_bytes = config.get("max_storage", 0)
    if store_bytes < min_store_bytes:
        problem = f"max_file_store is {store_bytes} bytes"
        reason = "The stream would be refused, or stop taking commands before its own limit."
        findings.append(Finding(subject, problem, f"{min_store_bytes} or more", reason))
    return findings


def check_version(subject: str, version: str) -> list[Finding]:
    """Check a server's version, such as `2.15.1`."""
    found = re.match(r"v?(\d+)\.(\d+)\.(\d+)(-?)", version)
    # A pre-release comes before its release.
    if found and (*map(int, found.groups()[:3]), not found[4]) >= (*MINIMUM_VERSION, True):
        return []
    reason = "Older servers lost acknowledged commands when nodes were killed or partitioned."
    expected = f"{_dotted(MINIMUM_VERSION)} or newer, best {_dotted(RECOMMENDED_VERSION)}"
    return [Finding(subject, f"version {version or 'unknown'}", expected, reason)]


def check_stream(
    config: Mapping[str, Any] | StreamConfig,
    *,
    expected_replicas: int = 3,
    subject: str | None = None,
    min_message_bytes: int = 1,
) -> list[Finding]:
    """Check the configuration of the stream that is the log.

    Args:
        config: of nats-py, or the JSON of the server's API, durations in nanoseconds; what it
            leaves out has the server's default.
        expected_replicas: how many the log is configured for.
        subject: the one that commands are published to, when it is known.
        min_message_bytes: the largest message that the log publishes.
    """
    if not isinstance(config, Mapping):
        config = config.as_dict()
    name = f"stream {config.get('name', '?')!r}"
    observed = {**_STREAM_DEFAULTS, **{key: value for key, value in config.items() if value}}
    rules = (
        *_RULES,
        _replicas(expected_replicas),
        _subjects(subject),
        _message_size(min_message_bytes),
    )
    return [
        Finding(name, f"{rule.field} is {observed[rule.field]!r}", rule.expected, rule.reason)
        for rule in rules
        if not rule.holds(observed[rule.field])
    ]


def check_replicas(jsz: Mapping[str, Mapping[str, Any]], stream: str) -> list[Finding]:
    """Check every server's own copy of a stream for entries that only it lost.

    A copy may be behind, and servers are not asked at one instant: what a purge under way
    looks like is gone when the pages are read again.

    Args:
        jsz: each server's page `REPLICAS_PAGE`, by the server's name.
        stream: which stream.
    """
    details = {name: detail for name, page in jsz.items() for detail in _details(page, stream)}
    states = {name: detail["state"] for name, detail in details.items()}
    findings = [
        *_check_copies(jsz, details, stream),
        *(found for name, state in states.items() for found in _check_holes(name, state, stream)),
    ]
    for name, state in states.items():
        if any(_lost_its_head(state, other) for other in states.values()):
            first = min(other["first_seq"] for other in states.values())
            problem = f"begins at sequence {state['first_seq']}"
            findings.append(damaged_copy(name, stream, problem, f"{first}, like another copy"))
    return findings


async def survey_server(
    url: str, *, min_payload_bytes: int = 1 << 20, min_store_bytes: int = 1
) -> list[Finding]:
    """Read a server's monitoring pages, and check how it is set up.

    Raises:
        MonitoringError: they cannot be read.
    """
    varz = await fetch_monitoring(url, "/varz")
    jsz = await fetch_monitoring(url, "/jsz")
    return check_server(
        varz, jsz, min_payload_bytes=min_payload_bytes, min_store_bytes=min_store_bytes
    )


async def refuse_lazy_servers(options: NatsLogOptions) -> None:
    """Refuse servers that break the log's promise, or whose majority cannot be seen.

    A minority may be down, as for the log itself; `dengine-sm cluster check` looks at all.

    Raises:
        CommitLogError: with every finding, or with why too few could be asked.
    """
    answers = await asyncio.gather(*map(survey_server, options.monitoring), return_exceptions=True)
    problems, seen = [], 0
    for answer in answers:
        match answer:
            case list():
                seen += 1
                problems += [str(finding) for finding in answer]
            case MonitoringError():
                pass
            case BaseException():
                raise answer
    majority = options.replicas // 2 + 1
    if seen < majority:
        problems.append(
            f"monitoring: {seen} of {len(answers)} servers in log.options.monitoring answered; "
            f"expected {majority} or more, to see how they sync. sync = 'unverified' does without"
        )
        problems += [str(answer) for answer in answers if isinstance(answer, MonitoringError)]
    if problems:
        bullets = "".join(f"\n  - {problem}" for problem in problems)
        raise CommitLogError(
            f"the servers cannot hold stream {options.stream!r}:{bullets}\nnothing was changed"
        )


@attrs.frozen
class _Rule:
    """What one field of a stream's configuration must be."""

    field: str
    holds: Callable[[Any], bool]
    expected: str
    reason: str


def _is(field: str, wanted: Any, reason: str) -> _Rule:
    return _Rule(field, lambda value: bool(value == wanted), repr(wanted), reason)


_STREAM_DEFAULTS: Mapping[str, Any] = {
    "subjects": [],
    "num_replicas": 1,
    "storage": "file",
    "retention": "limits",
    "discard": "old",
    "max_age": 0,
    "max_msgs": -1,
    "max_msgs_per_subject": -1,
    "max_msg_size": -1,
    "duplicate_window": 0,
    "deny_delete": False,
    "deny_purge": False,
    "sealed": False,
    "no_ack": False,
    "allow_rollup_hdrs": False,
    "allow_msg_ttl": False,
    "persist_mode": "default",
    "mirror": None,
    "sources": None,
    "subject_transform": None,
}

_RULES = (
    _is("storage", "file", "In memory, the log is gone when the servers restart together."),
    _is("retention", "limits", "Otherwise a command is removed once some consumer has it."),
    _is("discard", "new", "A full stream would drop its oldest commands silently."),
    _is("max_age", 0, "Commands that a node has not applied yet would vanish with time."),
    _is("max_msgs", -1, "Writes would stop at a number of commands that no purge looks at."),
    _is("max_msgs_per_subject", -1, "Only the newest commands would be kept."),
    _is("deny_delete", True, "A deleted command leaves a hole that nodes cannot pass."),
    _is("deny_purge", False, "The log could not be shortened behind a snapshot."),
    _is("sealed", False, "A sealed stream takes no commands."),
    _is("no_ack", False, "Without acknowledgements no command is ever known to be committed."),
    _is("allow_rollup_hdrs", False, "One message could remove all commands before it."),
    _is("allow_msg_ttl", False, "A message that expires leaves a hole."),
    _is("persist_mode", "default", "Messages would be acknowledged before they are written."),
    _is("mirror", None, "A mirror copies another stream, and takes no commands itself."),
    _is("sources", None, "Messages of another stream would be taken for commands."),
    _is("subject_transform", None, "Commands would be stored under another subject."),
    _Rule(
        "duplicate_window",
        lambda value: value >= _MIN_DUPLICATE_WINDOW_NS,
        f"{_MIN_DUPLICATE_WINDOW_NS} ns (120 s) or more",
        "A command that is sent again after an election could be stored twice.",
    ),
)


def _replicas(wanted: int) -> _Rule:
    reason = "With fewer copies a lost server takes commands with it, an even number helps nothing."
    return _is("num_replicas", wanted, reason)


def _subjects(wanted: str | None) -> _Rule:
    reason = "What others publish to further subjects would be taken for commands."
    if wanted is not None:
        return _is("subjects", [wanted], reason)
    return _Rule("subjects", lambda value: len(value) == 1, "exactly one", reason)


def _message_size(wanted: int) -> _Rule:
    reason = "Large commands would be refused."
    expected = f"-1, or {wanted} or more"
    return _Rule("max_msg_size", lambda value: value == -1 or value >= wanted, expected, reason)


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _check_payload(subject: str, observed: int, wanted: int) -> Iterable[Finding]:
    if observed < wanted:
        reason = "Large commands would be refused."
        problem = f"max_payload is {observed} bytes"
        yield Finding(subject, problem, f"{wanted} or more", reason)


def _lazy_sync(subject: str, interval_ns: int) -> Finding:
    return Finding(
        subject,
        f"syncs every {interval_ns / _SECOND_NS:g} s",
        "sync_interval: always, in jetstream { ... }",
        "A power failure of several servers would lose acknowledged commands.",
    )


def _details(page: Mapping[str, Any], stream: str) -> Iterable[Mapping[str, Any]]:
    for account in page.get("account_details") or ():
        for detail in account.get("stream_detail") or ():
            if detail["name"] == stream:
                yield detail


def _check_copies(
    jsz: Mapping[str, Any], details: Mapping[str, Mapping[str, Any]], stream: str
) -> Iterable[Finding]:
    subject = f"stream {stream!r}"
    if not details:
        reason = "The first node makes it; until then there is no log."
        yield Finding(subject, f"not on {', '.join(jsz) or 'any server'}", "it there", reason)
        return
    wanted = max((detail.get("config") or {}).get("num_replicas", 1) for detail in details.values())
    if len(details) < wanted <= len(jsz):
        reason = "The servers without one count as lost until they have copied it."
        problem = f"copies on {', '.join(details)} only"
        yield Finding(subject, problem, f"{wanted} copies", reason)


def _check_holes(name: str, state: Mapping[str, Any], stream: str) -> Iterable[Finding]:
    messages, first, last = state["messages"], state["first_seq"], state["last_seq"]
    missing = max(last - first + 1 - messages if last else 0, state.get("num_deleted") or 0)
    if missing:
        problem = f"{missing} of the sequences {first} to {last} are missing"
        yield damaged_copy(name, stream, problem, "all of them")


def _lost_its_head(state: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Tell whether another copy, at least as new, begins earlier."""
    newer = other["last_seq"] >= state["last_seq"] and other["messages"] > 0
    return bool(newer and other["first_seq"] < state["first_seq"])


def damaged_copy(name: str, stream: str, problem: str, expected: str) -> Finding:
    reason = f"Stop {name}, remove its store, and start it again: it copies the others."
    return Finding(f"copy of stream {stream!r} on {name}", problem, expected, reason)
