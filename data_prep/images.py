"""Checks image and label files and, where asked to, encodes them anew.

Files are judged by their bytes, never by their names alone. What is right is kept byte for byte; an image that can be
read without doubt (palette, grey, opaque alpha) becomes RGB; what its EXIF turns is stored turned; everything else is a
ValueError whose text says what is wrong, the likely cause and the remedy.

Source: PNG, https://www.w3.org/TR/png-3 (chunks and their checksums, section 5.3; image header, 11.2.1).
"""

import dataclasses
import io
import struct

import numpy as np
from isal import isal_zlib
from PIL import Image

from data_prep import orientation, png

HEADER_BYTES = 64  # of a file, enough for `check_header`
IDS, COLORS = 'ids', 'colors'  # what masks hold, where grey values that are label ids are not all of it

_JPEG = b'\xff\xd8\xff'
_LFS = b'version https://git-lfs'
_COLOR_TYPES = {0: 'grey', 2: 'RGB', 3: 'palette', 4: 'grey with alpha', 6: 'RGB with alpha'}
# Bits per channel and colour types in which a label file may come, by what masks hold, and how to say it.
_GREY, _PALETTE = {(8, 0)}, {(1, 3), (2, 3), (4, 3), (8, 3)}
_LABEL_KINDS: dict[str | None, tuple[set, str]] = {
    None: (_GREY, '8-bit grey, one label id per pixel'),
    IDS: (_GREY | _PALETTE, '8-bit grey or a palette, one label id per pixel'),
    COLORS: (_GREY | _PALETTE | {(8, 2), (8, 4), (8, 6)}, '8 bits per channel, one colour for each class'),
}
_COPY = 'Copy or download it again.'


@dataclasses.dataclass(frozen=True)
class Encoding:
    """How images and labels are stored.

    Attributes:
      image_format: 'source' (as the file is; what has to be turned as PNG), 'png' or 'jpeg'.
      jpeg_quality: 1..100, of images that are encoded as JPEG; colour is kept at full resolution (4:4:4).
      size: height and width to store at; None keeps each image's own.
    """

    image_format: str = 'source'
    jpeg_quality: int = 95
    size: tuple[int, int] | None = None


@dataclasses.dataclass(frozen=True)
class EncodedImage:
    """An image as it is stored.

    Attributes:
      encoded: PNG or JPEG file, 8-bit RGB, upright.
      height, width: of the stored image, pixels.
      source_size: height and width of the source image, upright, pixels.
      orientation: of the source file, by its EXIF.
      converted_from: what the source was, if it had to be made RGB; else None.
    """

    encoded: bytes
    height: int
    width: int
    source_size: tuple[int, int]
    orientation: int
    converted_from: str | None


def identify(head: bytes, name: str) -> str:
    """Returns 'png' or 'jpeg', by the first bytes of the file called `name`.

    Raises:
      ValueError: if it is neither, or not what its name says.
    """
    if not head:
        raise ValueError(f'is empty (0 bytes), probably an interrupted copy. {_COPY}')
    if head.startswith(_LFS):
        raise ValueError('is a git-LFS pointer, not the file itself. Run git lfs pull in the dataset.')
    if not any(head):
        raise ValueError(f'begins with zero bytes only, probably a disk or copy that was cut off. {_COPY}')
    kind = 'png' if head.startswith(png.SIGNATURE) else 'jpeg' if head.startswith(_JPEG) else None
    if kind is None:
        start = head[:8].decode('ascii', 'backslashreplace')
        raise ValueError(f'is neither PNG nor JPEG (it begins with {start!r}). {_COPY}')
    named = 'png' if name.lower().endswith('.png') else 'jpeg'
    if kind != named:
        raise ValueError(
            f'holds {kind.upper()} bytes under a {named.upper()} name. Rename it, or export it as {named}.'
        )
    return kind


