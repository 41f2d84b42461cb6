"""One synthetic street scene: image, label ids and instance ids, drawn from the same shapes.

    image, label, instance = synthetic_scene.draw((512, 1024), np.random.default_rng([0, 1, 17]))

A camera stands on a straight or bent street. Everything is painted from far to near, with scene_objects.py's things on
scene_canvas.py's canvas.

Colours are drawn from wide ranges that overlap between classes, light, haze and noise vary from scene to scene, and
camera and layout move: what tells a class is shape, texture and context, as in real streets.
"""

import numpy as np
from PIL import Image

from data_prep import scene_objects
from data_prep.scene_canvas import (
    BORDER,
    BRIDGE,
    BUILDING,
    GROUND,
    OUT_OF_ROI,
    PARKING,
    RAIL_TRACK,
    ROAD,
    SIDEWALK,
    SKY,
    TERRAIN,
    TUNNEL,
    UNLABELED,
    VEGETATION,
    Canvas,
    blotches,
    fill,
    random_color,
    strip,
    upright,
)


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
        blotches=blotches(noise, size, 24) + 0.6 * blotches(noise, size, 60),
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
    scene_objects.hood(canvas, rng)
    return _photograph(canvas, rng, noise)


def _sky(canvas: Canvas, rng: np.random.Generator) -> None:
    top, bottom = random_color(rng, 0.45, 0.9, 0.25) + np.array([-0.08, 0, 0.12]), random_color(rng, 0.6, 0.95, 0.2)
    down = np.linspace(0, 1, canvas.label.shape[0], dtype=np.float32)[:, None, None]
    clouds = rng.uniform(0, 0.12) * canvas.blotches[..., None]
    canvas.image[:] = top * (1 - down) + bottom * down + clouds


def _ground(canvas: Canvas, rng: np.random.Generator, half: float, walk: float) -> None:
    """Ground to both sides, sidewalks with slabs, the road with lane marks, patches on it."""
    everywhere = [(0, canvas.horizon), (1, canvas.horizon), (1, 1.3), (0, 1.3)]
    fill(canvas, everywhere, TERRAIN, random_color(rng, 0.25, 0.6, 0.35), rough=0.15, blotches=0.12)
    if rng.random() < 0.3:
        fill(canvas, everywhere, GROUND, random_color(rng), rough=0.05)
    for side in (-1, 1):
        if rng.random() < 0.85:
            color, edge = random_color(rng, 0.3, 0.75, 0.15), half + walk
            fill(canvas, strip(canvas, side * half, side * edge), SIDEWALK, color)
            for s in 1.25 / 1.16 ** np.arange(28):  # slabs
                fill(canvas, strip(canvas, side * half, side * edge, s, s * 1.015), SIDEWALK, color * 0.75)
            fill(canvas, strip(canvas, side * half, side * (half + 0.02)), SIDEWALK, color * 1.15)  # kerb
    color = random_color(rng, 0.2, 0.6, 0.12)
    fill(canvas, strip(canvas, -half, half), ROAD, color, rough=0.05, blotches=0.02)
    paint = np.full(3, rng.uniform(0.65, 0.95))
    lanes = rng.integers(1, 4)
    for x in np.linspace(-half, half, lanes + 1)[1:-1]:
        for s in 1.2 / 1.5 ** np.arange(8):
            fill(canvas, strip(canvas, x - 0.012, x + 0.012, s, s * 1.2), ROAD, paint)
    if rng.random() < 0.25:  # a crossing
        s = rng.uniform(0.3, 0.8)
        for x in np.arange(-half, half, 0.14):
            fill(canvas, strip(canvas, x, x + 0.07, s, s * 1.2), ROAD, paint)
    if rng.random() < 0.12:
        for x in (-0.12, 0.12):
            fill(canvas, strip(canvas, x - 0.05, x + 0.05), RAIL_TRACK, color * 0.9, rough=0.05)
            fill(canvas, strip(canvas, x - 0.01, x + 0.01), RAIL_TRACK, color * 0.4)
    if rng.random() < 0.2:
        x, side = half * rng.uniform(0.55, 0.8), rng.choice([-1, 1])
        s = rng.uniform(0.1, 0.5)
        fill(canvas, strip(canvas, side * x, side * half, s, 2 * s), PARKING, color * 0.85, rough=0.05)


