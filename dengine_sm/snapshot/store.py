"""Published snapshots: one archive each in one directory, and how many are kept."""

from __future__ import annotations

import builtins
import errno
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import attrs

from dengine_sm.errors import SnapshotCorruptionError, SnapshotError, SnapshotFormatError
from dengine_sm.files.filesystem import (
    FileSystem,
    default_file_system,
    make_directories,
    storage_errors,
    sync_directory,
    sync_file,
)
from dengine_sm.files.new_file import NewFile
from dengine_sm.model import LogId, SnapshotMetadata
from dengine_sm.snapshot._disk import BLOCK_BYTES, TEMPORARY_PREFIX, open_regular
from dengine_sm.snapshot.archive import (
    HEADER_BYTES,
    ArchiveHeader,
    pack_archive,
    read_archive_header,
    unpack_archive,
    verify_archive,
)

_NAME = re.compile(r"snapshot-(\d{20})-(\d{20})\.dsnap", re.ASCII)


@attrs.frozen
class PublishedSnapshot:
    """An archive in a store."""

    metadata: SnapshotMetadata
    path: Path
    size_bytes: int
    """Of the archive."""


class SnapshotStore:
    """The directory that holds a node's published snapshots.

    Archives appear and are replaced by rename, so a reader sees whole ones only. One
    store at a time works on a directory; files of other names are left alone.
    """

    def __init__(
        self, directory: Path, retain_count: int = 2, fs: FileSystem | None = None
    ) -> None:
        """Remember where; nothing is touched before `open`.

        Args:
            directory: created by `open` if absent; its parent may be absent too.
            retain_count: how many snapshots `cleanup` keeps, from 1.
            fs: the file system to write through.
        """
        self._fs = fs or default_file_system()
        self._directory = directory
        self._retain_count = _checked_count(retain_count)

    @property
    def directory(self) -> Path:
        """Where the archives are."""
        return self._directory

    def open(self) -> None:
        """Create the directory if absent and remove what a crash left in it.

        Raises:
            StorageError: the disk refused.
        """
        make_directories(self._directory, self._fs)
        # A crash may have come between the last archive and the sync of its entry.
        sync_directory(self._directory, self._fs)
        self.reap_temporary()

    def publish(self, source_directory: Path, metadata: SnapshotMetadata) -> PublishedSnapshot:
        """Pack a snapshot directory; when this returns, the archive is durable.

        An archive of the same id is replaced in one step. The source is left as it is.

        Raises:
            SnapshotError: the source is not flat; nothing was published.
            StorageError: the disk refused.
        """
        path = self._path_of(metadata.last_included)
        return _published(path, pack_archive(source_directory, path, metadata, self._fs))

    def adopt(self, archive: Path) -> PublishedSnapshot:
        """Verify an archive and move it in, durably.

        Raises:
            SnapshotCorruptionError: missing or damaged; it stays where it is.
            SnapshotFormatError: of a newer version; it stays where it is.
            StorageError: the disk refused.
        """
        header = verify_archive(archive)
        path = self._path_of(header.metadata.last_included)
        with storage_errors(archive, "move the archive into the store", "it was not adopted"):
            sync_file(archive, self._fs)
            try:
                self._fs.replace(archive, path)
            except OSError as exc:
                if exc.errno != errno.EXDEV:
                    raise
                self._copy_in(archive, path)
        sync_directory(self._directory, self._fs)
        return _published(path, header)

    def list(self) -> builtins.list[PublishedSnapshot]:
        """Return the snapshots whose header is sound, oldest first.

        Raises:
            StorageError: the disk refused.
        """
        return self._scan()[0]

    def damaged(self) -> builtins.list[Path]:
        """Return the archives that `list` leaves out: damaged, or of a newer version.

        Raises:
            StorageError: the disk refused.
        """
        return self._scan()[1]

    def newest(self) -> PublishedSnapshot | None:
        """Return the last of `list`, or None."""
        return max(self.list(), key=_last_included, default=None)

    @contextmanager
    def extract(self, published: PublishedSnapshot) -> Iterator[Path]:
        """Unpack a snapshot for the time of a `with` block.

        Yields:
            A directory with the snapshot's files, removed afterwards.

        Raises:
            SnapshotCorruptionError: the archive is damaged or gone.
            SnapshotError: another one has replaced it.
            StorageError: the disk refused.
        """
        directory = self.temporary_directory()
        try:
            observed = unpack_archive(published.path, directory, self._fs)
            if observed != published.metadata:
                raise SnapshotError(
                    f"archive '{published.path}' was replaced: it holds {observed!r}, "
                    f"expected {published.metadata!r}",
                    path=published.path,
                    expected=published.metadata,
                    observed=observed,
                )
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def temporary_directory(self) -> Path:
        """Return a new path inside the store that does not exist yet.

        Whatever is left there is removed by the next `open`.
        """
        return self._directory / (TEMPORARY_PREFIX + secrets.token_hex(8))

    def cleanup(self, retain_count: int | None = None) -> builtins.list[Path]:
        """Remove the oldest snapshots; return the paths that were removed.

        The newest one whose whole archive is sound is kept in any case, and counts as
        the first of those to keep; damaged ones are left for the operator.

        Raises:
            StorageError: the disk refused; some may be removed already.
        """
        retain = self._retain_count if retain_count is None else _checked_count(retain_count)
        snapshots = self.list()
        while snapshots and not _is_sound(snapshots[-1].path):
            snapshots.pop()
        removed = [published.path for published in snapshots[:-retain]]
        for path in removed:
            with (
                storage_errors(path, "remove the snapshot", "it is still there"),
                suppress(FileNotFoundError),
            ):
                self._fs.unlink(path)
        if removed:
            sync_directory(self._directory, self._fs)
        return removed

    def reap_temporary(self) -> None:
        """Remove what unfinished work left behind; nothing may be under way.

        Raises:
            StorageError: the disk refused.
        """
        with storage_errors(self._directory, "remove temporary files", "some are left"):
            for path in self._directory.glob(TEMPORARY_PREFIX + "*"):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    self._fs.unlink(path)

    def _scan(self) -> tuple[builtins.list[PublishedSnapshot], builtins.list[Path]]:
        """Return sound and damaged archives."""
        with storage_errors(self._directory, "list the snapshots", "nothing was changed"):
            paths = sorted(path for path in self._directory.iterdir() if _NAME.fullmatch(path.name))
        sound: builtins.list[PublishedSnapshot] = []
        damaged: builtins.list[Path] = []
        for path in paths:
            try:
                header = read_archive_header(path)
            except (SnapshotCorruptionError, SnapshotFormatError):
                damaged.append(path)
                continue
            if self._path_of(header.metadata.last_included) == path:
                sound.append(_published(path, header))
            else:
                damaged.append(path)
        return sound, damaged

    def _path_of(self, last_included: LogId) -> Path:
        name = f"snapshot-{last_included.term:020}-{last_included.index:020}.dsnap"
        return self._directory / name

    def _copy_in(self, archive: Path, path: Path) -> None:
        """Move an archive in from another file system."""
        aside = self.temporary_directory()
        try:
            with open_regular(archive) as source, NewFile(aside, self._fs) as target:
                shutil.copyfileobj(source, target, BLOCK_BYTES)
                target.sync()
            verify_archive(aside)
            self._fs.replace(aside, path)
        except BaseException:
            with suppress(OSError):
                self._fs.unlink(aside)
            raise
        self._fs.unlink(archive)


def _published(path: Path, header: ArchiveHeader) -> PublishedSnapshot:
    return PublishedSnapshot(header.metadata, path, HEADER_BYTES + header.body_bytes)


def _last_included(published: PublishedSnapshot) -> LogId:
    return published.metadata.last_included


def _checked_count(retain_count: int) -> int:
    if retain_count < 1:
        raise ValueError(f"retain_count: expected at least 1, observed {retain_count}")
    return retain_count


def _is_sound(path: Path) -> bool:
    try:
        verify_archive(path)
    except (SnapshotCorruptionError, SnapshotFormatError):
        return False
    return True
