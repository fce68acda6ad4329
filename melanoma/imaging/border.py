"""The dark frame that many dermatoscopes leave around the picture, which tells the camera and not the lesion."""

import numpy as np
from scipy import ndimage

_DARK = 0.15  # luminance, 0 black to 1 white; skin is brighter, and so are all but the blackest lesions


def dark_border(pixels: np.ndarray) -> float:
    """The share, 0 to 1, of a picture (uint8 RGB [height, width, 3]) that is dark and joined to one of its corners."""
    luminance = pixels.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32) / np.float32(255)
    regions, _ = ndimage.label(luminance < _DARK)
    corners = {int(regions[row, column]) for row in (0, -1) for column in (0, -1)} - {0}
    return float(np.isin(regions, list(corners)).mean()) if corners else 0.0
