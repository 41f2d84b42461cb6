"""Every kind of bad input is named with its file and its remedy, and nothing is left that looks finished."""

import io
import os
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from data_prep import cityscapes_layout, images, records
from launch import entry
from tests import tiny, trees

IMAGE, LABEL = 'leftImg8bit/train/x/x_1_leftImg8bit.png', 'gtFine/train/x/x_1_gtFine_labelIds.png'
HEIGHT, WIDTH = trees.SIZE


def encoded(array: np.ndarray, mode: str, image_format: str = 'PNG') -> bytes:
    content = io.BytesIO()
    Image.fromarray(array).convert(mode).save(content, image_format)
    return content.getvalue()


def replace(name, content):
    return lambda root: (root / name).write_bytes(content)


def damage(name, change):
    return lambda root: (root / name).write_bytes(change((root / name).read_bytes()))


def remove(name):
    return lambda root: (root / name).unlink()


def add(name, content=b'x'):
    return lambda root: trees.write(root, name, content)


def dangle(name):
    def change(root):
        (root / name).unlink()
        (root / name).symlink_to('nowhere')

    return change


def flip(at):
    return lambda content: content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def with_rows(rows: int):
    def change(content):
        header = content[12:20] + rows.to_bytes(4) + content[24:29]
        return content[:12] + header + zlib.crc32(header).to_bytes(4) + content[33:]

    return change


def sixteen_bits(used: int) -> bytes:
    values = np.random.default_rng(0).integers(0, 1 << used, (HEIGHT, WIDTH, 3), np.uint16)
    return cv2.imencode('.png', values)[1].tobytes()


PICTURE = tiny.scene(trees.SIZE, 1)[0]
TRAIN_IDS = np.where(np.arange(HEIGHT * WIDTH).reshape(trees.SIZE) % 7, 18, 255).astype(np.uint8)
TRANSPARENT = np.dstack([PICTURE, np.full(trees.SIZE, 9, np.uint8)])

