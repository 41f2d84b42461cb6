import numpy as np
import pytest
import tensorflow as tf

from unet.models import field_of_view, unet


@pytest.mark.parametrize(
    'options',
    [
        {'depth': 3},
        {'depth': 4, 'up': 'resize', 'residual': True},
        {'depth': 3, 'stem': 2, 'context': 'dilated'},
        {'depth': 3, 'stem': 4, 'skip': 'add'},
    ],
)
def test_no_pixel_beyond_it_has_a_gradient_and_the_last_within_it_has(options):
    """With positive weights nothing cancels; the view is taken at all places of a period, and the widest counts."""
    arch = unet.Architecture(1, width=1, max_width=1, norm='none', precision='float64', **options)
    model = unet.build_unet(arch)
    for variable in model.variables:
        variable.assign(tf.ones_like(variable) / np.prod(variable.shape[:-1]))
    period = arch.stem * 2 ** (arch.depth - 1)
    side = -(-3 * field_of_view.pixels(arch) // period) * period
    # Each row brighter than the last: the maximum of a pool is known, and its gradient lies in that row.
    widest = 0
    for direction in (1, -1):
        ramp = np.linspace(1, 2, side)[::direction]
        image = tf.constant(np.broadcast_to(ramp[None, :, None, None], (1, side, period, 3)))
        ends = []
        for place in range(side // 2, side // 2 + period):
            with tf.GradientTape() as tape:
                tape.watch(image)
                logit = model(image)[0, place, 0, 0]
            seen = np.flatnonzero(np.abs(tape.gradient(logit, image)).sum((0, 2, 3)))
            ends.append((seen[0], seen[-1]))
        assert max(last - first + 1 for first, last in ends) <= field_of_view.pixels(arch)
        widest = (
            ends
            if direction == 1
            else [(a[0] if a[0] < b[0] else b[0], max(a[1], b[1])) for a, b in zip(widest, ends, strict=True)]
        )
    assert max(last - first + 1 for first, last in widest) == field_of_view.pixels(arch)
