"""How far a U-Net sees: the pixels of the image that one logit can depend on.

from unet.models import field_of_view, unet

field_of_view.pixels(unet.Architecture(19, depth=5))  # 204 along each side
"""

from unet.models import unet


def pixels(arch: unet.Architecture) -> int:
    """Returns the pixels along one side of the image that a logit depends on, at the most over all places of it.

    It follows the way through the lowest level; the skips see less. Group normalisation, whose statistics are of the
    whole image, is not counted.
    """
    period = arch.stem * 2 ** (arch.depth - 1)
    return max(last - first + 1 for first, last in (_seen_from(arch, place) for place in range(period)))


def _seen_from(arch: unet.Architecture, place: int) -> tuple[int, int]:
    """The first and the last pixel of a row that the logit at a place of it depends on."""
    first = last = place
    for _ in range(unet.stem_convolutions(arch.stem)):  # the logits are interpolated
        first, last = (first - 1) // 2, (last + 1) // 2
    for _ in range(arch.depth - 1):  # up: two convolutions after the doubling
        reach = 2 + (arch.up == 'resize')
        first, last = (first - reach) // 2, (last + reach) // 2
    reach = 2 + (sum(unet.CONTEXT_RATES) if arch.context == 'dilated' else 0)
    first, last = first - reach, last + reach
    for _ in range(arch.depth - 1):  # down: the pooling of two convolutions
        first, last = 2 * first - 2, 2 * last + 1 + 2
    for _ in range(unet.stem_convolutions(arch.stem)):  # of stride 2: each pixel sees the two below it and the next
        first, last = 2 * first, 2 * last + 2
    return first, last
