"""The label table: what each label id of a dataset means, and which ids are trained and scored.

Three numberings meet here. *Label ids* are what the files and the records hold. *Train ids* number the scored classes
0..K-1 and are what a model of K outputs predicts; ids that are not scored have train id 255. *Colours* are for people.
"""

import dataclasses
import json
from typing import Any

import numpy as np
from etils import epath

from launch import entry

IGNORED = 255  # the train id of everything that is neither trained nor scored
FILE = 'labels.json'
ONE_CLASS = (
    'whatever is predicted is right, so that the loss is 0 and mIoU 100 %. Give the background a train id of its own.'
)


@dataclasses.dataclass(frozen=True)
class Label:
    """One class.

    Attributes:
      id: the value in label images and records, 0..254.
      name: unique within its table.
      train_id: 0..K-1, or 255 if neither trained nor scored.
      color: red, green, blue, each 0..255.
      category: the group that category scores are taken over.
      has_instances: whether the class has separate instances (instance files, instance-weighted scores).
    """

    id: int
    name: str
    train_id: int
    color: tuple[int, int, int]
    category: str = ''
    has_instances: bool = False

    @property
    def ignored(self) -> bool:
        return self.train_id == IGNORED


Table = tuple[Label, ...]

# Source: cityscapesScripts, helpers/labels.py. The licence plate (id -1) never occurs in a label image.
CITYSCAPES: Table = (
    Label(0, 'unlabeled', 255, (0, 0, 0), 'void'),
    Label(1, 'ego vehicle', 255, (0, 0, 0), 'void'),
    Label(2, 'rectification border', 255, (0, 0, 0), 'void'),
    Label(3, 'out of roi', 255, (0, 0, 0), 'void'),
    Label(4, 'static', 255, (0, 0, 0), 'void'),
    Label(5, 'dynamic', 255, (111, 74, 0), 'void'),
    Label(6, 'ground', 255, (81, 0, 81), 'void'),
    Label(7, 'road', 0, (128, 64, 128), 'flat'),
    Label(8, 'sidewalk', 1, (244, 35, 232), 'flat'),
    Label(9, 'parking', 255, (250, 170, 160), 'flat'),
    Label(10, 'rail track', 255, (230, 150, 140), 'flat'),
    Label(11, 'building', 2, (70, 70, 70), 'construction'),
    Label(12, 'wall', 3, (102, 102, 156), 'construction'),
    Label(13, 'fence', 4, (190, 153, 153), 'construction'),
    Label(14, 'guard rail', 255, (180, 165, 180), 'construction'),
    Label(15, 'bridge', 255, (150, 100, 100), 'construction'),
    Label(16, 'tunnel', 255, (150, 120, 90), 'construction'),
    Label(17, 'pole', 5, (153, 153, 153), 'object'),
    Label(18, 'polegroup', 255, (153, 153, 153), 'object'),
    Label(19, 'traffic light', 6, (250, 170, 30), 'object'),
    Label(20, 'traffic sign', 7, (220, 220, 0), 'object'),
    Label(21, 'vegetation', 8, (107, 142, 35), 'nature'),
    Label(22, 'terrain', 9, (152, 251, 152), 'nature'),
    Label(23, 'sky', 10, (70, 130, 180), 'sky'),
    Label(24, 'person', 11, (220, 20, 60), 'human', True),
    Label(25, 'rider', 12, (255, 0, 0), 'human', True),
    Label(26, 'car', 13, (0, 0, 142), 'vehicle', True),
    Label(27, 'truck', 14, (0, 0, 70), 'vehicle', True),
    Label(28, 'bus', 15, (0, 60, 100), 'vehicle', True),
    Label(29, 'caravan', 255, (0, 0, 90), 'vehicle', True),
    Label(30, 'trailer', 255, (0, 0, 110), 'vehicle', True),
    Label(31, 'train', 16, (0, 80, 100), 'vehicle', True),
    Label(32, 'motorcycle', 17, (0, 0, 230), 'vehicle', True),
    Label(33, 'bicycle', 18, (119, 11, 32), 'vehicle', True),
)


def classes(table: Table) -> Table:
    """Returns the scored classes in the order of their train ids, which is the order of a model's outputs."""
    return tuple(sorted((label for label in table if not label.ignored), key=lambda label: label.train_id))


def num_ids(table: Table) -> int:
    """Returns one more than the largest label id: the side of a confusion matrix in label ids."""
    return max(label.id for label in table) + 1


