"""From a URI to pixels: what is fetched, what is decoded, and which kind of reject everything else is."""

import ast
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import melanoma
from melanoma import storage
from melanoma.demo.archive_files import dicom_file
from melanoma.imaging import load
from melanoma.imaging.decode import decode
from melanoma.imaging.errors import ErrorKind, ImageError, UnreachableError, of_storage
from melanoma.imaging.limits import Limits
from melanoma.storage import ChangedError, UnavailableError

SIZE = 24


def dicom(frames: int = 1, **elements: Any) -> bytes:
    """A DICOM file of striped frames that are darker one after the other."""
    stripes = np.repeat(np.arange(12, dtype=np.uint8)[:, None, None] % 2 * 20, 16, axis=1).repeat(3, axis=2)
    return dicom_file([190 - 50 * number + stripes for number in range(frames)], **elements)


@pytest.mark.parametrize(
    ("error", "kind", "may_succeed_later"),
    [
        (UnavailableError("The object store did not answer."), "access", True),
        (ChangedError("s3://archive/a.zip has changed."), "not_found", False),
        (FileNotFoundError("a.jpg does not exist."), "not_found", False),
        (NotADirectoryError("a.zip is no folder."), "not_found", False),
        (PermissionError("The object store refuses."), "access", False),
        (OSError("The disk fails."), "access", False),
    ],
)
def test_what_an_error_of_the_store_means_for_an_image(
    error: OSError | UnavailableError, kind: ErrorKind, may_succeed_later: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(store: storage.Store, uri: str, limit: int | None) -> bytes:
        raise error

    monkeypatch.setattr(storage.Store, "read_bytes", fail)
    with pytest.raises(ImageError) as caught:
        load.fetch("s3://archive/a.jpg")
    assert caught.value.kind == kind
    assert isinstance(caught.value, UnreachableError) == may_succeed_later
    assert str(caught.value) == str(of_storage(error))
    # It passes through where decoding is asked for what was fetched.
    assert load.load(caught.value, SIZE) == load.Loaded((), None, caught.value)


@pytest.mark.parametrize("read", [load.fetch, lambda uri: load.pixels(uri, SIZE), load.picture])
@pytest.mark.parametrize(("name", "kind"), [("nowhere.jpg", "not_found"), ("folder", "access")])
def test_what_is_not_there_is_one_sentence(
    read: Callable[[str], object], name: str, kind: ErrorKind, tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(ImageError, match=name) as caught:
        read(str(tmp_path / name))
    assert caught.value.kind == kind


def test_a_file_is_loaded_with_the_digest_of_its_content(lesion: Callable[..., bytes], tmp_path: Path) -> None:
    data = lesion("MEL", seed=1)
    path = tmp_path / "lesion.jpg"
    path.write_bytes(data)
    loaded = load.load(load.fetch(str(path)), SIZE)
    (frame,) = loaded.frames
    assert loaded.error is None
    assert loaded.sha256 == hashlib.sha256(data).hexdigest()
    assert np.array_equal(frame.pixels, decode(data, SIZE).pixels)
    assert np.array_equal(load.pixels(str(path), SIZE), frame.pixels)


@pytest.mark.parametrize(
    ("data", "kind"),
    [(b"", "empty"), (b"%PDF-1.7", "not_an_image"), (b"GIF89a", "unsupported"), (b"\xff\xd8\xff\xe0", "truncated")],
)
def test_what_cannot_be_decoded_has_a_digest_and_no_frames(data: bytes, kind: ErrorKind) -> None:
    loaded = load.load(data, SIZE)
    assert loaded.frames == ()
    assert loaded.error is not None
    assert loaded.error.kind == kind
    assert loaded.sha256 == hashlib.sha256(data).hexdigest()


def test_a_file_over_the_limit_is_read_up_to_the_limit_and_has_no_digest(
    lesion: Callable[..., bytes], tmp_path: Path
) -> None:
    path = tmp_path / "lesion.jpg"
    path.write_bytes(lesion())
    limits = Limits(max_bytes=100)
    data = load.fetch(str(path), limits)
    assert len(data) == 101
    loaded = load.load(data, SIZE, limits)
    assert loaded.error is not None
    assert (loaded.error.kind, loaded.sha256) == ("too_large", None)
    # At the limit it is whole.
    limits = Limits(max_bytes=path.stat().st_size)
    assert load.load(load.fetch(str(path), limits), SIZE, limits).error is None
    with pytest.raises(ImageError, match="more than the limit of 50") as caught:
        load.pixels(str(path), SIZE, Limits(max_pixels=50))
    assert caught.value.kind == "too_large"


def test_several_frames_are_loaded_where_they_are_asked_for() -> None:
    data = dicom(frames=3)
    loaded = load.load(data, SIZE, several_frames=True)
    assert [frame.pixels.mean() for frame in loaded.frames] == [200, 150, 100]
    refused = load.load(data, SIZE)
    assert refused.frames == ()
    assert refused.error is not None
    assert (refused.error.kind, refused.sha256) == ("unsupported", loaded.sha256)
    assert len(load.load(dicom(), SIZE, several_frames=True).frames) == 1


def test_a_picture_is_for_people_unless_a_person_may_be_known_from_it(
    lesion: Callable[..., bytes], tmp_path: Path
) -> None:
    files = {
        "lesion.jpg": lesion(size=80),
        "silent.dcm": dicom(),
        "no.dcm": dicom(RecognizableVisualFeatures="NO"),
        "yes.dcm": dicom(RecognizableVisualFeatures="YES"),
        "annotated.dcm": dicom(BurnedInAnnotation="YES"),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    shown = {name: load.picture(str(tmp_path / name), longest=16) for name in files}
    assert [name for name, picture in shown.items() if picture is None] == ["yes.dcm"]
    assert [picture.size for picture in shown.values() if picture] == [(16, 16), (16, 12), (16, 12), (16, 12)]
    whole = load.picture(str(tmp_path / "lesion.jpg"))
    assert isinstance(whole, Image.Image)
    assert whole.size == (80, 80)
    # It is read all the same: that a picture is not shown does not mean that it is not scored.
    assert load.load(files["yes.dcm"], SIZE).error is None


@pytest.mark.parametrize("data", [b"", b"DICM", bytes(128) + b"DICM", bytes(128) + b"DICM" + b"\x08\0\x05\0" * 9])
def test_a_damaged_header_says_nothing(data: bytes) -> None:
    assert load.is_recognizable(data) is False


# --- everyone takes this way -----------------------------------------------------------------------------------------

# What others may take from the decoder: names of its version, which say nothing of an image.
VERSIONS = {"PREPROCESSING", "READS"}


def imported_from(path: Path, module: str) -> set[str]:
    """What a file takes from a module of `melanoma.imaging`, wherever the import stands in it."""
    package, _, name = module.rpartition(".")
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == module:
            names |= {alias.name for alias in node.names}
        elif (isinstance(node, ast.ImportFrom) and node.module == package and name in [a.name for a in node.names]) or (
            isinstance(node, ast.Import) and module in [a.name for a in node.names]
        ):
            names.add("*")
    return names


def test_every_reader_of_images_takes_this_way() -> None:
    root = Path(melanoma.__file__).parent
    decoders = {}
    for path in sorted(root.rglob("*.py")):
        if path.parent.name == "imaging":
            continue
        taken = set().union(*(imported_from(path, f"melanoma.imaging.{name}") for name in ("decode", "dicom")))
        if taken - VERSIONS:
            decoders[path.relative_to(root.parent).as_posix()] = taken
    assert decoders == {}


def test_the_kinds_of_rejects_are_decided_in_one_file() -> None:
    root = Path(melanoma.__file__).parent / "imaging"
    makers = {
        path.name
        for path in root.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("ImageError", "UnreachableError")
    }
    assert makers == {"errors.py"}
