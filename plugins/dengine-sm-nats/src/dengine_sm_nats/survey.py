"""Everything that `dengine-sm cluster check` looks at, as one list of findings."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import attrs
import nats.errors
import nats.js.errors
from nats.aio.client import Client

from dengine_sm.errors import CommitLogError
from dengine_sm_nats.checks import (
    REPLICAS_PAGE,
    Finding,
    check_replicas,
    check_stream,
    survey_server,
)
from dengine_sm_nats.connection import connect, patiently
from dengine_sm_nats.monitoring import MonitoringError, fetch_monitoring
from dengine_sm_nats.options import NatsLogOptions
from dengine_sm_nats.stream import subject_of

_CONNECT_TIMEOUT_S = 3.0


async def survey(options: NatsLogOptions) -> list[Finding]:
    """Ask every server, by its client and its monitoring address; nothing is changed."""
    findings = await asyncio.gather(
        *(_survey_address(url, options) for url in options.monitoring),
        _survey_copies(options),
        *(_survey_client(url, options) for url in options.servers),
    )
    # Every server tells the same about the stream.
    return list(dict.fromkeys(found for each in findings for found in each))


async def _survey_address(url: str, options: NatsLogOptions) -> list[Finding]:
    try:
        return await survey_server(url, min_store_bytes=options.max_bytes)
    except MonitoringError as exc:
        return [_silent(f"monitoring {url}", str(exc).removeprefix("monitoring "))]


async def _survey_copies(options: NatsLogOptions) -> list[Finding]:
    if not options.monitoring:
        reason = "Only there a server tells how it syncs, and what its own copy has lost."
        return [Finding("monitoring", "no address is given", "one of every server", reason)]
    found = check_replicas(await _replica_pages(options), options.stream)
    if found:  # or a purge was under way
        again = {
            each.subject for each in check_replicas(await _replica_pages(options), options.stream)
        }
        found = [each for each in found if each.subject in again]
    return found


async def _replica_pages(options: NatsLogOptions) -> dict[str, dict[str, Any]]:
    pages = await asyncio.gather(
        *(_replica_page(url) for url in options.monitoring), return_exceptions=True
    )
    return dict(page for page in pages if not isinstance(page, BaseException))


async def _replica_page(url: str) -> tuple[str, dict[str, Any]]:
    varz = await fetch_monitoring(url, "/varz")
    return str(varz.get("server_name", url)), await fetch_monitoring(url, REPLICAS_PAGE)


async def _survey_client(url: str, options: NatsLogOptions) -> list[Finding]:
    alone = attrs.evolve(options, servers=[url], connect_timeout_s=_CONNECT_TIMEOUT_S)
    try:
        client = await connect(alone, "cluster check")
    except CommitLogError as exc:
        return [_silent(f"server {url}", str(exc).removesuffix("; nothing was changed"))]
    try:
        return list(await _survey_stream(client, options))
    finally:
        await client.close()


async def _survey_stream(client: Client, options: NatsLogOptions) -> Iterable[Finding]:
    subject = f"stream {options.stream!r}"
    try:
        # What no leader takes is lost: several requests must fit into the time.
        js = client.jetstream(timeout=options.connect_timeout_s / 5)
        info = await patiently(lambda: js.stream_info(options.stream), options.connect_timeout_s)
    except nats.js.errors.NotFoundError:
        reason = "The first node makes it; until then there is no log."
        return [Finding(subject, "does not exist", "it on the servers", reason)]
    except (nats.errors.Error, TimeoutError) as exc:
        reason = "Most servers must run, and reach each other."
        return [Finding(subject, f"cannot be asked for: {exc!r}", "an answer", reason)]
    return check_stream(
        info.config,
        expected_replicas=options.replicas,
        subject=subject_of(options.stream),
    )


def _silent(subject: str, problem: str) -> Finding:
    return Finding(subject, problem, "an answer", "What cannot be asked is not checked.")
