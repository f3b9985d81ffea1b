from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class ErrorCode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SUCCESS: _ClassVar[ErrorCode]
    CONNECTION_TIMEOUT: _ClassVar[ErrorCode]
    INVALID_ADDRESS: _ClassVar[ErrorCode]
    LEADER_CHANGED: _ClassVar[ErrorCode]
    JOIN_ERROR: _ClassVar[ErrorCode]
    INVALID_RESPONSE: _ClassVar[ErrorCode]
    VERSION_MISMATCH: _ClassVar[ErrorCode]
    DISK_FULL: _ClassVar[ErrorCode]
    DATA_CORRUPTION: _ClassVar[ErrorCode]
    STORAGE_IO_ERROR: _ClassVar[ErrorCode]
    STORAGE_PERMISSION_DENIED: _ClassVar[ErrorCode]
    KEY_NOT_EXIST: _ClassVar[ErrorCode]
    NOT_LEADER: _ClassVar[ErrorCode]
    STALE_OPERATION: _ClassVar[ErrorCode]
    INVALID_REQUEST: _ClassVar[ErrorCode]
    RATE_LIMITED: _ClassVar[ErrorCode]
    CLUSTER_UNAVAILABLE: _ClassVar[ErrorCode]
    PROPOSE_FAILED: _ClassVar[ErrorCode]
    TERM_OUTDATED: _ClassVar[ErrorCode]
    RETRY_REQUIRED: _ClassVar[ErrorCode]
    WATCH_BUFFER_OVERFLOW: _ClassVar[ErrorCode]
    GENERAL: _ClassVar[ErrorCode]
    UNCATEGORIZED: _ClassVar[ErrorCode]
SUCCESS: ErrorCode
CONNECTION_TIMEOUT: ErrorCode
INVALID_ADDRESS: ErrorCode
LEADER_CHANGED: ErrorCode
JOIN_ERROR: ErrorCode
INVALID_RESPONSE: ErrorCode
VERSION_MISMATCH: ErrorCode
DISK_FULL: ErrorCode
DATA_CORRUPTION: ErrorCode
STORAGE_IO_ERROR: ErrorCode
STORAGE_PERMISSION_DENIED: ErrorCode
KEY_NOT_EXIST: ErrorCode
NOT_LEADER: ErrorCode
STALE_OPERATION: ErrorCode
INVALID_REQUEST: ErrorCode
RATE_LIMITED: ErrorCode
CLUSTER_UNAVAILABLE: ErrorCode
PROPOSE_FAILED: ErrorCode
TERM_OUTDATED: ErrorCode
RETRY_REQUIRED: ErrorCode
WATCH_BUFFER_OVERFLOW: ErrorCode
GENERAL: ErrorCode
UNCATEGORIZED: ErrorCode

class ErrorMetadata(_message.Message):
    __slots__ = ("retry_after_ms", "leader_id", "leader_address", "debug_message")
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    LEADER_ID_FIELD_NUMBER: _ClassVar[int]
    LEADER_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    DEBUG_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    retry_after_ms: int
    leader_id: str
    leader_address: str
    debug_message: str
    def __init__(self, retry_after_ms: _Optional[int] = ..., leader_id: _Optional[str] = ..., leader_address: _Optional[str] = ..., debug_message: _Optional[str] = ...) -> None: ...
