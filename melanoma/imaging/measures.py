"""What can be measured of any picture, without a model: sharpness, exposure, and the dark border of a dermatoscope."""

import numpy as np

_DARK = 0.15  # luminance, 0 black to 1 white; skin is brighter, and so are all but the blackest lesions


def quality(pixels: np.ndarray) -> tuple[float, float]:
    """Sharpness and exposure of a picture, uint8 RGB [height, width, 3] of at least 3 x 3 pixels.

    Sharpness is the variance of the Laplacian of luminance (Pech-Pacheco et al. 2000, doi:10.1109/ICPR.2000.903548),
    exposure is mean luminance, 0 black to 1 white. Luminance is luma of ITU-R BT.601 in 0..1. Sharpness depends on the
    size of the picture: compare pictures of one size.
    """
    luminance = _luminance(pixels)
    laplacian = (
        luminance[:-2, 1:-1] + luminance[2:, 1:-1] + luminance[1:-1, :-2] + luminance[1:-1, 2:]
    ) - 4 * luminance[1:-1, 1:-1]
    return float(laplacian.var()), float(luminance.mean())


def dark_border(pixels: np.ndarray) -> float:
    """The share, 0 to 1, of a picture (uint8 RGB [height, width, 3]) that is dark and joined to one of its corners.

    It is the dark frame that many dermatoscopes leave, which tells the camera and not the lesion.
    """
    from scipy import ndimage  # heavy, and scoring needs none of it

    regions, _ = ndimage.label(_luminance(pixels) < _DARK)
    corners = {int(regions[row, column]) for row in (0, -1) for column in (0, -1)} - {0}
    return float(np.isin(regions, list(corners)).mean()) if corners else 0.0


def _luminance(pixels: np.ndarray) -> np.ndarray:
    """float32 [height, width], 0 black to 1 white, of uint8 RGB [height, width, 3]."""
    return pixels.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32) / np.float32(255)
