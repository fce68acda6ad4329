"""What a model has seen: digests of its training images that travel with it, and the images of a catalog among them.

A bundle's `training_images.parquet` has one row an image of train and validation: `sha256` of the file,
`image_id_sha256`, `perceptual_hash`, `lesion_id_sha256` and `patient_id_sha256` (null where not known; bundles of an
earlier version lack both), and `split`. Ids and numbers are hashed: they may be a hospital's.
"""

import hashlib
import io

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from melanoma import taxonomy
from melanoma.catalog import near_duplicates
from melanoma.imaging.hashing import NEAR_DUPLICATE_DISTANCE

_FRAMED = 0.25  # share of a picture that is black, from which on its hash tells more of the frame than of the lesion
_FRAMED_DISTANCE = NEAR_DUPLICATE_DISTANCE // 2
_RELATIVES = {"lesion_id": "lesion_id_sha256", "patient_id": "patient_id_sha256"}


def digest(identity: str) -> str:
    """How a bundle names an image, a lesion or a patient."""
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


def training_images(rows: pd.DataFrame) -> bytes:
    """The Parquet file of these rows of a catalog, which are the images of train and validation."""
    table = pa.table(
        {
            "sha256": rows["sha256"].tolist(),
            "image_id_sha256": _image_digests(rows),
            "perceptual_hash": rows["perceptual_hash"].tolist(),
            **{hashed: _relative_digests(rows, column) for column, hashed in _RELATIVES.items()},
            "split": rows["split"].tolist(),
        }
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def leak_warning(training_images: bytes, rows: pd.DataFrame) -> str | None:
    """One sentence where images to be evaluated are images, or near-duplicates of images, that the model has seen.

    `training_images` is the Parquet file of the model's bundle, `rows` are those of the catalog that it is measured on.
    """
    seen = pq.read_table(io.BytesIO(training_images)).to_pandas()
    # The validation split may be evaluated; what it shares with itself is no leak but is said to be optimistic.
    tuned = seen[(seen["split"] == "validation") & seen["sha256"].isin(set(rows["sha256"]))]
    leaked = _related(rows, seen[seen["split"] == "train"])
    if leaked.any():
        return (
            f"Leaked: {int(leaked.sum())} of these {len(rows)} images, near-duplicates of them, or other photographs "
            "of their lesions or patients, were in the training split of this model. The figures are too good and must "
            "not be reported as its performance."
        )
    if len(tuned):
        return (
            f"Optimistic: {len(tuned)} of these {len(rows)} images were used to choose the epoch, the temperature and "
            "the thresholds of this model."
        )
    return None


def was_seen(training_images: bytes, rows: pd.DataFrame) -> pd.Series:
    """bool, for each row: whether a model has seen the image, a near-duplicate of it, or another photograph of its
    lesion or patient, in training or in validation. The arguments are those of `leak_warning`."""
    return _related(rows, pq.read_table(io.BytesIO(training_images)).to_pandas())


def _related(rows: pd.DataFrame, seen: pd.DataFrame) -> pd.Series:
    by_bytes = rows["sha256"].isin(set(seen["sha256"]))
    by_id = pd.Series(_image_digests(rows), index=rows.index).isin(set(seen["image_id_sha256"]))
    near = _near_duplicates(rows, seen["perceptual_hash"])
    relatives = pd.Series(False, index=rows.index)
    for column, hashed in _RELATIVES.items():
        if hashed in seen:
            digests = pd.Series(_relative_digests(rows, column), index=rows.index)
            relatives |= digests.isin(set(seen[hashed].dropna()))
    return by_bytes | by_id | relatives | near


def _near_duplicates(rows: pd.DataFrame, known: pd.Series) -> pd.Series:
    """Whether each image is a near-duplicate of one of the hashes `known`."""
    # The round fields of one dermatoscope in a black frame are near to each other, whatever lies in them.
    framed = rows["dark_border"].fillna(0) > _FRAMED if "dark_border" in rows else pd.Series(False, index=rows.index)
    near = near_duplicates.seen(rows["perceptual_hash"], known)
    of_framed = [value if yes else None for value, yes in zip(rows["perceptual_hash"], framed, strict=True)]
    nearer = near_duplicates.seen(of_framed, known, _FRAMED_DISTANCE)
    found = [place in (nearer if is_framed else near) for place, is_framed in enumerate(framed)]
    return pd.Series(found, index=rows.index)


def _image_digests(rows: pd.DataFrame) -> list[str]:
    return [digest(taxonomy.identity(i, uri)) for i, uri in zip(rows["image_id"], rows["uri"], strict=True)]


def _relative_digests(rows: pd.DataFrame, column: str) -> list[str | None]:
    """The digest of the lesion or patient of each image; None where it is not known."""
    return [
        value and digest(taxonomy.number_identity(value, source))
        for value, source in zip(rows[column], rows["source"], strict=True)
    ]
