"""The label table: what each label id of a dataset means, and which ids are trained and scored.

    table = labels.find('camvid11')  # one that comes with the project, or a file: labels.find('classes.json')

Three numberings meet here. *Label ids* are what the records hold, and the files where the table does not say otherwise.
*Train ids* number the scored classes 0..K-1 and are what a model of K outputs predicts; ids that are not scored have
train id 255. *Colours* are for people, and for files that hold colours instead of ids.
"""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
from etils import epath

from launch import entry

IGNORED = 255  # the train id of everything that is neither trained nor scored
FILE = 'labels.json'
SHIPPED = pathlib.Path(__file__).parent / 'label_tables'  # a file for each table, which names its source
ONE_CLASS = (
    'whatever is predicted is right, so that the loss is 0 and mIoU 100 %. Give the background a train id of its own.'
)


Color = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Mask:
    """What a dataset's own files hold for a class, as far as it is given.

    Attributes:
      id: 0..255, in files of ids.
      name: of objects in files of polygons.
      color: in files of colours.
    """

    id: int | None = None
    name: str | None = None
    color: Color | None = None


@dataclasses.dataclass(frozen=True)
class Label:
    """One class.

    Attributes:
      id: the value in records, 0..254.
      name: unique within its table.
      train_id: 0..K-1, or 255 if neither trained nor scored.
      color: red, green, blue, each 0..255.
      category: the group that category scores are taken over.
      has_instances: whether the class has separate instances (instance files, instance-weighted scores).
      masks: what files hold for it instead of its own id, name and color, which stand where none is given; (): no file
        holds it.
    """

    id: int
    name: str
    train_id: int
    color: Color
    category: str = ''
    has_instances: bool = False
    masks: tuple[Mask, ...] | None = None

    @property
    def ignored(self) -> bool:
        return self.train_id == IGNORED

    def in_files(self, field: str) -> list:
        """Returns the values of `field` (id, name or color) that stand for the class in files."""
        if self.masks is None:
            return [getattr(self, field)]
        given = [value for mask in self.masks if (value := getattr(mask, field)) is not None]
        return given or [getattr(self, field)] * bool(self.masks)


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


def difference(one: Table, other: Table) -> str:
    """Says which id first means something else in another table, by name or train id; '' if none does."""
    first, second = ({label.id: label for label in table} for table in (one, other))

    def meaning(label: Label | None) -> str:
        return f'{label.name!r} (train id {label.train_id})' if label else 'nothing'

    for id_ in sorted(first.keys() | second.keys()):
        meanings = [meaning(table.get(id_)) for table in (first, second)]
        if meanings[0] != meanings[1]:
            return f'id {id_} is {meanings[0]}, not {meanings[1]}'
    return ''


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


def ids_in_files(table: Table) -> dict[int, int]:
    """Returns the label id of each value that files of ids may hold."""
    found = {value: label.id for label in table for value in label.in_files('id')}
    return found if void_ids(table) != [IGNORED] else {IGNORED: IGNORED} | found


def names_in_files(table: Table) -> dict[str, int]:
    """Returns the label id of each name that objects of polygon files may have."""
    return {name: label.id for label in table for name in label.in_files('name')}


def color_text(color: Color) -> str:
    """Returns a colour as it is shown to people, e.g. '128 64 128'."""
    return ' '.join(map(str, color))


def colors(table: Table) -> np.ndarray:
    """Returns uint8 [256, 3]: the colour of each label id; black for ids not in the table."""
    palette = np.zeros((256, 3), np.uint8)
    for label in table:
        palette[label.id] = label.color
    return palette


def to_json(table: Table) -> str:
    """Returns the file of a label table, which `read` reads."""
    rows = []
    for label in table:
        row = dataclasses.asdict(label) | {'ignored': label.ignored}
        masks = row.pop('masks')
        if masks is not None:
            row['masks'] = [{name: value for name, value in mask.items() if value is not None} for mask in masks]
        rows.append(json.dumps(row))
    return '{"labels": [\n' + ',\n'.join(rows) + '\n]}\n'


def shipped() -> list[str]:
    """Returns the names of the label tables that come with the project."""
    return sorted(['cityscapes', 'kitti', *(path.stem for path in SHIPPED.glob('*.json'))])


def find(name: str) -> Table:
    """Returns a label table.

    Args:
      name: that of a table that comes with the project, or the path of a file, see `read`.

    Raises:
      UserError: MISSING_INPUT if there is none, BAD_DATA if the file is not a usable table.
    """
    if name in ('cityscapes', 'kitti'):  # http://www.cvlibs.net/datasets/kitti/eval_semseg.php: as in Cityscapes
        return CITYSCAPES
    if name in shipped():
        return read(SHIPPED / f'{name}.json')
    if not epath.Path(name).exists():
        raise entry.UserError(
            entry.MISSING_INPUT,
            f'--labels={name}: no such label table. Pass a file, or one of {", ".join(shipped())}.',
        )
    return read(name)


def read(path: epath.PathLike) -> Table:
    """Reads and checks a label table.

    The file is an object with a list `labels`; each has `id`, `name`, `train_id` (255: ignored) and `color`, and may
    have `category`, `has_instances` and `masks`: a list of objects that have some of `id`, `name` and `color`.

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
    columns: dict[str, list[Any]] = {
        'id': [label.id for label in table],
        'name': [label.name for label in table],
        'id in masks': [value for label in table for value in set(label.in_files('id'))],
        'name in masks': [value for label in table for value in set(label.in_files('name'))],
    }
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
    masks = row.get('masks')
    return Label(
        _whole_number(row['id'], 'id'),
        row['name'],
        _whole_number(row['train_id'], 'train_id'),
        _color(row['color']),
        str(row.get('category') or ''),
        bool(row.get('has_instances')),
        None if masks is None else tuple(map(_mask, masks)),
    )


def _mask(row: Any) -> Mask:
    if not isinstance(row, dict) or not row or row.keys() - {'id', 'name', 'color'}:
        raise ValueError(f'each of masks must be an object with some of id, name and color, not {json.dumps(row)}')
    return Mask(
        _whole_number(row['id'], 'id of masks') if 'id' in row else None,
        str(row['name']) if 'name' in row else None,
        _color(row['color']) if 'color' in row else None,
    )


def _color(values: Any) -> Color:
    color = tuple(_whole_number(value, 'each of three values of color') for value in values)
    if len(color) != 3:
        raise ValueError('color must be three values 0..255')
    return color


def _whole_number(value: Any, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value not in range(256):
        raise ValueError(f'{what} must be a whole number 0..255, not {value!r}')
    return int(value)
