import keras
import numpy as np
import pytest
import tensorflow as tf

from configs import default
from data_prep import labels
from tests import tiny
from unet.inference import build as inference_build
from unet.inference import options, predictor, sliding_window
from unet.models import build as model_build
from unet.models import unet

REACH = 23  # a model of depth 3 sees no more than so many pixels to each side


@pytest.fixture(scope='module')
def model():
    """Of random statistics too, so that what lies around a window matters."""
    keras.utils.set_random_seed(3)
    model = unet.build_unet(unet.Architecture(7, width=2, depth=3, precision='float64'))
    rng = np.random.default_rng(0)
    for variable in model.variables:
        if 'moving' in variable.path or 'bias' in variable.path or 'beta' in variable.path:
            variable.assign(rng.uniform(0.1, 0.9, variable.shape))
    return model


def logits(model, *, jit_windows=False, **fields):
    inference = options.InferenceOptions(**fields)
    return predictor.make_logits(model, inference, padding='same', depth=3, tile=(60, 60), jit_windows=jit_windows)


def image_of(size, seed=0):
    return tf.constant(tiny.scene(size, seed)[0][None])


@pytest.mark.parametrize('size', [(200, 312), (130, 500), (128, 40), (50, 333)])
def test_windows_equal_the_whole_where_the_receptive_field_fits_the_overlap(model, size):
    image = image_of(size)
    whole = logits(model)(image)
    for window, overlap in ((128, 160), 0.75), ((192, 196), 0.5):
        assert min(window) * overlap / 4 >= REACH
        seen = logits(model, window=window, overlap=overlap)(image)
        np.testing.assert_allclose(seen, whole, rtol=1e-6, atol=1e-6)  # the weights are float32
    assert np.ptp(whole) > 0.1


def test_too_little_overlap_shows(model):
    """The test above could fail: with narrow overlaps the zero padding at the seams is seen."""
    image = image_of((200, 312))
    seen = logits(model, window=(64, 64), overlap=0.1)(image)
    assert np.abs(seen - logits(model)(image)).max() > 1e-3


@pytest.mark.parametrize('length, window, overlap', [(64, 64, 0.5), (80, 64, 0.5), (1024, 512, 0.25), (400, 64, 0)])
def test_windows_cover_the_image_and_their_weights_add_up(length, window, overlap):
    first, weight = sliding_window.places(tf.constant(length), tf.constant(window), overlap, 16)
    first, total = first.numpy(), np.zeros(length)
    assert first[0] == 0 and first[-1] == length - window and not (first % 16).any()
    assert len(first) == 1 or np.diff(first).max() <= (1 - overlap) * window
    for start, row in zip(first, weight.numpy(), strict=True):
        assert (row >= 0).all()
        total[start : start + window] += row
    np.testing.assert_allclose(total, 1, atol=1e-6)


def test_windows_compiled_with_xla_are_the_same(model):
    image = image_of((100, 150))
    fields = {'window': (64, 64), 'overlap': 0.25}
    plain = tf.function(logits(model, **fields))(image)
    np.testing.assert_allclose(tf.function(logits(model, jit_windows=True, **fields))(image), plain, atol=1e-4)


def test_one_prediction_is_not_averaged(model):
    once = logits(model)
    assert predictor.augmented([once], flip=False) is once


def test_mean_over_scales_and_mirror_images_is_one_of_probabilities(model):
    image = image_of((50, 70))
    scales = (0.5, 1.0, 1.5)
    views = [logits(model, scales=(scale,)) for scale in scales]
    found = tf.nn.softmax(predictor.augmented(views, flip=True)(image))
    expected = np.zeros((1, 50, 70, 7))
    for view in views:
        assert view(image).shape == (1, 50, 70, 7)
        expected += tf.nn.softmax(view(image)).numpy() / 6
        expected += tf.nn.softmax(view(image[:, :, ::-1])).numpy()[:, :, ::-1] / 6
    np.testing.assert_allclose(found, expected, atol=1e-6)
    ids = tf.constant(np.arange(7, dtype=np.uint8))
    predict = predictor.make_predictor(logits(model, scales=scales, flip=True), ids)
    np.testing.assert_array_equal(predict(image), expected.argmax(-1))


def test_flipping_makes_predictions_of_mirror_images_mirror_images(model):
    """The model alone is not symmetric; the mean is."""
    image = image_of((48, 64))
    both = logits(model, flip=True)
    np.testing.assert_allclose(both(image[:, :, ::-1])[:, :, ::-1], both(image), atol=1e-5)
    alone = logits(model)
    assert np.abs(alone(image[:, :, ::-1])[:, :, ::-1] - alone(image)).max() > 1e-3


def test_an_unpadded_model_may_be_given_larger_tiles():
    """What `--window` is for it; tiles lie edge to edge, so nothing is to be blended."""
    config = default.get_config()
    config.model.padding, config.model.norm, config.model.depth, config.model.width = 'valid', 'none', 3, 2
    config.data.crop = (60, 60)
    model = model_build.build_model(config, labels.CITYSCAPES, replicas=1)
    image = image_of((90, 130))
    usual = inference_build.predictor(config, model, labels.CITYSCAPES)(image)
    larger = inference_build.predictor(config, model, labels.CITYSCAPES, options.InferenceOptions((100, 76)))(image)
    assert len(np.unique(usual)) > 1
    assert np.mean(usual != larger) < 1e-3  # rounding