BAD = {
    'missing label': (remove(LABEL), IMAGE, 'no label file'),
    'missing image': (remove(IMAGE), LABEL, 'no image x_1_leftImg8bit.png'),
    'stray image': (add('leftImg8bit/train/x/copy.png'), 'leftImg8bit/train/x/copy.png', 'stray file'),
    'stray label': (add('gtFine/train/x/x_1.png'), 'gtFine/train/x/x_1.png', 'stray file'),
    'truncated image': (damage(IMAGE, lambda content: content[:-40]), IMAGE, 'truncated'),
    'truncated header': (damage(IMAGE, lambda content: content[:20]), IMAGE, 'truncated within its header'),
    'truncated label': (damage(LABEL, lambda content: content[:60]), LABEL, 'truncated'),
    'empty image': (replace(IMAGE, b''), IMAGE, 'empty (0 bytes)'),
    'empty label': (replace(LABEL, b''), LABEL, 'empty (0 bytes)'),
    'zeros': (replace(IMAGE, bytes(4000)), IMAGE, 'zero bytes only'),
    'flipped bit in image': (damage(IMAGE, flip(300)), IMAGE, 'checksum'),
    'two headers': (damage(IMAGE, lambda content: content[:33] + content[8:]), IMAGE, 'second header at byte 33'),
    'header of an enormous image': (damage(IMAGE, with_rows(2**31 - 1)), LABEL, 'its image 40x2147483647'),
    'header of no image': (damage(IMAGE, with_rows(0)), IMAGE, 'has 40x0 pixels'),
    'flipped bit in label': (damage(LABEL, flip(60)), LABEL, 'checksum'),
    'LFS pointer': (replace(IMAGE, b'version https://git-lfs.github.com/spec/v1\noid sha256:0'), IMAGE, 'git lfs pull'),
    'text': (replace(IMAGE, b'<html>Please log in</html>'), IMAGE, 'neither PNG nor JPEG'),
    'JPEG under a PNG name': (replace(IMAGE, encoded(PICTURE, 'RGB', 'JPEG')), IMAGE, 'JPEG bytes under a PNG name'),
    'transparent image': (replace(IMAGE, tiny.png(TRANSPARENT)), IMAGE, 'transparent pixels'),
    '12 bits in 16': (replace(IMAGE, sixteen_bits(12)), IMAGE, 'fills 12 of its 16'),
    '8 bits in 16': (replace(IMAGE, sixteen_bits(8)), IMAGE, 'fills 8 of its 16'),
    '16-bit grey image': (replace(IMAGE, tiny.png(np.zeros(trees.SIZE, np.uint16))), IMAGE, '16-bit grey'),
    'palette label': (replace(LABEL, encoded(PICTURE, 'P')), LABEL, '8-bit palette'),
    'colour label': (replace(LABEL, tiny.png(PICTURE)), LABEL, 'colour rendering: use labelIds'),
    'instance file': (replace(LABEL, tiny.png(np.full(trees.SIZE, 26001, np.uint16))), LABEL, 'instanceIds'),
    'a mask of 255': (
        replace(LABEL, tiny.png(np.where(TRAIN_IDS == 255, 255, 0).astype(np.uint8))),
        LABEL,
        'marks one class by 255',
    ),
    'train ids': (replace(LABEL, tiny.png(TRAIN_IDS)), LABEL, 'these are train ids'),
    'unknown ids': (replace(LABEL, trees.grey(77)), LABEL, 'not in the label table: 77'),
    'other size': (replace(IMAGE, tiny.png(PICTURE[:9, :9])), LABEL, 'is 40x24, its image 9x9'),
    'flat split': (add('leftImg8bit/train/y_leftImg8bit.png'), 'leftImg8bit/train', 'lie directly in it'),
    'flat dataset': (add('leftImg8bit/y_leftImg8bit.png'), 'leftImg8bit', 'lie directly in it'),
    'unknown split': (add('leftImg8bit/training/x/y_leftImg8bit.png'), 'leftImg8bit/training', 'not a split'),
    'empty split': (lambda root: (root / 'leftImg8bit/val/y').mkdir(parents=True), 'leftImg8bit/val', 'no images'),
    'stem in two cities': (add('leftImg8bit/train/y/x_1_leftImg8bit.png'), 'y/x_1_leftImg8bit.png', 'same stem'),
    'stem twice, PNG and JPEG': (add('leftImg8bit/train/x/x_1_leftImg8bit.jpg'), IMAGE, 'same stem'),
    'stem in two splits': (lambda root: trees.write_tree(root, {'val': ['x_1']}), 'x_1', 'same stem'),
    'unreadable': (dangle(IMAGE), IMAGE, 'cannot be read'),
    'not polygons': (
        lambda root: (remove(LABEL)(root), trees.write(root, 'gtFine/train/x/x_1_gtFine_polygons.json', b'{}')),
        'x_1_gtFine_polygons.json',
        'not a JSON file of Cityscapes polygons',
    ),
}


@pytest.mark.parametrize('change, file, text', BAD.values(), ids=BAD)
def test_is_named_and_nothing_looks_finished(tmp_path, change, file, text):
    source = trees.write_tree(tmp_path / 'source', {'train': ['x_1', 'x_2', 'x_3']})
    change(source)
    with pytest.raises(entry.UserError) as failure:
        trees.build_here(source, tmp_path / 'records')
    assert failure.value.status == entry.BAD_DATA
    line = next(line for line in str(failure.value).splitlines()[1:] if text in line)
    assert file in line and line[-1] in '.)'
    assert not (tmp_path / 'records' / records.MANIFEST).exists()
    with pytest.raises(entry.UserError):
        records.check_complete(tmp_path / 'records')


