"""How often the outlier score is right: which share of the dermoscopy it takes for something else, and which share of
other pictures it finds.

The other pictures are copies of the dermoscopy with altered colours or without form, generated noise, frames, pages and
screens, and what the caller brings, such as phone photographs. The score has seen the other channel orders, inverted
and grey copies before, of training images, and pictures like those that its training was given; all else is new to it.
"""

import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from melanoma.evaluation.intervals import Estimate, proportion
from melanoma.model import outliers
from melanoma.model.predictor import Predictor

Pixels = npt.NDArray[np.uint8]

_COPIED = 500  # images at most of which altered copies are made
_GENERATED = 200  # pictures of each generated kind
_FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSansMono", "STIXGeneral", "cmr10")
_TEXT = """the skin lesion of the left shoulder was seen on 12 March by dermatology and at review no history of
melanoma in the family biopsy with a margin of 2 mm signed report to the clinic nevus excision 0.4 follow-up"""
_WORDS = tuple(_TEXT.split())


@dataclass(frozen=True)
class OutlierRate:
    """How many pictures of one kind have an outlier score above 1."""

    kind: str  # for people
    n: int
    # The exact binomial interval over groups, where generated pictures and those of the caller are each their own
    # group; undefined without pictures.
    rejected: Estimate
    should_be_rejected: bool  # False for dermoscopy, as it is or upside down


def outlier_rates(
    predictor: Predictor,
    dermoscopy: tuple[npt.NDArray[Any], npt.NDArray[Any]],
    pixels: Pixels,
    groups: npt.NDArray[Any],
    seed: int,
    others: Mapping[str, Pixels],
) -> list[OutlierRate]:
    """How often the outlier score rejects dermoscopy, and how often other pictures.

    Args:
        predictor: The model.
        dermoscopy: The outlier scores of all m images of the set, and the groups of these, both [m].
        pixels: Some of them to make altered copies of, uint8 RGB [n, size, size, 3] at the predictor's input size; at
            most 500 are copied.
        groups: The groups of these [n].
        seed: Seed of the generated pictures, 200 of each kind.
        others: Pictures that are no dermoscopy by the name of their kind, uint8 RGB [k, size, size, 3].

    Returns:
        One a kind, the given dermoscopy first.
    """

    def rate(kind: str, scores: npt.NDArray[Any], group: npt.NDArray[Any], foreign: bool) -> OutlierRate:
        return OutlierRate(kind, len(scores), proportion(scores > 1, group), foreign)

    scores, group = dermoscopy
    rates = [rate("dermoscopy", scores, group, False)]
    for kind, pictures, group, foreign in _kinds(pixels, groups, predictor.bundle.input_size, seed, others):
        rates.append(rate(kind, predictor.outlier_scores(pictures), group, foreign))
    return rates


def _kinds(
    pixels: Pixels, groups: npt.NDArray[Any], size: int, seed: int, others: Mapping[str, Pixels]
) -> Iterator[tuple[str, Pixels, npt.NDArray[Any], bool]]:
    """Each kind's name, its pictures, their groups and whether they are foreign. One by one, to spare the memory."""
    chosen = np.arange(min(len(pixels), _COPIED)) * len(pixels) // max(1, min(len(pixels), _COPIED))
    for kind, copies, foreign in _copies(pixels[chosen], seed):
        yield kind, copies, groups[chosen], foreign
    for number, (kind, generate) in enumerate(GENERATED.items(), start=1):
        yield kind, generate(_GENERATED, size, np.random.default_rng([seed, number])), np.arange(_GENERATED), True
    for kind, pictures in others.items():
        yield kind, pictures, np.arange(len(pictures)), True


def _copies(some: Pixels, seed: int) -> Iterator[tuple[str, Pixels, bool]]:
    yield "dermoscopy upside down", some[:, ::-1, ::-1], False
    for order in outliers.CHANNEL_ORDERS:
        yield f"dermoscopy as {''.join('RGB'[channel] for channel in order)}", some[..., order], True
    yield "dermoscopy inverted", 255 - some, True
    for degrees in (60, 180):
        yield f"dermoscopy, hue turned by {degrees}°", turn_hue(some, degrees), True
    yield "dermoscopy in grey", greyscale(some), True
    yield "dermoscopy, pixels shuffled", shuffle_pixels(some, np.random.default_rng([seed, 0])), True


# --- dermoscopy made foreign: uint8 RGB [n, size, size, 3] to the same ------------------------------------------------


def turn_hue(pixels: Pixels, degrees: float) -> Pixels:
    """All colours turned about the grey axis of the RGB cube; 120 degrees are another order of the channels."""
    angle = np.deg2rad(degrees)
    # Rodrigues' formula about (1, 1, 1) / sqrt(3).
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    turn = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    turned = np.empty_like(pixels)
    # One by one: as float32 all of them take many times the memory.
    for before, after in zip(pixels, turned, strict=True):
        after[:] = _uint8(before @ turn.T.astype(np.float32))
    return turned


def greyscale(pixels: Pixels) -> Pixels:
    """Luma of ITU-R BT.601 in all three channels."""
    grey = np.empty_like(pixels)
    for before, after in zip(pixels, grey, strict=True):
        after[:] = _uint8(before @ np.array([0.299, 0.587, 0.114], dtype=np.float32))[..., None]
    return grey


def shuffle_pixels(pixels: Pixels, generator: np.random.Generator) -> Pixels:
    """Each picture's pixels in a random order: its very colours, without form."""
    count, height, width, channels = pixels.shape
    shuffled = pixels.reshape(count, height * width, channels).copy()
    for picture in shuffled:
        generator.shuffle(picture)
    return shuffled.reshape(pixels.shape)


