import keras
import numpy as np
import pytest

from configs import default
from unet import model


@pytest.mark.parametrize('depth', [3, 4, 5, 6])
@pytest.mark.parametrize('padding', ['same', 'valid'])
def test_output_size_is_what_the_network_returns(depth, padding):
    network = model.unet(3, width=1, depth=depth, padding=padding, norm='none')
    usable = [size for size in range(60, 400) if default.output_size(size, depth, padding)]
    for size in (usable[0], usable[len(usable) // 2], usable[-1]):
        expected = default.output_size(size, depth, padding)
        assert network.compute_output_shape((1, size, size, 3)) == (1, expected, expected, 3)


def test_the_papers_network_maps_572_to_388():
    assert default.output_size(572, 5, 'valid') == 388
    assert default.output_size(570, 5, 'valid') == 0


def test_the_blog_posts_network():
    """64-128-256-512-1024 with a skip by concatenation: the parameter count is worked out by hand."""
    widths = [64, 128, 256, 512, 1024]

    def block(before, channels):  # two 3x3 convolutions with bias, each followed by a norm of four values per channel
        return (9 * before + 1) * channels + 4 * channels + (9 * channels + 1) * channels + 4 * channels

    count = sum(block(before, channels) for before, channels in zip([3, *widths], widths, strict=False))
    for channels in widths[:-1]:
        count += (4 * 2 * channels + 1) * channels + 4 * channels  # 2x2 transposed convolution and its norm
        count += block(2 * channels, channels)
    count += (64 + 1) * 34
    assert model.unet(34).count_params() == count


def test_add_skips_save_the_channels_of_concatenation():
    kernels = {w.path: w.shape for w in model.unet(3, width=4, depth=3, skip='add').trainable_variables}
    assert kernels['up0_conv_a/kernel'] == (3, 3, 4, 4)
    kernels = {w.path: w.shape for w in model.unet(3, width=4, depth=3, skip='concat').trainable_variables}
    assert kernels['up0_conv_a/kernel'] == (3, 3, 8, 4)


@pytest.mark.parametrize('precision', ['float32', 'bfloat16', 'float16', 'float64'])
def test_variables_and_logits_keep_at_least_float32(precision):
    network = model.unet(3, width=2, depth=3, precision=precision)
    at_least = {'float64': 'float64'}.get(precision, 'float32')
    assert {keras.backend.standardize_dtype(v.dtype) for v in network.variables} == {at_least}
    assert network(np.zeros((1, 8, 8, 3))).dtype == at_least


def test_weights_are_a_function_of_the_seed():
    from data_prep import labels
    from unet import from_config

    config = default.get_config()
    config.model.width, config.model.depth = 2, 3
    weights = [from_config.network(config, labels.CITYSCAPES, replicas=1).get_weights() for _ in range(2)]
    assert all(np.array_equal(a, b) for a, b in zip(*weights, strict=True))
