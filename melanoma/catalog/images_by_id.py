"""Which file is the picture of an id, where a table names pictures by their ids alone."""

import itertools
import re
from collections import defaultdict
from collections.abc import Collection

from melanoma import storage, taxonomy
from melanoma.errors import InputError
from melanoma.imaging import kinds
from melanoma.imaging.errors import ImageError
from melanoma.storage import ObjectInfo

ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".tif", ".tiff", ".webp", ".bmp", ".dcm", ".dicom")
# Folders and names of what the sets of the field put beside a picture. It is of the picture, and often an image itself.
# A folder "thumb" is not among them: it may hold pictures of that finger.
_COMPANIONS = {
    *("mask", "masks", "segmentation", "segmentations", "superpixel", "superpixels", "annotation", "annotations"),
    *("groundtruth", "thumbnail", "thumbnails", "thumbs", "eadir", "macosx"),
}
_COMPANION_NAME = re.compile(r".[_-](masks?|segmentation|seg|superpixels?|attribute_\w+|thumb(nail)?)$", re.IGNORECASE)
# Whole names of folders that hold the like. Within a longer name they may be anything: "clinic GT".
_COMPANION_FOLDERS = {
    *("gt", "seg", "segs", "segmented", "overlay", "overlays", "contour", "contours", "heatmap", "heatmaps"),
    *("saliency", "gradcam"),
}  # fmt: skip
# What a name has more than that of the picture beside it: "X GT", "X(mask)", "X.mask", "X_mask_1".
_BESIDE_PICTURE = re.compile(
    r"(?P<picture>.+?)[\s_.(\[-]+(?P<word>gt|ground[\s_-]?truth|masks?|seg|segmentation|segmented|annotations?|annotated|labels?"
    r"|overlays?|contours?|heatmaps?|saliency|grad-?cam|superpixels?|lesion|roi)[\s_.-]?\d*[)\]]?",
    re.IGNORECASE,
)
# PH2's words for a mask. A JPEG of this name may be a close-up of the lesion.
_MASK_IF_LOSSLESS = {"lesion", "roi"}
_LOSSY = (".jpg", ".jpeg", ".jpe", ".jfif")
_HEAD = 2048  # bytes that say what a file is
_NAMED_IN_ERROR = 3


def pictures(folder: str) -> tuple[list[ObjectInfo], int]:
    """The files below a folder that are of no other picture, and how many are: masks, thumbnails and the like.

    Raises OSError as `storage.list_objects` does.
    """
    found = [info for info in storage.list_objects(folder) if not info.uri.endswith("/")]  # S3's folder markers
    stems = {_stem(info.uri) for info in found if info.uri.casefold().endswith(ENDINGS)}
    own = [info for info in found if not _is_companion(folder, info.uri, stems)]
    return own, len(found) - len(own)


def below(folder: str, uri: str) -> list[str]:
    """The names of the folders on the way to a file, and its own; none where the folder is the file."""
    return [""] if uri == folder else uri.removeprefix(folder.rstrip("/") + "/").split("/")


def _stem(uri: str) -> str:
    folder, _, name = uri.rpartition("/")
    return f"{folder}/{name.rpartition('.')[0] or name}"


def _is_companion(source: str, uri: str, stems: Collection[str]) -> bool:
    """Whether a file is of another picture, such as its mask: by its folders, its name, or a picture beside it."""
    *folders, name = below(source, uri)
    stem = name.rpartition(".")[0] or name
    together = re.sub(r"ground[\W_]*truth", "groundtruth", " ".join(folders).casefold())
    if set(re.split(r"[\W_]+", together)) & _COMPANIONS or name.startswith("._") or _COMPANION_NAME.search(stem):
        return True
    if _COMPANION_FOLDERS & {each.casefold() for each in folders}:
        return True
    is_lossy = uri.casefold().endswith(_LOSSY)
    if not is_lossy and any(each in (f"{of}_lesion", f"{of}_roi") for of, each in itertools.pairwise(folders)):  # PH2's
        return True
    found = _BESIDE_PICTURE.fullmatch(stem)
    if found is None or f"{uri.rpartition('/')[0]}/{found['picture']}" not in stems:
        return False
    return found["word"].casefold() not in _MASK_IF_LOSSLESS or not is_lossy


def plain_id(image_id: str) -> str:
    """An id as the name of its file is, without the ending that some tables write."""
    has_ending = image_id.casefold().endswith(ENDINGS)
    return taxonomy.image_id_of(image_id if has_ending else f"{image_id}.")


class ImagesById:
    """The files below a folder by the ids of their names. Raises OSError as `storage.list_objects` does."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._files: dict[str, list[ObjectInfo]] = defaultdict(list)
        self._several: dict[str, list[str]] = {}
        for info in pictures(folder)[0]:
            self._files[taxonomy.image_id_of(info.uri)].append(info)
            if not info.uri.casefold().endswith(ENDINGS):  # 1.2.840.113 has no ending
                self._files[storage.name(info.uri)].append(info)

    def find(self, image_id: str) -> str | None:
        """The picture of an id: a file that is an image, and rather the original than a ``_downsampled`` copy.

        Of several with the same bytes it is the first by name; of others it is none, and `check` tells of them.
        """
        named = self._files.get(image_id) or self._files.get(plain_id(image_id)) or []
        images = [info for info in named if info.uri.casefold().endswith(ENDINGS)]
        images = images or [info for info in named if _is_image(info.uri)]
        originals = [info for info in images if "_downsampled" not in storage.name(info.uri)]
        images = sorted(originals or images, key=lambda info: info.uri)
        if len(images) > 1 and not _are_equal(images):
            self._several[image_id] = [info.uri for info in images]
            return None
        return images[0].uri if images else None

    def check(self) -> None:
        """Raises InputError where `find` has met ids of several pictures."""
        if not self._several:
            return
        some = [f"{i} is {' and '.join(uris)}" for i, uris in itertools.islice(self._several.items(), _NAMED_IN_ERROR)]
        more = len(self._several) - len(some)
        raise InputError(
            f"Several pictures bear the same id below {self._folder}: {'; '.join(some)}"
            f"{f'; and {more} ids more' if more else ''}: leave one of each, or name the files in a column 'path'."
        )


def _is_image(uri: str) -> bool:
    try:
        head = storage.read_bytes(uri, _HEAD)
        return kinds.is_dicom(head) or bool(kinds.identify(head))
    except (ImageError, OSError):
        return False


def _are_equal(files: list[ObjectInfo]) -> bool:
    if len({info.size for info in files}) > 1:
        return False
    try:
        return len({storage.read_bytes(info.uri) for info in files}) == 1
    except OSError:
        return False
