"""The things of a synthetic scene, each painted as it looks and labelled as what it is.

Along the street: building, tree, hedge, fence. In it, at scale `s`: car, person, pole, clutter, guard_rail,
moving_thing, towed. `half` is the width of half the road, `walk` that of a sidewalk, in the measure of `x`.
"""

import numpy as np

from data_prep.scene_canvas import (
    BUILDING,
    CAR,
    CARAVAN,
    DYNAMIC,
    EGO,
    FENCE,
    GUARD_RAIL,
    PERSON,
    POLE,
    POLEGROUP,
    SIGN,
    STATIC,
    TRAILER,
    VEGETATION,
    Canvas,
    Point,
    darken,
    facade,
    fill,
    next_number,
    random_color,
    upright,
)


def building(canvas: Canvas, rng: np.random.Generator, x: float, s1: float, s2: float) -> None:
    """Paints a facade along the street with rows of windows, from scale s1 to s2, and at times its gable."""
    height, color = rng.uniform(0.5, 1.8), random_color(rng, 0.2, 0.85, 0.35)
    side, lit = np.sign(x), 1.1 if np.sign(x) != canvas.light else 0.75
    front = upright(canvas, x, x + side * 3, s2, 0, height)  # the gable towards the camera
    fill(canvas, facade(canvas, x, s1, s2, 0, height), BUILDING, color * lit, blotches=0.03)
    window = random_color(rng, 0.05, 0.5, 0.2) if rng.random() < 0.7 else random_color(rng, 0.6, 0.95, 0.2)
    floors, columns = rng.integers(3, 7), rng.integers(3, 7)
    scales = s1 * (s2 / s1) ** np.linspace(0.04, 0.96, 2 * columns)
    levels = height * np.linspace(0.08, 0.94, 2 * floors)
    for low, high in zip(levels[::2], levels[1::2], strict=True):
        for near, far in zip(scales[1::2], scales[::2], strict=True):
            fill(canvas, facade(canvas, x, far, near, low, high), BUILDING, window)
    if rng.random() < 0.4:
        fill(canvas, front, BUILDING, color * (1.8 - lit), blotches=0.03)
        for low, high in zip(levels[::2], levels[1::2], strict=True):
            for place in np.arange(0.15, 2.8, 0.3):
                box = upright(canvas, x + side * place, x + side * (place + 0.15), s2, low, high)
                fill(canvas, box, BUILDING, window)


def _foliage(canvas: Canvas, rng: np.random.Generator, x: float, s: float, y: float, spread: Point, count: int) -> None:
    """A cloud of leaves around a height `y`: light blobs over dark ones, ragged at the edge."""
    color = random_color(rng, 0.15, 0.5, 0.2) + np.array([-0.04, 0.06, -0.06])
    for shade in np.linspace(0.6, 1.25, count):
        dx, dy, r = *rng.normal(0, spread), rng.uniform(0.06, 0.16)
        (left, low), (right, high) = canvas.at(x + dx - r, s, y + dy - r), canvas.at(x + dx + r, s, y + dy + r)
        blob = [(left, high), (right, low)]
        fill(canvas, blob, VEGETATION, color * shade, rough=0.13, blotches=0.12, ellipse=True)


def tree(canvas: Canvas, rng: np.random.Generator, x: float, s: float) -> None:
    """Paints a trunk under a cloud of leaves."""
    height = rng.uniform(0.3, 0.8)
    trunk = rng.uniform(0.015, 0.04)
    fill(canvas, upright(canvas, x - trunk, x + trunk, s, 0, height), VEGETATION, random_color(rng, 0.1, 0.4, 0.15))
    _foliage(canvas, rng, x, s, height + 0.1, (0.12, 0.16), 14)


def hedge(canvas: Canvas, rng: np.random.Generator, x: float, s1: float, s2: float) -> None:
    """Paints low foliage along the street, from scale s1 to s2."""
    for s in np.linspace(s1, s2, 5):
        _foliage(canvas, rng, x, s, rng.uniform(0.06, 0.15), (0.1, 0.05), 5)


def fence(canvas: Canvas, rng: np.random.Generator, x: float, s1: float, s2: float) -> None:
    """Paints bars along the street; what shows between them belongs to the fence, as in Cityscapes."""
    color, height = random_color(rng, 0.15, 0.85, 0.3), rng.uniform(0.24, 0.42)
    fill(canvas, facade(canvas, x, s1, s2, 0, height), FENCE, random_color(rng, 0.2, 0.6, 0.3), rough=0.05)
    bars = s1 * (s2 / s1) ** np.linspace(0, 1, rng.integers(8, 16) * 2)
    for near, far in zip(bars[1::2], bars[::2], strict=True):
        fill(canvas, facade(canvas, x, far, near, 0, height), FENCE, color)


