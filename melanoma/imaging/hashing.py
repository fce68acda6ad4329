"""Near-duplicate pictures, found by a perceptual hash: the same photograph recompressed, scaled, or taken again."""

import imagehash
from PIL import Image

# phash of 16 x 16 bits. Measured on nine-class ISIC (2,359 files) and the first 2,000 of HAM10000, 9.5 million pairs:
#
#     copy of the same picture              8 x 8: median, 99%, most     16 x 16: median, 99%, most
#     saved again as JPEG of quality 70            0,  2,  6                     4, 12, 22
#     scaled to 80%                                0,  2,  4                     2,  6, 10
#     squashed to 180 x 180                        0,  2,  4                     0,  6, 10
#
#     pairs of different file names, by distance
#     8 x 8      0: 13    2: 5   4: 24   6: 113   8: 352   10: 1,118
#     16 x 16    0..10: 11   12..22: 6   24..30: 7   32..40: 15
#
# At 8 x 8 wrong joins begin at 2, where copies still are. At 16 x 16 all 39 pairs up to 40 show one lesion, by eye and
# by HAM10000's lesion ids. Among 12,568 files (with all of HAM10000 and ISIC 2017, 79 million pairs) the first pair
# that shows different lesions stands at 32, and the 1,876 pairs of files of one ISIC id differ by 24 at most. 28 lies
# between.
_SIDE = 16
NEAR_DUPLICATE_DISTANCE = 28
"""Pictures whose hashes differ in at most this many of 256 bits are near-duplicates."""


def perceptual_hash(image: Image.Image) -> str:
    """64 hexadecimal digits, 256 bits: the signs of the low frequencies of luminance (phash of `imagehash`).

    Size and aspect ratio change it no more than the table above says, so a squashed picture will do. Turned and
    mirrored copies have another hash.
    """
    return str(imagehash.phash(image, hash_size=_SIDE))


def thumbnail(image: Image.Image) -> bytes:
    """1,024 bytes: the luminance of the picture squashed to 32 x 32, row by row."""
    return image.convert("L").resize((32, 32), Image.Resampling.BOX).tobytes()
