import hashlib
import io
import os
import struct
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path

import pytest
import zstandard

from dengine_sm.codec import encode, pack_snapshot_metadata
from dengine_sm.errors import (
    SnapshotCorruptionError,
    SnapshotError,
    SnapshotFormatError,
    StorageError,
)
from dengine_sm.model import LogId, SnapshotMetadata
from dengine_sm.snapshot import pack_archive, read_archive_header, unpack_archive, verify_archive
from dengine_sm.snapshot.archive import HEADER_BYTES

METADATA = SnapshotMetadata(LogId(4, 99), bytes(range(32)), "test/1")
LONG = "ü" * 100 + "x" * 55
FILES = {"manifest.cbor": b"\x80", "data": os.urandom(600), "empty": b"", LONG: b"long name"}


def make_source(directory: Path, files: dict[str, bytes] = FILES) -> Path:
    directory.mkdir()
    for name, content in files.items():
        (directory / name).write_bytes(content)
    return directory


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def forge(path: Path, tar: bytes, file_count: int, content_bytes: int, version: int = 1) -> Path:
    """Write an archive whose header is right about its body, whatever the body is."""
    body = zstandard.ZstdCompressor().compress(tar)
    item = [
        pack_snapshot_metadata(METADATA),
        len(body),
        hashlib.sha256(body).digest(),
        file_count,
        content_bytes,
    ]
    payload = encode(item)
    region = (struct.pack(">4sHH", b"DSNP", version, len(payload)) + payload).ljust(4092, b"\0")
    path.write_bytes(region + struct.pack(">I", zlib.crc32(region)) + body)
    return path


def tar_of(*members: tuple[tarfile.TarInfo, bytes], format: int = tarfile.GNU_FORMAT) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=format) as tar:
        for member, data in members:
            tar.addfile(member, io.BytesIO(data))
    return stream.getvalue()


def member(name: str, data: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def assert_refused(archive: Path, directory: Path) -> None:
    before = sorted(path.name for path in directory.parent.iterdir())
    with pytest.raises((SnapshotCorruptionError, SnapshotFormatError)):
        unpack_archive(archive, directory)
    assert before == sorted(path.name for path in directory.parent.iterdir())


def test_unpacks_what_was_packed(tmp_path: Path) -> None:
    source = make_source(tmp_path / "source")

    pack_archive(source, tmp_path / "a", METADATA)
    observed = unpack_archive(tmp_path / "a", tmp_path / "unpacked")

    assert observed == METADATA
    assert content(tmp_path / "unpacked") == FILES == content(source)


def test_the_header_tells_what_is_inside(tmp_path: Path) -> None:
    packed = pack_archive(make_source(tmp_path / "source"), tmp_path / "a", METADATA)

    header = read_archive_header(tmp_path / "a")

    assert packed == header == verify_archive(tmp_path / "a")
    body = (tmp_path / "a").read_bytes()[HEADER_BYTES:]
    assert header.metadata == METADATA
    assert (header.body_bytes, header.sha256) == (len(body), hashlib.sha256(body).digest())
    assert (header.file_count, header.content_bytes) == (4, sum(map(len, FILES.values())))


def test_equal_directories_pack_to_equal_bytes(tmp_path: Path) -> None:
    first = make_source(tmp_path / "one")
    second = make_source(tmp_path / "two", dict(reversed(FILES.items())))
    for path in second.iterdir():
        os.utime(path, (1, 1))
        path.chmod(0o600)

    pack_archive(first, tmp_path / "a", METADATA)
    pack_archive(second, tmp_path / "b", METADATA)

    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_any_tar_program_reads_the_body(tmp_path: Path) -> None:
    pack_archive(make_source(tmp_path / "source"), tmp_path / "a", METADATA)
    body = (tmp_path / "a").read_bytes()[HEADER_BYTES:]
    plain = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(body)).read()

    (tmp_path / "t.tar").write_bytes(plain)
    run = subprocess.run(["tar", "-tf", tmp_path / "t.tar"], capture_output=True, check=True)

    assert len(FILES) == len(run.stdout.splitlines())


def test_every_flipped_byte_is_found_and_nothing_is_left(tmp_path: Path) -> None:
    source = make_source(tmp_path / "source", {"a": b"alpha", "b": bytes(100)})
    path = tmp_path / "a"
    pack_archive(source, path, METADATA)
    original = path.read_bytes()

    for offset in range(len(original)):
        flipped = bytearray(original)
        flipped[offset] ^= 1 << offset % 8
        path.write_bytes(flipped)
        assert_refused(path, tmp_path / "unpacked")

    path.write_bytes(original)
    assert unpack_archive(path, tmp_path / "unpacked") == METADATA


