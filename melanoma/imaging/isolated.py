"""Decoding in processes of their own: a file that kills or hangs its decoder takes nothing else with it.

The bytes are hostile, and C libraries decode them. The workers of a night decode within themselves, which is faster,
and come here once they have died over a shard; whoever is not started again, as a driver, always decodes here.

Parent and child send each other lengths and bytes: JSON whose every field is checked, and pixels. Nothing that a child
says is unpickled. A child has bounds on its memory and time, is the first that the system ends where memory is short,
has no secret in its environment, and ends with its parent.
"""

import contextlib
import os
import queue
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from pathlib import Path

import numpy as np
from PIL import Image
from pydantic import BaseModel, PositiveInt

from melanoma.errors import MelanomaError, redacted
from melanoma.imaging import load
from melanoma.imaging.decode import Decoded, decode_image
from melanoma.imaging.errors import ErrorKind, ImageError, crashed, decided, timed_out
from melanoma.imaging.header import Header
from melanoma.imaging.limits import DEFAULT_LIMITS, Limits

SECONDS = 60.0  # that decoding one file may take

_BYTES_A_PIXEL = 32  # of memory at most: WebP takes 16, JPEG 2000 some more
_SPARE_BYTES = 2**29
_LEAST_BYTES = 2**28
# Where Linux says what memory a container has: the folder, its limit, its use, and what of that can be given back.
_CONTAINER = (
    ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
_STARTS = 3  # tries
_START_SECONDS = 120.0  # on a machine that is busy
_LONGEST_JSON = 2**24  # bytes
_LONGEST_PIXELS = 2**30
_NEEDLESS = re.compile(r"AWS_|SECRET|TOKEN|PASSWORD|CREDENTIAL|_KEY", re.IGNORECASE)  # variables of the environment


@contextlib.contextmanager
def ends_process_after(seconds: float) -> Iterator[None]:
    """The process ends where the block takes longer, even within a C library that holds the interpreter's lock."""
    signal.setitimer(signal.ITIMER_REAL, seconds)  # SIGALRM, which nothing handles
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


class _Request(BaseModel):
    size: PositiveInt | None  # pixels a side of the square; None: a picture for people
    several_frames: bool = False
    longest: PositiveInt | None = None
    frame: PositiveInt | None = None
    max_bytes: PositiveInt
    max_pixels: PositiveInt
    seconds: float


class _Frame(BaseModel):
    rows: PositiveInt
    columns: PositiveInt
    width: PositiveInt
    height: PositiveInt
    format: str
    header: Header
    frame: PositiveInt | None


class _Reply(BaseModel):
    frames: tuple[_Frame, ...] = ()
    error_kind: ErrorKind | None = None
    reason: str = ""
    is_out_of_memory: bool = False
    is_last: bool = False  # the child ends: its memory is in pieces

    @property
    def pixel_bytes(self) -> int:
        return sum(3 * frame.rows * frame.columns for frame in self.frames)


# --- The parent -------------------------------------------------------------------------------------------------------


class IsolatedDecoder:
    """Decodes images in child processes, which are started when they are needed. For any number of threads.

    Args:
        limits: What a file may have at most.
        seconds: What decoding one file may take.
        processes: How many files are decoded at a time.
    """

    def __init__(self, limits: Limits = DEFAULT_LIMITS, seconds: float = SECONDS, processes: int = 1) -> None:
        self._limits, self._seconds = limits, seconds
        self._memory = _BYTES_A_PIXEL * limits.max_pixels + 4 * limits.max_bytes + _SPARE_BYTES
        self._children: queue.LifoQueue[_Child | None] = queue.LifoQueue()  # those that are idle
        self._processes = processes
        for _ in range(processes):
            self._children.put(None)

    def load(self, data: bytes | ImageError, size: int, several_frames: bool = False) -> load.Loaded:
        """As `melanoma.imaging.load.load`; a file that kills its process is rejected as `crashed`, one that is not done
        in time as `timeout`. Raises MelanomaError where no process can be started."""
        return load.load_with(lambda data: self.frames(data, size, several_frames), data, self._limits)

    def frames(self, data: bytes, size: int, several_frames: bool = False) -> list[Decoded]:
        """The frames of a file, as `load` gives them. Raises `ImageError` and MelanomaError."""
        return self._frames(data, self._request(size, several_frames))

    def picture(self, data: bytes, longest: int | None = None, frame: int | None = None) -> Image.Image:
        """As `melanoma.imaging.decode.decode_image`. Raises `ImageError`, and MelanomaError where no process can be
        started."""
        (only,) = self._frames(data, self._request(None, longest=longest, frame=frame))
        return Image.fromarray(only.pixels)

    def close(self) -> None:
        """End the children. None may be at work."""
        for child in [self._children.get() for _ in range(self._processes)]:
            if child:
                child.end()
            self._children.put(None)

    def __enter__(self) -> "IsolatedDecoder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _request(
        self, size: int | None, several_frames: bool = False, longest: int | None = None, frame: int | None = None
    ) -> _Request:
        return _Request(
            size=size,
            several_frames=several_frames,
            longest=longest,
            frame=frame,
            max_bytes=self._limits.max_bytes,
            max_pixels=self._limits.max_pixels,
            seconds=self._seconds,
        )

    def _frames(self, data: bytes, request: _Request) -> list[Decoded]:
        reply, pixels = self._answer(data, request)
        if reply.error_kind:
            raise decided(reply.error_kind, reply.reason)
        return _decoded(reply, pixels)

    def _answer(self, data: bytes, request: _Request) -> tuple[_Reply, bytes]:
        child = self._children.get()
        idle = None  # what takes its place
        try:
            # A process may also be killed for what is no fault of the file: only the second time it is.
            for is_last_try in (False, True):
                # Half of what is left: Ray ends a worker, and not its child, where a machine has little left.
                child = child or _Child.start(max(_LEAST_BYTES, min(self._memory, memory_left() // 2)))
                try:
                    reply, pixels = child.ask(request, data)
                    break
                except TimeoutError:
                    raise timed_out(self._seconds) from None
                except (EOFError, OSError, ValueError):  # it died, or what it said is no answer
                    status = child.status()
                    if is_last_try:
                        raise _ended_by(status, self._seconds) from None
                    child.end()
                    child = None
            assert child
            if reply.is_out_of_memory:
                raise crashed(f"takes more than the {child.memory / 1e9:.1f} GB of memory that it may take here")
            idle = None if reply.is_last else child
            return reply, pixels
        finally:
            if child and not idle:  # also where the user has interrupted this: the answer would be taken for the next
                child.end()
            self._children.put(idle)


@dataclass(frozen=True)
class _Child:
    process: "subprocess.Popen[bytes]"
    connection: Connection
    memory: int  # bytes that it may take

    @staticmethod
    def start(memory: int) -> "_Child":
        """Start a child that may take so many bytes of memory. Raises MelanomaError."""
        for _ in range(_STARTS):  # one that is about to start may be killed, too
            child = _Child._started(memory)
            try:
                if child.connection.poll(_START_SECONDS):
                    child.connection.recv_bytes(_LONGEST_JSON)
                    return child
            except (EOFError, OSError):
                status = f"ends with status {child.status()}"
            else:
                status = f"is not ready after {_START_SECONDS:g} s"
            child.end()
        raise MelanomaError(f"The process to decode images in does not start: it {status}.")

    @staticmethod
    def _started(memory: int) -> "_Child":
        ours, theirs = Pipe()
        program = f"from melanoma.imaging.isolated import serve; serve({theirs.fileno()}, {memory})"
        environment = {
            name: value
            for name, value in os.environ.items()
            if not _NEEDLESS.search(name) and redacted(value) == value  # such as the password of a proxy
        }
        # What the parent imports from, wherever it has that from.
        environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
        environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        try:
            process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-P", "-c", program],
                env=environment,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        except OSError as error:
            ours.close()
            raise MelanomaError(f"No process can be started to decode images in: {error.strerror}.") from None
        finally:
            theirs.close()
        return _Child(process, ours, memory)

    def ask(self, request: _Request, data: bytes) -> tuple[_Reply, bytes]:
        """Raises TimeoutError; and EOFError, OSError or ValueError where the child died or talks nonsense."""
        self.connection.send_bytes(request.model_dump_json().encode())
        self.connection.send_bytes(data)
        if not self.connection.poll(request.seconds):
            raise TimeoutError
        reply = _Reply.model_validate_json(self.connection.recv_bytes(_LONGEST_JSON))
        if reply.pixel_bytes > _LONGEST_PIXELS or (request.size and not _are_squares(reply, request.size)):
            raise ValueError("These are not the pixels that were asked for.")
        pixels = self.connection.recv_bytes(reply.pixel_bytes) if reply.frames else b""
        if len(pixels) != reply.pixel_bytes or not (reply.frames or reply.error_kind or reply.is_out_of_memory):
            raise ValueError("This is no answer.")
        return reply, pixels

    def status(self) -> int:
        """The exit status of a child that has broken off: of one killed by a signal, the negative of its number."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(5)
        return 0

    def end(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.wait()


def _are_squares(reply: _Reply, size: int) -> bool:
    return all((frame.rows, frame.columns) == (size, size) for frame in reply.frames)


def _decoded(reply: _Reply, pixels: bytes) -> list[Decoded]:
    found, offset = [], 0
    for frame in reply.frames:
        length = 3 * frame.rows * frame.columns
        # A copy: the others can be written to, and each outlives its neighbours.
        array = np.frombuffer(pixels, np.uint8, length, offset).reshape(frame.rows, frame.columns, 3).copy()
        found.append(Decoded(array, frame.width, frame.height, frame.format, frame.header, frame.frame))
        offset += length
    return found


def _ended_by(status: int, seconds: float) -> ImageError:
    if status == -signal.SIGALRM:  # its own timer
        return timed_out(seconds)
    if status == -signal.SIGKILL:
        return crashed("made the system kill its process, most likely as it ran out of memory")
    if status < 0:
        name = signal.strsignal(-status) or "unknown"
        return crashed(f"ended its process by signal {-status} ({name.lower()})")
    return crashed(f"ended its process (exit status {status})")


def memory_left(root: Path = Path("/")) -> int:
    """Bytes of memory that this machine and its container have left, as Linux says below `root`."""
    found = [2**62]
    with contextlib.suppress(OSError):
        found.append(1024 * _number_of("MemAvailable:", root / "proc/meminfo"))
    for folder, limit, use, given_back in _CONTAINER:
        place = root / folder
        with contextlib.suppress(OSError, ValueError):  # the limit "max" is none
            left = int((place / limit).read_text()) - int((place / use).read_text())
            found.append(max(0, left + _number_of(given_back, place / "memory.stat")))
    return min(found)


def _number_of(name: str, path: Path) -> int:
    """Of a file of names and numbers, the number of one name; 0 where it has none."""
    lines = (line.split() for line in path.read_text().splitlines())
    return next((int(words[1]) for words in lines if words[:1] == [name]), 0)


# --- The child --------------------------------------------------------------------------------------------------------


def serve(descriptor: int, memory: int) -> None:
    """The child: decode what is sent to the socket `descriptor` within `memory` bytes, until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    begun_with = _address_space("VmSize")
    if begun_with:
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        most = begun_with + memory
        resource.setrlimit(resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    with Connection(descriptor) as connection, contextlib.suppress(EOFError, ConnectionError):
        connection.send_bytes(b"ready")
        while True:
            request = _Request.model_validate_json(connection.recv_bytes())
            data = connection.recv_bytes()
            # A child that hangs does not notice that its parent is gone.
            with ends_process_after(request.seconds + 1):
                frames, reply = _work(request, data)
            if _address_space("VmPeak") > begun_with + 0.75 * memory:
                # Its libraries may take for damage of the file what is want of memory.
                reply = reply.model_copy(update={"is_last": True, "is_out_of_memory": not frames})
            connection.send_bytes(reply.model_dump_json().encode())
            if frames:
                connection.send_bytes(b"".join(frame.pixels.tobytes() for frame in frames))
            if reply.is_last:
                return


def _work(request: _Request, data: bytes) -> tuple[list[Decoded], _Reply]:
    limits = Limits(request.max_bytes, request.max_pixels)
    try:
        if request.size is None:
            image = decode_image(data, limits, request.longest, request.frame)
            frames = [Decoded(np.asarray(image), image.width, image.height, "")]
        else:
            loaded = load.load(data, request.size, limits, request.several_frames)
            if loaded.error:
                raise loaded.error
            frames = list(loaded.frames)
    except ImageError as error:
        return [], _Reply(error_kind=error.kind, reason=error.reason)
    except MemoryError:
        return [], _Reply(is_out_of_memory=True, is_last=True)
    described = [
        _Frame(
            rows=frame.pixels.shape[0],
            columns=frame.pixels.shape[1],
            width=frame.width,
            height=frame.height,
            format=frame.format,
            header=frame.header,
            frame=frame.frame,
        )
        for frame in frames
    ]
    return frames, _Reply(frames=tuple(described))


def _address_space(field: str) -> int:
    """Bytes, as Linux counts them for this process; 0 elsewhere."""
    with contextlib.suppress(OSError):
        return 1024 * _number_of(f"{field}:", Path("/proc/self/status"))
    return 0
