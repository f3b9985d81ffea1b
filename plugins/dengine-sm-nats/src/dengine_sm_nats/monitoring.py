"""The monitoring pages of a NATS server, as the mappings that their JSON holds."""

from __future__ import annotations

import asyncio
import http.client
import json
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from dengine_sm.errors import DEngineError

TIMEOUT_S = 2.0


class MonitoringError(DEngineError):
    """A monitoring page could not be read."""

    def __init__(self, message: str, *, url: str, status: int | None = None) -> None:
        super().__init__(message)
        self.url = url
        self.status = status
        """The HTTP status, when the server answered at all."""


async def fetch_monitoring(url: str, path: str, *, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
    """Return a monitoring page, read in a thread; like `read_monitoring`."""
    return await asyncio.to_thread(read_monitoring, url, path, timeout_s=timeout_s)


def read_monitoring(url: str, path: str, *, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
    """Return a monitoring page.

    Args:
        url: where the server's `http` option listens, such as `http://127.0.0.1:8222`.
        path: the page and its query, such as `/jsz?streams=1`.
        timeout_s: for every step of the connection.

    Raises:
        MonitoringError: no such server, no answer in time, or no such page.
    """
    page = url.rstrip("/") + path
    if urlsplit(page).scheme not in ("http", "https"):
        raise MonitoringError(f"monitoring {url!r}: expected http://HOST:PORT", url=page)
    # Without a proxy of the environment: monitoring is not for the world outside.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(page, timeout=timeout_s) as answer:
            return _mapping(page, answer.read())
    except urllib.error.HTTPError as exc:
        with exc:
            said = exc.read(500).decode(errors="replace").strip()
        message = f"monitoring {page}: status {exc.code}, {said}; expected 200"
        raise MonitoringError(message, url=page, status=exc.code) from exc
    except (OSError, http.client.HTTPException, ValueError) as exc:
        reason = getattr(exc, "reason", None) or exc
        message = f"monitoring {page}: {reason}; expected an answer within {timeout_s:g} s"
        raise MonitoringError(message, url=page) from exc


def _mapping(page: str, body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except ValueError as exc:
        message = f"monitoring {page}: the answer is no JSON, {body[:80]!r}; is it a NATS server?"
        raise MonitoringError(message, url=page) from exc
    if not isinstance(found, dict):
        message = f"monitoring {page}: expected a JSON object, observed {found!r:.80}"
        raise MonitoringError(message, url=page)
    return found