def train_id_of_id(table: Table) -> np.ndarray:
    """Returns uint8 [256]: the train id of each label id; 255 for ids that are ignored or not in the table."""
    lookup = np.full(256, IGNORED, np.uint8)
    for label in table:
        lookup[label.id] = label.train_id
    return lookup


def id_of_train_id(table: Table) -> np.ndarray:
    """Returns uint8 [K]: the label id of each train id."""
    return np.array([label.id for label in classes(table)], np.uint8)


def void_ids(table: Table) -> list[int]:
    """Returns the ids that stand for no class: to the builder, the loss and the scorer alike.

    The first is the one for pixels that nothing is known of: `unlabeled`, or the smallest that is ignored. Where a
    table scores all its ids it is 255, as in the files of VOC.
    """
    ignored = sorted(label.id for label in table if label.ignored)
    unlabeled = [label.id for label in table if label.ignored and label.name == 'unlabeled']
    return list(dict.fromkeys([*unlabeled, *ignored])) or [IGNORED]


def known_ids(table: Table) -> set[int]:
    """Returns the ids that labels may hold: those of the table and of void."""
    return {label.id for label in table} | set(void_ids(table))


def colors(table: Table) -> np.ndarray:
    """Returns uint8 [256, 3]: the colour of each label id; black for ids not in the table."""
    palette = np.zeros((256, 3), np.uint8)
    for label in table:
        palette[label.id] = label.color
    return palette


def to_json(table: Table) -> str:
    rows = [dataclasses.asdict(label) | {'ignored': label.ignored} for label in table]
    return '{"labels": [\n' + ',\n'.join(json.dumps(row) for row in rows) + '\n]}\n'


def read(path: epath.PathLike) -> Table:
    """Reads and checks a label table.

    The file is an object with a list `labels`; each has `id`, `name`, `train_id` (255: ignored) and `color`, and may
    have `category` and `has_instances`.

    Raises:
      UserError: MISSING_INPUT if the file is not there, BAD_DATA (naming the entry) if it is not a usable table.
    """
    path = epath.Path(path)
    if not path.exists():
        raise entry.UserError(entry.MISSING_INPUT, f'{path}: no such label table')

    def refuse(problem: str) -> entry.UserError:
        return entry.UserError(entry.BAD_DATA, f'{path}: {problem}')

    try:
        rows = list(json.loads(path.read_bytes().decode('utf-8-sig'))['labels'])
    except (ValueError, KeyError, TypeError) as error:
        raise refuse(f'not a label table: expected {{"labels": [...]}} ({error})') from error
    table = []
    for number, row in enumerate(rows, 1):
        try:
            table.append(_label(row))
        except (ValueError, TypeError) as error:
            raise refuse(f'entry {number} ({json.dumps(row, ensure_ascii=False)}): {error}') from error
    if 0 < max((value for label in table for value in label.color), default=0) <= 1:
        raise refuse('colours go from 0 to 255, and these from 0 to 1: multiply them by 255')
    columns: dict[str, list[Any]] = {'id': [label.id for label in table], 'name': [label.name for label in table]}
    for what, values in columns.items():
        twice = sorted({value for value in values if values.count(value) > 1})
        if twice:
            raise refuse(f'{what} {twice[0]!r} stands more than once')
    trained = [label.train_id for label in classes(tuple(table))]
    if not trained or sorted(trained) != list(range(len(trained))):
        raise refuse(f'the train ids that are not 255 must be 0..K-1, each once; found {trained}')
    return tuple(table)


def _label(row: Any) -> Label:
    """The label of an entry of the file. Raises ValueError or TypeError if it is not as it should be."""
    if not isinstance(row, dict):
        raise ValueError('must be an object with id, name, train_id and color')
    if missing := [name for name in ('id', 'name', 'train_id', 'color') if name not in row]:
        raise ValueError(f'needs id, name, train_id and color; has no {", ".join(missing)}')
    if not isinstance(row['name'], str) or not row['name'].strip() or not row['name'].isprintable():
        raise ValueError('name must be a text of one line')
    if _whole_number(row['id'], 'id') == IGNORED:
        raise ValueError('id is 0..254; leave 255 out: it is void where a table scores all its ids')
    color = tuple(_whole_number(value, 'each of three values of color') for value in row['color'])
    if len(color) != 3:
        raise ValueError('color must be three values 0..255')
    return Label(
        _whole_number(row['id'], 'id'),
        row['name'],
        _whole_number(row['train_id'], 'train_id'),
        color,
        str(row.get('category') or ''),
        bool(row.get('has_instances')),
    )


def _whole_number(value: Any, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value not in range(256):
        raise ValueError(f'{what} must be a whole number 0..255, not {value!r}')
    return int(value)
