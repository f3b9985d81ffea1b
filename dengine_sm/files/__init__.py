"""Durable file primitives: framed log, atomic replace, directory lock, data directory."""

from dengine_sm.files.atomic import read_checked_file, replace_file, write_checked_file
from dengine_sm.files.data_directory import DataDirectory
from dengine_sm.files.filesystem import (
    FileSystem,
    OsFileSystem,
    default_file_system,
    make_directories,
    names_in,
    replaced_file_system,
    storage_errors,
    sync_directory,
)
from dengine_sm.files.framed_log import FramedLog, LogRecord, RecoveryReport
from dengine_sm.files.lock import DirectoryLock

__all__ = [
    "DataDirectory",
    "DirectoryLock",
    "FileSystem",
    "FramedLog",
    "LogRecord",
    "OsFileSystem",
    "RecoveryReport",
    "default_file_system",
    "make_directories",
    "names_in",
    "read_checked_file",
    "replace_file",
    "replaced_file_system",
    "storage_errors",
    "sync_directory",
    "write_checked_file",
]