def check_header(head: bytes, name: str, is_label: bool, masks_are: str | None = None) -> tuple[int, int] | None:
    """Returns the height and width of a PNG file by its first bytes; None for a JPEG.

    Args:
      head: the file's first HEADER_BYTES bytes.
      name: of the file.
      is_label: whether it is a label file.
      masks_are: what label files hold: IDS, COLORS, or None for grey values that are label ids.

    Raises:
      ValueError: if these bytes show already that the file cannot be used.
    """
    if identify(head, name) == 'jpeg':
        if is_label:
            raise ValueError('is a JPEG: its losses change label ids. Export it as PNG.')
        return None
    if len(head) < 33 or head[12:16] != b'IHDR':
        raise ValueError(f'truncated within its header. {_COPY}')
    width, height, depth, color_type = struct.unpack('>IIBB', head[16:26])
    if not width or not height:
        raise ValueError(f'has {width}x{height} pixels, by its header. {_COPY}')
    kind = f'{depth}-bit {_COLOR_TYPES.get(color_type, f"colour type {color_type}")}'
    kinds, expected = _LABEL_KINDS[masks_are]
    if is_label and (depth, color_type) not in kinds:
        cause = f'Expected {expected}.'
        if depth == 16:
            cause += ' It looks like an instanceIds file: use labelIds.'
        elif color_type in (2, 6):
            cause += ' It looks like a colour rendering: use labelIds, or pass --masks_are=colors.'
        elif depth < 8 and color_type == 0:
            cause += ' Save it with 8 bits, as label ids.'
        elif color_type == 3:
            cause += (
                ' Pass --masks_are=ids if its palette indices are label ids, --masks_are=colors if its colours count.'
            )
        raise ValueError(f'is a {kind} PNG. {cause}')
    if not is_label and depth == 16 and color_type != 2:
        raise ValueError(
            f'is a {kind} PNG, such as disparity or depth files are. Expected RGB, or 8-bit grey: save it as that if '
            'it is a photo.'
        )
    return height, width


def check_png(encoded: bytes) -> None:
    """Compares a PNG file with its checksums.

    Raises:
      ValueError: unless all chunks are there, one header and up to the file's end, with the right checksums.
    """
    view, size, at = memoryview(encoded), len(encoded), len(png.SIGNATURE)
    while at + 12 <= size:
        length, kind = png.CHUNK.unpack_from(encoded, at)
        end = at + 8 + length
        if end + 4 > size:
            break
        if isal_zlib.crc32(view[at + 4 : end]) != int.from_bytes(view[end : end + 4]):
            raise ValueError(f'damaged: the checksum of its {kind!r} chunk at byte {at:,} differs. {_COPY}')
        if kind == b'IHDR' and at > len(png.SIGNATURE):
            raise ValueError(f'damaged: it has a second header at byte {at:,}. {_COPY}')
        if kind == b'IEND':
            return
        at = end + 4
    raise ValueError(f'truncated after {size:,} bytes, probably an interrupted copy. {_COPY}')


def decode(encoded: bytes | memoryview) -> Image.Image:
    """Decodes the whole image. Raises ValueError if the file cannot be decoded to its end."""
    try:
        return png.decode(encoded)
    except ValueError as error:
        raise ValueError(f'cannot be decoded ({error}). {_COPY}') from error


