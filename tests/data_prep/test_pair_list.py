"""Images and masks in any layout give the same records as in Cityscapes's; mistakes are named by file and row."""

import io
import json
import os
import pathlib
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from data_prep import build, images, labels, pair_list, records, shards, verification
from launch import entry
from tests import tiny, trees

TABLE = tuple(
    labels.Label(label.id, label.name, label.train_id, (label.id, 255 - label.id, 3)) for label in labels.CITYSCAPES
)
STEMS = {'train': ['a_1', 'a_2', 'b_1'], 'val': ['c_1'], 'test': ['d_1']}
ROWS = [
    (f'in/{split}/{stem}.png', '' if split == 'test' else f'gt/{split}/{stem}.png', split)
    for split, stems in STEMS.items()
    for stem in stems
]
CSV = 'image,label,split\n' + ''.join(f'{",".join(row)}\n' for row in ROWS)


def colored(label_ids: np.ndarray, mode: str = 'RGB') -> bytes:
    """A mask in TABLE's colours."""
    content = io.BytesIO()
    mask = Image.fromarray(labels.colors(TABLE)[label_ids])
    (mask.quantize(16) if mode == 'P' else mask.convert(mode)).save(content, 'PNG')
    return content.getvalue()


@pytest.fixture(scope='module')
def sources(tmp_path_factory):
    """`cityscapes`, and the same images with masks of ids in `ids`, of colours in `colors`; each with pairs.csv."""
    root = tmp_path_factory.mktemp('sources')
    trees.write_tree(root / 'cityscapes', STEMS)
    shutil.rmtree(root / 'cityscapes/gtFine/test')
    number = 0
    for kind in ('ids', 'colors'):
        trees.write(root / kind, 'pairs.csv', CSV.encode())
        for split, stems in STEMS.items():
            for stem in stems:
                image = root / f'cityscapes/leftImg8bit/{split}/{stem[0]}/{stem}_leftImg8bit.png'
                trees.write(root / kind, f'in/{split}/{stem}.png', image.read_bytes())
                if split != 'test':
                    label = root / f'cityscapes/gtFine/{split}/{stem[0]}/{stem}_gtFine_labelIds.png'
                    mask = label.read_bytes()
                    number += 1
                    if kind == 'colors':
                        mask = colored(np.asarray(images.decode(mask)), ('RGB', 'RGBA', 'P')[number % 3])
                    trees.write(root / kind, f'gt/{split}/{stem}.png', mask)
    return root


def build_here(layout, data_dir, **changes) -> None:
    values = {'table': TABLE, 'encoding': images.Encoding(), 'skip_bad': False} | changes
    settings = shards.Settings(layout.root, str(data_dir), **values)
    build.build(settings, lambda todo: [shards.write_shard(shard, settings) for shard in todo], layout)


def stored(data_dir: pathlib.Path, split: str) -> dict[str, tuple[bytes, bytes]]:
    """Stem -> image file, pixels of the label, of all records of a split."""
    found = records.read_split(data_dir, split)
    examples = [records.read_example(found, number) for number in range(len(found))]
    return {
        os.path.basename(image_id): (
            bytes(example['image_left']),
            np.asarray(images.decode(example['segmentation_label'])).tobytes(),
        )
        for image_id, example in zip(found.image_ids, examples, strict=True)
    }


@pytest.fixture(scope='module')
def by_list(sources, tmp_path_factory):
    """Records of colour masks, listed in a file."""
    data_dir = tmp_path_factory.mktemp('records')
    build_here(pair_list.CsvFile(str(sources / 'colors/pairs.csv')), data_dir, masks_are='colors')
    return data_dir


def patterns(root: pathlib.Path) -> pair_list.Patterns:
    return pair_list.Patterns(f'{root}/in/{{split}}/{{name}}.png', f'{root}/gt/{{split}}/{{name}}.png')


def test_records_are_those_of_the_cityscapes_layout(sources, by_list, tmp_path):
    trees.build_here(sources / 'cityscapes', tmp_path / 'cityscapes', table=TABLE)
    build_here(patterns(sources / 'colors'), tmp_path / 'patterns', masks_are='colors')
    build_here(patterns(sources / 'ids'), tmp_path / 'ids')
    assert trees.contents(tmp_path / 'patterns') == trees.contents(by_list)
    for split in ('train', 'validation', 'test'):
        expected = stored(tmp_path / 'cityscapes', split)
        assert stored(by_list, split) == stored(tmp_path / 'ids', split) == expected and len(expected)
    first = [
        records.read_example(records.read_split(tmp_path / name, 'validation'), 0) for name in ('cityscapes', 'ids')
    ]
    assert first[0]['segmentation_label'] == first[1]['segmentation_label']  # grey ids are kept byte for byte
    assert records.read_split(by_list, 'train').image_ids == records.read_split(tmp_path / 'ids', 'train').image_ids
    assert set(records.read_split(by_list, 'train').image_ids) == {f'in/train/{stem}' for stem in STEMS['train']}
    assert not records.read_split(by_list, 'test').labelled.any()


