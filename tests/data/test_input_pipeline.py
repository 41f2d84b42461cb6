import concurrent.futures
import functools
import os

import numpy as np
import pytest
import tensorflow as tf

from data_prep import records, tfrecord
from tests import tiny
from unet.data import crops, input_pipeline
from unet.models import preprocess


@pytest.fixture(scope='module')
def split(tmp_path_factory):
    """Seven images in which every pixel of the image tells its label: red = 7 x label id."""
    pairs = [(np.stack([label * 7, image[..., 1], image[..., 2]], -1), label) for image, label in tiny.scenes(7)]
    return records.read_split(tiny.write_folder(tmp_path_factory.mktemp('data'), train=pairs), 'train')


def batches(split, batch=2, replicas=1, replica=0, first=0, last=7, global_batch=None, seed=3, **options):
    def positions(number):
        return input_pipeline.replica_positions(number, global_batch or batch * replicas, replicas, replica)

    reader, resize = input_pipeline.Reader(split), options.get('resize')
    sizes = np.broadcast_to(resize, (len(split), 2)) if resize else input_pipeline.image_sizes(split)
    crop, scale = options.pop('crop', (24, 32)), options.pop('scale', (1.0, 1.0))
    sampler = crops.Sampler(sizes, seed=seed, crop=crop, scale=scale)
    make = input_pipeline.ExampleMaker(reader, sampler, **dict(flip=0.5, color=(0.1, 0.1, 0.1)) | options)
    channels = options.get('dropout_channels', 0)
    dataset = input_pipeline.train_batches(
        reader, make, crop=crop, dropout_channels=channels, positions=positions, first=first, last=last
    )
    return list(dataset.as_numpy_iterator())


def joined(parts):
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@pytest.mark.parametrize('options', [{}, {'cache': True}, {'resize': (30, 40)}, {'scale': (0.5, 2.0)}])
def test_any_position_is_reached_without_what_lies_before(split, options):
    whole, tail = batches(split, **options), batches(split, first=4, **options)
    for expected, found in zip(whole[4:], tail, strict=True):
        for name in expected:
            np.testing.assert_array_equal(expected[name], found[name])


def test_replicas_share_out_the_global_batch(split):
    whole = joined(batches(split, batch=4, last=3))
    parts = [batches(split, batch=1, replicas=4, replica=replica, last=3) for replica in range(4)]
    shared = joined([part for step in zip(*parts, strict=True) for part in step])
    for name in whole:
        np.testing.assert_array_equal(whole[name], shared[name])


@pytest.mark.parametrize('cache', [False, True])
def test_augmentation_is_drawn_anew_in_every_epoch(split, cache):
    """Seen over several epochs, one example comes in many crops, also when decoded images are cached."""
    found = batches(split, batch=7, last=6, cache=cache)
    example = [list(crops.epoch_order(7, 3, epoch)).index(0) for epoch in range(6)]
    different = {found[epoch]['image'][place].tobytes() for epoch, place in enumerate(example)}
    assert len(different) >= 5


@pytest.mark.parametrize('options', [{}, {'scale': (0.4, 2.5)}, {'resize': (30, 70)}, {'cache': True}])
def test_labels_are_never_interpolated(split, options):
    known = {0, 7, 8, 11, 21, 23, 26, 255}
    for batch in batches(split, **options):
        assert set(np.unique(batch['label'])) <= known


@pytest.mark.parametrize('options', [{}, {'resize': (30, 70), 'resize_method': 'nearest'}, {'scale': (0.5, 0.5)}])
def test_image_and_label_stay_aligned(split, options):
    """Through crop, flip, resize and zoom, red still tells the label (away from edges, where zooming mixes colours)."""
    for batch in batches(split, **options):
        known = batch['label'] != 255
        same = batch['image'][..., 0] == batch['label'] * np.uint8(7)
        assert same[known].mean() > (0.7 if 'scale' in options else 0.999)
        assert not (~known).any() or (batch['image'][~known] == 127).mean() > 0.6


def test_a_crop_larger_than_the_image_is_bordered_with_void(split):
    (batch,) = batches(split, last=1, crop=(64, 80))
    assert (batch['label'] == 255).sum() == 2 * (64 * 80 - 40 * 56)
    assert (batch['image'][batch['label'] == 255] == 127).all()


def test_flip_probability(split):
    plain, flipped = (joined(batches(split, crop=(40, 56), flip=flip)) for flip in (0.0, 1.0))
    np.testing.assert_array_equal(plain['image'], flipped['image'][:, :, ::-1])
    np.testing.assert_array_equal(plain['label'], flipped['label'][:, :, ::-1])


def test_color_jitter_leaves_zero_alone_and_stays_in_range():
    image = tf.random.stateless_uniform([3, 8, 8, 3], [1, 2], -1, 1)
    np.testing.assert_allclose(preprocess.color_jitter(image, tf.zeros([3, 3])), image, atol=1e-6)
    strong = preprocess.color_jitter(image, tf.constant([[0.5, 0, 0], [0, 0.9, 0], [0, 0, -1.0]]))
    assert float(tf.reduce_max(tf.abs(strong))) <= 1
    np.testing.assert_allclose(strong[2, ..., 0], strong[2, ..., 2], atol=1e-5)  # no saturation left: grey


def test_eval_batches_hold_every_example_once_and_one_size_each(tmp_path):
    pairs = tiny.scenes(5, (16, 24)) + tiny.scenes(4, (24, 16)) + tiny.scenes(1, (16, 16))
    split = records.read_split(tiny.write_folder(tmp_path, validation=pairs), 'validation')
    for batch in (1, 2, 3, 8):
        for replicas in (1, 2, 4):
            rows = input_pipeline.eval_batches(split, batch, replicas)
            assert len(rows) % replicas == 0
            assert sorted(rows[rows >= 0]) == list(range(10))
            for row in rows:
                assert len({(split.height[i], split.width[i]) for i in row if i >= 0}) <= 1


def test_a_damaged_record_is_named(tmp_path):
    folder = tiny.write_folder(tmp_path, train=tiny.scenes(4))
    shard = folder / 'cityscapes-train.tfrecord-00001-of-00002'
    content = bytearray(shard.read_bytes())
    content[200] ^= 1
    shard.write_bytes(bytes(content))
    split = records.read_split(folder, 'train')
    with pytest.raises(Exception, match='checksum'):
        batches(split, last=2)


@pytest.mark.parametrize('kept', [1, 256])
def test_threads_read_more_shards_than_are_kept_open(tmp_path, monkeypatch, kept):
    """Each is closed in the end, but not while another thread reads it."""
    monkeypatch.setattr(tfrecord, '_opened', functools.lru_cache(kept)(tfrecord._opened.__wrapped__))
    data = [str(shard).encode() for shard in range(400)]
    for shard, content in enumerate(data):
        (tmp_path / str(shard)).write_bytes(tfrecord.frame(content))
    order = np.random.default_rng(0).integers(0, 400, 4000).tolist()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        read = pool.map(lambda shard: tfrecord.read_record(str(tmp_path / str(shard)), 0, len(data[shard])), order)
        assert list(read) == [data[shard] for shard in order]
    files = [os.path.realpath(f'/proc/self/fd/{descriptor}') for descriptor in os.listdir('/proc/self/fd')]
    assert sum(file.startswith(str(tmp_path)) for file in files) <= kept
