import hashlib
import os
import re
import shutil
from pathlib import Path

import attrs
import pytest

from dengine_sm.codec import encode
from dengine_sm.errors import (
    SnapshotCorruptionError,
    SnapshotError,
    SnapshotFormatError,
    StorageError,
)
from dengine_sm.model import LogId, SnapshotMetadata
from dengine_sm.snapshot import (
    MANIFEST_NAME,
    FileDigest,
    Manifest,
    read_manifest,
    seal_snapshot,
    verify_snapshot,
)

FORMAT = "test/1"
LAST = LogId(3, 1200)
FILES = {"a": b"alpha", "b.bin": bytes(range(256)), "empty": b""}


@pytest.fixture
def sealed(tmp_path: Path) -> tuple[Path, SnapshotMetadata]:
    directory = tmp_path / "snapshot"
    directory.mkdir()
    for name, content in FILES.items():
        (directory / name).write_bytes(content)
    checksum = seal_snapshot(directory, format=FORMAT, last_included=LAST)
    return directory, SnapshotMetadata(LAST, checksum, FORMAT)


def verify(directory: Path, metadata: SnapshotMetadata) -> Manifest:
    return verify_snapshot(directory, metadata, formats={FORMAT})


def reseal(directory: Path, item: object) -> SnapshotMetadata:
    """Replace the manifest by another item, with the right checksum."""
    content = item if isinstance(item, bytes) else encode(item)
    (directory / MANIFEST_NAME).write_bytes(content)
    return SnapshotMetadata(LAST, hashlib.sha256(content).digest(), FORMAT)


def test_verifies_what_was_sealed(sealed: tuple[Path, SnapshotMetadata]) -> None:
    directory, metadata = sealed
    expected = tuple(
        FileDigest(name, len(content), hashlib.sha256(content).digest())
        for name, content in sorted(FILES.items())
    )

    observed = verify(directory, metadata)

    assert Manifest(FORMAT, LAST, expected) == observed
    assert (observed, metadata.checksum) == read_manifest(directory)


def test_the_checksum_is_the_sha256_of_the_manifest(
    sealed: tuple[Path, SnapshotMetadata],
) -> None:
    directory, metadata = sealed

    content = (directory / MANIFEST_NAME).read_bytes()

    assert hashlib.sha256(content).digest() == metadata.checksum


def test_equal_files_seal_to_equal_manifests_in_any_order(tmp_path: Path) -> None:
    checksums = set()
    for number, names in enumerate((["a", "b", "c"], ["c", "a", "b"])):
        directory = tmp_path / str(number)
        directory.mkdir()
        for name in names:
            (directory / name).write_bytes(name.encode())
        checksums.add(seal_snapshot(directory, format=FORMAT, last_included=LAST))

    assert len(checksums) == 1


def test_keeps_properties(tmp_path: Path) -> None:
    properties = (("clock_ms", 5), ("note", "hello"), ("raw", b"\0"), ("none", None))

    seal_snapshot(tmp_path, format=FORMAT, last_included=LAST, properties=properties)

    assert properties == read_manifest(tmp_path)[0].properties


@pytest.mark.parametrize("name", [MANIFEST_NAME, *FILES])
def test_every_flipped_byte_is_found(sealed: tuple[Path, SnapshotMetadata], name: str) -> None:
    directory, metadata = sealed
    path = directory / name
    content = path.read_bytes()

    for offset in range(len(content)):
        flipped = bytearray(content)
        flipped[offset] ^= 1 << offset % 8
        path.write_bytes(flipped)
        with pytest.raises(SnapshotCorruptionError):
            verify(directory, metadata)

    path.write_bytes(content)
    verify(directory, metadata)


@pytest.mark.parametrize("name", [MANIFEST_NAME, *FILES])
def test_every_cut_and_addition_is_found(sealed: tuple[Path, SnapshotMetadata], name: str) -> None:
    directory, metadata = sealed
    path = directory / name
    content = path.read_bytes()

    for other in [content[:size] for size in range(len(content))] + [content + b"\0"]:
        path.write_bytes(other)
        with pytest.raises(SnapshotCorruptionError):
            verify(directory, metadata)


def test_a_manifest_altered_with_its_checksum_never_escapes_the_snapshot_errors(
    sealed: tuple[Path, SnapshotMetadata],
) -> None:
    directory, _ = sealed
    content = (directory / MANIFEST_NAME).read_bytes()

    accepted = 0
    for offset in range(len(content)):
        for value in {0x00, 0xFF, 0x9F, 0xC1, 0xD8, 0xF6, content[offset] ^ 1} - {content[offset]}:
            altered = bytearray(content)
            altered[offset] = value
            metadata = reseal(directory, bytes(altered))
            try:
                verify(directory, metadata)
            except (SnapshotCorruptionError, SnapshotFormatError):
                continue
            accepted += 1

    assert accepted == 0


def test_a_missing_file_is_damage(sealed: tuple[Path, SnapshotMetadata]) -> None:
    directory, metadata = sealed
    (directory / "a").unlink()

    with pytest.raises(SnapshotCorruptionError, match="'a' is missing"):
        verify(directory, metadata)


def test_an_extra_file_is_damage(sealed: tuple[Path, SnapshotMetadata]) -> None:
    directory, metadata = sealed
    (directory / "more").touch()

    with pytest.raises(SnapshotCorruptionError, match="'more' is extra"):
        verify(directory, metadata)


