"""What a synthetic scene is drawn on: the canvas with its camera, and the painting of shapes in classes and colours.

    fill(canvas, upright(canvas, -0.1, 0.1, s=0.5, bottom=0, top=0.4), POLE, random_color(rng))

A point on the ground is given by its lateral place `x` and its scale `s`: the size of things there relative to the
bottom edge of the picture, 1 at the edge and 0 at the horizon. Heights are in picture heights at scale 1. So a scene
has the same composition at any size.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

Point = tuple[float, float]
Color = np.ndarray  # float [3], 0..1

UNLABELED, EGO, BORDER, OUT_OF_ROI, STATIC, DYNAMIC, GROUND = range(7)
ROAD, SIDEWALK, PARKING, RAIL_TRACK, BUILDING = 7, 8, 9, 10, 11
FENCE, GUARD_RAIL, BRIDGE, TUNNEL, POLE, POLEGROUP = 13, 14, 15, 16, 17, 18
SIGN, VEGETATION, TERRAIN, SKY, PERSON, CAR, CARAVAN, TRAILER = 20, 21, 22, 23, 24, 26, 29, 30


@dataclasses.dataclass
class Canvas:
    """What is drawn on, and the camera.

    Attributes:
      image: float32 [h, w, 3], 0..1.
      label: uint8 [h, w].
      instance: uint16 [h, w], label id, or label id * 1000 + number for things that come in instances.
      rough: float32 [h, w], fine noise; blotches: float32 [h, w], coarse noise; both about -1..1.
      horizon: picture height of the horizon, 0..1 from the top.
      center: picture width of the vanishing point, 0..1.
      bend: how far the street bends sideways towards the horizon.
      light: -1 (sun from the left) or 1.
    """

    image: np.ndarray
    label: np.ndarray
    instance: np.ndarray
    rough: np.ndarray
    blotches: np.ndarray
    horizon: float
    center: float
    bend: float
    light: int
    counts: dict[int, int] = dataclasses.field(default_factory=dict)

    def at(self, x: float, s: float, height: float = 0.0) -> Point:
        """Returns the picture coordinates (0..1 each) of a point `height` above the ground."""
        across = self.center + x * s + self.bend * (1 - s) ** 2 * s
        return across, self.horizon + (1 - self.horizon) * s - height * s


def blotches(rng: np.random.Generator, size: tuple[int, int], cells: int) -> np.ndarray:
    """Makes smooth noise float32 [h, w] of about -1..1 with that many cells over the picture's width."""
    small = rng.uniform(-1, 1, (max(2, round(cells * size[0] / size[1])), cells)).astype(np.float32)
    return np.asarray(Image.fromarray(small).resize(size[::-1], Image.Resampling.BICUBIC))


def random_color(rng: np.random.Generator, low: float = 0.15, high: float = 0.8, saturation: float = 0.3) -> Color:
    """Returns any hue: a random grey, each channel up to `saturation` away from it."""
    return np.clip(rng.uniform(low, high) + saturation * rng.uniform(-0.5, 0.5, 3), 0.02, 0.98)


def fill(
    canvas: Canvas,
    shape: Sequence[Point],
    label: int,
    color: Color,
    *,
    rough: float = 0.03,
    blotches: float = 0.0,
    ellipse: bool = False,
    number: int | None = None,
) -> None:
    """Paints a polygon, or the ellipse in the box of two points; label, instance and image change together."""
    height, width = canvas.label.shape
    corners = [(x * width, y * height) for x, y in shape]
    left, top = (int(np.floor(min(corner[i] for corner in corners))) for i in (0, 1))
    right, bottom = (int(np.ceil(max(corner[i] for corner in corners))) + 1 for i in (0, 1))
    left, top, right, bottom = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
    if left >= right or top >= bottom:
        return
    stencil = Image.new('1', (right - left, bottom - top))
    corners = [(x - left, y - top) for x, y in corners]
    if ellipse:
        ImageDraw.Draw(stencil).ellipse([min(corners), max(corners)], fill=1)
    else:
        ImageDraw.Draw(stencil).polygon(corners, fill=1)
    mask, part = np.asarray(stencil), (slice(top, bottom), slice(left, right))
    texture = rough * canvas.rough[part] + blotches * canvas.blotches[part]
    canvas.image[part][mask] = (np.asarray(color, np.float32) + texture[mask][:, None]).astype(np.float32)
    canvas.label[part][mask] = label
    canvas.instance[part][mask] = label if number is None else label * 1000 + number


def darken(canvas: Canvas, shape: Sequence[Point], factor: float) -> None:
    """Darkens a polygon of the image; what is there stays what it is."""
    height, width = canvas.label.shape
    stencil = Image.new('1', (width, height))
    ImageDraw.Draw(stencil).polygon([(x * width, y * height) for x, y in shape], fill=1)
    canvas.image[np.asarray(stencil)] *= factor


def strip(canvas: Canvas, x1: float, x2: float, s1: float = 0.0, s2: float = 1.3) -> list[Point]:
    """Returns the strip of ground between two lateral places, as a polygon along the bend."""
    scales = np.linspace(s1, s2, 16)
    return [canvas.at(x1, s) for s in scales] + [canvas.at(x2, s) for s in scales[::-1]]


def upright(canvas: Canvas, x1: float, x2: float, s: float, bottom: float, top: float) -> list[Point]:
    """Returns a rectangle that faces the camera."""
    (left, low), (right, high) = canvas.at(x1, s, bottom), canvas.at(x2, s, top)
    return [(left, low), (right, low), (right, high), (left, high)]


def facade(canvas: Canvas, x: float, s1: float, s2: float, bottom: float, top: float) -> list[Point]:
    """Returns a rectangle along the street, from scale s1 to s2."""
    return [canvas.at(x, s1, bottom), canvas.at(x, s2, bottom), canvas.at(x, s2, top), canvas.at(x, s1, top)]


def next_number(canvas: Canvas, label: int) -> int:
    """Returns the next instance number of a class."""
    canvas.counts[label] = canvas.counts.get(label, -1) + 1
    return canvas.counts[label]
