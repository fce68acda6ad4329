"""Objects in buckets: the one place that knows S3's endpoint, credentials, errors and retries.

S3 is reached as the AWS tools reach it: by ``AWS_ACCESS_KEY_ID``, ``AWS_PROFILE`` or an instance role, and
``AWS_ENDPOINT_URL`` for a store that is not Amazon's. Without credentials requests are not signed, as public buckets
want it. Nothing here takes a credential from a configuration file of this project.

Every function takes `patience`: the seconds for which a store that does not answer is asked again, later and later; 0
asks once. They count from the first request that failed, whichever it was: what begins in the middle of an outage
shares the patience that is left, and once there is none each request is sent once. No request is waited for longer than
the patience either, also where the store sends a byte now and then, and botocore repeats none by itself. Every function
raises FileNotFoundError, PermissionError, another OSError, or UnavailableError at the end of the patience.
"""

import contextlib
import functools
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from melanoma.errors import MelanomaError

T = TypeVar("T")

_NOT_FOUND = {"NoSuchKey", "NoSuchBucket", "404", "NotFound"}
_BUSY = {"SlowDown", "RequestLimitExceeded", "Throttling", "ThrottlingException", "RequestTimeout", "InternalError"}
_FORBIDDEN = {
    "AccessDenied",
    "403",
    "401",
    "Forbidden",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "InvalidToken",
    "AuthorizationHeaderMalformed",
}
_ONE_OUTAGE = 15.0  # seconds: failures that are not farther apart, without an answer between them, are one outage
_LONGEST_WAIT = 10.0  # seconds between two tries
_SLOWEST = 2**20  # bytes a second: a store that sends or takes less does not answer


class ChangedError(OSError):
    """The object is not the one that was listed any more."""


class UnavailableError(MelanomaError):
    """The object store did not answer, broke off, or asked to be left alone for a while: a later try may succeed.

    It is no OSError: those say something of the object or of its name, and this does not.
    """


@dataclass(frozen=True)
class ObjectInfo:
    """One listed object. `etag` changes when the content does: S3's ETag, or size and modification time of a file."""

    uri: str
    size: int
    etag: str


def split(uri: str) -> tuple[str, str]:
    """The bucket and the key of an s3:// URI."""
    # Not urlparse: a key may hold "#" and "?".
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


# --- Requests ---------------------------------------------------------------------------------------------------------


def list_objects(uri: str, patience: float) -> Iterator[ObjectInfo]:
    """Every object below `uri`, folder markers too, or the object that it names; none for a prefix that no key has."""
    bucket, prefix = split(uri)
    found = False
    # A prefix is a folder here, not a beginning: "archive" must not list "archive-2".
    for info in _listed(uri, bucket, f"{prefix}/" if prefix else "", patience):
        found = True
        yield info
    if not found and prefix:
        yield from (info for info in _listed(uri, bucket, prefix, patience) if info.uri == uri)


def _listed(uri: str, bucket: str, prefix: str, patience: float) -> Iterator[ObjectInfo]:
    where = {"Bucket": bucket, "Prefix": prefix}
    while True:
        page = _patiently(uri, patience, functools.partial(_page, where=where))
        for item in page.get("Contents", ()):
            yield ObjectInfo(f"s3://{bucket}/{item['Key']}", int(item["Size"]), _etag(item))
        following = page.get("NextContinuationToken")
        if not following or following == where.get("ContinuationToken"):
            return
        where = {**where, "ContinuationToken": following}


def _page(client: "_Client", where: dict[str, str]) -> Any:
    return client.ask("list_objects_v2", **where)


def read_bytes(uri: str, limit: int | None, patience: float) -> bytes:
    """The content of an object, at most `limit` + 1 bytes of it."""
    bucket, key = split(uri)

    def request(client: _Client) -> bytes:
        response = client.ask("get_object", Bucket=bucket, Key=key)
        if (wanted := response.get("ContentLength")) is None:
            raise UnavailableError(f"The object store did not say how long {uri} is.")
        return _body(uri, client, response, wanted if limit is None else min(wanted, limit + 1))

    return _patiently(uri, patience, request)


def read_range(uri: str, offset: int, length: int, etag: str, patience: float) -> bytes:
    """A part of an object, see `storage.Store.read_range`."""
    bucket, key = split(uri)

    def request(client: _Client) -> bytes:
        response = client.ask("get_object", Bucket=bucket, Key=key, Range=f"bytes={offset}-{offset + length - 1}")
        # Not every store knows If-Match.
        if etag and _etag(response) != etag:
            response["Body"].close()
            raise ChangedError(f"{uri} has changed since it was listed.")
        return _body(uri, client, response, min(length, response.get("ContentLength", length)))

    return _patiently(uri, patience, request)


