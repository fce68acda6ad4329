"""How large a file and its picture may be."""

from dataclasses import dataclass

from melanoma.imaging.errors import empty, too_large


@dataclass(frozen=True)
class Limits:
    """What is larger is not read.

    64 million pixels take up to 0.6 GB while they are read, as WebP 1.0 GB. Pillow's own ceiling of 179 million pixels
    stays in force for TIFF and WebP.
    """

    max_bytes: int = 64 * 2**20  # of a file
    max_pixels: int = 64_000_000  # of a picture, width times height, of all frames together

    def check_bytes(self, data: bytes) -> None:
        """Raise `ImageError` where a file is empty or has more bytes than the limit."""
        if not data:
            raise empty()
        if len(data) > self.max_bytes:
            raise too_large(f"The file has more than {self.max_bytes:,} bytes, the limit")

    def check_pixels(self, width: int, height: int) -> None:
        """Raise `ImageError` where a picture has more pixels than the limit."""
        if width * height > self.max_pixels:
            raise too_large(
                f"The picture has {width:,} x {height:,} pixels, more than the limit of {self.max_pixels:,}"
            )


DEFAULT_LIMITS = Limits()