def _on_road(rng: np.random.Generator, half: float) -> float:
    return rng.uniform(-half, half) * 0.85


def _on_walk(rng: np.random.Generator, half: float, walk: float) -> float:
    return rng.choice([-1, 1]) * (half + walk * rng.uniform(0.05, 0.95))


def _shadow(canvas: Canvas, x1: float, x2: float, s: float) -> None:
    """On the ground, below and beside a thing, away from the light."""
    lean, nearer = 0.15 * canvas.light, s * 1.07
    shape = [canvas.at(x1, s), canvas.at(x2, s), canvas.at(x2 - lean, nearer), canvas.at(x1 - lean, nearer)]
    darken(canvas, shape, 0.6)


def car(canvas: Canvas, rng: np.random.Generator, s: float, half: float, walk: float) -> None:
    """Paints a car seen from ahead or behind, with its flank; an instance."""
    x, wide, height = _on_road(rng, half), rng.uniform(0.15, 0.2), rng.uniform(0.2, 0.27)
    color, number = random_color(rng, 0.05, 0.9, 0.5), next_number(canvas, CAR)
    glass, dark = random_color(rng, 0.05, 0.3, 0.1), np.full(3, 0.05)
    _shadow(canvas, x - wide, x + wide, s)

    def part(x1, x2, low, high, paint):
        shape = upright(canvas, x + x1 * wide, x + x2 * wide, s, low * height, high * height)
        fill(canvas, shape, CAR, paint, number=number)

    for side in (-0.95, 0.65):  # wheels
        part(side, side + 0.3, 0, 0.25, dark)
    flank = s / rng.uniform(1.1, 1.5)  # the far end of the car, seen past the near one
    shape = facade(canvas, x - np.sign(x) * wide, flank, s, 0.1 * height, 0.9 * height)
    fill(canvas, shape, CAR, color * 0.75, number=number)
    part(-1, 1, 0.12, 0.6, color)
    (left, low), (right, high) = canvas.at(x - wide * 0.9, s, 0.58 * height), canvas.at(x + wide * 0.9, s, height)
    inner = 0.12 * (right - left)
    cabin = [(left, low), (right, low), (right - inner, high), (left + inner, high)]
    fill(canvas, cabin, CAR, color * 1.1, number=number)
    part(-0.68, 0.68, 0.64, 0.92, glass)
    lamp = np.array([0.8, 0.1, 0.08]) if rng.random() < 0.6 else np.full(3, 0.95)
    for side in (-0.95, 0.7):
        part(side, side + 0.25, 0.4, 0.52, lamp)
    part(-0.3, 0.3, 0.25, 0.36, np.full(3, 0.85))  # number plate


def person(canvas: Canvas, rng: np.random.Generator, s: float, half: float, walk: float) -> None:
    """Paints someone on a sidewalk or on the road; an instance."""
    x = _on_walk(rng, half, walk) if rng.random() < 0.75 else _on_road(rng, half)
    height, number = rng.uniform(0.34, 0.44), next_number(canvas, PERSON)
    coat, legs, skin = (
        random_color(rng, 0.05, 0.9, 0.6),
        random_color(rng, 0.05, 0.6, 0.3),
        random_color(rng, 0.3, 0.75, 0.1),
    )
    _shadow(canvas, x - 0.04, x + 0.04, s)

    def part(x1, x2, low, high, paint, ellipse=False):
        shape = upright(canvas, x + x1 * height, x + x2 * height, s, low * height, high * height)
        fill(canvas, [shape[3], shape[1]] if ellipse else shape, PERSON, paint, ellipse=ellipse, number=number)

    stride = rng.uniform(0.0, 0.06)
    part(-0.1 - stride, -0.01 - stride, 0, 0.5, legs)
    part(0.01 + stride, 0.1 + stride, 0, 0.5, legs * 0.9)
    part(-0.14, 0.14, 0.45, 0.84, coat)
    part(-0.19, -0.13, 0.42, 0.8, coat * 0.8)
    part(0.13, 0.19, 0.42, 0.8, coat * 0.8)
    part(-0.07, 0.07, 0.83, 1.0, skin, ellipse=True)


