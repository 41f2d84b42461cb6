import numpy as np
import pytest

from data_prep import labels, places, records
from data_prep.labels import IGNORED
from tests import tiny
from unet.data import crops, decoding, input_pipeline

POLE, ROAD, SKY = 17, 7, 23
SIZES = np.array([[100, 200]] * 7)


def first(sampler, position):
    return next(sampler.candidates(position, crops.generator(position, sampler.seed).random(7)[:3]))


def test_every_epoch_is_another_permutation():
    for epoch in range(3):
        assert sorted(crops.epoch_order(50, 1, epoch)) == list(range(50))
    orders = {tuple(crops.epoch_order(50, seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}
    assert len(orders) == 4
    seen = [crops.example_at(position, 7, 3) for position in range(14)]
    assert sorted(seen[:7]) == sorted(seen[7:]) == list(range(7))


@pytest.mark.parametrize('log_scale', [False, True])
def test_zoom_covers_its_range(log_scale):
    """Uniformly, or in its logarithm: then half of the crops are shown smaller than they are."""
    sampler = crops.Sampler(SIZES, seed=1, crop=(50, 50), scale=(0.5, 2.0), log_scale=log_scale)
    windows = np.array([first(sampler, position)[1] for position in range(400)])
    assert windows[:, 2].min() < 28 and windows[:, 2].max() > 95
    assert (windows[:, 0] >= 0).all() and (windows[:, 0] + windows[:, 2] <= 100).all()
    assert abs((windows[:, 2] > 50).mean() - (0.5 if log_scale else 1 / 3)) < 0.08


@pytest.fixture(scope='module')
def split(tmp_path_factory):
    """Images of road, of which the last alone has a pole, 2 pixels wide, and the first alone a sky, half of it."""
    pairs = []
    for number in range(6):
        image, label = np.full((64, 96, 3), number, np.uint8), np.full((64, 96), ROAD, np.uint8)
        if number == 0:
            label[:32] = SKY
        if number == 5:
            label[10:30, 70:72] = POLE
        pairs.append((image, label))
    return records.read_split(tiny.write_folder(tmp_path_factory.mktemp('data'), train=pairs), 'train')


def make_sampler(split, **options):
    class_of_id = labels.train_id_of_id(labels.CITYSCAPES)
    found = crops.places_by_class(places.read(split), input_pipeline.image_sizes(split), class_of_id)
    settings = dict(seed=3, crop=(16, 32), scale=(0.8, 1.25), places=found, class_of_id=class_of_id) | options
    return crops.Sampler(input_pipeline.image_sizes(split), **settings)


def test_a_class_is_drawn_evenly_and_lies_in_the_middle_of_its_crop(split):
    """A third of the crops is centred on the pole, of 0.1 % of the pixels, and a third on the sky."""
    sampler = make_sampler(split, class_uniform=1.0)
    label_of = {example: label(split, example) for example in range(6)}
    centres = []
    for position in range(600):
        example, (top, left, height, width) = first(sampler, position)
        part = label_of[example][top : top + height, left : left + width]
        assert part.shape == (height, width)  # it never leaves an image that is larger
        inside = 0 < left < 96 - width and 0 < top < 64 - height
        centres.append(part[height // 2, width // 2] if inside else None)
    found = [sum(id_ == centre for centre in centres) for id_ in (POLE, ROAD, SKY)]
    assert found[0] > 150 and found[1] > 60 and found[2] > 60
    half = make_sampler(split, class_uniform=0.5)
    pole = sum(POLE in label_of[example] for example, _ in (first(half, position) for position in range(600)))
    expected = 600 * (0.5 * (1 / 3 + 1 / 3 / 6) + 0.5 / 6)  # drawn for the pole, for its road, or in its turn
    assert 0.8 * expected < pole < 1.2 * expected


def label(split, example):
    encoded = records.read_example(split, example)['segmentation_label']
    return decoding.read_window(encoded, (0, 0, 64, 96), channels=1, fill=IGNORED, size=(64, 96))[..., 0]


def test_a_crop_of_one_class_is_drawn_again(split):
    """Of the images with two classes most crops hold both; an image of one class is taken in the end."""
    share = {1.0: [], 0.75: []}
    for largest, shares in share.items():
        make = example_maker(split, largest_share=largest, crop=(32, 32), scale=(0.7, 1.0))
        for position in range(60):
            if crops.example_at(position, 6, 3) == example_of(split, SKY):
                counts = np.bincount(make(position)[1].reshape(-1), minlength=256)
                shares.append(counts[:255].max() / counts[:255].sum())
    assert len(share[0.75]) == 10 and np.mean(np.array(share[0.75]) <= 0.77) >= 0.9 > np.mean(
        np.array(share[1.0]) <= 0.77
    )


def example_of(split, id_):
    return next(example for example in range(6) if id_ in label(split, example))


def example_maker(split, **options):
    reader = input_pipeline.Reader(split)
    return input_pipeline.ExampleMaker(reader, make_sampler(split, **options), flip=0.5, color=(0.1,) * 5)


@pytest.mark.parametrize('cache', [False, True])
def test_examples_are_functions_of_seed_and_position(split, cache):
    """Whoever asks, in whatever order, for whatever share: as replicas, and runs that go on, do."""
    options = dict(class_uniform=0.5, largest_share=0.8, log_scale=True)

    def maker():
        reader = input_pipeline.Reader(split)
        return input_pipeline.ExampleMaker(
            reader, make_sampler(split, **options), flip=0.5, color=(0.1,) * 5, cache=cache
        )

    whole = [maker()(position) for position in range(40)]
    make = maker()
    for replicas in (1, 2, 4):
        for replica in range(replicas):
            for step in reversed(range(5)):
                for position in input_pipeline.replica_positions(step, 8, replicas, replica):
                    for expected, found in zip(whole[position], make(position), strict=True):
                        np.testing.assert_array_equal(expected, found)
    assert len({image.tobytes() for image, *_ in whole}) > 5 and len({tuple(color) for *_, color in whole}) == 40


def test_colours_more_leave_the_others_as_they_are(split):
    """A run with hue sees the crops of one without."""
    reader, sampler = input_pipeline.Reader(split), make_sampler(split)
    few, many = (input_pipeline.ExampleMaker(reader, sampler, flip=0.5, color=(0.1,) * count) for count in (3, 5))
    for position in range(5):
        for expected, found in zip(few(position)[:2], many(position)[:2], strict=True):
            np.testing.assert_array_equal(expected, found)
        np.testing.assert_array_equal(few(position)[2], many(position)[2][:3])
