from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Consistency(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CONSISTENCY_LINEARIZABLE: _ClassVar[Consistency]
    CONSISTENCY_EVENTUAL: _ClassVar[Consistency]

class Outcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OUTCOME_UNSPECIFIED: _ClassVar[Outcome]
    OUTCOME_APPLIED: _ClassVar[Outcome]
    OUTCOME_REJECTED: _ClassVar[Outcome]
    OUTCOME_DUPLICATE: _ClassVar[Outcome]
CONSISTENCY_LINEARIZABLE: Consistency
CONSISTENCY_EVENTUAL: Consistency
OUTCOME_UNSPECIFIED: Outcome
OUTCOME_APPLIED: Outcome
OUTCOME_REJECTED: Outcome
OUTCOME_DUPLICATE: Outcome

class LogId(_message.Message):
    __slots__ = ("term", "index")
    TERM_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    term: int
    index: int
    def __init__(self, term: _Optional[int] = ..., index: _Optional[int] = ...) -> None: ...

class ApplyCommandsRequest(_message.Message):
    __slots__ = ("client_id", "commands")
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    COMMANDS_FIELD_NUMBER: _ClassVar[int]
    client_id: int
    commands: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, client_id: _Optional[int] = ..., commands: _Optional[_Iterable[bytes]] = ...) -> None: ...

class CommandResult(_message.Message):
    __slots__ = ("index", "outcome", "value")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    index: int
    outcome: Outcome
    value: bytes
    def __init__(self, index: _Optional[int] = ..., outcome: _Optional[_Union[Outcome, str]] = ..., value: _Optional[bytes] = ...) -> None: ...

class ApplyCommandsResponse(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[CommandResult]
    def __init__(self, results: _Optional[_Iterable[_Union[CommandResult, _Mapping]]] = ...) -> None: ...

class ScanRequest(_message.Message):
    __slots__ = ("prefix", "limit", "start_after", "consistency")
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    START_AFTER_FIELD_NUMBER: _ClassVar[int]
    CONSISTENCY_FIELD_NUMBER: _ClassVar[int]
    prefix: bytes
    limit: int
    start_after: bytes
    consistency: Consistency
    def __init__(self, prefix: _Optional[bytes] = ..., limit: _Optional[int] = ..., start_after: _Optional[bytes] = ..., consistency: _Optional[_Union[Consistency, str]] = ...) -> None: ...

class KeyValue(_message.Message):
    __slots__ = ("key", "value")
    KEY_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    key: bytes
    value: bytes
    def __init__(self, key: _Optional[bytes] = ..., value: _Optional[bytes] = ...) -> None: ...

class ScanResponse(_message.Message):
    __slots__ = ("entries", "last_applied", "truncated")
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    LAST_APPLIED_FIELD_NUMBER: _ClassVar[int]
    TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[KeyValue]
    last_applied: LogId
    truncated: bool
    def __init__(self, entries: _Optional[_Iterable[_Union[KeyValue, _Mapping]]] = ..., last_applied: _Optional[_Union[LogId, _Mapping]] = ..., truncated: bool = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SnapshotMetadata(_message.Message):
    __slots__ = ("last_included", "checksum", "format")
    LAST_INCLUDED_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    last_included: LogId
    checksum: bytes
    format: str
    def __init__(self, last_included: _Optional[_Union[LogId, _Mapping]] = ..., checksum: _Optional[bytes] = ..., format: _Optional[str] = ...) -> None: ...

class StatusResponse(_message.Message):
    __slots__ = ("name", "backend", "running", "last_applied", "commit_index", "first_index", "last_log_id", "entries", "in_flight", "snapshot", "failure", "shared_log_json")
    NAME_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    LAST_APPLIED_FIELD_NUMBER: _ClassVar[int]
    COMMIT_INDEX_FIELD_NUMBER: _ClassVar[int]
    FIRST_INDEX_FIELD_NUMBER: _ClassVar[int]
    LAST_LOG_ID_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    SHARED_LOG_JSON_FIELD_NUMBER: _ClassVar[int]
    name: str
    backend: str
    running: bool
    last_applied: LogId
    commit_index: int
    first_index: int
    last_log_id: LogId
    entries: int
    in_flight: int
    snapshot: SnapshotMetadata
    failure: str
    shared_log_json: str
    def __init__(self, name: _Optional[str] = ..., backend: _Optional[str] = ..., running: bool = ..., last_applied: _Optional[_Union[LogId, _Mapping]] = ..., commit_index: _Optional[int] = ..., first_index: _Optional[int] = ..., last_log_id: _Optional[_Union[LogId, _Mapping]] = ..., entries: _Optional[int] = ..., in_flight: _Optional[int] = ..., snapshot: _Optional[_Union[SnapshotMetadata, _Mapping]] = ..., failure: _Optional[str] = ..., shared_log_json: _Optional[str] = ...) -> None: ...

class TakeSnapshotRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class TakeSnapshotResponse(_message.Message):
    __slots__ = ("snapshot",)
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    snapshot: SnapshotMetadata
    def __init__(self, snapshot: _Optional[_Union[SnapshotMetadata, _Mapping]] = ...) -> None: ...
