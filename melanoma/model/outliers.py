"""How unlike an image is to the dermoscopy images that a model was trained on.

Three detectors look, and the surest one counts. Two know statistics of colour and texture:

- *unlike the known*: the squared Mahalanobis distance from the training images (covariance shrunk as by Ledoit and Wolf
  2004, doi:10.1016/S0047-259X(03)00096-4). It finds noise, pages, screens, even frames and grey pictures;
- *altered colours*: the log odds that this is a training image with its colour channels in another order, inverted or
  grey, rather than one as it is; a multinomial logistic regression on such copies. With red and blue exchanged a
  picture is no farther out than a bluish nevus is, but far likelier an altered one.

The third knows the features of the model's own networks, where the training was given pictures that are no dermoscopy
("outlier exposure", Hendrycks et al. 2019, arXiv:1812.04606):

- *like the others*: the log odds that this is one of those, such as a close-up by a phone's camera, rather than
  dermoscopy of any source; a logistic regression in which each source counts the same.

Each of the first two is scaled so that 99.6% of the validation images stay below 1, and the third so that 99% do. A
score over 1 says that a picture is not of the known kind. A score under 1 does not say that it is dermoscopy: some
pictures whose green and blue are exchanged pass, and without the third detector so do close-ups.

Greyscale copies of dermoscopy score over 1, as the model has learned from colours. Turned and mirrored pictures do not:
the statistics do not know up from down, and the features are means over orientations.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import BaseModel, ConfigDict

Floats = npt.NDArray[np.float64]

# The wrong orders of red, green and blue. (2, 1, 0) is what OpenCV reads.
CHANNEL_ORDERS = ((0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))

_QUANTILE = 0.996
_FEATURE_QUANTILE = 0.99
_FEATURE_PENALTY = 15.0  # on the squared coefficients, where all pictures together weigh 1,000
_ALTERED = 2000  # images at most whose altered copies are learned: 5 orders, inverted and grey make 14,000 of them
_LEAST_SPREAD = 0.01  # else one bright pixel would be far out to a model of few images that have none
_CLIP = 6.0  # standard deviations: no single statistic makes a picture an altered one
_TOGETHER = 8  # 8 pictures of float32 are less than half a megabyte, which stays in a processor's cache
_SIDE = 64  # pixels, a power of 2
_LEVELS = 5  # bands of detail: of 2, 4, 8, 16 and 32 pixels
_COUNT = 17 + 7 * _LEVELS + 3
_PAIRS = ((0, 1), (0, 2), (1, 2))

# Pigment and blood absorb a share of the light, however bright it is: a difference of log intensities is a property of
# skin, of intensities it is not. The offset keeps the noise of black borders small.
_LOG = np.log(np.arange(256, dtype=np.float32) + 8)
_VISIBLE = np.float32(1e-5)  # the variance of log intensity that counts as none: about what rounding to 8 bits leaves


def statistics(pixels: np.ndarray) -> np.ndarray:
    """float64 [n, 55] of uint8 RGB [n, size, size, 3], measured at 64 x 64 pixels whatever the size.

    - 12 of log intensity and of the log ratios red to green and green to blue: mean, log of the spread, and how far the
      middle and the corners are from the mean;
    - 5 of the log channels: correlations of pairs (Fisher's z), log ratios of their spreads;
    - 35 of five bands of the Haar transform of the log channels: log energy of green, log ratios of energy as above,
      correlations of pairs (Fisher's z), sparsity of green;
    - 3 shares of pixels: even (their green differs by less than 1.5 from their neighbours'), overexposed, black.
    """
    # In parts: as float32, the images of a training split would take gigabytes.
    parts = [_statistics(_small(pixels[at : at + _TOGETHER])) for at in range(0, len(pixels), _TOGETHER)]
    return np.concatenate(parts) if parts else np.zeros((0, _COUNT))


def _small(pixels: np.ndarray) -> np.ndarray:
    """uint8 [n, 3, 64, 64], each pixel the mean of those that it covers: finer detail tells of camera and file."""
    size = pixels.shape[1]
    filter_ = Image.Resampling.BOX if size > _SIDE else Image.Resampling.BILINEAR
    images = [Image.fromarray(image).resize((_SIDE, _SIDE), filter_) for image in pixels]
    return np.ascontiguousarray(np.stack([np.asarray(image) for image in images]).transpose(0, 3, 1, 2))


def _statistics(small: np.ndarray) -> Floats:
    channels = _LOG[small]
    planes = np.stack([channels.mean(axis=1), channels[:, 0] - channels[:, 1], channels[:, 1] - channels[:, 2]], axis=1)
    mean = planes.mean(axis=(2, 3))
    quarter, eighth = _SIDE // 4, _SIDE // 8
    middle = planes[:, :, quarter:-quarter, quarter:-quarter].mean(axis=(2, 3))
    ends = np.r_[:eighth, -eighth:0]
    corners = planes[:, :, ends[:, None], ends].mean(axis=(2, 3))

    flat = channels.reshape(len(channels), 3, -1)
    flat = flat - flat.mean(axis=2, keepdims=True)
    covariance = flat @ flat.transpose(0, 2, 1) / flat.shape[2]
    spread = np.log(planes.std(axis=(2, 3)) + 0.01)

    return np.concatenate(
        [
            *(mean, spread, middle - mean, corners - mean),
            _correlations(covariance, np.float32(1e-4)),
            _ratios(covariance, np.float32(1e-4)) / 2,
            *_bands(channels),
            _shares(small),
        ],
        axis=1,
        dtype=np.float64,
    )


def _bands(channels: np.ndarray) -> list[np.ndarray]:
    """Seven statistics a band, from the finest; `channels` is float32 [n, 3, 64, 64]."""
    found = []
    for _ in range(_LEVELS):
        a, b = channels[:, :, ::2, ::2], channels[:, :, ::2, 1::2]
        c, d = channels[:, :, 1::2, ::2], channels[:, :, 1::2, 1::2]
        upper, lower, diagonal = a + b, c + d, a - d
        # Horizontal and vertical differences count alike, so that a turn by 90 degrees changes nothing.
        across, down = (diagonal - (b - c)) / 2, (upper - lower) / 2
        channels = (upper + lower) / 4
        detail = np.concatenate([across, down], axis=2).reshape(len(channels), 3, -1)
        covariance = detail @ detail.transpose(0, 2, 1) / (detail.shape[2] / 2)
        size = np.abs(across[:, 1]) + np.abs(down[:, 1])
        root = np.sqrt((size**2).mean(axis=(1, 2)))
        found += [
            np.log(covariance[:, 1, 1] + _VISIBLE)[:, None],
            _ratios(covariance, _VISIBLE),
            _correlations(covariance, _VISIBLE),
            np.log((size.mean(axis=(1, 2)) + 0.003) / (root + 0.003))[:, None],
        ]
    return found


def _ratios(covariance: np.ndarray, least: np.float32) -> np.ndarray:
    """[n, 2] of [n, 3, 3]: log ratios of the variances of red to green and of green to blue."""
    variance = np.log(np.einsum("nii->ni", covariance) + least)
    return np.asarray(variance[:, :2] - variance[:, 1:])


def _correlations(covariance: np.ndarray, least: np.float32) -> np.ndarray:
    """[n, 3] of [n, 3, 3]: Fisher's z of the correlations of each two channels; without variance they go together."""
    variance = np.einsum("nii->ni", covariance) + least
    pairs = [(covariance[:, a, b] + least / 2) / np.sqrt(variance[:, a] * variance[:, b]) for a, b in _PAIRS]
    return np.arctanh(np.clip(np.stack(pairs, axis=1), -0.999, 0.999))


def _shares(small: np.ndarray) -> np.ndarray:
    """[n, 3] shares of pixels: even, overexposed, black. The roots of the last two, which are mostly near 0."""
    green = small[:, 1].astype(np.float32)
    across, down = green[:, 1:-1, 2:] - green[:, 1:-1, :-2], green[:, 2:, 1:-1] - green[:, :-2, 1:-1]
    even = (across**2 + down**2 < 1.5**2).mean(axis=(1, 2))
    brightest = small.max(axis=1)
    return np.stack(
        [even, np.sqrt((brightest > 250).mean(axis=(1, 2))), np.sqrt((brightest < 15).mean(axis=(1, 2)))], axis=1
    )


def _copies(small: np.ndarray) -> list[np.ndarray]:
    """The pictures as they are and altered in the ways that are learned, each [n, 3, 64, 64]."""
    grey = small.mean(axis=1, keepdims=True).astype(np.uint8)
    return [small, *(small[:, order] for order in CHANNEL_ORDERS), 255 - small, np.repeat(grey, 3, axis=1)]


class FeatureModel(BaseModel):
    """What `fit_features` has learned of k features of a model's networks."""

    model_config = ConfigDict(frozen=True, extra="allow")

    # [k] each: the log odds of "no dermoscopy" are those of the features at 0, and these times the features.
    coefficients: tuple[float, ...]
    intercept: float
    log_odds_at_0: float
    log_odds_at_1: float


class OutlierModel(BaseModel):
    """What `fit` and `fit_features` have learned and `scores` needs.

    `k` statistics (see `statistics`), `m` ways of altering colours.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    mean: tuple[float, ...]  # [k], of the training images
    spread: tuple[float, ...]  # [k]
    precision: tuple[tuple[float, ...], ...]  # [k, k], of the standardized statistics
    coefficients: tuple[tuple[float, ...], ...]  # [m, k]: the log odds of each way against a picture as it is
    intercepts: tuple[float, ...]  # [m]
    distance_at_1: float  # the squared distance that scores 1
    log_odds_at_0: float
    log_odds_at_1: float
    of_features: FeatureModel | None = None  # None: the training knew no other pictures


def fit(train: np.ndarray, validation: np.ndarray) -> OutlierModel:
    """The model of a training split, scaled on validation; both arguments uint8 RGB [n, size, size, 3], not empty."""
    # Scoring needs no scikit-learn in its memory.
    from sklearn.covariance import LedoitWolf
    from sklearn.linear_model import LogisticRegression

    known = statistics(train)
    mean, spread = known.mean(axis=0), known.std(axis=0) + _LEAST_SPREAD
    precision = np.ascontiguousarray(LedoitWolf(assume_centered=True).fit((known - mean) / spread).precision_)

    chosen = np.linspace(0, len(train) - 1, min(len(train), _ALTERED)).astype(int)
    parts = [_small(train[chosen[at : at + _TOGETHER]]) for at in range(0, len(chosen), _TOGETHER)]
    copies = [(kind, _statistics(copy)) for part in parts for kind, copy in enumerate(_copies(part))]
    found = np.clip((np.concatenate([copy for _, copy in copies]) - mean) / spread, -_CLIP, _CLIP)
    kinds = np.concatenate([np.full(len(copy), kind) for kind, copy in copies])
    regression = LogisticRegression(max_iter=2000).fit(found, kinds)
    coefficients = np.ascontiguousarray(regression.coef_[1:] - regression.coef_[0])
    intercepts = regression.intercept_[1:] - regression.intercept_[0]

    standard = (statistics(validation) - mean) / spread
    distances, odds = _distances(standard, precision), _log_odds(standard, coefficients, intercepts)
    usual, altered = np.median(odds), np.quantile(odds, _QUANTILE)
    return OutlierModel.model_validate(
        {
            "mean": mean.tolist(),
            "spread": spread.tolist(),
            "precision": precision.tolist(),
            "coefficients": coefficients.tolist(),
            "intercepts": intercepts.tolist(),
            "distance_at_1": float(np.quantile(distances, _QUANTILE)),
            "log_odds_at_0": float(usual),
            "log_odds_at_1": float(max(altered, usual + 1)),
        }
    )


def fit_features(known: np.ndarray, sources: Sequence[str], others: np.ndarray, validation: np.ndarray) -> FeatureModel:
    """What tells dermoscopy from other pictures by the features of a model's networks.

    Args:
        known: float32 [n, k], the features of training images.
        sources: [n], where these are from: each source counts the same, as does a camera that nobody knows.
        others: float32 [m, k], of pictures that are no dermoscopy; they count as much as all sources together.
        validation: float32 [v, k], of validation images: these scale the scores.
    """
    from sklearn.linear_model import LogisticRegression

    mean, spread = known.mean(axis=0, dtype=np.float64), known.std(axis=0, dtype=np.float64)
    spread += _LEAST_SPREAD * max(float(spread.max()), 1e-6)
    _, source, counts = np.unique(np.asarray(sources), return_inverse=True, return_counts=True)
    weights = np.concatenate([1 / counts[source] / len(counts), np.full(len(others), 1 / len(others))]) * 500
    found = (np.concatenate([known, others]) - mean) / spread
    kinds = np.repeat([0, 1], [len(known), len(others)])
    regression = LogisticRegression(C=1 / _FEATURE_PENALTY, max_iter=2000).fit(found, kinds, sample_weight=weights)
    coefficients = regression.coef_[0] / spread
    intercept = float(regression.intercept_[0] - coefficients @ mean)
    odds = validation.astype(np.float64) @ coefficients + intercept
    low, high = np.median(odds), np.quantile(odds, _FEATURE_QUANTILE)
    return FeatureModel(
        coefficients=tuple(coefficients.tolist()),
        intercept=intercept,
        log_odds_at_0=float(low),
        log_odds_at_1=float(max(high, low + 1)),
    )


def scores(pixels: np.ndarray, features: np.ndarray, model: OutlierModel) -> np.ndarray:
    """How unlike n pictures are to what the model was trained on.

    Args:
        pixels: uint8 RGB [n, size, size, 3].
        features: float32 [n, k], what the model's networks give for them.
        model: What is known.

    Returns:
        float32 [n], 0 and up; over 1 is not of the known kind.
    """
    standard = (statistics(pixels) - np.array(model.mean)) / np.array(model.spread)
    distances = _distances(standard, np.array(model.precision))
    odds = _log_odds(standard, np.array(model.coefficients), np.array(model.intercepts))
    low, high = model.log_odds_at_0, model.log_odds_at_1
    found = np.maximum(distances / model.distance_at_1, (odds - low) / (high - low))
    if (third := model.of_features) is not None:
        odds = features.astype(np.float64) @ np.array(third.coefficients) + third.intercept
        found = np.maximum(found, (odds - third.log_odds_at_0) / (third.log_odds_at_1 - third.log_odds_at_0))
    return found.astype(np.float32)


def _distances(standard: Floats, precision: Floats) -> Floats:
    """Squared Mahalanobis distances [n] of standardized statistics [n, k]."""
    return np.asarray(np.einsum("ni,ij,nj->n", standard, precision, standard))


def _log_odds(standard: Floats, coefficients: Floats, intercepts: Floats) -> Floats:
    """[n]: the log odds of the likeliest way of altering colours, against a picture as it is."""
    odds = np.clip(standard, -_CLIP, _CLIP) @ coefficients.T + intercepts
    return np.asarray(odds.max(axis=1))
