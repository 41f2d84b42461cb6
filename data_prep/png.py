"""Reads the part of a PNG file that is needed: the converter its labels, the trainer the windows that become crops.

    height, width = png.image_size(encoded)
    pixels = png.read_window(encoded, (0, 0, height, width), channels=3)

A file is inflated only as far down as the window reaches and unfiltered only as far to the right. Without the compiled
part, and for kinds of PNG that it does not read, Pillow decodes the whole file: to the same pixels, more slowly.

Source: PNG, https://www.w3.org/TR/png-3 (chunks, section 5.3; image header, 11.2.1).
"""

import contextlib
import ctypes
import io
import struct
import warnings
from collections.abc import Iterator

import numpy as np
from isal import isal_zlib
from PIL import Image, ImageFile, UnidentifiedImageError

try:
    import data_prep._png as _png  # compiled when the package is installed

    # The addresses of ISA-L's functions, in the package that brings them.
    _INFLATE = [
        ctypes.cast(getattr(ctypes.CDLL(isal_zlib.__file__), name), ctypes.c_void_p).value
        for name in ('isal_inflate_init', 'isal_inflate')
    ]
except (ImportError, AttributeError):  # there was no C compiler, or the package hides them
    _png, _INFLATE = None, []

SIGNATURE = b'\x89PNG\r\n\x1a\n'
CHUNK = struct.Struct('>I4s')  # length and kind
SLOW_READER_REMEDY = (
    'Install a C compiler and the headers of Python (Debian: apt-get install gcc libc6-dev python3-dev), then this '
    'package again with pip.'
)

LEAST_BRIGHTEST = 64  # of the upper 8 bits of 16, anywhere in an image
TOO_DARK = 'of 16 bits the upper 8 are used, and it would be nearly black. Stretch it to all 16, or save it with 8.'

_HEADER = struct.Struct('>II5B')  # width, height, depth, colour type, compression, filter method, interlace
_PLAIN = {1: (8, 0, 0, 0, 0), 3: (8, 2, 0, 0, 0)}  # what the header ends with by channels: 8-bit grey, 8-bit RGB
_LARGEST_RATIO = 1032  # of inflated to compressed bytes, https://zlib.net/zlib_tech.html
_MOST_PIXELS = 1 << 28  # of an image that is decoded as a whole: 768 MiB in RGB

Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit takes an aerial photograph of 200 megapixels for an attack
warnings.filterwarnings('ignore', module=r'PIL\.')  # of damaged metadata, which is not used


def is_compiled() -> bool:
    """Says whether the compiled reader is in use; if not, SLOW_READER_REMEDY says what to do."""
    return _png is not None


def describe_reader() -> str:
    """Says which reader of PNG files is in use, in a few words for a person."""
    return 'compiled' if is_compiled() else 'Pillow, which decodes whole images and is several times as slow'


def is_png(encoded: bytes | memoryview) -> bool:
    """Says whether a file is a PNG, by its first bytes."""
    return encoded[: len(SIGNATURE)] == SIGNATURE


def image_size(encoded: bytes | memoryview) -> tuple[int, int]:
    """Returns the height and width of a PNG or JPEG file, pixels, by its header.

    Raises:
      ValueError: if there is no such header.
    """
    if is_png(encoded):
        width, height, *_ = _read_header(encoded)
        return height, width
    with pillow_errors('it is neither a PNG nor a JPEG: '), Image.open(io.BytesIO(encoded), formats=('JPEG',)) as image:
        return image.height, image.width


def _read_header(encoded: bytes | memoryview) -> tuple[int, ...]:
    """Width and height of a PNG, pixels, and its kind as in _PLAIN."""
    if len(encoded) < 16 + _HEADER.size:
        raise ValueError(f'it ends within its header, after {len(encoded)} bytes')
    width, height, *kind = _HEADER.unpack_from(encoded, 16)
    if encoded[12:16] != b'IHDR' or not width or not height:
        raise ValueError(f'its header says {bytes(encoded[12:29])!r}, which is no image')
    return width, height, *kind


