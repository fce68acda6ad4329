"""Tar and zip archives: every member is found with its bytes, or with the reason why it cannot be read."""

import io
import resource
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from melanoma import storage
from melanoma.imaging.errors import ImageError
from melanoma.scoring import tar_and_zip
from melanoma.scoring.tar_and_zip import Member

FILES = {"a.jpg": b"first" * 1000, "sub/皮膚 b.jpg": b"second", "empty.jpg": b"", "x" * 200 + ".jpg": b"long name"}
LIMIT = 100_000


def tar(path: Path, files: dict[str, bytes] = FILES, form: int = tarfile.PAX_FORMAT) -> None:
    with tarfile.open(path, "w", format=form) as made:
        folder = tarfile.TarInfo("sub")
        folder.type = tarfile.DIRTYPE
        made.addfile(folder)
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            made.addfile(entry, io.BytesIO(data))


def zipped(path: Path, files: dict[str, bytes] = FILES, method: int = zipfile.ZIP_DEFLATED) -> None:
    with zipfile.ZipFile(path, "w", method) as made:
        made.mkdir("sub")
        for name, data in files.items():
            made.writestr(name, data)


def found(path: Path | str) -> list[Member]:
    return list(tar_and_zip.members(storage.info(str(path)), storage.Store(0)))


def fetched(path: Path | str, member: Member) -> bytes:
    etag = storage.info(str(path)).etag
    where = (member.size, member.offset, member.length, member.is_zip, member.checksum)
    return tar_and_zip.fetch(storage.Store(), str(path), etag, *where)


def contents(path: Path | str) -> dict[str, bytes]:
    """What is read of the members that can be."""
    return {
        member.uri.removeprefix(f"{path}!/"): fetched(path, member) for member in found(path) if member.refused is None
    }


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_a_tar(tmp_path: Path, form: int) -> None:
    tar(tmp_path / "a.tar", form=form)
    assert contents(tmp_path / "a.tar") == FILES
    assert [member.size for member in found(tmp_path / "a.tar")] == [len(data) for data in FILES.values()]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip(tmp_path: Path, method: int) -> None:
    zipped(tmp_path / "a.zip", method=method)
    assert contents(tmp_path / "a.zip") == FILES
    assert [member.size for member in found(tmp_path / "a.zip")] == [len(data) for data in FILES.values()]


@pytest.mark.parametrize("make", [tar, zipped])
def test_in_a_bucket(tmp_path: Path, bucket: str, make: object) -> None:
    name = "a.tar" if make is tar else "a.zip"
    (tar if make is tar else zipped)(tmp_path / name)
    uri = f"s3://{bucket}/{name}"
    storage.write_bytes(uri, (tmp_path / name).read_bytes())
    assert contents(uri) == FILES


