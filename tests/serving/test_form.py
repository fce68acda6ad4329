"""The file of a form, whatever the form."""

import contextlib

import numpy as np
import pytest

from melanoma.errors import InputError
from melanoma.serving import form

PICTURE = b"\xff\xd8\xff\r\n--x\r\n\r\nContent-Disposition: form-data\r\n" + bytes(range(256)) * 4
TYPE = "multipart/form-data; boundary=x-1"
Field = tuple[str, bytes]
FILE: Field = ('form-data; name="file"; filename="lesion.jpg"', PICTURE)
TEXT: Field = ('form-data; name="patient"', b"4711")


def body(*fields: Field, boundary: str = "x-1", closed: bool = True) -> bytes:
    parts = [
        f"--{boundary}\r\nContent-Disposition: {disposition}\r\nContent-Type: image/jpeg\r\n\r\n".encode()
        + content
        + b"\r\n"
        for disposition, content in fields
    ]
    return b"".join(parts) + (f"--{boundary}--\r\n".encode() if closed else b"")


@pytest.mark.parametrize(
    ("content_type", "sent"),
    [
        (TYPE, body(FILE)),
        (TYPE, body(TEXT, FILE, TEXT)),
        ('Multipart/Form-Data; charset=utf-8; Boundary="a b"', body(FILE, boundary="a b")),
        (TYPE, b"words before\r\n" + body(FILE) + b"words behind"),
        (TYPE, body(FILE).replace(b"--x-1\r\n", b"--x-1 \t\r\n", 1)),
        (TYPE, body(("form-data; name=file; filename=lesion.jpg", PICTURE))),
        (TYPE, body(("form-data; name=file; filename*=UTF-8''l%C3%A4sion.jpg", PICTURE))),
        (TYPE, body(FILE).replace(b"Content-Disposition", b"content-disposition", 1)),
    ],
)
def test_the_file_of_a_form_is_what_was_sent(content_type: str, sent: bytes) -> None:
    assert form.is_form(content_type)
    assert form.file_of(content_type, sent) == PICTURE


@pytest.mark.parametrize("content", [b"", b"\r\n", b"\r\n\r\n", b"--x-", bytes(3 * 2**20)])
def test_any_content_comes_out_whole(content: bytes) -> None:
    assert form.file_of(TYPE, body((FILE[0], content))) == content


@pytest.mark.parametrize(
    ("content_type", "sent", "words"),
    [
        (TYPE, body(FILE, FILE), "holds 2 files"),
        (TYPE, body(TEXT), "holds no files"),
        (TYPE, body(), "holds no files"),
        (TYPE, body(FILE, closed=False), "cut short"),
        (TYPE, body(FILE)[:300], "cut short"),
        (TYPE, b"", "cut short"),
        (TYPE, PICTURE, "cut short"),
        (TYPE, body(*[TEXT] * 200, FILE), "100 fields and more"),
        ("multipart/form-data", body(FILE), "does not say what separates"),
        ("multipart/form-data; boundary=", body(FILE), "does not say what separates"),
    ],
)
def test_a_form_that_is_none_is_one_sentence_with_the_right_command(content_type: str, sent: bytes, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        form.file_of(content_type, sent)
    assert "`curl -F file=@lesion.jpg`" in str(caught.value)


@pytest.mark.parametrize(
    "content_type", ["", "image/jpeg", "application/x-www-form-urlencoded", "multipart/mixed; boundary=x"]
)
def test_other_bodies_are_no_forms(content_type: str) -> None:
    assert not form.is_form(content_type)


def test_whatever_is_sent_ends_as_a_file_or_as_a_sentence() -> None:
    rng = np.random.default_rng(0)
    good = body(TEXT, FILE)
    for _ in range(3000):
        sent = bytearray(good)
        for _ in range(int(rng.integers(1, 6))):
            at = int(rng.integers(0, len(sent)))
            sent[at : at + int(rng.integers(0, 4))] = rng.bytes(int(rng.integers(0, 4)))
        content_type = TYPE[: int(rng.integers(15, len(TYPE) + 1))] + chr(int(rng.integers(32, 256)))
        for kind in (TYPE, content_type):
            with contextlib.suppress(InputError):
                assert isinstance(form.file_of(kind, bytes(sent)), bytes)
