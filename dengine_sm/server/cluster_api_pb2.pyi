from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class MetadataRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class NodeMeta(_message.Message):
    __slots__ = ("id", "address", "role", "status")
    ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    id: int
    address: str
    role: int
    status: int
    def __init__(self, id: _Optional[int] = ..., address: _Optional[str] = ..., role: _Optional[int] = ..., status: _Optional[int] = ...) -> None: ...

class ClusterMembership(_message.Message):
    __slots__ = ("version", "nodes", "current_leader_id")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    CURRENT_LEADER_ID_FIELD_NUMBER: _ClassVar[int]
    version: int
    nodes: _containers.RepeatedCompositeFieldContainer[NodeMeta]
    current_leader_id: int
    def __init__(self, version: _Optional[int] = ..., nodes: _Optional[_Iterable[_Union[NodeMeta, _Mapping]]] = ..., current_leader_id: _Optional[int] = ...) -> None: ...

class LeaderDiscoveryRequest(_message.Message):
    __slots__ = ("node_id", "requester_address")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    REQUESTER_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    node_id: int
    requester_address: str
    def __init__(self, node_id: _Optional[int] = ..., requester_address: _Optional[str] = ...) -> None: ...

class LeaderDiscoveryResponse(_message.Message):
    __slots__ = ("leader_id", "leader_address", "term")
    LEADER_ID_FIELD_NUMBER: _ClassVar[int]
    LEADER_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    leader_id: int
    leader_address: str
    term: int
    def __init__(self, leader_id: _Optional[int] = ..., leader_address: _Optional[str] = ..., term: _Optional[int] = ...) -> None: ...
