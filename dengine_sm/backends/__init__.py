"""The built-in backends, registered through the hook that every plugin uses."""

from __future__ import annotations

from dengine_sm.backends.file import create_file, file_backend
from dengine_sm.backends.memory import create_memory, memory_backend
from dengine_sm.hookspecs import Backend, hookimpl

__all__ = ["create_file", "create_memory", "dengine_sm_backends"]


@hookimpl
def dengine_sm_backends() -> list[Backend]:
    """Return the backends that dengine_sm brings along."""
    return [memory_backend(), file_backend()]