def test_every_cut_is_found(tmp_path: Path) -> None:
    source = make_source(tmp_path / "source", {"a": b"alpha"})
    path = tmp_path / "a"
    pack_archive(source, path, METADATA)
    original = path.read_bytes()

    for size in [*range(0, HEADER_BYTES, 97), *range(HEADER_BYTES, len(original))]:
        path.write_bytes(original[:size])
        with pytest.raises(SnapshotCorruptionError):
            read_archive_header(path)
        assert_refused(path, tmp_path / "unpacked")


def test_bytes_after_the_end_are_damage(tmp_path: Path) -> None:
    path = tmp_path / "a"
    pack_archive(make_source(tmp_path / "source"), path, METADATA)
    path.write_bytes(path.read_bytes() + b"\0")

    with pytest.raises(SnapshotCorruptionError, match="bytes long"):
        read_archive_header(path)


def test_a_newer_version_is_a_format_error(tmp_path: Path) -> None:
    path = forge(tmp_path / "a", tar_of(), 0, 0, version=2)

    with pytest.raises(SnapshotFormatError, match="version 2"):
        read_archive_header(path)


def test_a_missing_archive_is_damage(tmp_path: Path) -> None:
    assert_refused(tmp_path / "absent", tmp_path / "unpacked")


def test_accepts_a_forged_archive_of_plain_members(tmp_path: Path) -> None:
    """The hostile ones below are refused for what they hold, not for being forged."""
    path = forge(tmp_path / "a", tar_of(member("x", b"1"), member("y", b"22")), 2, 3)

    unpack_archive(path, tmp_path / "unpacked")

    assert content(tmp_path / "unpacked") == {"x": b"1", "y": b"22"}


