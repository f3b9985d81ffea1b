"""One connection to the servers, and their errors in our words."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import nats
import nats.errors
import nats.js.errors
from nats.aio.client import Client

from dengine_sm import CommitLogError
from dengine_sm_nats.checks import check_version
from dengine_sm_nats.options import NatsLogOptions

_RETRY_PAUSE_S = 0.1
_NO_PEERS = 10005
_CREDENTIALS = ("NATS USER JWT", "USER NKEY SEED")
_PASSING = (
    TimeoutError,
    nats.errors.TimeoutError,
    nats.errors.NoRespondersError,
    nats.js.errors.NoStreamResponseError,
    nats.js.errors.ServiceUnavailableError,
)

Value = TypeVar("Value")

logger = logging.getLogger("dengine_sm_nats")


async def connect(options: NatsLogOptions, name: str) -> Client:
    """Connect to any of the servers.

    Raises:
        CommitLogError: none answers, the credentials are refused, or it is too old.
    """
    last_error: list[Exception] = []

    async def note(error: Exception) -> None:
        # A refusal is followed by the end of the connection, which would say nothing.
        if not (last_error and _is_refusal(last_error[0])):
            last_error[:] = [error]
        logger.debug("connection to %s: %s", ", ".join(options.servers), error)

    settings: dict[str, Any] = {
        "servers": options.servers,
        "name": f"dengine-sm {name}",
        "error_cb": note,
        # Two missed answers to a ping a second: a frozen server is left within moments.
        "ping_interval": 1,
        "max_outstanding_pings": 2,
        "reconnect_time_wait": 0.05,
        "max_reconnect_attempts": -1,
        "connect_timeout": min(2, options.connect_timeout_s),
        "user": options.user,
        "password": options.password,
        "tls": _tls(options),
    }
    if options.credentials is not None:
        settings["user_credentials"] = _checked_credentials(options.credentials)
    client = Client()
    try:
        await _within(client.connect(**settings), options.connect_timeout_s)
    except (TimeoutError, OSError, nats.errors.Error) as exc:
        with contextlib.suppress(Exception):
            await client.close()
        refused = bool(last_error) and _is_refusal(last_error[0])
        why = last_error[0] if last_error and (refused or isinstance(exc, TimeoutError)) else exc
        raise CommitLogError(
            f"none of the servers {', '.join(options.servers)} lets this node in within "
            f"{options.connect_timeout_s} s: {_told(why)}; nothing was changed"
        ) from exc
    server = f"server {client.connected_url.netloc if client.connected_url else '?'}"
    if findings := check_version(server, _version_of(client)):
        await client.close()
        raise CommitLogError(f"{findings[0]} Nothing was changed")
    return client


def _is_refusal(error: Exception) -> bool:
    # The library has no type for it.
    return "authorization" in str(error).lower()


def _version_of(client: Client) -> str:
    version = client.connected_server_version
    prerelease = f"-{version.prerelease}" if version.prerelease else ""
    return f"{version.major}.{version.minor}.{version.patch}{prerelease}"


def _tls(options: NatsLogOptions) -> ssl.SSLContext | None:
    if options.tls_ca is None and options.tls_cert is None:
        return None
    try:
        context = ssl.create_default_context(cafile=options.tls_ca)
        if options.tls_cert is not None:
            context.load_cert_chain(options.tls_cert, options.tls_key)
    except (OSError, ssl.SSLError) as exc:
        raise CommitLogError(
            f"log.options: the TLS files {options.tls_ca}, {options.tls_cert}, {options.tls_key} "
            f"cannot be used: {exc}; nothing was changed"
        ) from exc
    return context


def _checked_credentials(path: Path) -> str:
    """Return the path of a file with a token and the key that signs for it."""
    try:
        text = path.read_text()
    except (OSError, ValueError) as exc:
        why = str(exc)
    else:
        if all(f"-----BEGIN {part}-----" in text for part in _CREDENTIALS):
            return str(path)
        why = f"it has not both {' and '.join(map(repr, _CREDENTIALS))}"
    raise CommitLogError(
        f"log.options.credentials: {str(path)!r} is no credentials file: {why}; nothing was changed"
    )


async def _within(work: Coroutine[object, object, None], timeout_s: float) -> None:
    """Do something that may swallow its cancellation, as the client library's `connect` does.

    Raises:
        TimeoutError: it was not done in time, and is ended.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait((task,), timeout=timeout_s)
    finally:
        is_late = not task.done()
        while not task.done():
            task.cancel()
            await asyncio.wait((task,), timeout=_RETRY_PAUSE_S)
    if is_late and task.cancelled():
        raise TimeoutError(f"no answer within {timeout_s} s")
    task.result()


async def patiently(work: Callable[[], Awaitable[Value]], timeout_s: float) -> Value:
    """Do something that may be done twice, again until a leader answers.

    Right after their start, and in an election, servers answer late, or that they cannot.

    Raises:
        nats.errors.Error, TimeoutError: the last one, when the time is up, and every answer
            that more patience would not change.
    """
    deadline_s = asyncio.get_running_loop().time() + timeout_s
    while True:
        try:
            return await work()
        except Exception as exc:
            if not _is_passing(exc) or asyncio.get_running_loop().time() >= deadline_s:
                raise
        await asyncio.sleep(_RETRY_PAUSE_S)


def _is_passing(exc: Exception) -> bool:
    if isinstance(exc, nats.js.errors.APIError) and exc.err_code == _NO_PEERS:
        # A server that has just started is not known to the others as long as it is "offline".
        return "offline" in (exc.description or "")
    return isinstance(exc, _PASSING)


@contextlib.contextmanager
def server_errors(what: str, state: str) -> Iterator[None]:
    """Turn the client library's errors into `CommitLogError`.

    Args:
        what: what was being done, such as `make the stream 'x'`.
        state: what is left, such as `nothing was changed`.

    Raises:
        CommitLogError: the servers refused, or did not answer.
    """
    try:
        yield
    except (nats.errors.Error, TimeoutError, OSError) as exc:
        raise CommitLogError(f"cannot {what}: {_told(exc)}; {state}") from exc


def _told(exc: BaseException) -> str:
    if isinstance(exc, nats.js.errors.APIError) and exc.description:
        # Some of the library's errors have only a description.
        code = getattr(exc, "err_code", None) or getattr(exc, "code", None)
        return f"{exc.description} (code {code})"
    return str(exc) or type(exc).__name__
