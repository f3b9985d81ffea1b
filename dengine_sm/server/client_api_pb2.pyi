from dengine_sm.server import error_pb2 as _error_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ReadConsistencyPolicy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    READ_CONSISTENCY_POLICY_LEASE_READ: _ClassVar[ReadConsistencyPolicy]
    READ_CONSISTENCY_POLICY_LINEARIZABLE_READ: _ClassVar[ReadConsistencyPolicy]
    READ_CONSISTENCY_POLICY_EVENTUAL_CONSISTENCY: _ClassVar[ReadConsistencyPolicy]
READ_CONSISTENCY_POLICY_LEASE_READ: ReadConsistencyPolicy
READ_CONSISTENCY_POLICY_LINEARIZABLE_READ: ReadConsistencyPolicy
READ_CONSISTENCY_POLICY_EVENTUAL_CONSISTENCY: ReadConsistencyPolicy

class WriteCommand(_message.Message):
    __slots__ = ("insert", "delete", "compare_and_swap")
    class Insert(_message.Message):
        __slots__ = ("key", "value", "ttl_secs")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        TTL_SECS_FIELD_NUMBER: _ClassVar[int]
        key: bytes
        value: bytes
        ttl_secs: int
        def __init__(self, key: _Optional[bytes] = ..., value: _Optional[bytes] = ..., ttl_secs: _Optional[int] = ...) -> None: ...
    class Delete(_message.Message):
        __slots__ = ("key",)
        KEY_FIELD_NUMBER: _ClassVar[int]
        key: bytes
        def __init__(self, key: _Optional[bytes] = ...) -> None: ...
    class CompareAndSwap(_message.Message):
        __slots__ = ("key", "expected_value", "new_value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        EXPECTED_VALUE_FIELD_NUMBER: _ClassVar[int]
        NEW_VALUE_FIELD_NUMBER: _ClassVar[int]
        key: bytes
        expected_value: bytes
        new_value: bytes
        def __init__(self, key: _Optional[bytes] = ..., expected_value: _Optional[bytes] = ..., new_value: _Optional[bytes] = ...) -> None: ...
    INSERT_FIELD_NUMBER: _ClassVar[int]
    DELETE_FIELD_NUMBER: _ClassVar[int]
    COMPARE_AND_SWAP_FIELD_NUMBER: _ClassVar[int]
    insert: WriteCommand.Insert
    delete: WriteCommand.Delete
    compare_and_swap: WriteCommand.CompareAndSwap
    def __init__(self, insert: _Optional[_Union[WriteCommand.Insert, _Mapping]] = ..., delete: _Optional[_Union[WriteCommand.Delete, _Mapping]] = ..., compare_and_swap: _Optional[_Union[WriteCommand.CompareAndSwap, _Mapping]] = ...) -> None: ...

class ClientWriteRequest(_message.Message):
    __slots__ = ("client_id", "command")
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    COMMAND_FIELD_NUMBER: _ClassVar[int]
    client_id: int
    command: WriteCommand
    def __init__(self, client_id: _Optional[int] = ..., command: _Optional[_Union[WriteCommand, _Mapping]] = ...) -> None: ...

class ClientReadRequest(_message.Message):
    __slots__ = ("client_id", "keys", "consistency_policy")
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    CONSISTENCY_POLICY_FIELD_NUMBER: _ClassVar[int]
    client_id: int
    keys: _containers.RepeatedScalarFieldContainer[bytes]
    consistency_policy: ReadConsistencyPolicy
    def __init__(self, client_id: _Optional[int] = ..., keys: _Optional[_Iterable[bytes]] = ..., consistency_policy: _Optional[_Union[ReadConsistencyPolicy, str]] = ...) -> None: ...

class WriteResult(_message.Message):
    __slots__ = ("succeeded",)
    SUCCEEDED_FIELD_NUMBER: _ClassVar[int]
    succeeded: bool
    def __init__(self, succeeded: bool = ...) -> None: ...

class ClientResult(_message.Message):
    __slots__ = ("key", "value")
    KEY_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    key: bytes
    value: bytes
    def __init__(self, key: _Optional[bytes] = ..., value: _Optional[bytes] = ...) -> None: ...

class ReadResults(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[ClientResult]
    def __init__(self, results: _Optional[_Iterable[_Union[ClientResult, _Mapping]]] = ...) -> None: ...

class ClientResponse(_message.Message):
    __slots__ = ("error", "write_result", "read_data", "metadata")
    ERROR_FIELD_NUMBER: _ClassVar[int]
    WRITE_RESULT_FIELD_NUMBER: _ClassVar[int]
    READ_DATA_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    error: _error_pb2.ErrorCode
    write_result: WriteResult
    read_data: ReadResults
    metadata: _error_pb2.ErrorMetadata
    def __init__(self, error: _Optional[_Union[_error_pb2.ErrorCode, str]] = ..., write_result: _Optional[_Union[WriteResult, _Mapping]] = ..., read_data: _Optional[_Union[ReadResults, _Mapping]] = ..., metadata: _Optional[_Union[_error_pb2.ErrorMetadata, _Mapping]] = ...) -> None: ...

class KvEntry(_message.Message):
    __slots__ = ("key", "value")
    KEY_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    key: bytes
    value: bytes
    def __init__(self, key: _Optional[bytes] = ..., value: _Optional[bytes] = ...) -> None: ...

class ScanRequest(_message.Message):
    __slots__ = ("client_id", "prefix")
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    client_id: int
    prefix: bytes
    def __init__(self, client_id: _Optional[int] = ..., prefix: _Optional[bytes] = ...) -> None: ...

class ScanResponse(_message.Message):
    __slots__ = ("entries", "revision")
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[KvEntry]
    revision: int
    def __init__(self, entries: _Optional[_Iterable[_Union[KvEntry, _Mapping]]] = ..., revision: _Optional[int] = ...) -> None: ...
