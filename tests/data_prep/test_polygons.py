import json

import numpy as np
import pytest
from PIL import Image

from data_prep import labels, polygons

NAMES = [label.name for label in labels.CITYSCAPES] + ['license plate', 'cargroup', 'persongroup']


def annotation(seed: int) -> dict:
    """Random polygons, overlapping, reaching out of the image, some deleted."""
    rng = np.random.default_rng(seed)
    things = [
        {
            'label': str(rng.choice(NAMES)),
            'deleted': int(rng.random() < 0.2),
            'polygon': rng.integers(-10, 80, (rng.integers(3, 9), 2)).tolist(),
        }
        for _ in range(40)
    ]
    return {'imgHeight': 48, 'imgWidth': 72, 'objects': things}


@pytest.mark.parametrize('seed', range(10))
def test_equal_to_the_official_tool(tmp_path, seed):
    from cityscapesscripts.preparation import json2labelImg

    path = tmp_path / 'x_gtFine_polygons.json'
    path.write_text(json.dumps(annotation(seed)))
    json2labelImg.json2labelImg(str(path), str(tmp_path / 'official.png'))
    official = np.asarray(Image.open(tmp_path / 'official.png'))
    assert (np.asarray(polygons.draw(path.read_bytes(), labels.CITYSCAPES, 0)) == official).all()
    assert len(np.unique(official)) > 5


def test_unknown_label_is_named():
    content = {'imgHeight': 4, 'imgWidth': 4, 'objects': [{'label': 'unicorn', 'polygon': [[0, 0], [1, 1], [0, 2]]}]}
    with pytest.raises(ValueError, match='unicorn'):
        polygons.draw(json.dumps(content).encode(), labels.CITYSCAPES, 0)


@pytest.mark.parametrize(
    'content',
    [
        b'[' * 100_000,
        b'[]',
        b'{"imgHeight": 99999999999999999999, "imgWidth": 4, "objects": []}',
        b'{"imgHeight": 4, "imgWidth": 1e400, "objects": []}',
        b'{"imgHeight": 4, "imgWidth": 4, "objects": [{"label": "road", "polygon": [["x", 0], [1, 1]]}]}',
        b'{"imgHeight": 4, "imgWidth": 4, "objects": [{"label": ["road"], "polygon": null}]}',
        b'\xff\xfe\x00',
    ],
)
def test_whatever_a_file_holds_it_is_drawn_or_named(content):
    with pytest.raises(ValueError):
        polygons.draw(content, labels.CITYSCAPES, 0)