def _body(uri: str, client: "_Client", response: Any, wanted: int) -> bytes:
    def read() -> bytes:
        with contextlib.closing(response["Body"]) as body:
            return bytes(body.read(wanted))

    with contextlib.suppress(*_broken_off(), TimeoutError):
        # A body that breaks off is taken for whole by botocore, too.
        if len(data := _within(client.seconds + wanted / _SLOWEST, read)) == wanted:
            return data
    raise UnavailableError(f"The object store broke off while sending {uri}.")


def info(uri: str, patience: float) -> ObjectInfo:
    bucket, key = split(uri)
    head = _patiently(uri, patience, lambda client: client.ask("head_object", Bucket=bucket, Key=key))
    return ObjectInfo(uri, int(head["ContentLength"]), _etag(head))


def write_bytes(uri: str, data: bytes, patience: float) -> None:
    bucket, key = split(uri)
    _patiently(uri, patience, lambda client: client.ask("put_object", Bucket=bucket, Key=key, Body=data))


def delete(uri: str, patience: float) -> None:
    bucket, key = split(uri)
    _patiently(uri, patience, lambda client: client.ask("delete_object", Bucket=bucket, Key=key))


def _etag(answer: Any) -> str:
    return str(answer.get("ETag", "")).strip('"')


# --- Patience ---------------------------------------------------------------------------------------------------------


class _Outage:
    """Since when the store has not answered this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._began = self._failed = float("-inf")

    def began(self) -> float:
        """The time of `time.monotonic`, infinite where the store has answered."""
        with self._lock:
            return self._began if time.monotonic() - self._failed <= _ONE_OUTAGE else float("inf")

    def goes_on(self, since: float) -> None:
        """A request that was sent at `since` has failed."""
        began = min(since, self.began())
        with self._lock:
            self._began, self._failed = began, time.monotonic()

    def is_over(self) -> None:
        with self._lock:
            self._failed = float("-inf")


_outage = _Outage()


def is_away() -> bool:
    """Whether the last request of this process was not answered."""
    return _outage.began() < float("inf")


def _patiently(uri: str, patience: float, request: Callable[["_Client"], T]) -> T:
    """What `request` returns of a client."""
    import tenacity

    client, later = _client_of_this_process(patience), tenacity.wait_random_exponential(0.2, max=_LONGEST_WAIT)
    began = time.monotonic()

    def left() -> float:
        return min(began, _outage.began()) + patience - time.monotonic()

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(UnavailableError),
        wait=lambda state: max(0.0, min(later(state), left())),
        stop=lambda state: left() <= 0,
        reraise=True,
    )
    return retrying(_asked, uri, client, request)


def _asked(uri: str, client: "_Client", request: Callable[["_Client"], T]) -> T:
    began = time.monotonic()
    try:
        answer = request(client)
    except Exception as error:
        plain = error if isinstance(error, (ChangedError, UnavailableError)) else _plain_error(error, uri, client.boto)
        if isinstance(plain, UnavailableError):
            _outage.goes_on(began)
        elif plain:
            _outage.is_over()
        if plain:
            raise plain from None
        raise
    _outage.is_over()
    return answer


# --- The client -------------------------------------------------------------------------------------------------------

_client_lock = threading.Lock()


@dataclass(frozen=True)
class _Client:
    boto: Any
    seconds: float  # for an answer, and for its body as many again

    def ask(self, operation: str, **arguments: Any) -> Any:
        seconds = self.seconds + len(arguments.get("Body", b"")) / _SLOWEST
        try:
            return _within(seconds, lambda: getattr(self.boto, operation)(**arguments))
        except TimeoutError:
            place = "/".join([f"s3://{arguments['Bucket']}", arguments.get("Key") or arguments.get("Prefix", "")])
            raise UnavailableError(f"The object store did not answer for {place} within {seconds:.0f} s.") from None


def _within(seconds: float, call: Callable[[], T]) -> T:
    """What `call` returns, or TimeoutError.

    The timeouts of botocore begin anew with each byte, and nothing else ends a request: its thread is left behind.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future.result(seconds)


