"""Augmentor operations on single images, on the fly; and further operations for what archives differ in."""

import abc
import io
import math
import random
from collections.abc import Sequence

import Augmentor
import numpy as np
from Augmentor.Operations import Operation
from PIL import Image, ImageDraw, ImageFilter

from melanoma.errors import InputError
from melanoma.training.config import Augmentation

# Like those of Augmentor, they draw from the global generator of `random`, which `augment` seeds for each image.


class _Each(Operation, abc.ABC):
    """An operation on each image by itself; images are RGB."""

    def perform_operation(self, images: list[Image.Image]) -> list[Image.Image]:
        return [self.change(image) for image in images]

    @abc.abstractmethod
    def change(self, image: Image.Image) -> Image.Image: ...


class Frame(_Each):
    """Another framing: turned, nearer or farther, squashed otherwise, off the centre, in one interpolation.

    What lies outside the picture is the picture mirrored: black corners would tell of the augmentation.

    Args:
        probability: 0 to 1, how often it is done.
        rotation: Degrees to either side, at most.
        min_scale: The least enlargement, over 0; below 1 the lesion is farther away.
        max_scale: The greatest enlargement.
        aspect: The greatest stretch of width against height, or of height against width; 1 or more.
        shift: The greatest move off the centre, as a share of the side, 0 to 0.5.
    """

    def __init__(
        self,
        probability: float,
        rotation: float = 0.0,
        min_scale: float = 1.0,
        max_scale: float = 1.0,
        aspect: float = 1.0,
        shift: float = 0.0,
    ) -> None:
        super().__init__(probability)
        if not 0 < min_scale <= max_scale or aspect < 1 or not 0 <= shift <= 0.5:
            raise ValueError("scales have to be over 0 and in order, aspect at least 1, shift from 0 to 0.5")
        self.rotation, self.scales, self.aspect, self.shift = rotation, (min_scale, max_scale), aspect, shift

    def change(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        angle = math.radians(random.uniform(-self.rotation, self.rotation))  # noqa: S311
        scale = math.exp(random.uniform(math.log(self.scales[0]), math.log(self.scales[1])))  # noqa: S311
        aspect = math.exp(random.uniform(-0.5, 0.5) * math.log(self.aspect))  # noqa: S311
        along, down = (random.uniform(-self.shift, self.shift) for _ in range(2))  # noqa: S311
        # From a place of the new picture to one of the old.
        cosine, sine = math.cos(angle), math.sin(angle)
        a, b, d, e = cosine / (scale * aspect), -sine / scale * aspect, sine / (scale * aspect), cosine / scale * aspect
        c = width * (0.5 + along) - a * width / 2 - b * height / 2
        f = height * (0.5 + down) - d * width / 2 - e * height / 2
        corners = [(x, y) for x in (0, width) for y in (0, height)]
        across = [a * x + b * y + c for x, y in corners]
        downward = [d * x + e * y + f for x, y in corners]
        # Only as much is mirrored as will be seen.
        pad = max(0, math.ceil(max(-min(across), max(across) - width, -min(downward), max(downward) - height))) + 1
        rows, columns = (np.pad(np.arange(side), pad, mode="symmetric") for side in (height, width))
        mirrored = Image.fromarray(np.asarray(image)[rows][:, columns])
        placed = (a, b, c + pad, d, e, f + pad)
        return mirrored.transform(image.size, Image.Transform.AFFINE, placed, Image.Resampling.BILINEAR)


def _factor(strength: float) -> float:
    return math.exp(random.uniform(-strength, strength))  # noqa: S311


LUMA = np.array([0.299, 0.587, 0.114])
TO_YIQ = np.array([LUMA, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])


class Colour(_Each):
    """Another camera and light: brightness, contrast, saturation, hue, colour of the light and gamma, in one step.

    Every strength s but the hue's draws a factor from exp(-s) to exp(s).

    Args:
        probability: 0 to 1, how often it is done.
        brightness: A strength, as are all below but the hue.
        contrast: Around the middle grey.
        saturation: A strength, for the colours.
        hue: Degrees to either side, at most.
        light: Draws one factor for each channel.
        gamma: A strength, for the exponent.
    """

    def __init__(
        self,
        probability: float,
        brightness: float = 0.0,
        contrast: float = 0.0,
        saturation: float = 0.0,
        hue: float = 0.0,
        light: float = 0.0,
        gamma: float = 0.0,
    ) -> None:
        super().__init__(probability)
        if min(brightness, contrast, saturation, hue, light, gamma) < 0:
            raise ValueError("strengths have to be 0 or more")
        self.strengths = brightness, contrast, saturation, light, gamma
        self.hue = hue

    def change(self, image: Image.Image) -> Image.Image:
        brightness, contrast, saturation, light, gamma = self.strengths
        turn = math.radians(random.uniform(-self.hue, self.hue))  # noqa: S311
        rotation = np.array([[1, 0, 0], [0, math.cos(turn), -math.sin(turn)], [0, math.sin(turn), math.cos(turn)]])
        share = _factor(saturation)
        saturated = share * np.eye(3) + (1 - share) * np.tile(LUMA, (3, 1))
        lights = np.diag([_factor(light) for _ in range(3)])
        contrasted, exponent = _factor(contrast), _factor(gamma)
        matrix = lights @ saturated @ np.linalg.inv(TO_YIQ) @ rotation @ TO_YIQ * (_factor(brightness) * contrasted)
        rows = np.column_stack([matrix, np.full(3, 128 * (1 - contrasted))])
        image = image.convert("RGB", tuple(rows.ravel().tolist()))
        return image.point([round(255 * (level / 255) ** exponent) for level in range(256)] * 3) if gamma else image


class Resolution(_Each):
    """A smaller or more compressed picture: scaled down, to `min_scale` at the smallest, and up, then saved as JPEG of
    a quality from `min_quality` to 95; 100 leaves JPEG out.
    """

    def __init__(self, probability: float, min_scale: float = 1.0, min_quality: int = 100) -> None:
        super().__init__(probability)
        if not 0 < min_scale <= 1 or not 1 <= min_quality <= 100:
            raise ValueError("min_scale has to be over 0 and at most 1, min_quality from 1 to 100")
        self.min_scale, self.min_quality = min_scale, min_quality

    def change(self, image: Image.Image) -> Image.Image:
        size = image.size
        scale = random.uniform(self.min_scale, 1.0)  # noqa: S311
        small = max(8, round(size[0] * scale)), max(8, round(size[1] * scale))
        if small != size:
            image = image.resize(small, Image.Resampling.BILINEAR).resize(size, Image.Resampling.BILINEAR)
        if self.min_quality < 100:
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=random.randint(min(self.min_quality, 95), 95))  # noqa: S311
            image = Image.open(buffer).convert("RGB")
        return image