def test_a_renamed_file_is_reported_at_both_ends(sealed: tuple[Path, SnapshotMetadata]) -> None:
    directory, metadata = sealed
    (directory / "a").rename(directory / "z")

    with pytest.raises(SnapshotCorruptionError, match="'a' is missing, 'z' is extra"):
        verify(directory, metadata)


def test_two_swapped_files_are_damage(sealed: tuple[Path, SnapshotMetadata]) -> None:
    directory, metadata = sealed
    (directory / "a").write_bytes(FILES["empty"])
    (directory / "empty").write_bytes(FILES["a"])

    with pytest.raises(SnapshotCorruptionError):
        verify(directory, metadata)


@pytest.mark.parametrize("name", [MANIFEST_NAME, "a"])
def test_a_symbolic_link_is_damage(sealed: tuple[Path, SnapshotMetadata], name: str) -> None:
    directory, metadata = sealed
    aside = directory.parent / "aside"
    shutil.move(directory / name, aside)
    (directory / name).symlink_to(aside)

    with pytest.raises(SnapshotCorruptionError, match="not a regular file"):
        verify(directory, metadata)


def test_a_subdirectory_is_damage(sealed: tuple[Path, SnapshotMetadata]) -> None:
    directory, metadata = sealed
    (directory / "sub").mkdir()

    with pytest.raises(SnapshotCorruptionError, match="'sub' is extra"):
        verify(directory, metadata)


@pytest.mark.parametrize("name", [MANIFEST_NAME, "a"])
def test_a_pipe_is_damage_and_does_not_block(
    sealed: tuple[Path, SnapshotMetadata], name: str
) -> None:
    directory, metadata = sealed
    (directory / name).unlink()
    os.mkfifo(directory / name)

    with pytest.raises(SnapshotCorruptionError, match="not a regular file"):
        verify(directory, metadata)


def test_a_missing_directory_is_damage(sealed: tuple[Path, SnapshotMetadata]) -> None:
    directory, metadata = sealed

    with pytest.raises(SnapshotCorruptionError, match="missing"):
        verify(directory / "elsewhere", metadata)


def test_another_last_included_is_damage(sealed: tuple[Path, SnapshotMetadata]) -> None:
    directory, metadata = sealed
    other = attrs.evolve(metadata, last_included=LogId(3, 1201))
    message = (
        f"snapshot '{directory}': its manifest says last_included LogId(term=3, index=1200), "
        f"its metadata LogId(term=3, index=1201); the snapshot was not used"
    )

    with pytest.raises(SnapshotCorruptionError, match=re.escape(message)) as caught:
        verify(directory, other)

    assert (other.last_included, LAST) == (caught.value.expected, caught.value.observed)


def test_an_unknown_format_of_the_metadata_is_refused(
    sealed: tuple[Path, SnapshotMetadata],
) -> None:
    directory, metadata = sealed

    with pytest.raises(SnapshotFormatError, match="its metadata says format 'test/9'"):
        verify(directory, attrs.evolve(metadata, format="test/9"))


def test_an_unknown_format_of_the_manifest_is_refused(
    sealed: tuple[Path, SnapshotMetadata],
) -> None:
    directory, metadata = sealed

    with pytest.raises(SnapshotFormatError, match="its manifest says format 'test/1'"):
        verify_snapshot(directory, attrs.evolve(metadata, format="other"), formats=["other"])


def test_two_known_but_different_formats_are_damage(
    sealed: tuple[Path, SnapshotMetadata],
) -> None:
    directory, metadata = sealed
    other = attrs.evolve(metadata, format="other")

    with pytest.raises(SnapshotCorruptionError, match="says format"):
        verify_snapshot(directory, other, formats=[FORMAT, "other"])


def test_a_newer_manifest_is_a_format_error(sealed: tuple[Path, SnapshotMetadata]) -> None:
    directory, _ = sealed
    metadata = reseal(directory, ["dengine-snapshot", 2, "anything", {}])

    with pytest.raises(SnapshotFormatError, match="version 2"):
        verify(directory, metadata)


@pytest.mark.parametrize("name", ["../a", "a/b", "/a", "a\\b", "..", ".", "", "a\0", MANIFEST_NAME])
def test_a_manifest_that_names_no_plain_file_is_damage(
    sealed: tuple[Path, SnapshotMetadata], name: str
) -> None:
    directory, _ = sealed
    item = ["dengine-snapshot", 1, FORMAT, [3, 1200], [[name, 0, bytes(32)]], []]
    metadata = reseal(directory, item)

    with pytest.raises(SnapshotCorruptionError, match="not a manifest"):
        verify(directory, metadata)


def test_seal_refuses_a_sealed_directory(sealed: tuple[Path, SnapshotMetadata]) -> None:
    directory, metadata = sealed

    with pytest.raises(SnapshotError, match="already"):
        seal_snapshot(directory, format=FORMAT, last_included=LAST)

    verify(directory, metadata)


def test_seal_refuses_what_is_not_flat(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()

    with pytest.raises(SnapshotError, match="'sub' is not a regular file"):
        seal_snapshot(tmp_path, format=FORMAT, last_included=LAST)

    assert [path.name for path in tmp_path.iterdir()] == ["sub"]


def test_a_disk_that_refuses_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as caught:
        seal_snapshot(tmp_path / "absent", format=FORMAT, last_included=LAST)

    assert tmp_path / "absent" == caught.value.path