@functools.cache
def _client(process: int, patience: float) -> _Client:
    import boto3
    import botocore
    import botocore.config

    # A session of its own: the default one may not be shared by threads, and keeps the credentials it first saw.
    session = boto3.session.Session()
    # One try ends within the patience: it connects, and then waits for the answer. Without patience it takes 10 s.
    seconds = patience or 10.0
    boto = session.client(
        "s3",
        region_name=os.environ.get("AWS_REGION") or session.region_name or "us-east-1",
        config=botocore.config.Config(
            signature_version=None if session.get_credentials() else botocore.UNSIGNED,
            retries={"total_max_attempts": 1},
            connect_timeout=min(10.0, seconds / 4),
            read_timeout=min(60.0, seconds / 2),
            max_pool_connections=64,
            # Stores other than Amazon's know neither of the newer checksum headers.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )
    return _Client(boto, min(60.0, seconds / 2))


def forget_client() -> None:
    """Let the next request read the environment anew."""
    _client.cache_clear()
    _outage.is_over()


def is_anonymous() -> bool:
    """Whether there are no credentials: only public buckets can be read then."""
    return _is_unsigned(_client_of_this_process(0).boto)


def _is_unsigned(client: Any) -> bool:
    import botocore

    return client.meta.config.signature_version is botocore.UNSIGNED


def _client_of_this_process(patience: float) -> _Client:
    """A client is thread-safe, but must not be carried through a fork."""
    import botocore.exceptions  # takes 0.2 s, which a command on local files need not wait for

    try:
        with _client_lock:  # or sixteen threads would each make one, at 0.2 s
            return _client(os.getpid(), patience)
    except (botocore.exceptions.BotoCoreError, ValueError) as error:
        if plain := _refused_credentials(error):
            raise plain from None
        raise OSError(
            f"The object store cannot be reached as AWS_ENDPOINT_URL, AWS_PROFILE and AWS_REGION say: {error}."
        ) from None


# --- Errors -----------------------------------------------------------------------------------------------------------


def _plain_error(error: Exception, uri: str, client: Any) -> OSError | UnavailableError | None:
    """The plain error for one of the S3 client; None for any other."""
    import botocore.exceptions

    if isinstance(error, botocore.exceptions.ClientError):
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = str(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))
        return _refused(code, status, uri, client)
    if plain := _refused_credentials(error):
        return plain
    if isinstance(error, botocore.exceptions.ParamValidationError):
        return FileNotFoundError(f"{uri} is not a valid S3 name.")
    if isinstance(error, _broken_off()):
        return UnavailableError(f"The object store did not answer for {uri} ({type(error).__name__}).")
    if isinstance(error, ValueError):  # a null byte, or half a surrogate pair
        return FileNotFoundError(f"{uri!a} cannot be the name of a file or object.")
    return None


def _broken_off() -> tuple[type[Exception], ...]:
    """While a body is read, not every error of urllib3 and of sockets becomes one of botocore."""
    import botocore.exceptions
    import urllib3.exceptions

    return botocore.exceptions.BotoCoreError, urllib3.exceptions.HTTPError, ConnectionError, TimeoutError


def _refused_credentials(error: Exception) -> PermissionError | None:
    """For an error of finding the credentials: it is not the store that does not answer."""
    from botocore import exceptions

    if isinstance(error, (exceptions.NoCredentialsError, exceptions.PartialCredentialsError)):
        return PermissionError(f"The S3 credentials are not complete: {error}.")
    if isinstance(error, (exceptions.CredentialRetrievalError, exceptions.TokenRetrievalError, exceptions.SSOError)):
        return PermissionError(f"The S3 credentials cannot be had: {error}.")
    return None


def _refused(code: str, status: str, uri: str, client: Any) -> OSError | UnavailableError:
    if code == "NoSuchBucket":
        return FileNotFoundError(f"The bucket of {uri} does not exist.")
    if code in _NOT_FOUND or status == "404":
        return FileNotFoundError(f"{uri} does not exist.")
    if status.startswith("5") or status == "429" or code in _BUSY:
        return UnavailableError(f"The object store failed for {uri} ({code or status}).")
    if _is_unsigned(client):  # some stores do not know what to make of a request that is not signed
        return PermissionError(
            f"No S3 credentials for {uri}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE. Without "
            f"them only public buckets can be read, and this was refused ({code or status})."
        )
    if code in _FORBIDDEN or status in {"401", "403"}:
        return PermissionError(f"The object store refused access to {uri} ({code}): check the credentials.")
    return OSError(f"The object store failed for {uri} ({code or status}).")