def pole(canvas: Canvas, rng: np.random.Generator, s: float, half: float, walk: float) -> None:
    """Paints a pole with nothing, a sign or a lamp on it; now and then several in one."""
    x, height, thick = _on_walk(rng, half, 0.3 * walk), rng.uniform(0.5, 1.1), rng.uniform(0.016, 0.03)
    color = random_color(rng, 0.15, 0.8, 0.1)
    if rng.random() < 0.08:
        for place in (-0.04, 0, 0.04):
            fill(canvas, upright(canvas, x + place - thick, x + place + thick, s, 0, height), POLEGROUP, color)
        return
    kind = rng.random()
    fill(canvas, upright(canvas, x - thick, x + thick, s, 0, height), POLE, color)
    fill(canvas, upright(canvas, x - thick, x - thick * 0.2, s, 0, height), POLE, color * 1.3)
    if kind < 0.65:
        _sign(canvas, rng, x, s, height)
    else:  # an arm with a lamp over the road
        end = x - np.sign(x) * 0.25
        fill(canvas, upright(canvas, min(x, end), max(x, end), s, height - 0.02, height + 0.01), POLE, color)


def _sign(canvas: Canvas, rng: np.random.Generator, x: float, s: float, y: float) -> None:
    r, rim = rng.uniform(0.08, 0.12), rng.choice([0.1, 0.9])
    face = random_color(rng, 0.3, 0.9, 0.9)
    border = np.array([0.85, 0.1, 0.1]) if rng.random() < 0.5 else np.full(3, rim)
    shape = rng.integers(3)  # round, square or triangle
    for size, color in ((1.0, border), (0.72, face)):
        box = upright(canvas, x - r * size, x + r * size, s, y - 2 * r * size * 0.9, y + 2 * r * size * 0.9)
        if shape == 0:
            fill(canvas, [box[3], box[1]], SIGN, color, ellipse=True)
        elif shape == 1:
            fill(canvas, box, SIGN, color)
        else:
            fill(canvas, [box[0], box[1], ((box[2][0] + box[3][0]) / 2, box[2][1])], SIGN, color)


def clutter(canvas: Canvas, rng: np.random.Generator, s: float, half: float, walk: float) -> None:
    """Paints bins and benches: 'static' in Cityscapes, not scored."""
    x, wide = _on_walk(rng, half, walk), rng.uniform(0.04, 0.15)
    fill(canvas, upright(canvas, x - wide, x + wide, s, 0, rng.uniform(0.08, 0.2)), STATIC, random_color(rng))


def guard_rail(canvas: Canvas, rng: np.random.Generator, s: float, half: float, walk: float) -> None:
    """Paints a band along the border of the road."""
    x = rng.choice([-1, 1]) * half
    fill(canvas, facade(canvas, x, s, 2.2 * s, 0.05, 0.14), GUARD_RAIL, random_color(rng, 0.4, 0.8, 0.05))


def moving_thing(canvas: Canvas, rng: np.random.Generator, s: float, half: float, walk: float) -> None:
    """Paints a dog or a cart: 'dynamic' in Cityscapes, not scored."""
    x = _on_walk(rng, half, walk)
    body = upright(canvas, x - 0.08, x + 0.08, s, 0.03, 0.14)
    fill(canvas, [body[3], body[1]], DYNAMIC, random_color(rng), ellipse=True)


def towed(canvas: Canvas, rng: np.random.Generator, s: float, half: float, walk: float) -> None:
    """Paints a caravan or a trailer on the road."""
    x = _on_road(rng, half)
    label, height = (CARAVAN, 0.4) if rng.random() < 0.5 else (TRAILER, 0.22)
    number, color = next_number(canvas, label), random_color(rng, 0.4, 0.95, 0.15)
    _shadow(canvas, x - 0.2, x + 0.2, s)
    fill(canvas, upright(canvas, x - 0.2, x + 0.2, s, 0.05, height), label, color, number=number)
    for wheel in (-0.15, 0.1):
        fill(canvas, upright(canvas, x + wheel, x + wheel + 0.05, s, 0, 0.07), label, np.full(3, 0.05), number=number)


def hood(canvas: Canvas, rng: np.random.Generator) -> None:
    """Paints the car that carries the camera, in most scenes."""
    if rng.random() < 0.8:
        top, middle = rng.uniform(0.9, 0.97), rng.uniform(0.4, 0.6)
        fill(canvas, [(middle - 0.7, top), (middle + 0.7, 1.3)], EGO, random_color(rng, 0.05, 0.6, 0.1), ellipse=True)
