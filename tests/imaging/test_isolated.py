"""Files that kill or hang the process that decodes them, in processes that they may kill."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest

from melanoma.demo.archive_files import broken_files, dicom_file, good_files
from melanoma.demo.lesions import draw_lesion
from melanoma.errors import MelanomaError
from melanoma.imaging import isolated, load
from melanoma.imaging.errors import ImageError
from melanoma.imaging.isolated import IsolatedDecoder
from melanoma.imaging.limits import Limits
from tests.support.deadly_files import on_path

SIZE = 24


@pytest.fixture
def deadly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that are started from now on die of the pictures that say so."""
    on_path(monkeypatch)


@pytest.fixture
def decoder(deadly: None) -> Iterator[IsolatedDecoder]:
    with IsolatedDecoder(Limits(max_bytes=2**24, max_pixels=2**22), seconds=3) as made:
        yield made


def child_of(decoder: IsolatedDecoder) -> int:
    """The process that waits for work."""
    child = decoder._children.queue[-1]
    assert child
    return child.process.pid


def assert_same(found: load.Loaded, expected: load.Loaded) -> None:
    assert found.sha256 == expected.sha256
    assert (found.error and (found.error.kind, found.error.reason)) == (
        expected.error and (expected.error.kind, expected.error.reason)
    )
    assert len(found.frames) == len(expected.frames)
    for one, other in zip(found.frames, expected.frames, strict=True):
        for field in dataclasses.fields(one):
            assert np.array_equal(getattr(one, field.name), getattr(other, field.name)), field.name


def test_it_says_what_decoding_in_this_process_says() -> None:
    drawn = [draw_lesion("MEL", seed, 60, 40) for seed in range(24)]
    files = [data for _, data in good_files(drawn)] + [file.data for file in broken_files()]
    files.append(dicom_file(drawn[:3], PatientID="7", BodyPartExamined="BACK", RecognizableVisualFeatures="YES"))
    fetched: list[bytes | ImageError] = [*files, ImageError("not_found", "It is gone.")]
    with IsolatedDecoder() as decoder:
        for data in fetched:
            for several in (False, True):
                assert_same(decoder.load(data, SIZE, several), load.load(data, SIZE, several_frames=several))
        shown = decoder.picture(files[-1], longest=30, frame=2)
        assert np.array_equal(np.asarray(shown), np.asarray(load.decode_image(files[-1], longest=30, frame=2)))
        with pytest.raises(ImageError, match="not an image but"):
            decoder.picture(b"%PDF-1.7")


@pytest.mark.parametrize(
    ("words", "kind", "reason"),
    [
        ("crash", "crashed", "ended its process by signal 11 (segmentation fault)"),
        ("exit", "crashed", "ended its process (exit status 3)"),
        ("memory", "crashed", "takes more than the 0.7 GB of memory that it may take here"),
        ("hang", "timeout", "took more than 3 s"),
    ],
)
def test_a_deadly_file_is_rejected_with_its_digest_and_the_next_is_read(
    decoder: IsolatedDecoder, lesion: Callable[..., bytes], words: str, kind: str, reason: str
) -> None:
    good, bad = lesion(), lesion() + f"!{words}!".encode()
    found = decoder.load(bad, SIZE)
    assert found.error is not None
    assert (found.error.kind, found.frames) == (kind, ())
    assert found.error.reason == f"Decoding this file {reason}: export it again, as a plain JPEG or PNG."
    assert found.sha256 == load.load(bad, SIZE).sha256
    assert_same(decoder.load(good, SIZE), load.load(good, SIZE))


def test_a_process_that_is_killed_for_no_fault_of_the_file_rejects_nothing(
    decoder: IsolatedDecoder, lesion: Callable[..., bytes]
) -> None:
    data = lesion(size=200)
    expected = load.load(data, SIZE)
    for _ in range(3):
        assert_same(decoder.load(data, SIZE), expected)
        child = child_of(decoder)
        os.kill(child, signal.SIGKILL)