def _distance(canvas: Canvas, rng: np.random.Generator) -> None:
    """What closes the street at the horizon: trees and houses side by side."""
    x = 0.0
    while x < 1:
        width, height = rng.uniform(0.06, 0.25), rng.uniform(0.02, 0.14)
        box = [(x, canvas.horizon + 0.012), (x + width, canvas.horizon + 0.012)]
        box += [(x + width, canvas.horizon - height), (x, canvas.horizon - height)]
        if rng.random() < 0.5:
            fill(canvas, box, BUILDING, random_color(rng, 0.3, 0.75, 0.2))
        else:
            fill(canvas, box, VEGETATION, random_color(rng, 0.15, 0.45, 0.3), rough=0.1, blotches=0.1)
        x += width


def _tunnel(canvas: Canvas, rng: np.random.Generator, half: float) -> None:
    s = rng.uniform(0.12, 0.3)
    fill(canvas, upright(canvas, -half * 1.6, half * 1.6, s, 0.0, 0.75), TUNNEL, random_color(rng, 0.3, 0.7, 0.1))
    fill(canvas, upright(canvas, -half, half, s, 0.0, 0.5), TUNNEL, np.full(3, 0.06))


def _bridge(canvas: Canvas, rng: np.random.Generator, s: float) -> None:
    low = rng.uniform(0.55, 0.8)
    fill(canvas, upright(canvas, -9, 9, s, low, low + 0.2), BRIDGE, random_color(rng, 0.25, 0.75, 0.2), blotches=0.03)


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
            scene_objects.building(canvas, rng, x, s, longer)
        elif rng.random() < 0.65:
            scene_objects.tree(canvas, rng, x, (s + longer) / 2)
        else:
            scene_objects.hedge(canvas, rng, x, s, longer)
        if s > 0.08 and rng.random() < 0.4:
            scene_objects.fence(canvas, rng, side * edge, s, longer)


def _standing(canvas: Canvas, rng: np.random.Generator, half: float, walk: float) -> None:
    """Everything that stands or moves in the street, farthest first."""
    things = []
    for draw_one, count, low, high in (
        (scene_objects.car, 4, 0.08, 0.9),
        (scene_objects.person, 4, 0.25, 0.95),
        (scene_objects.pole, 4, 0.22, 0.95),
        (scene_objects.clutter, 1, 0.15, 0.8),
        (scene_objects.guard_rail, 0.12, 0.15, 0.5),
        (scene_objects.moving_thing, 0.12, 0.2, 0.8),
        (scene_objects.towed, 0.16, 0.12, 0.6),
    ):
        things += [(rng.uniform(low, high), draw_one) for _ in range(rng.poisson(count))]
    for s, draw_one in sorted(things, key=lambda thing: thing[0]):
        draw_one(canvas, rng, s, half, walk)


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
    image = image * (1 - haze) + haze * random_color(rng, 0.6, 0.9, 0.1)
    tint = rng.uniform(0.6, 1.25) * (1 + 0.12 * rng.uniform(-1, 1, 3))
    image = np.clip(image * tint, 0, 1) ** rng.uniform(0.8, 1.25)
    size = (round(width * 0.75), round(height * 0.75))
    small = Image.fromarray((255 * image).astype(np.uint8)).resize(size, Image.Resampling.BOX)
    image = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), np.float32)
    image += noise.normal(0, rng.uniform(1, 6), image.shape)
    return np.clip(image, 0, 255).astype(np.uint8), label, instance


def _seams(label: np.ndarray, instance: np.ndarray, rng: np.random.Generator) -> None:
    """Unlabeled pixels here and there along the borders of things, as annotators leave them."""
    edge = np.zeros(label.shape, bool)
    edge[:, 1:] |= label[:, 1:] != label[:, :-1]
    edge[1:] |= label[1:] != label[:-1]
    open_ = edge & (blotches(rng, label.shape, 16) > 0.35)
    label[open_] = instance[open_] = UNLABELED