# --- generated pictures: count, size and a generator to uint8 RGB [count, size, size, 3] ------------------------------


def noise(count: int, size: int, generator: np.random.Generator) -> Pixels:
    """Each channel of each pixel for itself, 0 to 255."""
    return generator.integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def one_colour(count: int, size: int, generator: np.random.Generator) -> Pixels:
    """Even frames, each of one random colour."""
    colours = generator.integers(0, 256, (count, 1, 1, 3), dtype=np.uint8)
    return np.broadcast_to(colours, (count, size, size, 3)).copy()


def gradients(count: int, size: int, generator: np.random.Generator) -> Pixels:
    """From one random colour to another, in a random direction."""
    y, x = np.indices((size, size)) / max(size - 1, 1) - 0.5
    pictures = np.empty((count, size, size, 3), dtype=np.uint8)
    for picture in pictures:
        first, last = generator.integers(0, 256, (2, 3))
        angle = generator.uniform(0, 2 * np.pi)
        along = (x * np.cos(angle) + y * np.sin(angle))[..., None] / np.sqrt(2) + 0.5
        picture[:] = _uint8(first + (last - first) * along)
    return pictures


def clouds(count: int, size: int, generator: np.random.Generator) -> Pixels:
    """Noise whose amplitude falls with frequency as that of photographs does (power 1 to 2), in random colours."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size))
    frequency[0, 0] = np.inf
    pictures = np.empty((count, size, size, 3), dtype=np.uint8)
    for picture in pictures:
        white = np.fft.fft2(generator.normal(size=(size, size, 3)), axes=(0, 1))
        layers = np.fft.ifft2(white / frequency[..., None] ** generator.uniform(1, 2), axes=(0, 1)).real
        mixture = generator.normal(size=(3, 3))
        layers = layers / layers.std(axis=(0, 1)) @ (mixture / np.linalg.norm(mixture, axis=0))
        picture[:] = _uint8(generator.uniform(60, 200, 3) + layers * generator.uniform(15, 60))
    return pictures


def text_pages(count: int, size: int, generator: np.random.Generator) -> Pixels:
    """Printed pages, upright or lying, of several fonts and sizes, dark on white or off-white paper."""
    return np.stack([_text_page(size, generator) for _ in range(count)])


def _text_page(size: int, generator: np.random.Generator) -> Pixels:
    width = int(generator.integers(450, 800))
    height = int(width * generator.uniform(0.7, 1.45))
    font_size = int(generator.integers(10, 40))
    yellowed = 0 if generator.random() < 0.4 else generator.uniform(5, 40)
    paper = _colour(255 - np.rint(yellowed * np.array([0.3, 0.5, 1])).astype(int))
    page = Image.new("RGB", (width, height), paper)
    margin = int(width * generator.uniform(0.03, 0.12))
    columns = max(8, int((width - 2 * margin) / (0.55 * font_size)))
    lines = int((height - 2 * margin) / (1.3 * font_size))
    text = textwrap.wrap(" ".join(generator.choice(_WORDS, columns * lines // 4)), columns)[:lines]
    if lines > 6:
        text[int(generator.integers(2, lines - 2))] = ""  # between paragraphs
    ink = int(generator.integers(0, 90))
    ImageDraw.Draw(page).multiline_text(
        (margin, margin), "\n".join(text), fill=(ink,) * 3, font=_font(font_size, generator)
    )
    return _squashed(page, size)


def tables(count: int, size: int, generator: np.random.Generator) -> Pixels:
    """Screens with a table under a coloured bar, light or dark."""
    return np.stack([_table(size, generator) for _ in range(count)])


def _table(size: int, generator: np.random.Generator) -> Pixels:
    width, height = ((1280, 800), (1024, 768), (1600, 900), (400, 800))[generator.integers(4)]
    dark = generator.random() < 0.3
    back = _colour(generator.integers(15, 50, 3) if dark else generator.integers(225, 256, 3))
    front = _colour(generator.integers(190, 256, 3) if dark else generator.integers(0, 80, 3))
    screen = Image.new("RGB", (width, height), back)
    pen = ImageDraw.Draw(screen)
    top = int(height * generator.uniform(0.04, 0.15))
    pen.rectangle([0, 0, width, top], fill=_colour(generator.integers(0, 256, 3)))
    font = _font(int(generator.integers(12, 24)), generator)
    left = int(width * generator.uniform(0.02, 0.25))
    for y in np.linspace(top + 20, height - 40, int(generator.integers(5, 25))):
        pen.line([left, y, width - 20, y], fill=(128, 128, 128))
        for x in np.linspace(left, width - 20, int(generator.integers(2, 9)), endpoint=False):
            pen.text((x + 4, y + 3), f"{generator.choice(_WORDS)} {generator.integers(1000)}", fill=front, font=font)
    return _squashed(screen, size)


GENERATED: dict[str, Callable[[int, int, np.random.Generator], Pixels]] = {
    "noise": noise,
    "frames of one colour": one_colour,
    "colour gradients": gradients,
    "coloured clouds": clouds,
    "pages of text": text_pages,
    "tables on a screen": tables,
}


def _font(size: int, generator: np.random.Generator) -> ImageFont.FreeTypeFont:
    # Matplotlib brings its fonts along; those of the system differ from machine to machine.
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(folder / f"{generator.choice(_FONTS)}.ttf", size)


def _colour(channels: npt.NDArray[Any]) -> tuple[int, int, int]:
    red, green, blue = channels.tolist()
    return red, green, blue


def _squashed(picture: Image.Image, size: int) -> Pixels:
    return np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR))


def _uint8(values: npt.NDArray[Any]) -> Pixels:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