def encode_image(encoded: bytes, name: str, encoding: Encoding) -> EncodedImage:
    """Checks an image file and brings it into the form in which it is stored.

    A PNG that is stored as it is is checked by its checksums without being decoded; everything else is decoded.

    Raises:
      ValueError: if the file is damaged, or not an image that can be made RGB without doubt.
    """
    size, turned = check_header(encoded[:HEADER_BYTES], name, is_label=False), orientation.read(encoded)
    kind = 'JPEG' if size is None else 'PNG'
    if kind == 'PNG':
        check_png(encoded)
        is_right = encoded[24:26] == b'\x08\x02' and turned == orientation.UPRIGHT
        if is_right and encoding.image_format != 'jpeg' and encoding.size in (None, size):
            png.check_ratio(encoded, *size, channels=3)
            return EncodedImage(encoded, *size, size, turned, None)
    image = decode(encoded)
    rgb, converted_from = as_rgb(image)
    if kind == 'PNG' and encoded[24] == 16:
        rgb, converted_from = rgb.copy(), '16-bit RGB'
        png.check_16_bits(max(highest for _, highest in rgb.getextrema()))
    rgb = orientation.turn(rgb, turned)
    size = (rgb.height, rgb.width)
    if encoding.size not in (None, size):
        rgb = rgb.resize(encoding.size[::-1], Image.Resampling.BOX)
    wanted = encoding.image_format.upper()
    if wanted == 'SOURCE':
        wanted = kind if turned == orientation.UPRIGHT else 'PNG'  # which loses nothing more
    if rgb is not image or wanted != kind:
        encoded = _encode_png(rgb) if wanted == 'PNG' else _encode_jpeg(rgb, encoding.jpeg_quality)
    return EncodedImage(encoded, rgb.height, rgb.width, size, turned, converted_from)


def as_rgb(image: Image.Image) -> tuple[Image.Image, str | None]:
    """Returns the image itself if it is RGB, else converted, and then what it was.

    Raises:
      ValueError: if it cannot be made RGB without doubt.
    """
    if image.mode == 'RGB':
        return image, None
    if image.mode in ('RGBA', 'LA', 'PA') or 'transparency' in image.info:
        alpha = image.convert('RGBA').getchannel('A')
        if alpha.getextrema()[0] < 255:
            raise ValueError('has transparent pixels; what colour they should have is not known. Save it as 8-bit RGB.')
        return image.convert('RGBA').convert('RGB'), 'alpha'
    if image.mode in ('1', 'L'):
        return image.convert('RGB'), 'grey'
    if image.mode == 'P':
        return image.convert('RGB'), 'palette'
    raise ValueError(f'is of colour mode {image.mode}, which is not read without doubt. Save it as 8-bit RGB.')


def count_pixels(label: np.ndarray | Image.Image) -> np.ndarray:
    """Returns int64 [256]: pixels per label id of a one-channel image, uint8 [h, w].

    Eight pixels at a time, and where the next eight are the same, those are counted with them: in label images most
    are, and a histogram, which waits for its own last addition to the same id, takes four times as long.
    """
    pixels = np.asarray(label).reshape(-1)
    whole = pixels.size // 8 * 8
    eights = pixels[:whole].view(np.uint64)
    ends = np.append(np.flatnonzero(eights[1:] != eights[:-1]), eights.size - 1)[: eights.size]
    repeats = np.diff(ends, prepend=-1).repeat(8)
    counts = np.bincount(eights[ends].view(np.uint8), repeats, 256) + np.bincount(pixels[whole:], minlength=256)
    return counts.astype(np.int64)


def check_label_counts(counts: np.ndarray, known: set[int]) -> None:
    """Raises ValueError if pixels hold ids outside the label table; `counts` is int64 [256]."""
    unknown = sorted(set(np.flatnonzero(counts).tolist()) - known)
    if unknown == [255] and np.flatnonzero(counts).tolist() == [0, 255]:
        raise ValueError(
            'holds 0 and 255 alone: a mask that marks one class by 255? Save it with the ids of a label table, and '
            'pass that with --labels.'
        )
    if unknown == [255] and not counts[19:255].any():
        raise ValueError('holds 255 and values up to 18: these are train ids. Use the labelIds files.')
    if unknown:
        shown = ', '.join(map(str, unknown[:8])) + (', ...' if len(unknown) > 8 else '')
        raise ValueError(
            f'holds ids that are not in the label table: {shown}. Pass the table that has them with --labels, or mend '
            'the file.'
        )


