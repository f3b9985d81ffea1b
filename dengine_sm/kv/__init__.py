"""The key-value application, written once over any storage."""

from dengine_sm.kv.commands import (
    COMMAND_SET,
    Command,
    CompareAndSwap,
    Delete,
    Put,
    decode_command,
    encode_command,
)
from dengine_sm.kv.machine import KeyValueStateMachine
from dengine_sm.kv.ram import RamStore
from dengine_sm.kv.store import KeyValueReader, KeyValueStore, ReadView, WriteBatch

__all__ = [
    "COMMAND_SET",
    "Command",
    "CompareAndSwap",
    "Delete",
    "KeyValueReader",
    "KeyValueStateMachine",
    "KeyValueStore",
    "Put",
    "RamStore",
    "ReadView",
    "WriteBatch",
    "decode_command",
    "encode_command",
]