@pytest.mark.parametrize('mode', ['RGB', 'L'])
def test_an_image_that_the_format_cannot_hold_is_named_and_costs_nothing_else(tmp_path, mode):
    """JPEG ends at 65,500 pixels."""
    source = trees.write_tree(tmp_path / 'source', {'train': ['x_1', 'x_2', 'x_3']})
    for name, kind in ((IMAGE, mode), (LABEL, 'L')):
        (source / name).write_bytes(encoded(np.zeros((1, 70_000), np.uint8), kind))
    encoding = images.Encoding('jpeg')
    with pytest.raises(entry.UserError, match=f'1 problem.*\n{IMAGE}: '):
        trees.build_here(source, tmp_path / 'records', encoding=encoding)
    trees.build_here(source, tmp_path / 'records', encoding=encoding, skip_bad=True)
    assert set(records.read_split(tmp_path / 'records', 'train').image_ids) == {'x_2', 'x_3'}


def test_all_problems_are_listed_together(tmp_path):
    source = trees.write_tree(tmp_path / 'source', {'train': [f'x_{number}' for number in range(30)]})
    for number in range(25):
        path = source / f'leftImg8bit/train/x/x_{number}_leftImg8bit.png'
        path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(entry.UserError) as failure:
        trees.build_here(source, tmp_path / 'records')
    lines = str(failure.value).splitlines()
    assert '25 problem(s)' in lines[0] and len(lines) == 22 and lines[-1] == '... and 5 more'


def test_bad_pairs_are_left_out_and_listed(tmp_path, capfd):
    source = trees.write_tree(tmp_path / 'source', {'train': ['x_1', 'x_2', 'x_3', 'x_4'], 'val': ['y_1']})
    (source / IMAGE).write_bytes(b'')  # seen by its header
    damaged = source / 'gtFine/train/x/x_3_gtFine_labelIds.png'  # seen by its content; its shard ends up empty
    damaged.write_bytes(damaged.read_bytes()[:-5])
    trees.build_here(source, tmp_path / 'records', skip_bad=True)
    assert set(records.read_split(tmp_path / 'records', 'train').image_ids) == {'x_2', 'x_4'}
    skipped = records.read_manifest(tmp_path / 'records')['skipped']
    assert [line.split(':')[0].split('/')[-1] for line in skipped] == [
        'x_1_leftImg8bit.png',
        'x_3_gtFine_labelIds.png',
    ]
    assert 'Left out 2' in capfd.readouterr().out


def test_all_of_one_name_are_left_out_and_listed(tmp_path):
    source = trees.write_tree(tmp_path / 'source', {'train': ['x_1', 'x_2'], 'val': ['x_1', 'y_1']})
    trees.build_here(source, tmp_path / 'records', skip_bad=True)
    skipped = records.read_manifest(tmp_path / 'records')['skipped']
    assert [line.split(': ')[0].split('/')[1] for line in skipped] == ['train', 'val'], skipped
    assert records.split_sizes(tmp_path / 'records') == {'train': 1, 'validation': 1}


def test_mended_files_are_taken_up_where_the_build_stopped(tmp_path):
    source = trees.write_tree(tmp_path / 'source', {'train': ['x_1', 'x_2', 'x_3', 'x_4']})
    whole = (source / IMAGE).read_bytes()
    (source / IMAGE).write_bytes(whole[:-9])
    with pytest.raises(entry.UserError, match='truncated'):
        trees.build_here(source, tmp_path / 'records')
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / 'records').glob('cityscapes-*')}
    (source / IMAGE).write_bytes(whole)
    trees.build_here(source, tmp_path / 'records')
    assert len(before) == 3 and before == {path: path.stat().st_mtime_ns for path in before}
    trees.build_here(source, tmp_path / 'fresh')
    assert trees.contents(tmp_path / 'records') == trees.contents(tmp_path / 'fresh')


def test_labels_void_everywhere(tmp_path, capfd):
    """One such label file is worth a note; a whole split of them is a test set's placeholders, not training data."""
    source = trees.write_tree(tmp_path / 'source', {'train': ['x_1', 'x_2'], 'test': ['y_1', 'y_2']})
    for file in (LABEL, 'gtFine/test/y/y_1_gtFine_labelIds.png'):
        (source / file).write_bytes(trees.grey(3))
    trees.build_here(source, tmp_path / 'records')
    assert f'1 label file(s) of train are void everywhere, the first: {LABEL}' in capfd.readouterr().out
    split = records.read_split(tmp_path / 'records', 'test')
    assert dict(zip(split.image_ids, split.labelled.tolist(), strict=True)) == {'y_1': False, 'y_2': True}
    (source / LABEL.replace('x_1', 'x_2')).write_bytes(trees.grey(3))
    with pytest.raises(entry.UserError, match='all 2 labels of train'):
        trees.build_here(source, tmp_path / 'other')


