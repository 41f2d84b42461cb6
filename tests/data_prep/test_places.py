import sys

import numpy as np
import pytest

from data_prep import places, records
from launch import entry
from tests import tiny


def test_places_are_pixels_of_their_id_spread_over_the_image():
    rng = np.random.default_rng(0)
    label = np.repeat(np.repeat(rng.integers(7, 12, (32, 64)).astype(np.uint8), 16, 0), 16, 1)
    label[100:103, 200:201] = 33  # three pixels of half a million
    found = places.find(label, np.bincount(label.reshape(-1), minlength=256))
    assert (label[found['row'], found['column']] == found['id']).all()
    assert {int(id_): int((found['id'] == id_).sum()) for id_ in np.unique(found['id'])} == {
        **dict.fromkeys(range(7, 12), places.PER_CLASS), 33: 3
    }  # fmt: skip
    of_one = found[found['id'] == 8]
    assert np.ptp(of_one['row']) > 256 and np.ptp(of_one['column']) > 256
    stripes = places.find(np.full((64, 96), 7, np.uint8), np.bincount([7] * 64 * 96, minlength=256))
    assert len(np.unique(stripes['column'])) > 4  # not all in one column, whatever the width


def test_a_folder_without_the_file_gets_it_once(tmp_path, capsys):
    pairs = tiny.scenes(5) + tiny.scenes(2, (36, 52), seed=4)
    folder = tiny.write_folder(tmp_path, train=pairs, validation=tiny.scenes(3, seed=2))
    split = records.read_split(folder, 'train')
    made = places.read(split)
    assert 'once' in capsys.readouterr().out
    np.testing.assert_array_equal(places.read(split), made)
    assert not capsys.readouterr().out
    for example, rows in enumerate(np.split(made, np.flatnonzero(np.diff(made['example'])) + 1)):
        image, label = _decoded(split, example)
        assert (label[rows['row'], rows['column']] == rows['id']).all() and len(np.unique(rows['id'])) > 2
    both = records.read_split(folder, 'train+validation')
    joined = places.read(both)
    np.testing.assert_array_equal(joined[: len(made)], made)
    assert joined['example'].max() == 9


def _decoded(split, example):
    from data_prep import png

    features = records.read_example(split, example)
    size = png.image_size(features['segmentation_label'])
    return size, png.read_window(features['segmentation_label'], (0, 0, *size), channels=1)[..., 0]


@pytest.mark.parametrize('content', [b'', b'\x93NUMPY and no more', None], ids=['empty', 'cut off', 'of other records'])
def test_a_file_that_does_not_fit_is_named(tmp_path, content):
    folder = tiny.write_folder(tmp_path, train=tiny.scenes(4))
    split = records.read_split(folder, 'train')
    path = folder / places.file_of('train')
    path.write_bytes(
        places.encode([places.find(np.zeros((99, 99), np.uint8), np.eye(256)[0])] * 4) if content is None else content
    )
    with pytest.raises(entry.UserError, match='places-train.npy.*Delete it') as failure:
        places.read(split)
    assert failure.value.status == entry.BAD_DATA


def test_a_build_writes_what_a_look_at_its_records_finds(tmp_path):
    """Beside the index, in its order, with a digest in the manifest; images without labels have void alone."""
    images, truths = tmp_path / 'source/leftImg8bit', tmp_path / 'source/gtFine'
    for split, city, count in (('train', 'ulm', 9), ('val', 'bonn', 2), ('test', 'rom', 1)):
        for number, (image, label) in enumerate(tiny.scenes(count, (40, 56), seed=count)):
            name = f'{city}_{number:06d}_000000'
            for folder, kind, content in ((images, 'leftImg8bit', image), (truths, 'gtFine_labelIds', label)):
                path = folder / split / city / f'{name}_{kind}.png'
                if split != 'test' or folder is images:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(tiny.png(content))
    data_dir = tmp_path / 'records'
    done = tiny.run(
        [
            sys.executable,
            '-m',
            'data_prep.build_tfrecords',
            f'--cityscapes_dir={images.parent}',
            f'--data_dir={data_dir}',
        ]
    )
    assert done.returncode == 0, done.stderr
    for name in ('train', 'validation', 'test'):
        split = records.read_split(data_dir, name)
        built = places.read(split)
        assert places.file_of(name) in records.read_manifest(data_dir)['files']
        (data_dir / places.file_of(name)).unlink()
        assert not records.check_files(data_dir, records.read_manifest(data_dir))  # it is made again
        np.testing.assert_array_equal(built, places.read(split))
