"""What a failed call is called on the wire: an exception -> d-engine code, gRPC status, log."""

from __future__ import annotations

import errno
import logging

import attrs
import grpc

from dengine_sm.errors import (
    CommitLogError,
    CorruptionError,
    DEngineError,
    NotRunningError,
    ProposalOutcomeUnknown,
    StorageError,
)
from dengine_sm.server import error_pb2

_logger = logging.getLogger("dengine_sm.server")

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


class InvalidRequestError(DEngineError):
    """The request is malformed or asks for what is not allowed; nothing was done."""


class AnswerTooLargeError(DEngineError):
    """The answer does not fit a message; nothing was changed."""


@attrs.frozen
class Failure:
    """How a failed call is told to the client."""

    error_code: error_pb2.ErrorCode
    """For d-engine's write and read calls."""
    status: grpc.StatusCode
    """For calls whose answer has no room for an error code."""
    message: str

    def metadata(self) -> error_pb2.ErrorMetadata:
        """Return the message in the form of d-engine's responses."""
        return error_pb2.ErrorMetadata(debug_message=self.message)


def failure_of(exc: Exception, call: str) -> Failure:
    """Classify what a handler raised, and log what an operator should know.

    INVALID_REQUEST, CLUSTER_UNAVAILABLE and PROPOSE_FAILED tell that nothing was
    committed; a write with any other code may have been.
    """
    code, status = _codes(exc)
    message = str(exc) or type(exc).__name__
    if isinstance(exc, InvalidRequestError | AnswerTooLargeError):
        _logger.debug("%s refused: %s", call, message)
    elif isinstance(exc, DEngineError):
        _logger.warning("%s failed: %s", call, message)
    else:
        _logger.error("%s failed unexpectedly", call, exc_info=exc)
        message = f"{type(exc).__name__}: {message}"
    return Failure(code, status, message)


def _codes(exc: Exception) -> tuple[error_pb2.ErrorCode, grpc.StatusCode]:
    match exc:
        case InvalidRequestError():
            return error_pb2.INVALID_REQUEST, grpc.StatusCode.INVALID_ARGUMENT
        case AnswerTooLargeError():
            return error_pb2.INVALID_REQUEST, grpc.StatusCode.RESOURCE_EXHAUSTED
        case NotRunningError():
            # Not UNAVAILABLE: that is also what a broken connection gives, and it would
            # leave open whether the call had an effect.
            return error_pb2.CLUSTER_UNAVAILABLE, grpc.StatusCode.FAILED_PRECONDITION
        case ProposalOutcomeUnknown():
            return error_pb2.CONNECTION_TIMEOUT, grpc.StatusCode.UNKNOWN
        case CommitLogError():
            return error_pb2.PROPOSE_FAILED, grpc.StatusCode.ABORTED
        case CorruptionError():
            return error_pb2.DATA_CORRUPTION, grpc.StatusCode.DATA_LOSS
        case StorageError():
            return _storage_code(exc), grpc.StatusCode.INTERNAL
    return error_pb2.GENERAL, grpc.StatusCode.INTERNAL


def _storage_code(exc: StorageError) -> error_pb2.ErrorCode:
    number = exc.__cause__.errno if isinstance(exc.__cause__, OSError) else None
    if number in _FULL:
        return error_pb2.DISK_FULL
    if number in _FORBIDDEN:
        return error_pb2.STORAGE_PERMISSION_DENIED
    return error_pb2.STORAGE_IO_ERROR
