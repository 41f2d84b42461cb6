"""Datasets as people have them: links, leftovers, what official scripts write, zip files of every make."""

import pathlib
import struct
import warnings
import zipfile

import numpy as np
import pytest
from etils import epath

from data_prep import cityscapes_layout, source_files, verification
from launch import entry, folders
from tests import tiny, trees
from unet.evaluation import instance_iou

SPLITS = {'train': ['ulm_1', 'ulm_2', 'bonn_1'], 'val': ['köln_1']}
KINDS = ('leftImg8bit', 'gtFine')


@pytest.fixture
def tree(tmp_path) -> pathlib.Path:
    return trees.write_tree(tmp_path / 'tree', SPLITS)


def scan(source) -> cityscapes_layout.Scan:
    found = cityscapes_layout.scan(source)
    assert found.problems == []
    return found


def listing(source) -> list:
    return [pair.listing for pair in scan(source).pairs]


def problems(source) -> str:
    try:
        return '\n'.join(cityscapes_layout.scan(source).problems)
    except entry.UserError as error:
        assert error.status == entry.BAD_DATA
        return str(error)


def test_links_to_cities_splits_kinds_and_files_are_followed(tree, tmp_path):
    wanted = listing(tree)
    linked = tmp_path / 'linked'
    for kind in KINDS:
        (linked / kind / 'train/bonn').mkdir(parents=True)
        (linked / kind / 'train/ulm').symlink_to(tree / kind / 'train/ulm')
        for file in (tree / kind / 'train/bonn').iterdir():
            (linked / kind / 'train/bonn' / file.name).symlink_to(file)
        (linked / kind / 'val').symlink_to(tree / kind / 'val')
        (linked / kind / 'train/bonn/all').symlink_to('../..')  # a loop
    assert listing(linked) == wanted
    one_side = trees.write_tree(tmp_path / 'one side', {'train': ['bonn_1'], 'val': ['köln_1']})
    (one_side / 'leftImg8bit/train/ulm').symlink_to(tree / 'leftImg8bit/train/ulm')
    (one_side / 'gtFine/train/ulm').mkdir()
    for file in (tree / 'gtFine/train/ulm').iterdir():
        (one_side / 'gtFine/train/ulm' / file.name).write_bytes(file.read_bytes())
    assert [row[:3] for row in listing(one_side)] == [row[:3] for row in wanted]
    kinds = tmp_path / 'kinds'
    kinds.mkdir()
    for kind in KINDS:
        (kinds / kind).symlink_to(tree / kind)
    assert listing(kinds) == wanted


def test_links_that_lead_nowhere_are_named(tree):
    for kind, city in (('leftImg8bit', 'train/gone'), ('gtFine', 'val/lost')):
        (tree / kind / city).symlink_to(f'/nowhere/{city}')
    said = problems(tree)
    for name in ('leftImg8bit/train/gone: is a link to /nowhere/train/gone', 'gtFine/val/lost: is a link to /nowhere'):
        assert name in said
    assert len(said.splitlines()) == 2


def test_leftovers_are_passed_over_in_trees_and_zips(tree, tmp_path):
    wanted = listing(tree)
    content = tiny.png(np.zeros((9, 9, 3), np.uint8))
    for left in ('.ipynb_checkpoints', '@eaDir', '__MACOSX/leftImg8bit', '.thumbnails/large'):
        for place in ('', 'train', 'train/ulm'):
            trees.write(tree, f'leftImg8bit/{place}/{left}/ulm_1_leftImg8bit.png', content)
            trees.write(tree, f'gtFine/{place}/{left}/x.png', content)
    for name in ('.DS_Store', '._ulm_1_leftImg8bit.png', 'Thumbs.db', 'desktop.ini'):
        trees.write(tree, f'leftImg8bit/train/ulm/{name}', content)
    found = scan(tree)
    assert [pair.listing for pair in found.pairs] == wanted and not found.warnings and not found.passed_over
    zips = trees.zip_tree(tree, tmp_path / 'zips')
    trees.write(zips, '._leftImg8bit_trainvaltest.zip', b'AppleDouble')
    (zips / 'folder.zip').mkdir()
    assert listing(zips) == wanted