def test_a_container_that_has_little_memory_left_gives_a_file_less(
    deadly: None, lesion: Callable[..., bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {
        "proc/meminfo": "MemTotal: 64000000 kB\nMemAvailable: 32000000 kB\n",
        "sys/fs/cgroup/memory.max": "max\n",
        "sys/fs/cgroup/memory.current": "3000000000\n",
        "sys/fs/cgroup/memory.stat": "anon 2500000000\ninactive_file 500000000\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert isolated.memory_left(tmp_path) == 32_000_000 * 1024
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("3300000000\n")
    assert isolated.memory_left(tmp_path) == 800_000_000
    assert isolated.memory_left(tmp_path / "nowhere") > 2**60

    monkeypatch.setattr(isolated, "memory_left", lambda: 800_000_000)
    with IsolatedDecoder() as decoder:
        found = decoder.load(lesion() + b"!memory!", SIZE)
        assert found.error is not None
        assert "takes more than the 0.4 GB of memory that it may take here" in found.error.reason


def test_an_answer_that_nobody_waited_for_is_not_taken_for_the_next(
    lesion: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [lesion(seed=seed) for seed in range(3)]

    def interrupted(self: Connection, timeout: float) -> bool:
        raise KeyboardInterrupt

    with IsolatedDecoder() as decoder:
        decoder.load(files[0], SIZE)
        with monkeypatch.context() as patch:
            patch.setattr(Connection, "poll", interrupted)
            with pytest.raises(KeyboardInterrupt):
                decoder.load(files[1], SIZE)
        assert_same(decoder.load(files[2], SIZE), load.load(files[2], SIZE))


def test_many_threads_share_it(decoder: IsolatedDecoder, lesion: Callable[..., bytes]) -> None:
    files = [lesion(seed=seed) + (b"!exit!" if seed % 4 == 0 else b"") for seed in range(24)]
    with IsolatedDecoder(processes=3) as many, ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda data: many.load(data, SIZE), files))
    for seed, (data, loaded) in enumerate(zip(files, found, strict=True)):
        if seed % 4 == 0:
            assert loaded.error is not None
            assert loaded.error.kind == "crashed"
        else:
            assert_same(loaded, load.load(data, SIZE))


def test_a_child_has_no_secrets_dumps_no_core_and_goes_first(
    lesion: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = ("AWS_SECRET_ACCESS_KEY", "MELANOMA_PSEUDONYM_KEY", "MELANOMA_SMTP_PASSWORD", "RAY_AUTH_TOKEN")
    for name in secrets:
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("HTTPS_PROXY", "http://ward:secret@proxy:3128")
    monkeypatch.setenv("A_HOSPITALS_OWN", "kept")
    with IsolatedDecoder() as decoder:
        decoder.load(lesion(), SIZE)
        child = child_of(decoder)
        environment = Path(f"/proc/{child}/environ").read_text().split("\0")
        limits = Path(f"/proc/{child}/limits").read_text()
        assert "A_HOSPITALS_OWN=kept" in environment
        assert not any("=secret" in each or ":secret" in each for each in environment)
        assert [line.split()[4:6] for line in limits.splitlines() if "core file" in line] == [["0", "0"]]
        assert Path(f"/proc/{child}/oom_score_adj").read_text().strip() == "1000"
    assert not Path(f"/proc/{child}").exists()


def test_a_child_that_hangs_ends_although_its_parent_is_gone(
    deadly: None, lesion: Callable[..., bytes], tmp_path: Path
) -> None:
    (tmp_path / "hang.jpg").write_bytes(lesion() + b"!hang!")
    program = (
        "import os, threading, time\n"
        "from melanoma.imaging.isolated import IsolatedDecoder\n"
        f"decoder, data = IsolatedDecoder(seconds=2), open({str(tmp_path / 'hang.jpg')!r}, 'rb').read()\n"
        "decoder.load(b'', 8)\n"
        "child = decoder._children.queue[-1].process.pid\n"
        "threading.Thread(target=decoder.load, args=(data, 8)).start()\n"
        "time.sleep(0.5)\n"
        "print(child, flush=True)\n"
        "os._exit(0)\n"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    deadline = time.monotonic() + 30
    while (child := Path(f"/proc/{said.strip()}")).exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not child.exists()


def test_a_process_that_hangs_in_a_library_ends_itself(
    deadly: None, lesion: Callable[..., bytes], tmp_path: Path
) -> None:
    """Within the block only, and whatever holds the interpreter's lock."""
    (tmp_path / "hang.jpg").write_bytes(lesion() + b"!hang!")
    program = (
        "import time\n"
        "from melanoma.imaging import load\n"
        "from melanoma.imaging.isolated import ends_process_after\n"
        "with ends_process_after(0.5): pass\n"
        "time.sleep(1)\n"
        "print('before', flush=True)\n"
        "with ends_process_after(0.5):\n"
        f"    load.pixels({str(tmp_path / 'hang.jpg')!r}, 8)\n"
        "print('after', flush=True)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert (ended.returncode, ended.stdout) == (-signal.SIGALRM, "before\n")


def test_where_no_process_can_be_started_one_sentence_says_so(
    lesion: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nowhere"))
    with IsolatedDecoder() as decoder:
        with pytest.raises(MelanomaError, match="No process can be started to decode images in: No such file"):
            decoder.load(lesion(), SIZE)
        monkeypatch.setattr(sys, "executable", "/bin/false")  # not Python
        with pytest.raises(MelanomaError, match="to decode images in does not start: it ends with status 1"):
            decoder.load(lesion(), SIZE)