class DarkBorder(_Each):
    """The round field of a dermatoscope: black outside a circle whose radius is `min_radius` to 0.75 of the side."""

    def __init__(self, probability: float, min_radius: float = 0.5) -> None:
        super().__init__(probability)
        if not 0.3 <= min_radius <= 0.75:
            raise ValueError("min_radius has to be from 0.3 to 0.75")
        self.min_radius = min_radius

    def change(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        radius = random.uniform(self.min_radius, 0.75)  # noqa: S311
        x, y = (0.5 + random.uniform(-0.04, 0.04) for _ in range(2))  # noqa: S311
        box = ((x - radius) * width, (y - radius) * height, (x + radius) * width, (y + radius) * height)
        field = Image.new("L", image.size, 0)
        ImageDraw.Draw(field).ellipse(box, fill=255)
        field = field.filter(ImageFilter.BoxBlur(random.uniform(0, 0.015) * width))  # noqa: S311
        dark = random.randint(0, 25)  # noqa: S311
        return Image.composite(image, Image.new("RGB", image.size, (dark, dark, dark)), field)


class Marks(_Each):
    """What lies over lesions in archives: hairs, the ticks of a ruler, a stroke of a skin marker; one kind an image."""

    def change(self, image: Image.Image) -> Image.Image:
        image = image.copy()
        random.choice([_hairs, _ruler, _ink])(ImageDraw.Draw(image), image.size[0], image.size[1])  # noqa: S311
        return image


def _hairs(draw: ImageDraw.ImageDraw, width: int, height: int) -> None:
    for _ in range(random.randint(1, 8)):  # noqa: S311
        tone = random.randint(15, 90)  # noqa: S311
        ends = [(random.uniform(0, width), random.uniform(0, height)) for _ in range(3)]  # noqa: S311
        places = [i / 8 for i in range(9)]
        curve = [
            tuple((1 - t) ** 2 * p + 2 * t * (1 - t) * q + t * t * r for p, q, r in zip(*ends, strict=True))
            for t in places
        ]
        draw.line([(float(x), float(y)) for x, y in curve], fill=(tone, int(tone * 0.8), int(tone * 0.7)), width=1)


def _ruler(draw: ImageDraw.ImageDraw, width: int, height: int) -> None:
    step = random.uniform(0.03, 0.1) * width  # noqa: S311
    tone = random.randint(0, 70)  # noqa: S311
    upright, far = random.random() < 0.5, random.random() < 0.5  # noqa: S311
    long_side, depth = (height, width) if upright else (width, height)
    for number in range(int(long_side / step) + 1):
        length = depth * (0.08 if number % 5 == 0 else 0.04)
        near, end = (depth - length, depth) if far else (0, length)
        at = number * step
        draw.line(((near, at), (end, at)) if upright else ((at, near), (at, end)), fill=(tone, tone, tone), width=1)


def _ink(draw: ImageDraw.ImageDraw, width: int, height: int) -> None:
    colour = random.choice([(70, 40, 130), (40, 50, 150), (30, 90, 110)])  # noqa: S311
    angle, away = random.uniform(0, 2 * math.pi), random.uniform(0.38, 0.5)  # noqa: S311
    x, y = (0.5 + away * math.cos(angle)) * width, (0.5 + away * math.sin(angle)) * height
    turn, reach = random.uniform(0, math.pi), random.uniform(0.1, 0.25) * width  # noqa: S311
    dx, dy = math.cos(turn) * reach, math.sin(turn) * reach
    thick = max(1, round(random.uniform(0.02, 0.05) * width))  # noqa: S311
    draw.line(((x - dx, y - dy), (x + dx, y + dy)), fill=colour, width=thick)


OPERATIONS: dict[str, type[_Each]] = {
    "frame": Frame,
    "colour": Colour,
    "resolution": Resolution,
    "dark_border": DarkBorder,
    "marks": Marks,
}


def operations(augmentations: Sequence[Augmentation]) -> list[Operation]:
    """The Augmentor operations of a configuration. Raises InputError where one lacks or does not know a parameter."""
    pipeline = Augmentor.Pipeline()
    for augmentation in augmentations:
        name, parameters = augmentation.operation, augmentation.model_extra or {}
        try:
            if name in OPERATIONS:
                pipeline.add_operation(OPERATIONS[name](augmentation.probability, **parameters))
            else:
                getattr(pipeline, name)(probability=augmentation.probability, **parameters)
        except (TypeError, ValueError) as error:
            raise InputError(f"The augmentation {name!r}: {str(error).rstrip('.')}.") from None
    return list(pipeline.operations)


def augment(pixels: np.ndarray, chain: Sequence[Operation], seed: int) -> np.ndarray:
    """uint8 RGB [size, size, 3] to the same, decided by `seed` alone.

    Augmentor draws from the global generators of `random` and NumPy, so both are seeded for this one image, and put
    back after it. Not thread-safe for that reason; Ray runs a task a process.
    """
    if not chain:
        return pixels
    states = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        images = [Image.fromarray(pixels)]
        for operation in chain:
            if random.random() < operation.probability:  # noqa: S311
                images = operation.perform_operation(images)
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
    image = images[0].convert("RGB")
    if image.size != (pixels.shape[1], pixels.shape[0]):
        image = image.resize((pixels.shape[1], pixels.shape[0]), Image.Resampling.BILINEAR)
    return np.asarray(image)