def test_what_official_scripts_write_is_no_error(tree):
    wanted = listing(tree)
    content = tiny.png(np.zeros((9, 9, 3), np.uint8))
    for name in (
        'gtFine/cityscapes_panoptic_val/köln_1_gtFine_panoptic.png',
        'gtFine/cityscapes_panoptic_train_trainId/ulm_1_gtFine_panoptic.png',
        'gtFine/cityscapes_panoptic_val.json',
        'gtFine/annotations/instancesonly_filtered_gtFine_train.json',
        'annotations/instancesonly_filtered_gtFine_val.json',
        'leftImg8bit/trainImages.txt',
        'gtFine/trainLabels.txt',
        'gtFine/train/valImages.txt',
        'train.txt',
        'leftImg8bit/demoVideo/stuttgart_00/stuttgart_00_000000_000001_leftImg8bit.png',
        'leftImg8bit/train/ulm/ulm_1_gtFine_color.png',
        *(
            f'gtFine/train/ulm/ulm_1_gtFine_{kind}'
            for kind in ('color.png', 'instanceIds.png', 'labelTrainIds.png', 'instanceTrainIds.png', 'edge.png',
                         'panoptic.png', 'labellevel3Ids.png', 'polygons.json', 'bbox3d.json')
        ),
    ):  # fmt: skip
        trees.write(tree, name, content)
    found = scan(tree)
    assert [pair.listing for pair in found.pairs] == wanted and not found.passed_over
    assert len(found.warnings) == 1 and 'cityscapes_panoptic_val.json' in found.warnings[0]
    trees.write(tree, 'leftImg8bit/training/ulm/ulm_9_leftImg8bit.png', content)  # a misspelt split is one still
    trees.write(tree, 'gtFine/training/ulm/ulm_9_gtFine_labelIds.png', content)
    assert problems(tree).count('is not a split') == 2


def test_images_of_other_kinds_are_counted_and_named_at_the_end(tree, tmp_path, capfd):
    for name in ('leftImg8bit/train/ulm/a.heic', 'leftImg8bit/b.GIF', 'gtFine/train/c.jfif', 'gtFine/val/köln/d.avif'):
        trees.write(tree, name, b'x')
    trees.build_here(tree, tmp_path / 'records')
    last = capfd.readouterr().out.splitlines()[-1]
    assert last.startswith('Passed over: 4 file(s) that look like images, since .avif, .gif, .heic, .jfif are not read')
    assert all(name in last for name in ('ulm/a.heic', 'leftImg8bit/b.GIF', 'train/c.jfif', 'köln/d.avif'))
    trees.build_here(tree, tmp_path / 'records')
    verification.check(tmp_path / 'records', str(tree), 1)
    said = capfd.readouterr().out.splitlines()
    assert 'nothing to do' in said[-3] and said[-2] == said[-1] == last
    image = tree / 'leftImg8bit/train/ulm/ulm_1_leftImg8bit.png'
    image.rename(image.with_suffix('.webp'))
    with pytest.raises(entry.UserError, match='ulm_1_leftImg8bit.webp is not read: save it as PNG or JPEG'):
        trees.build_here(tree, tmp_path / 'others')
    assert 'Passed over: 5 file(s)' in capfd.readouterr().out
    with pytest.raises(ValueError), folders.named_at_the_end([f'{number}.gif' for number in range(30)]):
        raise ValueError
    assert '19.gif and 10 more' in capfd.readouterr().out


def pack(tree: pathlib.Path, path: pathlib.Path, rename, compression=zipfile.ZIP_DEFLATED) -> pathlib.Path:
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, 'w', compression) as archive:
        for file in sorted(tree.rglob('*.png')):
            info = zipfile.ZipInfo('-')
            info.filename, info.compress_type = rename(str(file.relative_to(tree))), compression
            archive.writestr(info, file.read_bytes())
    return path.parent


@pytest.mark.parametrize(
    'rename',
    [
        lambda name: name,
        lambda name: f'cityscapes/{name}',
        lambda name: f'My Data/v1!/{name}',
        lambda name: f'./{name}',
        lambda name: name.replace('/', '\\'),
        lambda name: f'top\\{name}'.replace('/', '\\'),
    ],
)
def test_zips_with_a_folder_above_or_backslashes_are_read_as_the_tree_is(tree, tmp_path, rename):
    trees.build_here(tree, tmp_path / 'records')
    zips = pack(tree, tmp_path / 'zips/all of it.ZIP', rename, zipfile.ZIP_LZMA)
    assert listing(zips) == listing(tree)
    trees.build_here(zips, tmp_path / 'records of zips')
    assert trees.contents(tmp_path / 'records of zips') == trees.contents(tmp_path / 'records')