@contextlib.contextmanager
def pillow_errors(before: str = '') -> Iterator[None]:
    """Raises ValueError, a line that begins with `before`, in place of what Pillow raises for a file.

    Of damaged files that may be anything: besides OSError and SyntaxError also struct.error, TypeError, KeyError.
    """
    try:
        yield
    except UnidentifiedImageError as error:  # which names an address in memory
        raise ValueError(f'{before}no image of a format that is read, or damaged where it begins') from error
    except Exception as error:
        raise ValueError(before + (' '.join(str(error).split()) or type(error).__name__)) from error


def decode(encoded: bytes | memoryview) -> Image.Image:
    """Decodes the whole of a PNG or JPEG file of any kind by Pillow.

    Raises:
      ValueError: if it cannot be decoded to its end.
    """
    with pillow_errors():
        image = Image.open(io.BytesIO(encoded), formats=('PNG', 'JPEG'))
        check_pixels(image)
        image.load()
    return image


def check_pixels(image: Image.Image) -> None:
    """Raises ValueError if an opened image has more pixels than are read."""
    if image.width * image.height > _MOST_PIXELS:
        raise ValueError(
            f'it has {image.width}x{image.height} pixels, and up to {_MOST_PIXELS / 1e6:.0f} megapixels are read: '
            'cut it into tiles'
        )


def has_16_bits(image: ImageFile.ImageFile) -> bool:
    """Says whether an opened image, whose pixels were not read yet, has 16 bits per channel."""
    return any(';16' in str(tile[3]) for tile in image.tile)


def check_16_bits(brightest: int) -> None:
    """Checks that an image of 16 bits per channel makes use of them: the upper 8 alone are kept.

    Cameras of 10 to 14 bits often leave the upper ones empty, and scientific ones nearly all: such an image would be
    nearly black.

    Args:
      brightest: the largest of the upper 8 bits of any channel.

    Raises:
      ValueError: if that is below a quarter of full scale, LEAST_BRIGHTEST.
    """
    if brightest < LEAST_BRIGHTEST:
        raise ValueError(f'fills {8 + int(brightest).bit_length()} of its 16 bits per channel: {TOO_DARK}')


def read_window(encoded: bytes | memoryview, window: tuple[int, int, int, int], *, channels: int) -> np.ndarray:
    """Reads the pixels of a window.

    Args:
      encoded: a PNG file.
      window: top, left, height, width, pixels; it lies within the image.
      channels: 1 (grey) or 3 (RGB); an image of another kind is converted.

    Returns:
      uint8 [height, width, channels]

    Raises:
      ValueError: if the file is damaged as far as it is read.
    """
    top, left, height, width = window
    columns, rows, *kind = _read_header(encoded)
    if not is_compiled() or tuple(kind) != _PLAIN[channels]:
        whole = _decode_whole(encoded, channels)
        if whole.shape[:2] != (rows, columns):
            raise ValueError(f'it is {whole.shape[1]}x{whole.shape[0]}, by its header {columns}x{rows}')
        return whole[top : top + height, left : left + width]
    check_ratio(encoded, top + height, columns, channels)
    out = np.empty((height, width, channels), np.uint8)
    _png.read_window(encoded, columns, channels, top, left, out, height, width, *_INFLATE)
    return out


def check_ratio(encoded: bytes | memoryview, rows: int, columns: int, channels: int) -> None:
    """Raises ValueError if a file is too small for that many rows of 8 bits per channel, however well it is packed."""
    if rows * (columns * channels + 1) > _LARGEST_RATIO * len(encoded):
        raise ValueError(f'{len(encoded):,} bytes cannot hold {columns} columns and {rows} rows')


def _decode_whole(encoded: bytes | memoryview, channels: int) -> np.ndarray:
    """uint8 [h, w, channels]"""
    image = decode(encoded)
    if image.mode.startswith('I;16'):  # which convert() would clip at 255
        pixels = (np.asarray(image) >> 8).astype(np.uint8)[..., None]
        return np.repeat(pixels, channels, axis=-1)
    pixels = np.asarray(image.convert('L' if channels == 1 else 'RGB'))
    return pixels[..., None] if channels == 1 else pixels
