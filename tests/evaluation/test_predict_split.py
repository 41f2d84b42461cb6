import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from configs.validation import output_size
from data_prep import labels, records
from launch import entry
from tests import tiny
from unet.evaluation import predict_split
from unet.inference import options
from unet.inference import predictor as inference_predictor
from unet.models import preprocess, unet


@pytest.fixture(scope='module')
def model():
    keras.utils.set_random_seed(1)
    return unet.build_unet(unet.Architecture(34, width=2, depth=3))


def predictor(model, padding='same', resize=(0, 0)):
    logits_of = inference_predictor.make_logits(
        model, options.WHOLE_IMAGE, padding=padding, depth=3, tile=(60, 60), resize=resize
    )
    return inference_predictor.make_predictor(logits_of, tf.cast(tf.range(34), tf.uint8))


def confusion_one_by_one(predict, split):
    total = np.zeros((34, 34), np.int64)
    for example in range(len(split)):
        features = records.read_example(split, example)
        image = tf.io.decode_png(features['image_left'], channels=3)
        truth = tf.io.decode_png(features['segmentation_label']).numpy()[..., 0]
        np.add.at(total, (truth.ravel(), predict(image[None]).numpy().ravel()), 1)
    return total


@pytest.mark.parametrize('sizes', [[(40, 56)] * 7, [(40, 56)] * 3 + [(33, 47)] * 2 + [(20, 20)] * 2])
def test_seven_images_on_any_devices_and_batch_are_scored_as_one_by_one(tmp_path, model, mirrored, sizes):
    """Also images of mixed sizes and sizes that do not divide by 4; no partial batch is dropped."""
    pairs = [tiny.scene(size, seed) for seed, size in enumerate(sizes)]
    split = records.read_split(tiny.write_folder(tmp_path, validation=pairs), 'validation')
    predict = predictor(model)
    expected = confusion_one_by_one(predict, split)
    assert expected.sum() == sum(height * width for height, width in sizes)
    for replicas, batch in ((4, 2), (1, 3), (2, 1)):
        strategy = mirrored(replicas)
        with strategy.scope():
            copy = unet.build_unet(unet.Architecture(34, width=2, depth=3))
            copy.set_weights(model.get_weights())
        found = predict_split.confusion_of_split(strategy, predictor(copy), split, labels.CITYSCAPES, batch=batch)
        np.testing.assert_array_equal(found, expected)


def test_a_model_is_traced_once_and_scored_with_the_weights_of_the_moment(tmp_path, model, mirrored):
    split = records.read_split(tiny.write_folder(tmp_path, validation=tiny.scenes(3)), 'validation')
    strategy, traces = mirrored(1), []
    with strategy.scope():
        copy = unet.build_unet(unet.Architecture(34, width=2, depth=3))
    eager = predictor(copy)

    def predict(images):
        traces.append(images.shape)
        return eager(images)

    for weights in (copy.get_weights(), model.get_weights()):
        copy.set_weights(weights)
        found = predict_split.confusion_of_split(strategy, predict, split, labels.CITYSCAPES, batch=1)
        np.testing.assert_array_equal(found, confusion_one_by_one(eager, split))
        assert len(traces) == 1


def test_unlabelled_images_and_unknown_ids_are_refused(tmp_path, model, mirrored):
    folder = tiny.write_folder(tmp_path / 'test', labelled=False, test=tiny.scenes(2))
    with pytest.raises(entry.UserError, match='without labels'):
        predict_split.confusion_of_split(
            mirrored(1), predictor(model), records.read_split(folder, 'test'), labels.CITYSCAPES, batch=1
        )
    image, label = tiny.scene((16, 16), 0)
    label[0, :5] = 255
    folder = tiny.write_folder(tmp_path / 'ids', validation=[(image, label)])
    with pytest.raises(entry.UserError, match='5 pixels with label ids of 34'):
        predict_split.confusion_of_split(
            mirrored(1), predictor(model), records.read_split(folder, 'validation'), labels.CITYSCAPES, batch=1
        )


def test_a_request_to_stop_breaks_off_after_the_batch(tmp_path, model, mirrored):
    split = records.read_split(tiny.write_folder(tmp_path, validation=tiny.scenes(5)), 'validation')
    done, asked = [], itertools.count()
    predict = predictor(model)
    with pytest.raises(predict_split.Interrupted):
        predict_split.confusion_of_split(
            mirrored(1),
            predict,
            split,
            labels.CITYSCAPES,
            batch=1,
            on_progress=done.append,
            stop=lambda: next(asked) >= 2,
        )
    assert len(done) < 5


def test_work_in_threads_keeps_its_order_and_shows_its_failures():
    assert list(predict_split.in_threads(lambda number, factor: number * factor, ((n, 2) for n in range(50)))) == list(
        range(0, 100, 2)
    )
    done = []

    def work(number):
        done.append(number)
        if number == 3:
            raise entry.UserError(entry.BAD_DATA, 'the third')

    with pytest.raises(entry.UserError, match='the third'):
        list(predict_split.in_threads(work, ((number,) for number in range(1000))))
    assert len(done) < 100  # the rest is not even begun


def test_a_prediction_does_not_depend_on_what_shares_its_batch(model):
    images = np.stack([tiny.scene((30, 50), seed)[0] for seed in range(3)])
    together = predictor(model)(tf.constant(images))
    for number, image in enumerate(images):
        np.testing.assert_array_equal(predictor(model)(tf.constant(image[None]))[0], together[number])


@pytest.mark.parametrize('size', [(20, 20), (100, 70), (41, 123), (7, 200)])
def test_unpadded_model_gives_every_pixel_of_any_image_its_class(size):
    model = unet.build_unet(unet.Architecture(34, width=2, depth=3, padding='valid', norm='none'))
    image = tiny.scene(size, 0)[0]
    assert predictor(model, padding='valid')(tf.constant(image[None])).shape == (1, *size)


def test_tiles_lie_edge_to_edge_and_equal_one_large_tile():
    """An unpadded model sees the same mirrored surroundings whether it looks at tiles or at the whole."""
    keras.utils.set_random_seed(2)
    model = unet.build_unet(unet.Architecture(5, width=2, depth=3, padding='valid', norm='none'))
    image = tf.random.stateless_uniform([1, 60, 80, 3], [1, 2], -1, 1)
    margin = (60 - output_size(60, 3, 'valid')) // 2
    tiled = inference_predictor.tiled_logits(model, image, tile=(60, 60), margin=[margin, margin])
    whole = inference_predictor.tiled_logits(model, image, tile=(100, 120), margin=[margin, margin])
    assert output_size(100, 3, 'valid') == 60 and output_size(120, 3, 'valid') == 80
    np.testing.assert_allclose(tiled, whole, atol=1e-5)


def test_mirroring_repeats_however_far():
    found = inference_predictor.mirrored(tf.constant(3), 5, tf.constant(12)).numpy().tolist()
    assert found == [1, 0, 1, 2, 1, 0, 1, 2, 1, 0, 1, 2]
    assert inference_predictor.mirrored(tf.constant(1), 2, tf.constant(5)).numpy().tolist() == [0] * 5


def test_resized_model_input_is_scored_at_the_original_size(model):
    image = tf.constant(tiny.scene((50, 70), 0)[0][None])
    assert predictor(model, resize=(32, 32))(image).shape == (1, 50, 70)


def test_normalize_is_the_blog_posts():
    np.testing.assert_allclose(preprocess.normalize(np.array([0, 255], np.uint8)), [-1, 1])
