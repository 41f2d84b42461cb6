"""Draws label images from the polygons of Cityscapes's JSON files.

Source: cityscapesScripts, preparation/json2labelImg.py, whose label images these are, pixel for pixel.
"""

import json

from PIL import Image, ImageDraw

from data_prep import labels

_NEVER_DRAWN = {'license plate'}  # label id -1


def draw(content: bytes, table: labels.Table, background: int) -> Image.Image:
    """Draws a one-channel image of label ids; later objects cover earlier ones.

    Args:
      content: the JSON file.
      table: gives the ids of the objects' names; '...group' stands for several of '...' unless it has an id itself.
      background: the label id where no object is.

    Raises:
      ValueError: if the file is not such a JSON file, or names a label that the table lacks.
    """
    ids = labels.names_in_files(table)
    try:
        annotation = json.loads(content)
        image = Image.new('L', (annotation['imgWidth'], annotation['imgHeight']), background)
        canvas = ImageDraw.Draw(image)
        for thing in annotation['objects']:
            name = thing['label']
            if thing.get('deleted') or name in _NEVER_DRAWN:
                continue
            if name not in ids:
                name = name.removesuffix('group')
            if name not in ids:
                raise ValueError(f'names an object {thing["label"]!r}, which is not in the label table. Pass --labels.')
            canvas.polygon([tuple(point) for point in thing['polygon']], fill=ids[name])
    except (
        json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError, OverflowError, RecursionError
    ) as error:  # fmt: skip
        raise ValueError(
            f'is not a JSON file of Cityscapes polygons ({error!r}). Copy or download it again.'
        ) from error
    return image