@pytest.mark.parametrize(
    'array, mode, kind',
    [(PICTURE[..., 0], 'L', 'grey'), (PICTURE, 'P', 'palette'), (PICTURE, 'RGBA', 'alpha'), (PICTURE, '1', 'grey')],
)
def test_images_that_are_read_without_doubt_become_rgb(tmp_path, capfd, array, mode, kind):
    source = trees.write_tree(tmp_path / 'source', {'train': ['x_1', 'x_2', 'x_3']})
    for stem in ('x_1', 'x_2'):
        replace(IMAGE.replace('x_1', stem), encoded(array, mode))(source)
    trees.build_here(source, tmp_path / 'records')
    assert capfd.readouterr().out.count(f'2 {kind} image(s) converted to RGB') == 1
    split = records.read_split(tmp_path / 'records', 'train')
    stored = Image.open(io.BytesIO(records.read_example(split, split.image_ids.index('x_1'))['image_left']))
    assert stored.mode == 'RGB'
    assert (np.asarray(stored) == np.asarray(Image.fromarray(array).convert(mode).convert('RGB'))).all()


@pytest.mark.parametrize('used', [15, 16])
def test_16_bits_become_8(tmp_path, capfd, used):
    source = trees.write_tree(tmp_path / 'source', {'train': ['x_1', 'x_2']})
    replace(IMAGE, sixteen_bits(used))(source)
    trees.build_here(source, tmp_path / 'records')
    assert '1 16-bit RGB image(s) converted to RGB' in capfd.readouterr().out
    split = records.read_split(tmp_path / 'records', 'train')
    stored = cv2.imdecode(
        np.frombuffer(records.read_example(split, split.image_ids.index('x_1'))['image_left'], np.uint8),
        cv2.IMREAD_UNCHANGED,
    )
    expected = cv2.imdecode(np.frombuffer(sixteen_bits(used), np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(stored, (expected >> 8).astype(np.uint8))


def test_files_that_do_not_belong_are_passed_over(tmp_path):
    source = trees.write_tree(tmp_path / 'source', {'train': ['x_1', 'x_2']})
    for name in ('leftImg8bit/train/x/.DS_Store', 'leftImg8bit/.DS_Store', 'gtFine/train/x/x_1_gtFine_color.png'):
        trees.write(source, name, b'')
    trees.write(source, 'leftImg8bit/train/x/notes.txt', b'')
    found = cityscapes_layout.scan(source)
    assert len(found.pairs) == 2 and not found.problems
    assert len(found.warnings) == 1 and 'notes.txt' in found.warnings[0]


@pytest.mark.parametrize(
    'folder, text', [('', 'did you mean'), ('inner/leftImg8bit', 'pass the folder above'), ('none', 'no such folder')]
)
def test_wrong_folder_says_what_was_found(tmp_path, folder, text):
    trees.write_tree(tmp_path / 'inner', {'train': ['x_1']})
    with pytest.raises(entry.UserError, match=text) as failure:
        cityscapes_layout.scan(os.path.join(tmp_path, folder))
    assert failure.value.status == entry.MISSING_INPUT and 'leftImg8bit/<split>/<city>' in str(failure.value)


def test_broken_zip_is_named(tmp_path):
    trees.zip_tree(trees.write_tree(tmp_path / 'tree', {'train': ['x_1']}), tmp_path / 'zips')
    path = tmp_path / 'zips/leftImg8bit_trainvaltest.zip'
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(entry.UserError, match='leftImg8bit_trainvaltest.zip: not a whole zip file'):
        cityscapes_layout.scan(tmp_path / 'zips')