HOSTILE = {
    "parent": member("../evil", b"x"),
    "absolute": member("/tmp/evil", b"x"),
    "nested": member("sub/evil", b"x"),
    "backslash": member("sub\\evil", b"x"),
    "dot": member(".", b"x"),
    "dots": member("..", b"x"),
    "trailing slash": member("evil/", b"x"),
    "directory": member("sub", type=tarfile.DIRTYPE),
    "symbolic link": member("link", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    "hard link": member("link", type=tarfile.LNKTYPE, linkname="good"),
    "device": member("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
    "pipe": member("pipe", type=tarfile.FIFOTYPE),
    "sparse": member("sparse", type=tarfile.GNUTYPE_SPARSE),
    "contiguous": member("contiguous", type=tarfile.CONTTYPE),
    "twice": member("good", b"x"),
    "huge name": member("n" * 600, b"x"),
    "unknown type": member("odd", b"x", type=b"Z"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_refuses_hostile_members_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    hostile = HOSTILE[name]
    tar = tar_of(member("good", b"data"), hostile)
    archive = forge(tmp_path / "a", tar, 2, 4 + len(hostile[1]))
    (tmp_path / "inside").mkdir()

    assert_refused(archive, tmp_path / "inside" / "unpacked")

    assert {"a", "inside"} == {path.name for path in tmp_path.iterdir()}


def test_refuses_extended_headers(tmp_path: Path) -> None:
    """A sparse one would make the tar reader loop for ever at the end of the stream."""
    info, data = member("x", b"1")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
    archive = forge(tmp_path / "a", tar_of((info, data), format=tarfile.PAX_FORMAT), 1, 1)

    assert_refused(archive, tmp_path / "unpacked")


def test_refuses_an_endless_chain_of_long_names(tmp_path: Path) -> None:
    info, _ = member("@", type=tarfile.GNUTYPE_LONGNAME)
    info.size = 1
    chain = (info.tobuf(tarfile.GNU_FORMAT) + b"a".ljust(512, b"\0")) * 1500
    archive = forge(tmp_path / "a", chain, 1, 1 << 20)

    assert_refused(archive, tmp_path / "unpacked")


@pytest.mark.parametrize("size", [-1, -512, 8 << 30])
def test_refuses_a_member_of_impossible_size(tmp_path: Path, size: int) -> None:
    info, _ = member("x")
    info.size = size
    archive = forge(tmp_path / "a", info.tobuf(tarfile.GNU_FORMAT) + bytes(4096), 1, 5)

    assert_refused(archive, tmp_path / "unpacked")


@pytest.mark.parametrize(("count", "size"), [(1, (50 << 20) - 1), (0, 50 << 20)])
def test_refuses_more_than_the_header_says_before_unpacking_it(
    tmp_path: Path, count: int, size: int
) -> None:
    archive = forge(tmp_path / "a", tar_of(member("bomb", bytes(50 << 20))), count, size)

    with pytest.raises(SnapshotCorruptionError, match="'bomb' is more than its header says"):
        unpack_archive(archive, tmp_path / "unpacked")

    assert not (tmp_path / "unpacked").exists()


def test_refuses_less_than_the_header_says(tmp_path: Path) -> None:
    archive = forge(tmp_path / "a", tar_of(member("x", b"1")), 2, 1)

    with pytest.raises(SnapshotCorruptionError, match="1 files of 1 bytes"):
        unpack_archive(archive, tmp_path / "unpacked")

    assert not (tmp_path / "unpacked").exists()


def test_refuses_a_tar_that_ends_early(tmp_path: Path) -> None:
    whole = tar_of(member("x", bytes(2000)), member("y", bytes(2000)))

    for size in (100, 512, 1000, 2560, 2700, 3072, 4000):
        assert_refused(forge(tmp_path / "a", whole[:size], 2, 4000), tmp_path / "unpacked")


def test_refuses_a_body_that_is_no_tar(tmp_path: Path) -> None:
    assert_refused(forge(tmp_path / "a", os.urandom(3000), 1, 10), tmp_path / "unpacked")


def test_refuses_to_unpack_into_a_directory_that_exists(tmp_path: Path) -> None:
    pack_archive(make_source(tmp_path / "source"), tmp_path / "a", METADATA)
    (tmp_path / "there").mkdir()

    with pytest.raises(SnapshotError, match="exists"):
        unpack_archive(tmp_path / "a", tmp_path / "there")

    assert content(tmp_path / "there") == {}


def test_refuses_to_pack_what_is_not_flat(tmp_path: Path) -> None:
    source = make_source(tmp_path / "source")
    (source / "link").symlink_to("data")

    with pytest.raises(SnapshotError, match="'link' is not a regular file"):
        pack_archive(source, tmp_path / "a", METADATA)

    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_refuses_metadata_that_outgrows_the_header(tmp_path: Path) -> None:
    metadata = SnapshotMetadata(LogId(1, 1), bytes([1] * 32), "f" * 5000)

    with pytest.raises(SnapshotError, match="at most"):
        pack_archive(make_source(tmp_path / "source"), tmp_path / "a", metadata)

    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_full_disk_leaves_the_old_archive(tmp_path: Path) -> None:
    pack_archive(make_source(tmp_path / "old"), tmp_path / "a", METADATA)
    before = (tmp_path / "a").read_bytes()
    source = make_source(tmp_path / "new", {"big": os.urandom(3 << 20)})
    child = """if True:
        import resource, signal, sys
        from pathlib import Path
        from dengine_sm.errors import StorageError
        from dengine_sm.model import LogId, SnapshotMetadata
        from dengine_sm.snapshot import pack_archive
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        metadata = SnapshotMetadata(LogId(9, 9), bytes([1] * 32), "test/1")
        try:
            pack_archive(Path(sys.argv[1]), Path(sys.argv[2]), metadata)
        except StorageError:
            print("refused")
    """
    run = subprocess.run(
        [sys.executable, "-c", child, source, tmp_path / "a"],
        capture_output=True,
        text=True,
        check=True,
    )

    assert run.stdout.strip() == "refused"
    assert before == (tmp_path / "a").read_bytes()
    assert {"a", "old", "new"} == {path.name for path in tmp_path.iterdir()}


def test_a_disk_that_is_full_when_unpacking_leaves_nothing(tmp_path: Path) -> None:
    source = make_source(tmp_path / "source", {"big": bytes((1 << 20) + 100)})
    pack_archive(source, tmp_path / "a", METADATA)
    child = """if True:
        import resource, signal, sys
        from pathlib import Path
        from dengine_sm.errors import StorageError
        from dengine_sm.snapshot import unpack_archive
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        # The last write is cut short, which is no error yet.
        resource.setrlimit(resource.RLIMIT_FSIZE, ((1 << 20) + 50, (1 << 20) + 50))
        try:
            unpack_archive(Path(sys.argv[1]), Path(sys.argv[2]))
        except StorageError:
            print("refused", Path(sys.argv[2]).exists())
    """
    run = subprocess.run(
        [sys.executable, "-c", child, tmp_path / "a", tmp_path / "unpacked"],
        capture_output=True,
        text=True,
        check=True,
    )

    assert run.stdout.strip() == "refused False"


def test_an_unwritable_target_is_a_storage_error(tmp_path: Path) -> None:
    source = make_source(tmp_path / "source")

    with pytest.raises(StorageError):
        pack_archive(source, tmp_path / "absent" / "a", METADATA)
