"""A coverage-guided fuzzer of the decoder: any other end than pixels or an `ImageError` is a finding, and so are more
than 10 seconds or 2 GiB.

pip install atheris
python tests/fuzz/decode.py FOLDER-OF-IMAGES -max_total_time=600 -timeout=10 -rss_limit_mb=2048
"""

import sys

import atheris

with atheris.instrument_imports(include=["PIL", "melanoma.imaging.decode"]):
    from melanoma.imaging.decode import ImageError, Limits, decode

LIMITS = Limits(max_bytes=2**20, max_pixels=2**22)


def one(data: bytes) -> None:
    try:
        pixels = decode(data, 16, LIMITS).pixels
    except ImageError:
        return
    assert pixels.shape == (16, 16, 3)


if __name__ == "__main__":
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