@pytest.mark.parametrize(
    'change',
    [
        lambda text, root: '\ufeff' + text.replace('\n', '\r\n'),
        lambda text, root: 'sep=;\n' + text.replace(',', ';').replace('train;', 'train ; '),
        lambda text, root: text.replace(',', ', ').replace(', train', ', Training').replace('val\n', 'validation\n'),
        lambda text, root: text.replace(',', '\t') + '\n\n',
        lambda text, root: (
            'split,remark,Image,Label\n'
            + ''.join(f'{row[2]},"a ""b"",\nc",.\\{row[0]},"{row[1]}"\n'.replace('/', '\\') for row in ROWS)
        ),
        lambda text, root: text.replace('gt/', f'{root}/gt/'),
    ],
    ids=['byte-order mark, CRLF', 'semicolons', 'spaces, other names', 'tabs, empty rows', 'other columns', 'absolute'],
)
def test_lists_are_read_as_other_programs_write_them(sources, tmp_path, change):
    root = shutil.copytree(sources / 'colors', tmp_path / 'colors')
    (root / 'pairs.csv').write_bytes(change(CSV, root).encode())
    found = pair_list.CsvFile(str(root / 'pairs.csv')).scan(masks_are='colors')
    assert not found.problems and not found.warnings
    expected = pair_list.CsvFile(str(sources / 'colors/pairs.csv')).scan(masks_are='colors').pairs
    assert pair_list.CsvFile(str(root / 'pairs.csv')).scan(('val',), 'colors').pairs == found.pairs[3:4]
    for pair, same in zip(found.pairs, expected, strict=True):
        assert (pair.split, pair.image_id, pair.image, pair.size) == (same.split, same.image_id, same.image, same.size)
        assert pair.label == same.label or pair.label == f'{root}/{same.label}'


@pytest.mark.parametrize(
    'content, status, text',
    [
        (None, entry.MISSING_INPUT, r'--pairs=.*pairs.csv: no such file'),
        ('', entry.BAD_DATA, r'pairs.csv: is empty'),
        ('image;label\n', entry.BAD_DATA, r'pairs.csv: row 1: no column split; found image, label'),
        ('in/train/a_1.png,gt/train/a_1.png,train\n', entry.BAD_DATA, r'row 1: no column image, label, split'),
        (CSV + 'in/x.png,train\n', entry.BAD_DATA, r'pairs.csv: row 7: 2 fields, and 3 columns'),
        (CSV + 'in/x,1.png,gt/x.png,train\n', entry.BAD_DATA, r'pairs.csv: row 7: 4 fields.*double quotes'),
        (CSV.encode('utf-16'), entry.BAD_DATA, r'pairs.csv: is not UTF-8 text'),
        (CSV + '"in/x.png,gt/x.png,train\n' + '\0' * 9, entry.BAD_DATA, r'pairs.csv: row'),
        ('image,label,split\n', entry.MISSING_INPUT, r'--pairs=.*pairs.csv: lists no images of train, val'),
    ],
)
def test_what_is_no_list_is_refused(tmp_path, content, status, text):
    if content is not None:
        (tmp_path / 'pairs.csv').write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(entry.UserError, match=text) as failure:
        pair_list.CsvFile(str(tmp_path / 'pairs.csv')).scan()
    assert failure.value.status == status and '\n' not in str(failure.value)


