"""How large a file and its picture may be."""

from dataclasses import dataclass

from melanoma.imaging.errors import ImageError, too_many_pixels


@dataclass(frozen=True)
class Limits:
    """What a file may be at most: `max_bytes` of file, `max_pixels` of picture (width times height, of all frames).

    64 million pixels take up to 0.6 GB while they are read, as WebP 1.0 GB. Pillow's own ceiling of 179 million pixels
    stays in force for TIFF and WebP.
    """

    max_bytes: int = 64 * 2**20
    max_pixels: int = 64_000_000

    def check_bytes(self, data: bytes) -> None:
        """Raise `ImageError` where a file is empty or has more bytes than the limit."""
        if not data:
            raise ImageError("empty", "The file is empty: fetch or export it again.")
        if len(data) > self.max_bytes:
            raise ImageError(
                "too_large", f"The file has more than {self.max_bytes:,} bytes, the limit: make it smaller."
            )

    def check_pixels(self, width: int, height: int) -> None:
        """Raise `ImageError` where a picture has more pixels than the limit."""
        if width * height > self.max_pixels:
            raise too_many_pixels(f"{width:,} x {height:,} pixels, more than the limit of {self.max_pixels:,}")


DEFAULT_LIMITS = Limits()
