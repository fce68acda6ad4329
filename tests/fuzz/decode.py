"""A coverage-guided fuzzer of the decoder: any other end than pixels or an `ImageError` is a finding, and so are more
than 10 seconds or 2 GiB.

pip install atheris
python tests/fuzz/decode.py FOLDER-OF-IMAGES -max_total_time=600 -timeout=10 -rss_limit_mb=2048
"""

import sys

import atheris

with atheris.instrument_imports(include=["PIL", "pydicom", "melanoma.imaging.decode", "melanoma.imaging.dicom"]):
    from melanoma.imaging.decode import decode_frames
    from melanoma.imaging.errors import ImageError
    from melanoma.imaging.limits import Limits

LIMITS = Limits(max_bytes=2**20, max_pixels=2**22)


def one(data: bytes) -> None:
    try:
        frames = decode_frames(data, 16, LIMITS)
    except ImageError:
        return
    assert all(frame.pixels.shape == (16, 16, 3) for frame in frames)


if __name__ == "__main__":
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