def test_rows_that_cannot_be_used_are_named(sources, tmp_path):
    root = shutil.copytree(sources / 'colors', tmp_path / 'colors')
    wrong = np.array(images.decode((root / 'gt/train/b_1.png').read_bytes()).convert('RGB'))
    wrong[:2, :3] = 9, 8, 7
    wrong[5, 5] = 1, 1, 1
    (root / 'gt/train/b_1.png').write_bytes(tiny.png(wrong))
    (root / 'in/val/small.png').write_bytes(tiny.png(tiny.scene((8, 8), 0)[0]))
    rows = [
        'in/train/a_1.png,gt/val/c_1.png,val',
        'in/train/nowhere.png,gt/train/a_1.png,train',
        'in/val/small.png,gt/train/nowhere.png,val',
        'in/train/x.png,,train',
        'in/train/y.png,gt/train/a_1.png,trian',
        'in/train/z.png,in/train/z.png,train',
        ',gt/train/a_1.png,train',
        'in/val/small.png,gt/train/a_2.png,val',
    ]
    (root / 'pairs.csv').write_text(CSV + '\n'.join(rows))
    layout = pair_list.CsvFile(str(root / 'pairs.csv'))
    found = layout.scan(masks_are='colors')
    place = f'of {layout.path}: '
    for line in (
        f'in/train/a_1.png: row 7 {place}stands in row 2 too',
        f'in/train/nowhere.png: row 8 {place}cannot be read (No such file',
        f'gt/train/nowhere.png: row 9 {place}cannot be read (No such file',
        f'in/train/x.png: row 10 {place}no label; only images of the split test',
        f"in/train/y.png: row 11 {place}'trian' is not a split. Possible are train, val, ",
        f'in/train/z.png: row 12 {place}is its own label',
        f'row 13 {place}names no image',
        f'in/val/small.png: row 14 {place}stands in row 9 too',
    ):
        assert any(problem.startswith(line) for problem in found.problems), (line, found.problems)
    assert len(found.problems) == 8
    assert found.warnings == [f'gt/train/a_1.png: row 8 {place}is the label in row 2 too.']
    build_here(layout, tmp_path / 'records', masks_are='colors', skip_bad=True)
    skipped = records.read_manifest(tmp_path / 'records')['skipped']
    (unknown,) = (line for line in skipped if line.startswith('gt/train/b_1.png'))
    assert 'holds 2 colour(s) that are not in the label table: 9 8 7 (6 pixels), 1 1 1 (1 pixels).' in unknown
    assert verification.check(tmp_path / 'records', layout, 1)


def write_files(root: pathlib.Path, *names: str) -> None:
    image, label = tiny.scene(trees.SIZE, 0)
    for name in names:
        trees.write(root, name, tiny.png(label if 'gt' in name or 'mask' in name else image))


PATTERNS = {
    'missing mask': (('in/train/b.png',), 'in/train/b.png: no mask gt/train/b.png'),
    'missing image': (('gt/train/b.png',), 'gt/train/b.png: no image in/train/b.png'),
    'doubled name': (
        ('in/val/c.png', 'gt/val/c.png', 'in/validation/c.png'),
        'in/validation/c.png: in/val/c.png has the same name in the same split',
    ),
    'unknown split': (('in/dev/b.png', 'in/dev/c.png'), "in/dev/b.png: 'dev' is not a split (2 file(s))"),
}


@pytest.mark.parametrize('names, text', PATTERNS.values(), ids=PATTERNS)
def test_files_that_match_no_other_are_named(tmp_path, names, text):
    write_files(tmp_path, 'in/train/a.png', 'gt/train/a.png', *names)
    problems = patterns(tmp_path).scan().problems
    assert len(problems) == 1 and problems[0].startswith(text), problems


@pytest.mark.parametrize(
    'names, of_images, of_masks, expected',
    [
        (('train/1.png', 'train/1_mask.png'), '{split}/{name}.png', '{split}/{name}_mask.png', 'train/1'),
        (('train/1_in.png', 'train/1.gt.png'), '{split}/{name}_in.png', '{split}/{name}.gt.png', 'train/1_in'),
        (('train/1_x.png', 'gt/1.png'), '{split}/{name}_x.png', 'gt/{name}.png', 'train/1_x'),
        (('train/1.png', 'gt/1.png'), 'train/{name}.png', 'gt/{name}.png', None),
        (('train/1.png', 'gt/1.png'), '{split}/{name}.png', 'gt/1.png', None),
        (('train/1.png', 'gt/1.png'), '{split}/{name}.jpg', 'gt/{name}.png', None),
        (
            ('x/training/a/1.png', 'gt.a/train/a/1.png'),
            'x/{split}/{name}.png',
            'gt.a/{split}/{name}.png',
            'x/training/a/1',
        ),
        (('[a]+/train/1/1.png', 'gt/1.png'), '[a]+/{split}/{name}/{name}.png', './gt/{name}.png', '[a]+/train/1/1'),
    ],
)
def test_patterns(tmp_path, monkeypatch, names, of_images, of_masks, expected):
    write_files(tmp_path, *names, 'notes.txt')
    monkeypatch.chdir(tmp_path)
    for start in ('', f'{tmp_path}/'):
        layout = pair_list.Patterns(start + of_images.removeprefix('./'), start + of_masks)
        if expected is None:
            with pytest.raises(entry.UserError, match=r'has no \{|there is .*/1.png, for example') as failure:
                layout.scan()
            assert failure.value.status in (entry.BAD_USAGE, entry.MISSING_INPUT)
        else:
            found = layout.scan()
            assert not found.problems and len(found.pairs) == 1, found
            assert expected.endswith(found.pairs[0].image_id)
            assert [os.path.exists(os.path.join(layout.root, name)) for name in found.pairs[0].listing[1:3]] == [
                True
            ] * 2


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(entry.UserError, match=r'in/\{split\}/.*: no such file of train, val, .*/in/ holds no files'):
        patterns(tmp_path).scan()


