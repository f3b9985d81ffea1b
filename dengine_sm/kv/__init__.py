"""The key-value application, written once over any storage."""

from dengine_sm.kv.commands import (
    COMMAND_SET,
    Change,
    Command,
    CompareAndSwap,
    Delete,
    InSession,
    OpenSession,
    Put,
    decode_command,
    encode_command,
)
from dengine_sm.kv.machine import KeyValueStateMachine
from dengine_sm.kv.ram import RamStore
from dengine_sm.kv.sessions import SEQUENCE_PASSED, SESSION_UNKNOWN
from dengine_sm.kv.store import KeyValueReader, KeyValueStore, ReadView, WriteBatch

__all__ = [
    "COMMAND_SET",
    "SEQUENCE_PASSED",
    "SESSION_UNKNOWN",
    "Change",
    "Command",
    "CompareAndSwap",
    "Delete",
    "InSession",
    "KeyValueReader",
    "KeyValueStateMachine",
    "KeyValueStore",
    "OpenSession",
    "Put",
    "RamStore",
    "ReadView",
    "WriteBatch",
    "decode_command",
    "encode_command",
]
