"""Fetch: the bytes of the images of a plan, many requests at a time, within a bound on the memory."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pyarrow as pa

from melanoma.imaging import load
from melanoma.imaging.errors import ImageError, of_storage
from melanoma.imaging.limits import Limits
from melanoma.scoring import tar_and_zip
from melanoma.scoring.config import ScoreConfig
from melanoma.scoring.plan import PlannedImage, planned_images
from melanoma.storage import Store, UnavailableError

_MAX_RANGE = 8 * 2**20  # bytes of an archive that one request fetches at most, if they are of several members

Fetched = bytes | ImageError


def fetch(image: PlannedImage, limits: Limits, store: Store) -> Fetched:
    """The bytes of one image of a plan, or the reason why they cannot be had. Never raises."""
    if image.refused:
        return ImageError(image.error_kind or "access", image.refused)
    if image.size > limits.max_bytes:
        reason = f"The object has {image.size} bytes, more than the {limits.max_bytes} that are read."
        return ImageError("too_large", reason)
    try:
        if image.archive:
            return tar_and_zip.fetch(
                store,
                image.archive,
                image.etag,
                image.size,
                image.offset,
                image.length,
                image.is_zip,
                image.checksum,
            )
        return load.fetch(image.image_uri, limits, store)
    except (OSError, UnavailableError) as error:
        return of_storage(error)
    except ImageError as error:
        return error


def fetch_neighbours(images: Sequence[PlannedImage], limits: Limits, store: Store) -> list[Fetched]:
    """What `fetch` gives for each of the images, in one request. Several images are neighbours in one archive."""
    if len(images) == 1:
        return [fetch(images[0], limits, store)]
    begin = images[0].offset
    length = images[-1].offset + images[-1].length - begin + tar_and_zip.HEADERS
    try:
        data = store.read_range(str(images[0].archive), begin, length, images[0].etag)
    except (OSError, UnavailableError) as error:
        return [of_storage(error)] * len(images)
    found: list[Fetched] = []
    for image in images:
        part = data[image.offset - begin :][: image.length + tar_and_zip.HEADERS]
        try:
            content = tar_and_zip.content(part, image.size, image.length, image.is_zip, image.checksum)
            found.append(fetch(image, limits, store) if content is None else content)
        except ImageError as error:
            found.append(error)
    return found


def _requests(images: Sequence[PlannedImage], limits: Limits) -> Iterator[list[PlannedImage]]:
    """The images in their order, in groups that one request can fetch."""
    group: list[PlannedImage] = []
    for image in images:
        if group and not _are_neighbours(group[0], group[-1], image, limits):
            yield group
            group = []
        group.append(image)
    if group:
        yield group


def _are_neighbours(first: PlannedImage, last: PlannedImage, image: PlannedImage, limits: Limits) -> bool:
    if not image.archive or image.archive != last.archive or image.refused or last.refused:
        return False
    gap = image.offset - last.offset - last.length
    reach = image.offset + image.length - first.offset
    is_small = max(last.size, image.size) <= limits.max_bytes
    return is_small and 0 <= gap <= tar_and_zip.HEADERS and reach <= _MAX_RANGE


def fetch_ahead(
    shard: pa.Table, pool: ThreadPoolExecutor, config: ScoreConfig, limits: Limits, store: Store
) -> Iterator[tuple[str, Fetched]]:
    """Fetch the images of a shard in their order; the next are fetched while the caller works on one.

    Args:
        shard: The planned images, `melanoma.scoring.plan.SHARD`.
        pool: Sends the requests.
        config: `requests` is the most that are in flight, and `bytes_ahead` the most bytes that are fetched and not
            taken yet, by the sizes of the listing. One request is sent however large it is.
        limits: What is larger is not fetched.
        store: Where the images are.

    Returns:
        The URI of each image, with its bytes or the reason why they cannot be had.
    """
    requests = _requests(planned_images(shard), limits)
    ahead: deque[tuple[list[str], int, Future[list[Fetched]]]] = deque()
    held, upcoming = 0, next(requests, None)
    while upcoming or ahead:
        while upcoming and len(ahead) < config.requests:
            # An image over the limit is not read, and takes no memory.
            cost = sum(image.size for image in upcoming if image.size <= limits.max_bytes)
            if ahead and held + cost > config.bytes_ahead:
                break
            uris = [image.image_uri for image in upcoming]
            ahead.append((uris, cost, pool.submit(fetch_neighbours, upcoming, limits, store)))
            held, upcoming = held + cost, next(requests, None)
        uris, cost, future = ahead.popleft()
        yield from zip(uris, future.result(), strict=True)
        held -= cost
