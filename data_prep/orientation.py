"""How a file's EXIF says that its image is to be turned, and images turned so.

    upright = orientation.turn(image, orientation.read(encoded))

What is the image of a file, is what a viewer shows: the pixels turned by this tag. The build stores images and labels
turned, so that nothing that reads records has to know of it. No other tag is looked at, so that damage to them does
no harm; an orientation that cannot be read counts as none.

Source: EXIF 2.3, https://www.cipa.jp/std/documents/e/DC-008-2012_E.pdf (4.5.2, the header and directory of TIFF; 4.6.4,
orientation); PNG, https://www.w3.org/TR/png-3 (eXIf, section 11.3.4.5); JPEG, ITU-T T.81, annex B.
"""

from collections.abc import Sequence

from PIL import Image

UPRIGHT = 1
_TAG, _SHORT = 0x0112, 3

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def turn(image: Image.Image, orientation: int) -> Image.Image:
    """Returns the image upright: itself if its orientation is UPRIGHT."""
    return image if orientation == UPRIGHT else image.transpose(_TURNS[orientation])


# What follows runs as it is, and as a graph that AutoGraph makes of it for exported models. Hence sums of 32 bits,
# single returns, no chained comparisons, and no look beyond the end.


def read(data: Sequence[int]) -> int:
    """Returns the orientation of a PNG or JPEG file, 1 to 8; UPRIGHT if it says none.

    Args:
      data: the file's bytes; in a graph, an int32 tensor of them.
    """
    size, at, start, end = len(data), 2, 0, 0
    if size > 8 and data[0] == 0x89:
        at = 8
        while at + 12 <= size and data[at] < 128:  # a chunk: length, kind, content, checksum
            length = _four_bytes(data, at, 0)
            if length > size - at - 12:
                at = size
            elif _four_bytes(data, at + 4, 0) == 0x65584966:  # eXIf
                start, end, at = at + 8, at + 8 + length, size
            else:
                at += 12 + length
    else:
        while at + 10 <= size and data[at] == 0xFF and data[at + 1] != 0xDA:  # a segment, up to the start of scan
            after = at + 2 + _two_bytes(data, at + 2, 0)
            if data[at + 1] == 0xFF:  # which may stand there any number of times
                at += 1
            elif data[at + 1] == 0xE1 and _four_bytes(data, at + 4, 0) == 0x45786966:  # Exif
                start, end, at = at + 4, after, size
            else:
                at = after
    return of_exif(data, start, end)


def of_exif(data: Sequence[int], start: int, end: int) -> int:
    """Returns the orientation that the block of EXIF in data[start:end] says, 1 to 8; UPRIGHT if it says none."""
    found = UPRIGHT
    end = end if end <= len(data) else len(data)
    if start + 6 <= end and data[start] == 0x45:  # Exif and two zeros, as in a JPEG
        start += 6
    if start + 10 <= end and (data[start] == 0x49 or data[start] == 0x4D):  # I: the lower byte first; M: the upper
        swap = 1 if data[start] == 0x49 else 0
        offset = _four_bytes(data, start + 4, swap)
        if offset >= 8 and offset <= end - start - 2:
            at = start + offset + 2
            last = at + 12 * _two_bytes(data, start + offset, swap)
            while at + 12 <= last and at + 12 <= end:  # an entry: tag, type, count, value
                value = _two_bytes(data, at + 8, swap)
                if _two_bytes(data, at, swap) != _TAG:
                    at += 12
                else:
                    if _two_bytes(data, at + 2, swap) == _SHORT and value >= 1 and value <= 8:
                        found = value
                    at = last
    return found


def _two_bytes(data: Sequence[int], at: int, swap: int) -> int:
    return data[at + swap] * 256 + data[at + 1 - swap]


def _four_bytes(data: Sequence[int], at: int, swap: int) -> int:
    """The number there; one of 32 bits is negative in a tensor, which no caller takes for one that it looks for."""
    return _two_bytes(data, at + 2 * swap, swap) * 65536 + _two_bytes(data, at + 2 - 2 * swap, swap)
