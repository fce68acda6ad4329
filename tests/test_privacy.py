"""What leaves the store of a patient."""

import hmac
import os
import re
import subprocess
from pathlib import Path

import pytest

from melanoma import privacy
from melanoma.errors import InputError
from melanoma.imaging.header import Header
from melanoma.privacy import Privacy

HEADER = Header("4711", "1.2.840.1", "FACE", "2026-03-14T15:30:05", True, True)


def test_without_a_key_identifiers_are_as_they_are() -> None:
    found = Privacy().columns(HEADER)
    assert (found["patient_id"], found["study_uid"], found["body_site"]) == ("4711", "1.2.840.1", "FACE")


def test_with_a_key_the_same_patient_is_the_same_pseudonym_and_no_more() -> None:
    found, repeated = (Privacy(b"k" * 16).columns(HEADER) for _ in range(2))
    assert found == repeated
    assert found["patient_id"] != Privacy(b"K" * 16).columns(HEADER)["patient_id"]
    assert "4711" not in str(found)
    assert "1.2.840.1" not in str(found)
    assert len(str(found["patient_id"])) == 32


def test_who_is_unknown_gets_no_pseudonym() -> None:
    assert Privacy(b"k" * 16).columns(Header())["patient_id"] is None


@pytest.mark.parametrize(
    ("header", "hold_back_annotated", "expected"),
    [
        (Header(is_recognizable=True), False, True),
        (Header(is_recognizable=False), False, False),
        (Header(), True, False),
        (Header(is_annotated=True), False, False),
        (Header(is_annotated=True), True, True),
    ],
)
def test_who_may_be_known_from_a_picture_is_not_shown(
    header: Header, hold_back_annotated: bool, expected: bool
) -> None:
    assert Privacy(None, hold_back_annotated).columns(header)["is_held_back"] is expected


def test_the_key_is_in_no_log() -> None:
    assert "secret" not in repr(Privacy(b"secret secret secret"))


def test_a_key_that_can_be_guessed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(privacy.KEY, "short")
    with pytest.raises(InputError, match="MELANOMA_PSEUDONYM_KEY has 5 bytes: give it at least 16"):
        privacy.from_environment(False)
    monkeypatch.setenv(privacy.KEY, "")
    assert privacy.from_environment(False).key is None


KEY = "0123456789abcdef0123"


@pytest.mark.parametrize("around", ["{}\n", "{}\r\n", " {}", "{}\t", "\ufeff{}", "\n{}\n"])
def test_a_key_with_a_line_end_is_refused_before_a_patient_goes_by_two_names(
    monkeypatch: pytest.MonkeyPatch, around: str
) -> None:
    monkeypatch.setenv(privacy.KEY, around.format(KEY))
    with pytest.raises(InputError, match="begins or ends in a blank or a line break") as caught:
        privacy.from_environment(False)
    assert "other pseudonyms from now on" in str(caught.value)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("content", ["{}\n", "{}\r\n", "\ufeff{}", "\ufeff{}\r\n"])
def test_the_advice_on_a_key_with_a_line_end_or_a_byte_order_mark_works(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("FILE").write_bytes(content.format(KEY).encode())
    monkeypatch.setenv(privacy.KEY, content.format(KEY))
    with pytest.raises(InputError) as caught:
        privacy.from_environment(False)
    (advised,) = re.findall(r'such as with ("\$.*\)")', str(caught.value))
    told = subprocess.run(["sh", "-c", f"printf %s {advised}"], capture_output=True, check=True)
    assert told.stdout == KEY.encode()


@pytest.mark.parametrize("quote", ['"', "'"])
def test_a_key_in_quotes_is_refused(monkeypatch: pytest.MonkeyPatch, quote: str) -> None:
    monkeypatch.setenv(privacy.KEY, f"{quote}{KEY}{quote}")
    with pytest.raises(InputError, match="stands in quotes, which docker's --env-file keeps: set it without them"):
        privacy.from_environment(False)


@pytest.mark.parametrize(
    "key", [KEY.encode(), "ключ-для-псевдонимов".encode(), b"sixteen bytes of \xff\xfe", b"two words, 16 bytes"]
)
def test_a_key_that_was_fine_gives_the_pseudonyms_that_it_gave(monkeypatch: pytest.MonkeyPatch, key: bytes) -> None:
    monkeypatch.setitem(os.environb, privacy.KEY.encode(), key)
    found = privacy.from_environment(False)
    assert found.key == key
    assert found.pseudonym("4711") == hmac.new(key, b"4711", "sha256").hexdigest()[:32]
    assert found.fingerprint() == hmac.new(key, b"fingerprint", "sha256").hexdigest()[:16]