def patched(path: pathlib.Path, *, flag: int = 0, method: int | None = None) -> None:
    """Lets a zip file say of all files that they are encrypted, or compressed by another method."""
    content = bytearray(path.read_bytes())
    for signature, at in ((b'PK\3\4', 6), (b'PK\1\2', 8)):
        place = content.find(signature)
        while place >= 0:
            flags, compression = struct.unpack_from('<HH', content, place + at)
            struct.pack_into('<HH', content, place + at, flags | flag, compression if method is None else method)
            place = content.find(signature, place + 4)
    path.write_bytes(content)


@pytest.mark.parametrize(
    'change, text',
    [
        ({'flag': 1}, '8 of its files are encrypted, such as leftImg8bit/train/bonn/bonn_1_leftImg8bit.png'),
        ({'flag': 1, 'method': 99}, 'are encrypted'),
        ({'method': 9}, '8 of its files are compressed by Deflate64'),
        ({'method': 93}, 'compressed by Zstandard'),
        ({'method': 77}, 'compressed by method 77'),
    ],
)
def test_zips_that_are_not_read_are_named_for_what_they_are(tree, tmp_path, change, text):
    zips = pack(tree, tmp_path / 'zips/data.zip', lambda name: f'top/{name}')
    patched(zips / 'data.zip', **change)
    (zips / 'broken.zip').write_bytes(b'PK')
    said = problems(zips)
    assert f'{zips}/data.zip: ' in said and text.split(', such')[0] in said and 'xtract it' in said
    assert f'{zips}/broken.zip: not a whole zip file' in said  # all of them at once


def test_a_name_that_a_zip_holds_twice_is_named(tree, tmp_path):
    zips = pack(tree, tmp_path / 'zips/data.zip', lambda name: f'v1/{name}')
    with zipfile.ZipFile(zips / 'data.zip', 'a') as archive:
        archive.writestr('v2/leftImg8bit/train/ulm/ulm_1_leftImg8bit.png', b'another')
    assert 'twice, as data.zip!v1//leftImg8bit' in problems(zips)


def test_a_damaged_member_of_a_zip_is_a_problem_of_its_pair(tree, tmp_path):
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2):
        zips = pack(tree, tmp_path / f'zips {method}/data.zip', lambda name: name, method)
        content = bytearray((zips / 'data.zip').read_bytes())
        content[60:110] = bytes(range(50, 100))
        (zips / 'data.zip').write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            found = cityscapes_layout.scan(zips)
        try:
            trees.build_here(zips, tmp_path / f'records {method}')
        except entry.UserError as error:
            found.problems.append(str(error))
        assert len(found.pairs) >= 3 and 'data.zip!gtFine' in found.problems[0], method


def test_instance_files_are_found_as_the_pairs_are(tree, tmp_path):
    label = np.full(trees.SIZE, 7, np.int32)
    for file in (tree / 'gtFine').rglob('*_labelIds.png'):
        name = file.name.replace('labelIds', 'instanceIds')
        file.with_name(name).write_bytes(tiny.png(label.astype(np.uint16)))
        trees.write(file.parent, f'@eaDir/{name}', b'a thumbnail')
    ids = [pair.image_id for pair in scan(tree).pairs]
    linked = tmp_path / 'linked'
    (linked / 'gtFine').mkdir(parents=True)
    for split in ('train', 'val'):
        (linked / 'gtFine' / split).symlink_to(tree / 'gtFine' / split)
    zips = pack(tree, tmp_path / 'zips/data.zip', lambda name: f'top\\{name}'.replace('/', '\\'))
    for source in (tree, linked, zips):
        found = instance_iou.find(source, ids)
        assert list(found) == ids
        for file in found.values():
            np.testing.assert_array_equal(instance_iou.read(file, label.astype(np.uint8)), label)
    windows = pack(tree, tmp_path / 'windows/data.zip', lambda name: name)
    patched(windows / 'data.zip', method=9)
    with pytest.raises(entry.UserError, match='Deflate64') as failure:
        instance_iou.find(windows, ids)
    assert failure.value.status == entry.BAD_DATA


def test_names_and_locations():
    for location in ('a.zip!x/y!v2/z.png', 'A.ZIP!top/b!//x/y!v2/z.png', 'x/y!v2/z.png'):
        assert source_files.name_of(location) == 'x/y!v2/z.png'
    assert source_files.list_all(epath.Path('/nowhere'), KINDS, []) == {}
