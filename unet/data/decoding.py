"""The part of an encoded image that is needed, decoded and resampled, as NumPy arrays.

    window = decoding.read_window(encoded, (top, left, height, width), channels=3, fill=127)
    smaller = decoding.resize(window, (256, 256), smooth=True)

A PNG is inflated only as far down as the window reaches and unfiltered only as far to the right; of a JPEG only the
blocks that it touches are decoded. Without the compiled part, and for kinds of PNG that it does not read, whole images
are decoded by TensorFlow and resampled by NumPy: more slowly, to the same pixels.

Source: PNG, https://www.w3.org/TR/png-3 (chunks, section 5.3; image header, 11.2.1).
"""

import functools
import struct
from collections.abc import Iterator

import numpy as np
import tensorflow as tf
from isal import isal_zlib

try:
    from unet import _pixels  # compiled when the package is installed
except ImportError:  # there was no C compiler
    _pixels = None

_PNG = b'\x89PNG\r\n\x1a\n'
_HEADER = struct.Struct('>II5B')  # width, height, depth, colour type, compression, filter method, interlace
_PLAIN = {1: (8, 0, 0, 0, 0), 3: (8, 2, 0, 0, 0)}  # what the header ends with by channels: 8-bit grey, 8-bit RGB
_CHUNK = struct.Struct('>I4s')  # length and kind
_PIECE = 1 << 15  # compressed bytes inflated at a time, so that the pixels stay in the processor's cache


def read_window(
    encoded: bytes, window: tuple[int, int, int, int], *, channels: int, fill: int, size: tuple[int, int] | None = None
) -> np.ndarray:
    """A part of an image, bordered where it reaches beyond.

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
    top, left, height, width = window
    try:
        whole = image_size(encoded)
        if size not in (None, whole):
            raise ValueError(f'it is {whole[1]}x{whole[0]} instead of {size[1]}x{size[0]}')
        first_row, first_column = max(top, 0), max(left, 0)
        rows, columns = min(top + height, whole[0]) - first_row, min(left + width, whole[1]) - first_column
        if (rows, columns) == (height, width):
            return _read_visible(encoded, (first_row, first_column, rows, columns), channels)
        out = np.full((height, width, channels), fill, np.uint8)
        if rows > 0 and columns > 0:
            visible = _read_visible(encoded, (first_row, first_column, rows, columns), channels)
            out[first_row - top :, first_column - left :][:rows, :columns] = visible
        return out
    except (struct.error, isal_zlib.error, tf.errors.OpError) as error:
        raise ValueError(getattr(error, 'message', str(error)).splitlines()[0]) from error


def image_size(encoded: bytes) -> tuple[int, int]:
    """Height and width of a PNG or JPEG file, pixels, by its header."""
    if encoded.startswith(_PNG):
        width, height, *_ = _HEADER.unpack_from(encoded, 16)
        return height, width
    with tf.device('CPU'):
        height, width, _ = tf.image.extract_jpeg_shape(encoded).numpy().tolist()
    return height, width


def _read_visible(encoded: bytes, window: tuple[int, int, int, int], channels: int) -> np.ndarray:
    """The same of a window that lies within the image."""
    top, left, height, width = window
    if not encoded.startswith(_PNG):
        with tf.device('CPU'):
            return tf.image.decode_and_crop_jpeg(encoded, window, channels=channels).numpy()
    whole_width, _, *kind = _HEADER.unpack_from(encoded, 16)
    if _pixels is None or tuple(kind) != _PLAIN[channels]:
        with tf.device('CPU'):
            return tf.io.decode_png(encoded, channels=channels).numpy()[top : top + height, left : left + width]
    out = np.empty((height, width, channels), np.uint8)
    row = bytearray(whole_width * channels)  # the one above; nothing but zeros above the first
    done, rest = 0, b''
    for piece in _inflate(encoded, (top + height) * (len(row) + 1)):
        piece = rest + piece
        rows = len(piece) // (len(row) + 1)
        end = rows * (len(row) + 1)
        at = max(done - top, 0) * width * channels
        skip = max(top - done, 0)
        _pixels.unfilter(memoryview(piece)[:end], row, channels, out, at, width * channels, skip, left, width)
        done, rest = done + rows, piece[end:]
    return out


def _inflate(encoded: bytes, size: int) -> Iterator[bytes]:
    """The first `size` bytes of a PNG's filtered rows, in pieces."""
    view, inflater, at = memoryview(encoded), isal_zlib.decompressobj(), len(_PNG)
    while True:
        length, kind = _CHUNK.unpack_from(encoded, at)
        if kind == b'IDAT':
            for first in range(at + 8, min(at + 8 + length, len(encoded)), _PIECE):
                piece = inflater.decompress(view[first : min(first + _PIECE, at + 8 + length)], size)
                size -= len(piece)
                yield piece
                if not size:
                    return
        if kind == b'IEND' or at + 12 + length >= len(encoded):
            raise ValueError(f'it ends {size:,} bytes of pixels too early')
        at += 12 + length


def resize(image: np.ndarray, size: tuple[int, int], *, smooth: bool, flip: bool = False) -> np.ndarray:
    """Brings an image to another size, and mirrors it left to right if asked to.

    Pixel centres are aligned as in tf.image.resize (half a pixel from the border) without smoothing when it becomes
    smaller; places between pixels are rounded to 1/256.

    Args:
      image: uint8 [h, w, channels], 1 or 3 channels.
      size: height and width of the result.
      smooth: interpolate (bilinear); else each pixel is that of the nearest one.
      flip: mirror it.

    Returns:
      uint8 [*size, channels]
    """
    if image.shape[:2] == tuple(size):
        if not flip:
            return image
        smooth = False
    height, width, channels = image.shape
    rows = _places(height, size[0], smooth)
    columns = _places(width, size[1], smooth)[:: -1 if flip else 1]
    if _pixels is None:
        return _resample(image, rows, columns) if smooth else image[rows][:, columns]
    out = np.empty((*size, channels), np.uint8)
    columns = np.ascontiguousarray(columns)
    _pixels.resample(np.ascontiguousarray(image), height, width, channels, rows, columns, smooth, out)
    return out


@functools.lru_cache(maxsize=1024)
def _places(size: int, resized: int, smooth: bool) -> np.ndarray:
    """int32 [resized]: the pixel nearest to each one's centre; if smooth, 256 times the place between pixel centres."""
    centre = (2 * np.arange(resized, dtype=np.int64) + 1) * size  # in units of 1 / (2 * resized) pixel
    if not smooth:
        return (centre // (2 * resized)).astype(np.int32)
    places = (centre * 256 + resized) // (2 * resized) - 128  # rounded to the nearest
    return np.clip(places, 0, (size - 1) * 256).astype(np.int32)


def _resample(image: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """What the compiled part does, in NumPy."""
    image = image.astype(np.uint32)
    below, right = (rows & 255)[:, None, None].astype(np.uint32), (columns & 255)[:, None].astype(np.uint32)
    upper, lower = rows >> 8, np.minimum((rows >> 8) + 1, image.shape[0] - 1)
    before, after = columns >> 8, np.minimum((columns >> 8) + 1, image.shape[1] - 1)
    between = image[upper] * (256 - below) + image[lower] * below
    return ((between[:, before] * (256 - right) + between[:, after] * right + 32768) >> 16).astype(np.uint8)
