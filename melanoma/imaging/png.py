"""PNG: the picture without what a file holds beside it."""

import zlib

# Of what need not be there, these say how the picture looks or lies, and how many frames it has.
_KEPT = (b"tRNS", b"eXIf", b"acTL", b"fcTL", b"fdAT")
# Bytes that they have at least, by the kind of colours: those of a transparent grey, and of a transparent colour.
_LEAST = {(b"tRNS", 0): 2, (b"tRNS", 2): 6, **{(b"acTL", kind): 8 for kind in (0, 2, 3, 4, 6)}}


def without_extras(data: bytes) -> bytes | None:
    """The file without ICC profile, texts and whatever else no pixel depends on: Pillow gives up where one of them is
    damaged or large. None where there is nothing to leave out, or the file is cut short."""
    chunks, position, left_out = [data[:8]], 8, False
    while position + 12 <= len(data):
        name, end = data[position + 4 : position + 8], position + 12 + int.from_bytes(data[position : position + 4])
        if end > len(data):
            return None
        is_extra = bool(name[0] & 0x20)  # ISO/IEC 15948, 5.4
        intact = zlib.crc32(data[position + 4 : end - 4]) == int.from_bytes(data[end - 4 : end])
        is_whole = end - position - 12 >= _LEAST.get((name, data[25]), 0)
        if is_extra and not (name in _KEPT and intact and is_whole):
            left_out = True
        else:
            chunks.append(data[position:end])
        if name == b"IEND":
            break
        position = end
    return b"".join(chunks) if left_out else None
