"""The figures of the scoring benchmark as Markdown tables."""

from typing import Any

import numpy as np

OURS = "melanoma score"
SCALED = "libjpeg's scaled decoding and the network"
PIXEL_ARRAY = "pydicom's pixel_array, resized, and the network"
LIMIT = "the limit"
LATENCY = 0.06  # seconds that the proxy adds to every request


def table(found: dict[str, Any]) -> str:
    """Medians of the rounds, with the least and the most of them; `found` is what `scoring.run` returns."""
    parts = [_speed_table(found["speed"])] if "speed" in found else []
    rows = []
    if "latency" in found:
        what = f"images a second on S3, without and with {LATENCY * 1000:.0f} ms a request"
        rows.append([what, *_compared(*map(_rates, found["latency"].values()))])
    rows += _growth_rows(found["growth"]) if "growth" in found else []
    if "nodes" in found:
        what = "images a second, one node of one core and two"
        rows.append([what, *_compared(*map(_rates, found["nodes"].values()))])
    if "dicom" in found:
        ours = _rates(found["dicom"][OURS])
        rows += [
            [f"images a second of DICOM: {name}, and {OURS}", *_compared(_rates(found["dicom"][name]), ours)]
            for name in (SCALED, PIXEL_ARRAY)
        ]
    if "tar" in found:
        both = map(_rates, (found["tar"]["objects"], found["tar"]["tar"]))
        rows.append(["images a second on S3, as objects and in a tar", *_compared(*both)])
    if "start" in found:
        rows.append(["seconds from the command to 8 images published", _spread(found["start"]["seconds"], 1), "", ""])
    if rows:
        parts.append(_markdown(["what", "", "", "ratio"], rows))
    return "\n".join(parts)


def _speed_table(speed: dict[str, Any]) -> str:
    rates = {name: _rates(rounds) for name, rounds in speed.items()}
    rows = []
    for name, values in rates.items():
        # A limit is compared with the run of as many orientations.
        ours = rates[name.replace(LIMIT, OURS)] if name.startswith(LIMIT) else rates[OURS]
        times = "" if name.startswith(OURS) else _compared(values, ours)[-1]
        rows.append([name, _spread(values, 1), times])
    return _markdown(["", "images a second", f"how many times as fast {OURS} is"], rows)


def _growth_rows(growth: dict[str, Any]) -> list[list[str]]:
    many = growth["many"]
    small, large = growth[str(many // 10)], growth[str(many)]
    names = f"{many // 10:,} and {many:,} images"
    tiny = growth[str(many // 100)]
    each = [
        [1000 * (more["seconds"] - less["seconds"]) / (more["scored"] - less["scored"])]
        for less, more in ((tiny, small), (small, large))
    ]
    memory = [[figures["peak_bytes"] / 2**20] for figures in (small, large)]
    runs = [[large["seconds"]], [growth["second_run"]["seconds"]]]
    return [
        [
            f"milliseconds an image, from {many // 100:,} to {many // 10:,} and from there to {many:,}",
            *_compared(*each),
        ],
        [f"peak memory of all processes, MiB, {names}", *_compared(*memory)],
        [f"seconds of a run over {many:,} images, all new and 1% new", *_compared(*runs)],
    ]


def _rates(rounds: list[dict[str, Any]]) -> list[float]:
    return [figures["images_per_second"] for figures in rounds]


def _compared(before: list[float], after: list[float]) -> list[str]:
    """Both, and the second as a multiple of the first, round by round."""
    ratios = [second / first for first, second in zip(before, after, strict=True)]
    return [_spread(before, 1), _spread(after, 1), _spread(ratios, 2)]


def _spread(values: list[float], digits: int) -> str:
    middle = f"{np.median(values):.{digits}f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