def read_label(encoded: bytes) -> np.ndarray:
    """Reads the label ids, uint8 [h, w], of an 8-bit grey PNG to its end.

    Raises:
      ValueError: if the file is damaged.
    """
    check_png(encoded)
    try:
        return png.read_window(encoded, (0, 0, *png.image_size(encoded)), channels=1)[..., 0]
    except ValueError as error:
        raise ValueError(f'cannot be decoded ({error}). {_COPY}') from error


def encode_label(
    encoded: bytes | np.ndarray | Image.Image,
    name: str,
    image_size: tuple[int, int],
    known: set[int],
    size: tuple[int, int] | None,
    image_orientation: int = orientation.UPRIGHT,
) -> tuple[bytes, np.ndarray, np.ndarray]:
    """Checks a label file, or label ids, and brings them to the size in which they are stored.

    Args:
      encoded: a one-channel PNG of label ids, or such an image, uint8 [h, w].
      name: of the file.
      image_size: height and width of the source image, upright, which the label image must have too.
      known: the ids of the label table.
      size: height and width to store at (by nearest neighbour); None keeps the label's own.
      image_orientation: of the source image's file, by its EXIF.

    Returns:
      The PNG to store, int64 [256] its pixels per label id, and uint8 [h, w] these ids.

    Raises:
      ValueError: if the file is damaged, not a label image, of another size than the image, or holds unknown ids.
    """
    turned = orientation.UPRIGHT
    if isinstance(encoded, bytes):
        check_header(encoded[:HEADER_BYTES], name, is_label=True)
        label, file, turned = read_label(encoded), encoded, orientation.read(encoded)
        if turned != orientation.UPRIGHT:
            label, file = np.asarray(orientation.turn(Image.fromarray(label), turned)), None
    else:
        label, file = np.asarray(encoded), None
    if label.shape != image_size:
        raise ValueError(size_mismatch(image_size, label.shape, image_orientation, turned))
    counts = count_pixels(label)
    check_label_counts(counts, known)
    if size in (None, image_size):
        return file or _encode_png(Image.fromarray(label)), counts, label
    image = Image.fromarray(label).resize(size[::-1], Image.Resampling.NEAREST)
    return _encode_png(image), count_pixels(image), np.asarray(image)


def size_mismatch(
    image_size: tuple[int, int],
    label_size: tuple[int, int],
    image_orientation: int = orientation.UPRIGHT,
    label_orientation: int = orientation.UPRIGHT,
) -> str:
    """Says that a label and its image are of different sizes, height and width, upright; and what to do."""
    image, label = (
        f'{width}x{height}' + (f', turned by its EXIF orientation {turned}' if turned != orientation.UPRIGHT else '')
        for (height, width), turned in ((image_size, image_orientation), (label_size, label_orientation))
    )
    remedy = 'Was only one of them resized, or is it another picture? Restore the original.'
    if image_size == label_size[::-1] and (image_orientation, label_orientation) != (1, 1):
        remedy = (
            'Was the label drawn on the pixels as they lay in the file? Remove the orientation of the image, or give '
            'it to the label as well (exiftool -Orientation= or -Orientation#=NUMBER).'
        )
    return f'is {label}, its image {image}. {remedy}'


def encode_void(size: tuple[int, int], label_id: int) -> tuple[bytes, np.ndarray]:
    """Returns a label PNG that holds one id everywhere, for images without labels, and its pixels per label id."""
    counts = np.zeros(256, np.int64)
    counts[label_id] = size[0] * size[1]
    return _encode_png(Image.new('L', size[::-1], label_id)), counts


def _encode_png(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, 'PNG')
    return content.getvalue()


def _encode_jpeg(image: Image.Image, quality: int) -> bytes:
    content = io.BytesIO()
    image.save(content, 'JPEG', quality=quality, subsampling=0)
    return content.getvalue()
