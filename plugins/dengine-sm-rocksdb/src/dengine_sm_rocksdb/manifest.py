"""What a RocksDB MANIFEST says about WALs: which of them are still needed.

A MANIFEST is a log file of version edits, each a run of tagged fields. Only the fields
that name WALs are looked at; the others are skipped.

Source: https://github.com/facebook/rocksdb/wiki/MANIFEST, db/version_edit.h
"""

from __future__ import annotations

from pathlib import Path

import attrs

from dengine_sm_rocksdb.frames import FrameError, read_records

_LOG_NUMBER, _MIN_LOG_TO_KEEP = 2, 10
_FAMILY, _FAMILY_ADD, _FAMILY_DROP = 200, 201, 202
_NUMBERS = {_LOG_NUMBER, _MIN_LOG_TO_KEEP, 3, 4, 9, 203, 300, _FAMILY}
"""Tags of one number each: besides ours next file, last sequence, and the like."""
_TEXTS = {1, _FAMILY_ADD}
_COMPACT_CURSOR, _DELETED_FILE, _NEW_FILE = 5, 6, 103
_IGNORABLE = 1 << 13
"""Tags from here on carry a text, and may be skipped by who does not know them."""


@attrs.define
class Manifest:
    """The sum of the edits so far."""

    log_numbers: dict[int, int] = attrs.field(factory=dict)
    """Of each column family, the first WAL with changes that are in no table file."""
    names: dict[int, bytes] = attrs.field(factory=dict)
    """Of the column families that are not the default one."""
    min_log_to_keep: int = 0
    """Number below which no WAL is needed; 0 where RocksDB does not say, as 6 does not."""
    is_understood: bool = True
    """False if an edit has a field of an unknown kind: then nothing is known for sure."""

    @property
    def first_needed_wal(self) -> int:
        """Number below which WALs are not needed."""
        return max(self.min_log_to_keep, min(self.log_numbers.values(), default=0))

    def may_be_removed(self, wal: int, family: bytes) -> bool:
        """Tell whether RocksDB may have removed a WAL.

        Args:
            wal: its number.
            family: one that every record of a WAL changes. Where RocksDB does not say what it
                needs, the others tell nothing: they may have been empty.
        """
        if not self.is_understood or wal < self.first_needed_wal:
            return True
        if self.min_log_to_keep:
            return False
        numbers = [
            self.log_numbers.get(key, 0) for key, name in self.names.items() if name == family
        ]
        return any(number > wal for number in numbers)

    @property
    def newest_log_number(self) -> int:
        """Number below which WALs hold changes that are in a table file, if not all of them."""
        return max(self.log_numbers.values(), default=0)


def read_manifest(path: Path, *, verify: bool = False) -> tuple[Manifest, FrameError | None]:
    """Read all whole edits; tell too why the file does not end after a whole one.

    Raises:
        OSError: it cannot be read.
    """
    manifest = Manifest()
    try:
        for record in read_records(path, verify=verify):
            _add(manifest, record.payload)
    except FrameError as exc:
        return manifest, exc
    return manifest, None


def _add(manifest: Manifest, edit: bytes) -> None:
    fields = _Fields(edit)
    family = 0
    log_number: int | None = None
    added: bytes | None = None
    is_dropped = False
    try:
        while not fields.at_end:
            tag = fields.number()
            if tag in _NUMBERS:
                value = fields.number()
                if tag == _LOG_NUMBER:
                    log_number = value
                elif tag == _MIN_LOG_TO_KEEP:
                    manifest.min_log_to_keep = max(manifest.min_log_to_keep, value)
                elif tag == _FAMILY:
                    family = value
            elif tag in _TEXTS or tag >= _IGNORABLE:
                text = fields.text()
                if tag == _FAMILY_ADD:
                    added = text
            elif tag == _FAMILY_DROP:
                is_dropped = True
            elif not _skip(fields, tag):
                manifest.is_understood = False
                return
    except IndexError:
        manifest.is_understood = False
        return
    if is_dropped:
        manifest.log_numbers.pop(family, None)
        return
    if added is not None:
        manifest.names[family] = added
    if log_number is not None:
        known = manifest.log_numbers.get(family, 0)
        manifest.log_numbers[family] = max(known, log_number)
    elif added is not None or not family:
        manifest.log_numbers.setdefault(family, 0)


def _skip(fields: _Fields, tag: int) -> bool:
    """Skip a field about table files; False if the tag is unknown."""
    if tag == _DELETED_FILE:
        fields.number()
        fields.number()
    elif tag == _COMPACT_CURSOR:
        fields.number()
        fields.text()
    elif tag == _NEW_FILE:
        for _ in range(3):  # level, number, size
            fields.number()
        for _ in range(2):  # first and last key
            fields.text()
        for _ in range(2):  # first and last sequence number
            fields.number()
        while fields.number() != 1:
            fields.text()
    else:
        return False
    return True


class _Fields:
    """Reads the encoding of an edit; raises IndexError at its end."""

    def __init__(self, edit: bytes) -> None:
        self._edit = edit
        self._at = 0

    @property
    def at_end(self) -> bool:
        return self._at >= len(self._edit)

    def number(self) -> int:
        value = shift = 0
        while True:
            byte = self._edit[self._at]
            self._at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    def text(self) -> bytes:
        size = self.number()
        start, self._at = self._at, self._at + size
        if self._at > len(self._edit):
            raise IndexError
        return self._edit[start : self._at]