def test_a_long_extra_field_is_read_again(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as made:
        entry = zipfile.ZipInfo("a.jpg")
        entry.extra = struct.pack("<HH", 0x4142, 5000) + bytes(5000)
        made.writestr(entry, b"data")
    assert contents(tmp_path / "a.zip") == {"a.jpg": b"data"}


def test_links_are_said(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as made:
        entry = tarfile.TarInfo("link.jpg")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
        made.addfile(entry)
    (member,) = found(tmp_path / "a.tar")
    assert (member.error_kind, member.refused) == ("unsupported", "A link or device in a tar is not an image.")


@pytest.mark.parametrize("cut", [700, 5000, 8000])
def test_a_tar_that_is_cut_short_keeps_what_is_whole_and_says_so(tmp_path: Path, cut: int) -> None:
    tar(tmp_path / "a.tar")
    data = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(data[:cut])
    read = found(tmp_path / "a.tar")
    assert (read[-1].uri, read[-1].error_kind) == (str(tmp_path / "a.tar"), "truncated")
    assert {member.error_kind for member in read} <= {None, "truncated"}
    assert contents(tmp_path / "a.tar").items() <= FILES.items()


def test_a_zip_without_its_directory_is_said(tmp_path: Path) -> None:
    zipped(tmp_path / "a.zip")
    (tmp_path / "a.zip").write_bytes((tmp_path / "a.zip").read_bytes()[:-30])
    (member,) = found(tmp_path / "a.zip")
    assert (member.uri, member.error_kind) == (str(tmp_path / "a.zip"), "truncated")


def test_an_encrypted_member_is_said(tmp_path: Path) -> None:
    zipped(tmp_path / "a.zip", {"a.jpg": b"data"})
    data = bytearray((tmp_path / "a.zip").read_bytes())
    data[data.rindex(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "a.zip").write_bytes(data)
    (member,) = found(tmp_path / "a.zip")
    assert member.refused == "The member is encrypted, and no password is known here."


def lying(path: Path, at: int, value: bytes) -> None:
    """With other bytes in the zip's only directory entry."""
    data = bytearray(path.read_bytes())
    begin = data.rindex(b"PK\x01\x02") + at
    data[begin : begin + len(value)] = value
    path.write_bytes(data)


def test_a_member_is_unpacked_to_what_its_directory_says_and_no_more(tmp_path: Path) -> None:
    zipped(tmp_path / "a.zip", {"bomb.jpg": bytes(50 * LIMIT)})
    (member,) = found(tmp_path / "a.zip")
    assert (member.size, member.length < LIMIT) == (50 * LIMIT, True)
    lying(tmp_path / "a.zip", 24, struct.pack("<I", LIMIT))
    (member,) = found(tmp_path / "a.zip")
    assert member.size == LIMIT
    with pytest.raises(ImageError, match="The member of the zip is damaged"):
        fetched(tmp_path / "a.zip", member)


def test_a_directory_that_contradicts_itself_is_said(tmp_path: Path) -> None:
    zipped(tmp_path / "a.zip", {"a.jpg": bytes(LIMIT)}, zipfile.ZIP_STORED)
    lying(tmp_path / "a.zip", 24, struct.pack("<I", 10))
    (member,) = found(tmp_path / "a.zip")
    assert (member.error_kind, member.refused) == (
        "truncated",
        "The directory of the zip says of this member what cannot be.",
    )


def test_a_flipped_byte_of_what_is_stored_is_noticed(tmp_path: Path) -> None:
    zipped(tmp_path / "a.zip", {"a.jpg": bytes(LIMIT)}, zipfile.ZIP_STORED)
    data = bytearray((tmp_path / "a.zip").read_bytes())
    data[LIMIT // 2] ^= 1
    (tmp_path / "a.zip").write_bytes(data)
    (member,) = found(tmp_path / "a.zip")
    with pytest.raises(ImageError, match="The member of the zip is damaged"):
        fetched(tmp_path / "a.zip", member)


@pytest.mark.parametrize("make", [tar, zipped])
def test_an_archive_that_was_written_again_is_not_taken_for_the_listed_one(
    tmp_path: Path, bucket: str, make: Callable[..., None]
) -> None:
    path = tmp_path / "a.zip"
    make(path, {"one.jpg": b"1" * 999, "two.jpg": b"2" * 999})
    storage.write_bytes(f"s3://{bucket}/a.zip", path.read_bytes())
    listed = {uri: storage.info(uri).etag for uri in (str(path), f"s3://{bucket}/a.zip")}
    make(path, {"two.jpg": b"2" * 999, "one.jpg": b"1" * 999})
    storage.write_bytes(f"s3://{bucket}/a.zip", path.read_bytes())
    for uri, etag in listed.items():
        with pytest.raises(storage.ChangedError):
            tar_and_zip.fetch(storage.Store(), uri, etag, 999, 0, 99, make is zipped, 0)


def test_names_that_come_twice_and_names_that_are_not_utf8(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as made:
        for number, name in enumerate(["x#2", "x", "x", "x", "Rücken.jpg"]):
            entry = tarfile.TarInfo(name)
            entry.size = 1
            made.addfile(entry, io.BytesIO(str(number).encode()))
    read = contents(tmp_path / "a.tar")
    assert read == {"x#2": b"0", "x": b"1", "x#3": b"2", "x#4": b"3", "R\\xfccken.jpg": b"4"}


def test_a_negative_size_ends_the_reading(tmp_path: Path) -> None:
    tar(tmp_path / "a.tar", {"a.jpg": b"data", "b.jpg": b"data"}, tarfile.GNU_FORMAT)
    data = bytearray((tmp_path / "a.tar").read_bytes())
    header = data[512:1024]
    header[124:136] = b"\xff" * 10 + (-512 & 0xFFFF).to_bytes(2, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    data[512:1024] = header
    (tmp_path / "a.tar").write_bytes(data)
    read = found(tmp_path / "a.tar")
    assert [(member.uri, member.error_kind) for member in read] == [(str(tmp_path / "a.tar"), "truncated")]


def test_what_lies_behind_the_end_is_said(tmp_path: Path, bucket: str) -> None:
    tar(tmp_path / "a.tar")
    twice = (tmp_path / "a.tar").read_bytes() * 2
    storage.write_bytes(f"s3://{bucket}/twice.tar", twice)
    read = found(f"s3://{bucket}/twice.tar")
    assert read[-1].refused == "The archive has data behind its end, which is not read."
    assert len(read) == len(FILES) + 1


def test_a_tar_that_is_cut_between_two_members_keeps_them(tmp_path: Path, bucket: str) -> None:
    tar(tmp_path / "a.tar", {"a.jpg": b"data", "b.jpg": b"data"}, tarfile.GNU_FORMAT)
    storage.write_bytes(f"s3://{bucket}/cut.tar", (tmp_path / "a.tar").read_bytes()[: 5 * 512])
    read = found(f"s3://{bucket}/cut.tar")
    assert [member.error_kind for member in read] == [None, None, "truncated"]


def test_a_header_that_claims_gigabytes_is_not_read(tmp_path: Path) -> None:
    tar(tmp_path / "a.tar", {"@LongLink": b"x" * 600}, tarfile.GNU_FORMAT)
    data = bytearray((tmp_path / "a.tar").read_bytes())
    header = data[512:1024]
    header[124:136] = b"77777777777\0"
    header[156:157] = b"L"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    data[512:1024] = header
    (tmp_path / "a.tar").write_bytes(data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert [member.error_kind for member in found(tmp_path / "a.tar")] == ["truncated"]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # KiB


def test_members_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    zipped(tmp_path / "a.zip", {"a.jpg": bytes(range(256)) * 50}, zipfile.ZIP_STORED)
    data = (tmp_path / "a.zip").read_bytes()
    at, end = data.rindex(b"PK\x01\x02"), data.rindex(b"PK\x05\x06")
    begin = data.index(b"PK\x01\x02")
    directory, count = data[begin:at] + data[at:end] * 500, 501
    tail = bytearray(data[end:])
    tail[8:12] = struct.pack("<HH", count, count)
    tail[12:20] = struct.pack("<II", len(directory), begin)
    (tmp_path / "a.zip").write_bytes(data[:begin] + directory + tail)
    read = found(tmp_path / "a.zip")
    assert len(read) < 10
    assert (read[-1].uri, read[-1].error_kind) == (str(tmp_path / "a.zip"), "too_large")


def test_a_member_that_is_damaged_is_said(tmp_path: Path) -> None:
    zipped(tmp_path / "a.zip", {"a.jpg": bytes(range(256)) * 50})
    data = bytearray((tmp_path / "a.zip").read_bytes())
    begin = data.index(b"PK\x03\x04", 10) + 35  # behind the folder's
    data[begin : begin + 40] = b"\xff" * 40
    (tmp_path / "a.zip").write_bytes(data)
    (member,) = found(tmp_path / "a.zip")
    with pytest.raises(ImageError, match="The member of the zip is damaged"):
        fetched(tmp_path / "a.zip", member)


def test_a_directory_is_read_by_ranges_and_not_whole(
    tmp_path: Path, reads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    large = {f"{number}.jpg": bytes(2_000_000) for number in range(5)}
    tar(tmp_path / "a.tar", large)
    zipped(tmp_path / "a.zip", large, zipfile.ZIP_STORED)
    monkeypatch.setitem(tar_and_zip._READ_AHEAD, ".tar", 64 * 1024)
    for name in ("a.tar", "a.zip"):
        reads.clear()
        assert len(found(tmp_path / name)) == 5
        assert sum(reads) < 1_000_000


# --- large and hostile directories ------------------------------------------------------------------------------------


def end_record(entries: int, size: int, begin: int, is_64: bool) -> bytes:
    """The end of a zip, as PKWARE's APPNOTE.TXT has it."""
    if not is_64:
        return struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, entries, entries, size, begin, 0)
    record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, entries, entries, size, begin)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, begin + size, 1)
    return record + locator + end_record(0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, is_64=False)


def with_directory(path: Path, names: list[str], claimed: int | None = None, is_64: bool = False) -> None:
    """A zip of empty members."""
    claimed = len(names) if claimed is None else claimed
    entries = [
        struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 0, 0, 0, 0, 0, 0, len(name), 0, 0, 0, 0, 0, 0) + name.encode()
        for name in names
    ]
    local, directory = struct.pack("<4s5H3L2H", b"PK\3\4", 20, *[0] * 9), b"".join(entries)
    path.write_bytes(local + directory + end_record(claimed, len(directory), len(local), is_64))


@pytest.mark.parametrize(("entries", "size"), [(2_000_000, 110_000_000), (1_000_001, 60_000_000), (9, 2**30)])
def test_a_zip_of_too_many_members_is_refused_by_its_end_record(
    tmp_path: Path, reads: list[int], entries: int, size: int
) -> None:
    with (tmp_path / "a.zip").open("wb") as file:
        file.seek(size)  # a directory of zeros
        file.write(end_record(entries, size, 0, is_64=True))
    (member,) = found(tmp_path / "a.zip")
    assert (member.uri, member.error_kind) == (str(tmp_path / "a.zip"), "too_large")
    assert member.refused == "The archive has more than 1,000,000 members: cut it in parts."
    assert sum(reads) < 200_000


@pytest.mark.parametrize("claimed", [3, 0])
def test_an_end_record_that_says_too_little_is_not_believed(
    tmp_path: Path, claimed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{number}.jpg" for number in range(1500)]
    with_directory(tmp_path / "a.zip", names, claimed)
    *members, last = found(tmp_path / "a.zip")
    assert [member.uri for member in members] == [f"{tmp_path}/a.zip!/{name}" for name in names]
    assert (last.uri, last.error_kind) == (str(tmp_path / "a.zip"), "truncated")
    assert last.refused == f"The zip has 1,500 members and says that it has {claimed}: fetch or export it again."
    monkeypatch.setattr(tar_and_zip, "_MOST_MEMBERS", 1000)
    *members, last = found(tmp_path / "a.zip")
    assert (len(members), last.error_kind) == (1000, "too_large")


def test_an_end_record_that_says_too_much_is_said(tmp_path: Path) -> None:
    with_directory(tmp_path / "a.zip", ["a.jpg", "b.jpg"], claimed=5)
    assert [member.error_kind for member in found(tmp_path / "a.zip")] == [None, None, "truncated"]


@pytest.mark.parametrize(("claimed", "is_64"), [(70_000, True), (70_000 % 2**16, False)])
def test_a_zip_of_more_members_than_16_bits_count_is_read(tmp_path: Path, claimed: int, is_64: bool) -> None:
    """Programs that do not know zip64 count modulo 65,536."""
    names = [f"{number}.jpg" for number in range(70_000)]
    with_directory(tmp_path / "a.zip", names, claimed, is_64)
    members = found(tmp_path / "a.zip")
    assert [member.uri for member in members] == [f"{tmp_path}/a.zip!/{name}" for name in names]
    assert not any(member.refused for member in members)


def test_a_zip_behind_other_bytes_and_with_a_comment_is_read(tmp_path: Path) -> None:
    zipped(tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip", "a") as made:
        made.comment = b"exported on a Monday" * 100
    (tmp_path / "a.zip").write_bytes(b"#!/bin/sh\n" * 50 + (tmp_path / "a.zip").read_bytes())
    assert contents(tmp_path / "a.zip") == FILES


def test_a_member_in_64_bits_and_a_name_that_is_no_utf8_are_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as made, made.open("a.jpg", "w", force_zip64=True) as file:
        file.write(b"data")
    data = (tmp_path / "a.zip").read_bytes()
    end = data.rindex(b"PK\5\6")
    begin = data.rindex(b"PK\1\2")
    entry = bytearray(data[begin:end])
    entry[20:28], entry[42:46] = b"\xff" * 8, b"\xff" * 4  # all in the extra field
    extra = struct.pack("<HHQQQ", 1, 24, 4, 4, 0)
    entry[30:32], entry[8:10] = struct.pack("<H", len(extra)), struct.pack("<H", 0x800)
    entry = entry[:46] + b"\xff.jpg" + extra
    (tmp_path / "a.zip").write_bytes(data[:begin] + entry + end_record(1, len(entry), begin, is_64=False))
    assert contents(tmp_path / "a.zip") == {"\\xff.jpg": b"data"}


@pytest.mark.parametrize("kind", [b"L", b"K", b"x", b"g"])
def test_headers_without_end_are_not_followed(tmp_path: Path, reads: list[int], kind: bytes) -> None:
    """A header of a tar that stands before another header, and so on; each may be a name of any length."""
    header = bytearray(512)
    header[124:136] = b"%011o\0" % 2**19
    header[156:157], header[257:265] = kind, b"ustar  \0"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    with (tmp_path / "a.tar").open("wb") as file:
        for _ in range(40):
            file.write(header + bytes(2**19))
    assert [member.error_kind for member in found(tmp_path / "a.tar")] == ["truncated"]
    assert sum(reads) < 20 * 2**20


@pytest.mark.slow
def test_sixteen_archives_of_many_members_fit_into_memory(tmp_path: Path) -> None:
    names = [f"patient-{number:09}/visit-1/image-{number:09}.jpg" for number in range(150_000)]
    with_directory(tmp_path / "0.zip", names, is_64=True)
    for number in range(1, 16):
        (tmp_path / f"{number}.zip").symlink_to(tmp_path / "0.zip")
    ended = subprocess.run([sys.executable, "-c", _MANY, str(tmp_path)], capture_output=True, text=True, check=True)
    images, peak = map(int, ended.stdout.split())
    print(f"{peak // 1024} MiB")
    assert images == 16 * 150_000
    assert peak < 1_700_000  # KiB, of which the database may take 0.5 GB; 200 MB an archive would be 3 GB


_MANY = """
import resource, sys
from melanoma import storage
from melanoma.scoring import plan
from melanoma.scoring.record import RunHeader

infos = [storage.info(f"{sys.argv[1]}/{number}.zip") for number in range(16)]
made = plan.freeze(f"{sys.argv[1]}/out", "a", RunHeader(run_date="2026-11-20"), infos, [], lambda images: 4096)
print(made.images, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
