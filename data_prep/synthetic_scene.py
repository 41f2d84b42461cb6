"""One synthetic street scene: image, label ids and instance ids, drawn from the same shapes.

    image, label, instance = street.draw((512, 1024), np.random.default_rng([seed, split, number]))

A camera stands on a straight or bent street. A point on the ground is given by its lateral place `x` and its scale `s`:
the size of things there relative to the bottom edge of the picture, 1 at the edge and 0 at the horizon. Heights are in
picture heights at scale 1. So a scene has the same composition at any size. Things are painted from far to near.

Colours are drawn from wide ranges that overlap between classes, light, haze and noise vary from scene to scene, and
camera and layout move: what tells a class is shape, texture and context, as in real streets.
"""

import dataclasses

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
        """Picture coordinates (0..1 each) of a point `height` above the ground."""
        across = self.center + x * s + self.bend * (1 - s) ** 2 * s
        return across, self.horizon + (1 - self.horizon) * s - height * s


def draw(size: tuple[int, int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws a scene.

    Args:
      size: height and width in pixels.
      rng: all that is random about the scene.

    Returns:
      Image uint8 [h, w, 3], label ids uint8 [h, w], instance ids uint16 [h, w].
    """
    noise = np.random.default_rng(rng.integers(1 << 62))  # apart, so that the composition does not depend on the size
    canvas = Canvas(
        image=np.zeros((*size, 3), np.float32),
        label=np.full(size, SKY, np.uint8),
        instance=np.full(size, SKY, np.uint16),
        rough=noise.normal(0, 0.5, size).astype(np.float32),
        blotches=_blotches(noise, size, 24) + 0.6 * _blotches(noise, size, 60),
        horizon=rng.uniform(0.28, 0.55),
        center=rng.uniform(0.25, 0.75),
        bend=rng.uniform(-0.5, 0.5),
        light=rng.choice([-1, 1]),
    )
    _sky(canvas, rng)
    half, walk = rng.uniform(0.35, 0.9), rng.uniform(0.15, 0.5)  # widths of half the road and of a sidewalk
    _ground(canvas, rng, half, walk)
    _distance(canvas, rng)
    if rng.random() < 0.1:
        _tunnel(canvas, rng, half)
    for s in sorted(rng.uniform(0.04, 0.35, 2)):
        if rng.random() < 0.1:
            _bridge(canvas, rng, s)
    _roadsides(canvas, rng, half + walk)
    _standing(canvas, rng, half, walk)
    _hood(canvas, rng)
    return _photograph(canvas, rng, noise)


# Painting -------------------------------------------------------------------------------------------------------------


def _blotches(rng: np.random.Generator, size: tuple[int, int], cells: int) -> np.ndarray:
    """Smooth noise float32 [h, w] of about -1..1 with that many cells over the picture's width."""
    small = rng.uniform(-1, 1, (max(2, round(cells * size[0] / size[1])), cells)).astype(np.float32)
    return np.asarray(Image.fromarray(small).resize(size[::-1], Image.Resampling.BICUBIC))


def _color(rng: np.random.Generator, low: float = 0.15, high: float = 0.8, saturation: float = 0.3) -> Color:
    """Any hue: a random grey, each channel up to `saturation` away from it."""
    return np.clip(rng.uniform(low, high) + saturation * rng.uniform(-0.5, 0.5, 3), 0.02, 0.98)


def _fill(
    canvas: Canvas,
    shape: list[Point],
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


def _shade(canvas: Canvas, shape: list[Point], factor: float) -> None:
    """Darkens a polygon of the image; what is there stays what it is."""
    height, width = canvas.label.shape
    stencil = Image.new('1', (width, height))
    ImageDraw.Draw(stencil).polygon([(x * width, y * height) for x, y in shape], fill=1)
    canvas.image[np.asarray(stencil)] *= factor


def _strip(canvas: Canvas, x1: float, x2: float, s1: float = 0.0, s2: float = 1.3) -> list[Point]:
    """The strip of ground between two lateral places, as a polygon along the bend."""
    scales = np.linspace(s1, s2, 16)
    return [canvas.at(x1, s) for s in scales] + [canvas.at(x2, s) for s in scales[::-1]]


def _upright(canvas: Canvas, x1: float, x2: float, s: float, bottom: float, top: float) -> list[Point]:
    """A rectangle that faces the camera."""
    (left, low), (right, high) = canvas.at(x1, s, bottom), canvas.at(x2, s, top)
    return [(left, low), (right, low), (right, high), (left, high)]


def _facade(canvas: Canvas, x: float, s1: float, s2: float, bottom: float, top: float) -> list[Point]:
    """A rectangle along the street, from scale s1 to s2."""
    return [canvas.at(x, s1, bottom), canvas.at(x, s2, bottom), canvas.at(x, s2, top), canvas.at(x, s1, top)]


def _number(canvas: Canvas, label: int) -> int:
    """The next instance number of a class."""
    canvas.counts[label] = canvas.counts.get(label, -1) + 1
    return canvas.counts[label]


# What there is in a street, from far to near --------------------------------------------------------------------------


def _sky(canvas: Canvas, rng: np.random.Generator) -> None:
    top, bottom = _color(rng, 0.45, 0.9, 0.25) + np.array([-0.08, 0, 0.12]), _color(rng, 0.6, 0.95, 0.2)
    down = np.linspace(0, 1, canvas.label.shape[0], dtype=np.float32)[:, None, None]
    clouds = rng.uniform(0, 0.12) * canvas.blotches[..., None]
    canvas.image[:] = top * (1 - down) + bottom * down + clouds


def _ground(canvas: Canvas, rng: np.random.Generator, half: float, walk: float) -> None:
    """Ground to both sides, sidewalks with slabs, the road with lane marks, patches on it."""
    everywhere = [(0, canvas.horizon), (1, canvas.horizon), (1, 1.3), (0, 1.3)]
    _fill(canvas, everywhere, TERRAIN, _color(rng, 0.25, 0.6, 0.35), rough=0.15, blotches=0.12)
    if rng.random() < 0.3:
        _fill(canvas, everywhere, GROUND, _color(rng), rough=0.05)
    for side in (-1, 1):
        if rng.random() < 0.85:
            color, edge = _color(rng, 0.3, 0.75, 0.15), half + walk
            _fill(canvas, _strip(canvas, side * half, side * edge), SIDEWALK, color)
            for s in 1.25 / 1.16 ** np.arange(28):  # slabs
                _fill(canvas, _strip(canvas, side * half, side * edge, s, s * 1.015), SIDEWALK, color * 0.75)
            _fill(canvas, _strip(canvas, side * half, side * (half + 0.02)), SIDEWALK, color * 1.15)  # kerb
    color = _color(rng, 0.2, 0.6, 0.12)
    _fill(canvas, _strip(canvas, -half, half), ROAD, color, rough=0.05, blotches=0.02)
    paint = np.full(3, rng.uniform(0.65, 0.95))
    lanes = rng.integers(1, 4)
    for x in np.linspace(-half, half, lanes + 1)[1:-1]:
        for s in 1.2 / 1.5 ** np.arange(8):
            _fill(canvas, _strip(canvas, x - 0.012, x + 0.012, s, s * 1.2), ROAD, paint)
    if rng.random() < 0.25:  # a crossing
        s = rng.uniform(0.3, 0.8)
        for x in np.arange(-half, half, 0.14):
            _fill(canvas, _strip(canvas, x, x + 0.07, s, s * 1.2), ROAD, paint)
    if rng.random() < 0.12:
        for x in (-0.12, 0.12):
            _fill(canvas, _strip(canvas, x - 0.05, x + 0.05), RAIL_TRACK, color * 0.9, rough=0.05)
            _fill(canvas, _strip(canvas, x - 0.01, x + 0.01), RAIL_TRACK, color * 0.4)
    if rng.random() < 0.2:
        x, side = half * rng.uniform(0.55, 0.8), rng.choice([-1, 1])
        s = rng.uniform(0.1, 0.5)
        _fill(canvas, _strip(canvas, side * x, side * half, s, 2 * s), PARKING, color * 0.85, rough=0.05)


def _distance(canvas: Canvas, rng: np.random.Generator) -> None:
    """What closes the street at the horizon: trees and houses side by side."""
    x = 0.0
    while x < 1:
        width, height = rng.uniform(0.06, 0.25), rng.uniform(0.02, 0.14)
        box = [(x, canvas.horizon + 0.012), (x + width, canvas.horizon + 0.012)]
        box += [(x + width, canvas.horizon - height), (x, canvas.horizon - height)]
        if rng.random() < 0.5:
            _fill(canvas, box, BUILDING, _color(rng, 0.3, 0.75, 0.2))
        else:
            _fill(canvas, box, VEGETATION, _color(rng, 0.15, 0.45, 0.3), rough=0.1, blotches=0.1)
        x += width


def _tunnel(canvas: Canvas, rng: np.random.Generator, half: float) -> None:
    s = rng.uniform(0.12, 0.3)
    _fill(canvas, _upright(canvas, -half * 1.6, half * 1.6, s, 0.0, 0.75), TUNNEL, _color(rng, 0.3, 0.7, 0.1))
    _fill(canvas, _upright(canvas, -half, half, s, 0.0, 0.5), TUNNEL, np.full(3, 0.06))


def _bridge(canvas: Canvas, rng: np.random.Generator, s: float) -> None:
    low = rng.uniform(0.55, 0.8)
    _fill(canvas, _upright(canvas, -9, 9, s, low, low + 0.2), BRIDGE, _color(rng, 0.25, 0.75, 0.2), blotches=0.03)


def _roadsides(canvas: Canvas, rng: np.random.Generator, edge: float) -> None:
    """Rows of houses, trees, hedges and fences along both sides, farthest first."""
    things = []
    for side in (-1, 1):
        s = 0.03
        built_up = rng.uniform(0.15, 0.85)
        while s < 1.6:
            longer = s * rng.uniform(1.15, 1.9)
            things.append((s, longer, side, rng.random() < built_up))
            s = longer * (1 if rng.random() < 0.7 else rng.uniform(1.05, 1.3))
    for s, longer, side, house in sorted(things):
        x = side * (edge + rng.uniform(0.0, 0.5))
        if house:
            _building(canvas, rng, x, s, longer)
        elif rng.random() < 0.65:
            _tree(canvas, rng, x, (s + longer) / 2)
        else:
            _hedge(canvas, rng, x, s, longer)
        if s > 0.08 and rng.random() < 0.4:
            _fence(canvas, rng, side * edge, s, longer)


def _building(canvas: Canvas, rng: np.random.Generator, x: float, s1: float, s2: float) -> None:
    height, color = rng.uniform(0.5, 1.8), _color(rng, 0.2, 0.85, 0.35)
    side, lit = np.sign(x), 1.1 if np.sign(x) != canvas.light else 0.75
    front = _upright(canvas, x, x + side * 3, s2, 0, height)  # the gable towards the camera
    _fill(canvas, _facade(canvas, x, s1, s2, 0, height), BUILDING, color * lit, blotches=0.03)
    window = _color(rng, 0.05, 0.5, 0.2) if rng.random() < 0.7 else _color(rng, 0.6, 0.95, 0.2)
    floors, columns = rng.integers(3, 7), rng.integers(3, 7)
    scales = s1 * (s2 / s1) ** np.linspace(0.04, 0.96, 2 * columns)
    levels = height * np.linspace(0.08, 0.94, 2 * floors)
    for low, high in zip(levels[::2], levels[1::2], strict=True):
        for near, far in zip(scales[1::2], scales[::2], strict=True):
            _fill(canvas, _facade(canvas, x, far, near, low, high), BUILDING, window)
    if rng.random() < 0.4:
        _fill(canvas, front, BUILDING, color * (1.8 - lit), blotches=0.03)
        for low, high in zip(levels[::2], levels[1::2], strict=True):
            for place in np.arange(0.15, 2.8, 0.3):
                box = _upright(canvas, x + side * place, x + side * (place + 0.15), s2, low, high)
                _fill(canvas, box, BUILDING, window)


def _foliage(canvas: Canvas, rng: np.random.Generator, x: float, s: float, y: float, spread: Point, count: int) -> None:
    """A cloud of leaves around a height `y`: light blobs over dark ones, ragged at the edge."""
    color = _color(rng, 0.15, 0.5, 0.2) + np.array([-0.04, 0.06, -0.06])
    for shade in np.linspace(0.6, 1.25, count):
        dx, dy, r = *rng.normal(0, spread), rng.uniform(0.06, 0.16)
        (left, low), (right, high) = canvas.at(x + dx - r, s, y + dy - r), canvas.at(x + dx + r, s, y + dy + r)
        blob = [(left, high), (right, low)]
        _fill(canvas, blob, VEGETATION, color * shade, rough=0.13, blotches=0.12, ellipse=True)


def _tree(canvas: Canvas, rng: np.random.Generator, x: float, s: float) -> None:
    height = rng.uniform(0.3, 0.8)
    trunk = rng.uniform(0.015, 0.04)
    _fill(canvas, _upright(canvas, x - trunk, x + trunk, s, 0, height), VEGETATION, _color(rng, 0.1, 0.4, 0.15))
    _foliage(canvas, rng, x, s, height + 0.1, (0.12, 0.16), 14)


def _hedge(canvas: Canvas, rng: np.random.Generator, x: float, s1: float, s2: float) -> None:
    for s in np.linspace(s1, s2, 5):
        _foliage(canvas, rng, x, s, rng.uniform(0.06, 0.15), (0.1, 0.05), 5)


def _fence(canvas: Canvas, rng: np.random.Generator, x: float, s1: float, s2: float) -> None:
    """Bars along the street; what shows between them belongs to the fence, as in Cityscapes."""
    color, height = _color(rng, 0.15, 0.85, 0.3), rng.uniform(0.24, 0.42)
    _fill(canvas, _facade(canvas, x, s1, s2, 0, height), FENCE, _color(rng, 0.2, 0.6, 0.3), rough=0.05)
    bars = s1 * (s2 / s1) ** np.linspace(0, 1, rng.integers(8, 16) * 2)
    for near, far in zip(bars[1::2], bars[::2], strict=True):
        _fill(canvas, _facade(canvas, x, far, near, 0, height), FENCE, color)


def _standing(canvas: Canvas, rng: np.random.Generator, half: float, walk: float) -> None:
    """Everything that stands or moves in the street, farthest first."""
    things = []
    for draw_one, count, low, high in (
        (_car, 4, 0.08, 0.9),
        (_person, 4, 0.25, 0.95),
        (_pole, 4, 0.22, 0.95),
        (_clutter, 1, 0.15, 0.8),
        (_guard_rail, 0.12, 0.15, 0.5),
        (_dynamic, 0.12, 0.2, 0.8),
        (_towed, 0.16, 0.12, 0.6),
    ):
        things += [(rng.uniform(low, high), draw_one) for _ in range(rng.poisson(count))]
    for s, draw_one in sorted(things, key=lambda thing: thing[0]):
        draw_one(canvas, rng, s, half, walk)


def _on_road(rng: np.random.Generator, half: float) -> float:
    return rng.uniform(-half, half) * 0.85


def _on_walk(rng: np.random.Generator, half: float, walk: float) -> float:
    return rng.choice([-1, 1]) * (half + walk * rng.uniform(0.05, 0.95))


def _shadow(canvas: Canvas, x1: float, x2: float, s: float) -> None:
    """On the ground, below and beside a thing, away from the light."""
    lean, nearer = 0.15 * canvas.light, s * 1.07
    shape = [canvas.at(x1, s), canvas.at(x2, s), canvas.at(x2 - lean, nearer), canvas.at(x1 - lean, nearer)]
    _shade(canvas, shape, 0.6)


def _car(canvas: Canvas, rng: np.random.Generator, s: float, half: float, walk: float) -> None:
    x, wide, height = _on_road(rng, half), rng.uniform(0.15, 0.2), rng.uniform(0.2, 0.27)
    color, number = _color(rng, 0.05, 0.9, 0.5), _number(canvas, CAR)
    glass, dark = _color(rng, 0.05, 0.3, 0.1), np.full(3, 0.05)
    _shadow(canvas, x - wide, x + wide, s)

    def part(x1, x2, low, high, paint):
        shape = _upright(canvas, x + x1 * wide, x + x2 * wide, s, low * height, high * height)
        _fill(canvas, shape, CAR, paint, number=number)

    for side in (-0.95, 0.65):  # wheels
        part(side, side + 0.3, 0, 0.25, dark)
    flank = s / rng.uniform(1.1, 1.5)  # the far end of the car, seen past the near one
    shape = _facade(canvas, x - np.sign(x) * wide, flank, s, 0.1 * height, 0.9 * height)
    _fill(canvas, shape, CAR, color * 0.75, number=number)
    part(-1, 1, 0.12, 0.6, color)
    (left, low), (right, high) = canvas.at(x - wide * 0.9, s, 0.58 * height), canvas.at(x + wide * 0.9, s, height)
    inner = 0.12 * (right - left)
    cabin = [(left, low), (right, low), (right - inner, high), (left + inner, high)]
    _fill(canvas, cabin, CAR, color * 1.1, number=number)
    part(-0.68, 0.68, 0.64, 0.92, glass)
    lamp = np.array([0.8, 0.1, 0.08]) if rng.random() < 0.6 else np.full(3, 0.95)
    for side in (-0.95, 0.7):
        part(side, side + 0.25, 0.4, 0.52, lamp)
    part(-0.3, 0.3, 0.25, 0.36, np.full(3, 0.85))  # number plate


def _person(canvas: Canvas, rng: np.random.Generator, s: float, half: float, walk: float) -> None:
    x = _on_walk(rng, half, walk) if rng.random() < 0.75 else _on_road(rng, half)
    height, number = rng.uniform(0.34, 0.44), _number(canvas, PERSON)
    coat, legs, skin = _color(rng, 0.05, 0.9, 0.6), _color(rng, 0.05, 0.6, 0.3), _color(rng, 0.3, 0.75, 0.1)
    _shadow(canvas, x - 0.04, x + 0.04, s)

    def part(x1, x2, low, high, paint, ellipse=False):
        shape = _upright(canvas, x + x1 * height, x + x2 * height, s, low * height, high * height)
        _fill(canvas, [shape[3], shape[1]] if ellipse else shape, PERSON, paint, ellipse=ellipse, number=number)

    stride = rng.uniform(0.0, 0.06)
    part(-0.1 - stride, -0.01 - stride, 0, 0.5, legs)
    part(0.01 + stride, 0.1 + stride, 0, 0.5, legs * 0.9)
    part(-0.14, 0.14, 0.45, 0.84, coat)
    part(-0.19, -0.13, 0.42, 0.8, coat * 0.8)
    part(0.13, 0.19, 0.42, 0.8, coat * 0.8)
    part(-0.07, 0.07, 0.83, 1.0, skin, ellipse=True)


def _pole(canvas: Canvas, rng: np.random.Generator, s: float, half: float, walk: float) -> None:
    """A pole with nothing, a sign or a lamp on it; now and then several in one."""
    x, height, thick = _on_walk(rng, half, 0.3 * walk), rng.uniform(0.5, 1.1), rng.uniform(0.016, 0.03)
    color = _color(rng, 0.15, 0.8, 0.1)
    if rng.random() < 0.08:
        for place in (-0.04, 0, 0.04):
            _fill(canvas, _upright(canvas, x + place - thick, x + place + thick, s, 0, height), POLEGROUP, color)
        return
    kind = rng.random()
    _fill(canvas, _upright(canvas, x - thick, x + thick, s, 0, height), POLE, color)
    _fill(canvas, _upright(canvas, x - thick, x - thick * 0.2, s, 0, height), POLE, color * 1.3)
    if kind < 0.65:
        _sign(canvas, rng, x, s, height)
    else:  # an arm with a lamp over the road
        reach = -np.sign(x) * 0.25
        _fill(canvas, _upright(canvas, *sorted((x, x + reach)), s, height - 0.02, height + 0.01), POLE, color)


def _sign(canvas: Canvas, rng: np.random.Generator, x: float, s: float, y: float) -> None:
    r, rim = rng.uniform(0.08, 0.12), rng.choice([0.1, 0.9])
    face = _color(rng, 0.3, 0.9, 0.9)
    border = np.array([0.85, 0.1, 0.1]) if rng.random() < 0.5 else np.full(3, rim)
    shape = rng.integers(3)  # round, square or triangle
    for size, color in ((1.0, border), (0.72, face)):
        box = _upright(canvas, x - r * size, x + r * size, s, y - 2 * r * size * 0.9, y + 2 * r * size * 0.9)
        if shape == 0:
            _fill(canvas, [box[3], box[1]], SIGN, color, ellipse=True)
        elif shape == 1:
            _fill(canvas, box, SIGN, color)
        else:
            _fill(canvas, [box[0], box[1], ((box[2][0] + box[3][0]) / 2, box[2][1])], SIGN, color)


def _clutter(canvas: Canvas, rng: np.random.Generator, s: float, half: float, walk: float) -> None:
    """Bins and benches: 'static' in Cityscapes, not scored."""
    x, wide = _on_walk(rng, half, walk), rng.uniform(0.04, 0.15)
    _fill(canvas, _upright(canvas, x - wide, x + wide, s, 0, rng.uniform(0.08, 0.2)), STATIC, _color(rng))


def _guard_rail(canvas: Canvas, rng: np.random.Generator, s: float, half: float, walk: float) -> None:
    x = rng.choice([-1, 1]) * half
    _fill(canvas, _facade(canvas, x, s, 2.2 * s, 0.05, 0.14), GUARD_RAIL, _color(rng, 0.4, 0.8, 0.05))


def _dynamic(canvas: Canvas, rng: np.random.Generator, s: float, half: float, walk: float) -> None:
    """A dog or a cart: 'dynamic' in Cityscapes, not scored."""
    x = _on_walk(rng, half, walk)
    body = _upright(canvas, x - 0.08, x + 0.08, s, 0.03, 0.14)
    _fill(canvas, [body[3], body[1]], DYNAMIC, _color(rng), ellipse=True)


def _towed(canvas: Canvas, rng: np.random.Generator, s: float, half: float, walk: float) -> None:
    """A caravan or a trailer on the road."""
    x = _on_road(rng, half)
    label, height = (CARAVAN, 0.4) if rng.random() < 0.5 else (TRAILER, 0.22)
    number, color = _number(canvas, label), _color(rng, 0.4, 0.95, 0.15)
    _shadow(canvas, x - 0.2, x + 0.2, s)
    _fill(canvas, _upright(canvas, x - 0.2, x + 0.2, s, 0.05, height), label, color, number=number)
    for wheel in (-0.15, 0.1):
        _fill(canvas, _upright(canvas, x + wheel, x + wheel + 0.05, s, 0, 0.07), label, np.full(3, 0.05), number=number)


def _hood(canvas: Canvas, rng: np.random.Generator) -> None:
    """The car that carries the camera, in most scenes."""
    if rng.random() < 0.8:
        top, middle = rng.uniform(0.9, 0.97), rng.uniform(0.4, 0.6)
        _fill(canvas, [(middle - 0.7, top), (middle + 0.7, 1.3)], EGO, _color(rng, 0.05, 0.6, 0.1), ellipse=True)


# The camera -----------------------------------------------------------------------------------------------------------


def _photograph(
    canvas: Canvas, rng: np.random.Generator, noise: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Haze, light, blur and sensor noise on the image; seams and borders on the labels."""
    image, label, instance = canvas.image, canvas.label, canvas.instance
    height, width = label.shape
    _seams(label, instance, noise)
    frame = max(1, round(height / 200))
    for id_, thick in ((OUT_OF_ROI, 2 * frame), (BORDER, frame)):
        for edge in (np.s_[:thick], np.s_[-thick:], np.s_[:, :thick], np.s_[:, -thick:]):
            label[edge] = instance[edge] = id_
            if id_ == BORDER:
                image[edge] = 0
    down = np.abs(np.linspace(0, 1, height, dtype=np.float32) - canvas.horizon)[:, None, None]
    haze = rng.uniform(0, 0.4) * np.exp(-down / 0.12)
    image = image * (1 - haze) + haze * _color(rng, 0.6, 0.9, 0.1)
    tint = rng.uniform(0.6, 1.25) * (1 + 0.12 * rng.uniform(-1, 1, 3))
    image = np.clip(image * tint, 0, 1) ** rng.uniform(0.8, 1.25)
    small = (round(width * 0.75), round(height * 0.75))
    small = Image.fromarray(np.uint8(255 * image)).resize(small, Image.Resampling.BOX)
    image = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), np.float32)
    image += noise.normal(0, rng.uniform(1, 6), image.shape)
    return np.uint8(np.clip(image, 0, 255)), label, instance


def _seams(label: np.ndarray, instance: np.ndarray, rng: np.random.Generator) -> None:
    """Unlabeled pixels here and there along the borders of things, as annotators leave them."""
    edge = np.zeros(label.shape, bool)
    edge[:, 1:] |= label[:, 1:] != label[:, :-1]
    edge[1:] |= label[1:] != label[:-1]
    open_ = edge & (_blotches(rng, label.shape, 16) > 0.35)
    label[open_] = instance[open_] = UNLABELED