def test_one_mask_of_two_images_is_refused(tmp_path):
    write_files(tmp_path, 'in/train/1.png', 'in/val/1.png', 'gt/1.png')
    found = pair_list.Patterns(f'{tmp_path}/in/{{split}}/{{name}}.png', f'{tmp_path}/gt/{{name}}.png').scan()
    assert len(found.pairs) == 1 and len(found.problems) == 1
    assert 'in/val/1.png: in/train/1.png has the same name, and gt/1.png is of one of them' in found.problems[0]


def test_commands_take_the_same_flags(sources, by_list, tmp_path):
    (tmp_path / 'classes.json').write_text(labels.to_json(TABLE))
    root, data_dir = sources / 'colors', f'--data_dir={tmp_path / "records"}'
    named = [
        f'--images={root}/in/{{split}}/{{name}}.png',
        f'--masks={root}/gt/{{split}}/{{name}}.png',
        '--masks_are=colors',
    ]

    def run(program: str, *flags: str):
        return tiny.run([sys.executable, '-m', f'data_prep.{program}', *flags])

    done = run('build_tfrecords', data_dir, *named, f'--labels={tmp_path / "classes.json"}')
    assert done.returncode == 0, done.stderr
    assert "'--images=" in done.stdout and trees.contents(tmp_path / 'records') == trees.contents(by_list)
    done = run('verify_tfrecords', data_dir, *named)
    assert done.returncode == 0 and 'All 5 records are whole and equal to its manifest and --images=' in done.stdout
    for flags, text in (
        (['--pairs=x.csv', *named], '--pairs, --images, --masks: pass'),
        ([named[0]], '--images: pass --cityscapes_dir, or --pairs, or --images with --masks.'),
        (['--pairs=x.csv', '--cityscapes_dir=x'], '--pairs, --cityscapes_dir: pass'),
        (
            [f'--cityscapes_dir={sources / "cityscapes"}'],
            'was made with --pairs, or --images and --masks: pass the same',
        ),
        ([*named[:2], '--masks_are=ids'], '--masks_are=ids: '),
    ):
        done = run('verify_tfrecords', data_dir, *flags)
        assert done.returncode == entry.BAD_USAGE and text in done.stderr, done.stderr


def test_a_build_goes_on_where_it_stopped(sources, by_list, tmp_path):
    layout = pair_list.CsvFile(str(sources / 'colors/pairs.csv'))
    settings = shards.Settings(layout.root, str(tmp_path), TABLE, images.Encoding(), False, 'colors')
    with pytest.raises(FileNotFoundError):
        build.build(settings, lambda todo: shards.write_shard(todo[0], settings), layout)
    written = []
    build.build(settings, lambda todo: written.extend(shards.write_shard(shard, settings) for shard in todo), layout)
    assert len(written) == 4 and trees.contents(tmp_path) == trees.contents(by_list)
    with pytest.raises(entry.UserError, match="differs: masks_are was 'colors', now 'ids'"):
        build_here(pair_list.CsvFile(str(sources / 'ids/pairs.csv')), tmp_path, masks_are='ids')


def test_polygons_are_masks_too(tmp_path):
    road = {'label': 'road', 'polygon': [[0, 0], [39, 0], [39, 23], [0, 23]]}
    drawn = json.dumps({'imgHeight': 24, 'imgWidth': 40, 'objects': [road]}).encode()
    trees.write(tmp_path, 'in/train/1.png', tiny.png(tiny.scene(trees.SIZE, 0)[0]))
    trees.write(tmp_path, 'gt/train/1.json', drawn)
    layout = pair_list.Patterns(f'{tmp_path}/in/{{split}}/{{name}}.png', f'{tmp_path}/gt/{{split}}/{{name}}.json')
    build_here(layout, tmp_path / 'records')
    assert set(stored(tmp_path / 'records', 'train')['1'][1]) == {7}
    assert verification.check(tmp_path / 'records', layout, 1)


def test_a_changed_mask_is_found(sources, by_list, tmp_path):
    root = shutil.copytree(sources / 'colors', tmp_path / 'colors')
    layout = pair_list.CsvFile(str(root / 'pairs.csv'))
    assert verification.check(by_list, layout, 1)
    (root / 'gt/train/a_2.png').write_bytes(colored(np.full(trees.SIZE, 7, np.uint8)))
    with pytest.raises(entry.UserError, match='image id in/train/a_2: its label differs from gt/train/a_2.png'):
        verification.check(by_list, layout, 1)
