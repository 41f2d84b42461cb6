"""The part of an encoded image that is needed, decoded, bordered and resized, as NumPy arrays.

    window = decoding.read_window(encoded, (-16, 0, 256, 512), channels=3, fill=127)
    smaller = decoding.resize(window, (128, 256), smooth=True)

PNG files are read by data_prep/png.py; of a JPEG only the blocks that the window touches are decoded.
"""

import functools

import cv2
import numpy as np
import tensorflow as tf

from data_prep import png

_BESIDE = 8  # columns of a JPEG that are decoded on either side of a window: a block
ACCURATE = 'INTEGER_ACCURATE'  # of TensorFlow's ways to decode a JPEG, the one with the pixels of Pillow and OpenCV

cv2.setNumThreads(0)  # tf.data decodes as many examples at a time as there are cores


def read_window(
    encoded: bytes | memoryview,
    window: tuple[int, int, int, int],
    *,
    channels: int,
    fill: int,
    size: tuple[int, int] | None = None,
) -> np.ndarray:
    """Reads a part of an encoded image, bordered where it reaches beyond.

    Args:
      encoded: a PNG or, if channels is 3, a JPEG file.
      window: top, left, height, width, pixels; top and left may be negative.
      channels: 1 or 3.
      fill: value of all channels beyond the image's border.
      size: height and width that the image must have; None: any.

    Returns:
      uint8 [height, width, channels]

    Raises:
      ValueError: if the file cannot be decoded or has another size.
    """
    whole = png.image_size(encoded)
    if size not in (None, whole):
        raise ValueError(f'it is {whole[1]}x{whole[0]} instead of {size[1]}x{size[0]}')
    inside = _clip(window, whole)
    if not inside[2] or not inside[3]:
        pixels = np.empty((*inside[2:], channels), np.uint8)
    elif png.is_png(encoded):
        pixels = png.read_window(encoded, inside, channels=channels)
    else:
        pixels = _read_jpeg(encoded, inside, whole[1], channels)
    return _add_border(pixels, inside, window, fill)


def cut_window(image: np.ndarray, window: tuple[int, int, int, int], fill: int) -> np.ndarray:
    """Cuts the same part out of a decoded image uint8 [h, w, channels]."""
    inside = top, left, height, width = _clip(window, image.shape[:2])
    return _add_border(image[top : top + height, left : left + width], inside, window, fill)


def _clip(window: tuple[int, int, int, int], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The part of a window that lies within an image of that height and width: top, left, height, width."""
    top, left = (min(max(first, 0), whole) for first, whole in zip(window[:2], size, strict=True))
    bottom, right = (
        min(max(first + side, 0), whole) for first, side, whole in zip(window[:2], window[2:], size, strict=True)
    )
    return top, left, bottom - top, right - left


def _add_border(
    pixels: np.ndarray, inside: tuple[int, int, int, int], window: tuple[int, int, int, int], fill: int
) -> np.ndarray:
    """Places the pixels of `inside` in the window uint8 [height, width, channels] that it is a part of."""
    if inside == window:
        return pixels
    top, left = inside[0] - window[0], inside[1] - window[1]
    out = np.full((*window[2:], pixels.shape[2]), fill, np.uint8)
    out[top : top + inside[2], left : left + inside[3]] = pixels
    return out


def _read_jpeg(
    encoded: bytes | memoryview, window: tuple[int, int, int, int], columns: int, channels: int
) -> np.ndarray:
    """The window of an image of that many columns, with colours as they are when the whole of it is decoded: where they
    are stored at half the width, a pixel's depends on the next one, and not at all in images of up to four columns."""
    top, left, height, width = window
    before, after = min(left, _BESIDE), min(columns - left - width, _BESIDE)
    wider = (top, left - before, height, before + width + after)
    try:
        with tf.device('CPU'):
            pixels = tf.image.decode_and_crop_jpeg(bytes(encoded), wider, channels=channels, dct_method=ACCURATE)
    except tf.errors.OpError as error:
        raise ValueError(error.message.splitlines()[0]) from error
    return np.asarray(pixels)[:, before : before + width]  # not a copy


def resize(image: np.ndarray, size: tuple[int, int], *, smooth: bool, flip: bool = False) -> np.ndarray:
    """Brings an image to another size, and then mirrors it left to right if asked to.

    Pixel centres are aligned as in tf.image.resize: half a pixel from the border. Nothing is averaged when an image
    becomes smaller. The result is the same on every machine.

    Args:
      image: uint8 [h, w, channels].
      size: height and width of the result.
      smooth: interpolate (bilinear); else each pixel is that of the nearest one.
      flip: mirror it.

    Returns:
      uint8 [*size, channels]
    """
    height, width, channels = image.shape
    if (height, width) == tuple(size):
        return cv2.flip(image, 1).reshape(image.shape) if flip else image
    if smooth:
        resized = cv2.resize(image, tuple(size)[::-1], interpolation=cv2.INTER_LINEAR_EXACT)
        return (cv2.flip(resized, 1) if flip else resized).reshape(*size, channels)
    # OpenCV's INTER_NEAREST_EXACT is off by one where two pixels are about equally near.
    rows, columns = _nearest(height, size[0]), _nearest(width, size[1])[:: -1 if flip else 1]
    if height < size[0]:  # first what leaves fewer pixels
        return image.take(columns, 1).take(rows, 0)
    return image.take(rows, 0).take(columns, 1)


@functools.lru_cache(maxsize=1024)
def _nearest(size: int, resized: int) -> np.ndarray:
    """int64 [resized]: of `size` pixels in a row, the one that holds the centre of each of the `resized` ones."""
    return (2 * np.arange(resized) + 1) * size // (2 * resized)
