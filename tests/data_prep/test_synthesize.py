import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from data_prep import cityscapes_layout, labels, synthetic_scene
from launch import entry
from tests import tiny
from unet.evaluation import metrics

SCORED = [label.id for label in labels.classes(labels.CITYSCAPES)]


def synthesize(folder, *flags) -> subprocess.CompletedProcess:
    command = [sys.executable, '-m', 'data_prep.synthesize', f'--cityscapes_dir={folder}']
    return tiny.run(command + list(flags))


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp('synthetic')
    done = synthesize(folder, '--train_images=7', '--val_images=4', '--size=90x150', '--processes=2')
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope='module')
def scenes():
    """Labels of 150 training and 40 validation scenes, [n, 64, 128]."""
    return [
        np.stack(
            [synthetic_scene.draw((64, 128), np.random.default_rng([0, split, number]))[1] for number in range(count)]
        )
        for split, count in ((0, 150), (1, 40))
    ]


def test_layout_pairs_up(dataset):
    pairs = cityscapes_layout.scan(dataset).pairs
    assert [sum(pair.split == split for pair in pairs) for split in ('train', 'validation')] == [7, 4]
    cities = {split: {path.name for path in (dataset / 'leftImg8bit' / split).iterdir()} for split in ('train', 'val')}
    assert len(cities['train']) > 1 and not cities['train'] & cities['val']
    for pair in pairs:
        image, label = Image.open(dataset / pair.image), Image.open(dataset / pair.label)
        assert (image.mode, label.mode, image.size, label.size) == ('RGB', 'L', (150, 90), (150, 90))


def test_instances_agree_with_labels(dataset):
    ids = {label.id for label in labels.CITYSCAPES}
    for path in sorted(dataset.rglob('*_instanceIds.png')):
        instance = np.asarray(Image.open(path)).astype(int)
        label = np.asarray(Image.open(str(path).replace('instanceIds', 'labelIds')))
        assert set(np.unique(label)) <= ids
        np.testing.assert_array_equal(np.where(instance >= 1000, instance // 1000, instance), label)
        assert (instance[np.isin(label, (24, 26))] >= 1000).all()


def test_same_seed_same_bytes_on_any_number_of_cores(dataset, tmp_path):
    for name, flags in {'again': ['--processes=1'], 'other': ['--seed=1']}.items():
        done = synthesize(tmp_path / name, '--train_images=7', '--val_images=4', '--size=90x150', *flags)
        assert done.returncode == 0, done.stderr
    assert contents(tmp_path / 'again') == contents(dataset)
    other = contents(tmp_path / 'other')
    assert other.keys() == contents(dataset).keys() and all(other[name] != contents(dataset)[name] for name in other)


def test_a_scene_does_not_depend_on_how_many_there_are(dataset, tmp_path):
    synthesize(tmp_path, '--train_images=2', '--val_images=1', '--size=90x150')
    assert contents(tmp_path).items() <= contents(dataset).items()


def test_every_kind_of_void_occurs_and_takes_its_share(scenes):
    ignored = {label.id for label in labels.CITYSCAPES if label.ignored}
    assert ignored <= set(np.unique(scenes[0]))
    assert 0.05 < np.isin(scenes[0], list(ignored)).mean() < 0.2


def test_a_predictor_that_ignores_the_image_stays_below_30_per_cent(scenes):
    train, val = scenes
    most_frequent = np.array(SCORED)[np.stack([(train == id_).sum(0) for id_ in SCORED]).argmax(0)]
    confusion = np.zeros((34, 34), np.int64)
    np.add.at(confusion, (val.ravel(), np.broadcast_to(most_frequent, val.shape).ravel()), 1)
    assert metrics.scores(confusion, labels.CITYSCAPES)['eval/miou_present'] < 0.3


def test_foreign_images_are_not_mixed_with_synthetic_ones(tmp_path):
    real = tmp_path / 'leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png'
    real.parent.mkdir(parents=True)
    real.write_bytes(b'someone else put this here')
    done = synthesize(tmp_path, '--train_images=1', '--val_images=1')
    assert done.returncode == entry.BAD_USAGE and 'aachen' in done.stderr
    assert contents(tmp_path) == {str(real.relative_to(tmp_path)): b'someone else put this here'}


def test_sizes_that_make_no_sense_are_refused(tmp_path):
    for size in ('big', '10x10'):
        done = synthesize(tmp_path, f'--size={size}')
        assert done.returncode == entry.BAD_USAGE and size in done.stderr
