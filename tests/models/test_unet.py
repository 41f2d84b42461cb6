import keras
import numpy as np
import pytest
import tensorflow as tf

from configs import default, validation
from unet.models import batch_norm, layers, step_cost, unet
from unet.models import build as model_build
from unet.training import build as training_build


@pytest.mark.parametrize(
    ('depth', 'padding', 'stem'),
    [(3, 'same', 1), (6, 'same', 1), (8, 'same', 2), (4, 'same', 4), (3, 'valid', 1), (6, 'valid', 1)],
)
def test_output_size_is_what_the_model_returns(depth, padding, stem):
    arch = unet.Architecture(3, width=1, depth=depth, padding=padding, stem=stem, max_width=8, norm='none')
    model = unet.build_unet(arch)
    usable = [size for size in range(60, 600) if validation.output_size(size, depth, padding, stem)]
    for size in (usable[0], usable[len(usable) // 2], usable[-1]):
        expected = validation.output_size(size, depth, padding, stem)
        assert model.compute_output_shape((1, size, size, 3)) == (1, expected, expected, 3)


def test_the_papers_model_maps_572_to_388():
    assert validation.output_size(572, 5, 'valid') == 388
    assert validation.output_size(570, 5, 'valid') == 0


def test_the_blog_posts_model():
    """64-128-256-512-1024 with a skip by concatenation: the parameter count is worked out by hand."""
    widths = [64, 128, 256, 512, 1024]

    def block(before, channels):  # two 3x3 convolutions with bias, each followed by a norm of four values per channel
        return (9 * before + 1) * channels + 4 * channels + (9 * channels + 1) * channels + 4 * channels

    count = sum(block(before, channels) for before, channels in zip([3, *widths], widths, strict=False))
    for channels in widths[:-1]:
        count += (4 * 2 * channels + 1) * channels + 4 * channels  # 2x2 transposed convolution and its norm
        count += block(2 * channels, channels)
    count += (64 + 1) * 34
    assert unet.build_unet(unet.Architecture(34)).count_params() == count


def test_add_skips_save_the_channels_of_concatenation():
    kernels = {
        w.path: w.shape for w in unet.build_unet(unet.Architecture(3, width=4, depth=3, skip='add')).trainable_variables
    }
    assert kernels['up0_conv_a/kernel'] == (3, 3, 4, 4)
    kernels = {
        w.path: w.shape
        for w in unet.build_unet(unet.Architecture(3, width=4, depth=3, skip='concat')).trainable_variables
    }
    assert kernels['up0_conv_a/kernel'] == (3, 3, 8, 4)


@pytest.mark.parametrize('precision', ['float32', 'bfloat16', 'float16', 'float64'])
def test_variables_and_logits_keep_at_least_float32(precision):
    model = unet.build_unet(unet.Architecture(3, width=2, depth=3, precision=precision))
    at_least = {'float64': 'float64'}.get(precision, 'float32')
    assert {keras.backend.standardize_dtype(v.dtype) for v in model.variables} == {at_least}
    assert model(np.zeros((1, 8, 8, 3))).dtype == at_least


def test_weights_are_a_function_of_the_seed():
    from data_prep import labels

    config = default.get_config()
    config.model.width, config.model.depth = 2, 3
    weights = [model_build.build_model(config, labels.CITYSCAPES, replicas=1).get_weights() for _ in range(2)]
    assert all(np.array_equal(a, b) for a, b in zip(*weights, strict=True))


OPTIONS = [
    {},
    {'auxiliary': True},
    {'up': 'resize', 'residual': True, 'norm': 'group', 'skip': 'add'},
    {'up': 'resize', 'residual': True, 'padding': 'valid'},
    {'auxiliary': True, 'norm': 'none', 'padding': 'valid'},
    {'auxiliary': True, 'stem': 2, 'context': 'dilated', 'max_width': 8},
    {'stem': 4, 'context': 'dilated', 'up': 'resize', 'residual': True},
]


def _size(options):
    """60 pixels, which an unpadded model takes too, or what stems take."""
    return (64, 64) if 'stem' in options else (60, 60)


@pytest.mark.parametrize('options', OPTIONS)
def test_recomputation_changes_nothing_and_statistics_are_updated_once(options):
    images = np.random.default_rng(0).uniform(-1, 1, (2, *_size(options), 3))
    results = []
    for recompute in (False, True):
        keras.utils.set_random_seed(1)
        model = unet.build_unet(
            unet.Architecture(5, width=4, depth=3, precision='float64', recompute=recompute, **options)
        )

        @tf.function
        def gradients(model=model):
            with tf.GradientTape() as tape:
                outputs = tf.nest.flatten(model(images, training=True))
                loss = tf.add_n([tf.reduce_mean(output**2) for output in outputs])
            return tape.gradient(loss, [variable.value for variable in model.trainable_variables])

        results.append([*gradients(), *(variable.value for variable in model.non_trainable_variables)])
    for kept, recomputed in zip(*results, strict=True):
        np.testing.assert_allclose(kept, recomputed, rtol=0, atol=1e-12)


@pytest.mark.parametrize('options', OPTIONS)
def test_the_estimate_counts_every_parameter_and_sum(options):
    config = default.get_config()
    config.model.width, config.model.depth, config.data.crop = 8, 3, _size(options)
    for name, value in options.items():
        if name != 'auxiliary':
            config.model[name] = value
    config.loss.auxiliary = 0.4 if options.get('auxiliary') else 0.0
    model = unet.build_unet(unet.Architecture(19, width=8, depth=3, **options))
    expected = sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)
    cost = training_build.estimate_cost(config, num_classes=19)
    assert cost.parameters == expected
    assert cost.norm_sums == len(model.non_trainable_variables)  # a mean and a variance; a sum forward, one backward
    config.runtime.recompute = True
    less = training_build.estimate_cost(config, num_classes=19)
    most_kept = 0.85 if 'stem' in options else 0.75  # beside full-size logits, which are kept
    assert less.activation_bytes < most_kept * cost.activation_bytes and less.parameters == cost.parameters
    normalised = cost.norm_sums // 2
    kept = (1 + bool(options.get('auxiliary'))) * bool(normalised)  # the last, and the auxiliary head's
    assert less.norm_sums == 3 * normalised - kept
    most = step_cost.largest_microbatch(cost, memory := 10 * 2**20)
    assert step_cost.step_bytes(cost, most) <= memory < step_cost.step_bytes(cost, most + 1)


def test_the_estimate_counts_the_arithmetic_of_every_convolution():
    """Of a model of convolutions alone, beside the pooling, worked out by hand for 16 x 24 pixels."""
    model = unet.build_unet(unet.Architecture(5, width=4, depth=3, norm='none'), image_size=(16, 24))
    multiplied = 0  # by a pixel of each level
    for level, (first, second) in enumerate([(3, 4), (4, 8), (8, 16)]):  # the encoder
        multiplied += 9 * (first * second + second * second) / 4**level
    for level, (below, channels) in enumerate([(8, 4), (16, 8)]):  # the decoder: doubling, two convolutions
        multiplied += (below * channels + 9 * (2 * channels * channels + channels * channels)) / 4**level
    multiplied += 4 * 5
    pooled = 3 * (4 / 4 + 8 / 16)
    assert step_cost.estimate(model, slots=2).forward_flops == 16 * 24 * (2 * multiplied + pooled)


@pytest.mark.parametrize('jit_compile', [False, True])
def test_batch_normalisation_in_bfloat16_is_the_formula(jit_compile):
    """By TensorFlow's op and in compiled pieces: output, gradients and running statistics."""
    rng = np.random.default_rng(0)
    x, dy = (tf.constant(rng.normal(1, 2, [2, 6, 10, 3]), tf.bfloat16) for _ in range(2))
    norm = batch_norm.BatchNorm(0.5, relu=True, jit_compile=jit_compile, dtype='mixed_bfloat16')
    norm.build(x.shape)
    norm.gamma.assign([0.5, 1.0, 2.0])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = norm(x, training=True)
    gradients = tape.gradient(y, [x, norm.gamma.value, norm.beta.value], dy)
    with tf.GradientTape() as tape:
        exact, gamma, beta = tf.cast(x, tf.float64), tf.cast(norm.gamma.value, tf.float64), tf.zeros([3], tf.float64)
        tape.watch([exact, gamma, beta])
        mean, variance = tf.nn.moments(tf.nn.relu(exact), [0, 1, 2])
        expected = (tf.nn.relu(exact) - mean) * tf.math.rsqrt(variance + batch_norm.EPSILON) * gamma + beta
    expected_gradients = tape.gradient(expected, [exact, gamma, beta], tf.cast(dy, tf.float64))
    for got, wanted in zip([y, *gradients], [expected, *expected_gradients], strict=True):
        np.testing.assert_allclose(tf.cast(got, tf.float64), wanted, rtol=0.02, atol=0.02)
    np.testing.assert_allclose(norm.moving_mean, 0.5 * mean, rtol=1e-4)
    np.testing.assert_allclose(norm.moving_variance, 0.5 + 0.5 * variance, rtol=1e-4)


def test_doubling_is_bilinear_interpolation():
    images = np.random.default_rng(0).uniform(-1, 1, (2, 5, 7, 3)).astype(np.float32)
    np.testing.assert_allclose(layers.BilinearDouble()(images), tf.image.resize(images, (10, 14)), atol=1e-6)


def test_inference_needs_neither_dropout_nor_the_auxiliary_head():
    model = unet.build_unet(unet.Architecture(5, width=4, depth=3, dropout=True, auxiliary=True))
    images = np.random.default_rng(0).uniform(-1, 1, (2, 32, 48, 3)).astype(np.float32)
    logits, auxiliary = model([images, np.ones((2, 1, 1, 16))])
    assert auxiliary.shape == (2, 16, 24, 5)
    np.testing.assert_array_equal(unet.for_inference(model)(images), logits)


@pytest.mark.parametrize('stem', [2, 4])
def test_a_stem_makes_logits_of_full_size_and_cheaper_steps(stem):
    """Each level is that much smaller, and logits are brought back to full size."""
    plain, stemmed = (
        unet.build_unet(unet.Architecture(5, width=8, depth=3, stem=stem), image_size=(64, 96)) for stem in (1, stem)
    )
    assert stemmed.output_shape == plain.output_shape == (None, 64, 96, 5)
    for level in (0, 1, 2):
        sizes = [model.get_layer(f'down{level}_part').output.shape[1:3] for model in (plain, stemmed)]
        assert sizes == [(64 >> level, 96 >> level), ((64 // stem) >> level, (96 // stem) >> level)]
    costs = [step_cost.estimate(model, slots=2) for model in (plain, stemmed)]
    assert costs[1].step_flops < 1.5 / stem**2 * costs[0].step_flops
    assert costs[1].activation_bytes < 0.5 * costs[0].activation_bytes


def test_no_level_has_more_channels_than_the_limit():
    model = unet.build_unet(unet.Architecture(3, width=4, depth=8, max_width=12, dropout=True))
    channels = [model.get_layer(f'down{level}_part').output.shape[-1] for level in range(8)]
    assert channels == [4, 8, 12, 12, 12, 12, 12, 12]
    assert model.input_shape[1] == (None, 1, 1, 12)
