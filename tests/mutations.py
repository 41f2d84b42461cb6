"""Small image files of every kind and what damage makes of them, each from a number alone.

    name, content = mutations.make(7)      # 'a.png' or '.jpg' and so on, and bytes

Damage is done at every layer, with what lies around it mended, so that it reaches the code behind: bytes of the file,
chunks and segments, the header's sizes and kinds, compressed bytes, filters and rows, EXIF.
"""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

SIGNATURE = b'\x89PNG\r\n\x1a\n'
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a PNG's colour types
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_ADAM7 = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
_ODD_NUMBERS = (0, 1, 2, 3, 7, 255, 256, 65535, 65536, 2**28, 2**31 - 1, 2**31, 2**32 - 1)
_OTHER_FORMATS = {'webp': 'WEBP', 'bmp': 'BMP', 'tif': 'TIFF', 'ppm': 'PPM'}

Chunks = list[tuple[bytes, bytes]]  # kind and content


def make(seed: int) -> tuple[str, bytes]:
    """Returns the name and the bytes of file number `seed`: one in ten is left whole, the others are damaged."""
    rng = np.random.default_rng(seed)
    suffix = rng.choice(['label.png', 'png', 'jpg', 'other'], p=[0.25, 0.4, 0.25, 0.1])
    if suffix == 'other':
        suffix = str(rng.choice(list(_OTHER_FORMATS)))
        content = save(picture(rng), _OTHER_FORMATS[suffix], rng)
    elif suffix == 'jpg':
        content = jpeg(rng)
    else:
        content = png(rng, is_label=suffix != 'png')
    if rng.random() < 0.1:
        return f'a.{suffix}', content
    ways: list[Callable] = [damage_bytes]
    ways += {'jpg': [damage_segments], 'png': [damage_chunks], 'label.png': [damage_chunks]}.get(suffix, [])
    for _ in range(rng.choice([1, 2, 3], p=[0.7, 0.2, 0.1])):
        content = rng.choice(ways, p=[0.3, 0.7] if len(ways) == 2 else None)(content, rng)
    if rng.random() < 0.1:
        content = content[: rng.integers(len(content) + 1)]
    return f'a.{suffix}', content


def picture(rng: np.random.Generator, channels: int = 3) -> np.ndarray:
    """uint8 [h, w, channels]: flat patches and noise."""
    height, width = rng.integers(1, 40, 2)
    patches = rng.integers(0, 256, (-(-height // 7), -(-width // 9), channels)).repeat(7, 0).repeat(9, 1)
    noise = rng.integers(0, 256, (height, width, channels)) * (rng.random((height, width, 1)) < rng.choice([0, 0.3, 1]))
    return ((patches[:height, :width] + noise) % 256).astype(np.uint8)


def save(pixels: np.ndarray, kind: str, rng: np.random.Generator) -> bytes:
    """The file that Pillow writes, now and then with EXIF."""
    content, options = io.BytesIO(), {}
    if kind in ('WEBP', 'TIFF') and rng.random() < 0.5:
        options['exif'] = exif(rng)
    if kind == 'TIFF':
        options = {'compression': str(rng.choice(['raw', 'tiff_lzw', 'tiff_adobe_deflate', 'packbits', 'jpeg']))}
    if kind == 'WEBP':
        options['lossless'] = bool(rng.random() < 0.5)
    Image.fromarray(pixels).save(content, kind, **options)
    return content.getvalue()


def jpeg(rng: np.random.Generator) -> bytes:
    mode = str(rng.choice(['RGB', 'L', 'CMYK'], p=[0.7, 0.2, 0.1]))
    content, options = io.BytesIO(), {}
    if rng.random() < 0.5:
        options['exif'] = b'Exif\0\0' + exif(rng)
    if mode == 'RGB':
        options['subsampling'] = int(rng.integers(0, 3))
    if rng.random() < 0.3:
        options['restart_marker_blocks'] = int(rng.integers(1, 4))
    Image.fromarray(picture(rng)).convert(mode).save(
        content, 'JPEG', quality=int(rng.integers(1, 100)), progressive=bool(rng.random() < 0.3), **options
    )
    return content.getvalue()


def png(rng: np.random.Generator, is_label: bool) -> bytes:
    """A PNG of any colour type, depth, filters and interlacing, but mostly of what is read by the compiled part."""
    color_type, depth = (0, 8) if is_label else (2, 8)
    if rng.random() < (0.1 if is_label else 0.4):
        color_type = int(rng.choice(list(_CHANNELS)))
        depth = int(rng.choice(_DEPTHS[color_type]))
    interlaced = int(rng.random() < 0.1)
    pixels = picture(rng, _CHANNELS[color_type] * depth // 8 if depth >= 8 else 1)
    if is_label:
        pixels %= 34
    height, width = pixels.shape[:2]
    passes = _ADAM7 if interlaced else [(0, 0, 1, 1)]
    rows = b''.join(filtered(pixels[top::down, left::right], depth, rng) for top, left, down, right in passes)
    chunks = [(b'IHDR', struct.pack('>IIBBBBB', width, height, depth, color_type, 0, 0, interlaced))]
    if color_type == 3:
        chunks.append((b'PLTE', rng.bytes(3 * min(1 << depth, 256))))
    if rng.random() < 0.1:
        chunks.append((b'tRNS', rng.bytes(int(rng.choice([1, 2, 6])))))
    if rng.random() < 0.3:
        chunks.append((b'eXIf', exif(rng)))
    chunks += pack(rows, rng)
    if rng.random() < 0.1:
        chunks.append((b'eXIf', exif(rng)))
    return join([*chunks, (b'IEND', b'')])


def filtered(pixels: np.ndarray, depth: int, rng: np.random.Generator) -> bytes:
    """Rows of pixels behind filters at random: whatever they hold is an image."""
    if not pixels.size:
        return b''
    rows = pixels.reshape(len(pixels), -1)
    if depth < 8:
        rows = rows[:, : -(-rows.shape[1] * depth // 8)]
    filters = rng.choice([0, 1, 2, 3, 4, 4, 4, 4], (len(rows), 1)).astype(np.uint8)
    return np.concatenate([filters, rows], 1).tobytes()


def pack(rows: bytes, rng: np.random.Generator) -> Chunks:
    """Compressed rows in chunks of any length."""
    packer = zlib.compressobj(int(rng.integers(0, 10)), strategy=int(rng.integers(0, 5)))
    packed = packer.compress(rows) + packer.flush()
    piece = int(rng.choice([1 << 16, 1 << 16, 100, 7, 1]))
    return [(b'IDAT', packed[at : at + piece]) for at in range(0, len(packed), piece)]


def exif(rng: np.random.Generator) -> bytes:
    """An orientation among tags of any type, count and content; damaged itself now and then."""
    order = str(rng.choice(['<', '>']))
    tags = {0x0112: (3, 1, struct.pack(order + 'Hxx', rng.integers(0, 10)))}
    for _ in range(rng.integers(0, 4)):
        tag = int(rng.choice([0x0100, 0x011A, 0x0128, 0x0112, 0x8769, 0x8825, 0x0201, rng.integers(0, 1 << 16)]))
        tags[tag] = (int(rng.integers(0, 14)), int(rng.choice([0, 1, 2, 5, 1 << 31])), rng.bytes(4))
    entries = b''.join(struct.pack(order + 'HHI', tag, *tags[tag][:2]) + tags[tag][2] for tag in sorted(tags))
    head = {'<': b'II*\0', '>': b'MM\0*'}[order] + struct.pack(order + 'I', 8)
    whole = head + struct.pack(order + 'H', len(tags)) + entries + struct.pack(order + 'I', 0) + rng.bytes(8)
    return damage_bytes(whole, rng) if rng.random() < 0.2 else whole


def damage_bytes(content: bytes, rng: np.random.Generator) -> bytes:
    """Flips bits, overwrites, removes, repeats, inserts or cuts off bytes anywhere."""
    if not content:
        return content
    data, way = bytearray(content), rng.choice(6, p=[0.3, 0.3, 0.1, 0.1, 0.1, 0.1])
    start = int(rng.integers(len(data)))
    end = min(len(data), start + int(rng.choice([1, 2, 4, 16, 200])))
    if way == 0:
        for _ in range(rng.integers(1, 9)):
            data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    elif way == 1:
        data[start:end] = bytes([rng.choice([0, 255, 127, 128])]) * (end - start)
    elif way == 2:
        del data[start:end]
    elif way == 3:
        data[start:start] = data[start:end]
    elif way == 4:
        data[start:start] = rng.bytes(end - start)
    else:
        del data[start:]
    return bytes(data)


def split(content: bytes) -> Chunks:
    """The chunks of a PNG, as far as they can be told apart."""
    chunks, at = [], len(SIGNATURE)
    while at + 8 <= len(content):
        length, kind = struct.unpack_from('>I4s', content, at)
        chunks.append((kind, content[at + 8 : at + 8 + length]))
        at += 12 + length
    return chunks


def join(chunks: Chunks) -> bytes:
    """A PNG of these chunks, with their right lengths and checksums."""
    parts = [
        struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data)) for kind, data in chunks
    ]
    return SIGNATURE + b''.join(parts)


def damage_chunks(content: bytes, rng: np.random.Generator) -> bytes:
    """Damages a PNG below its checksums."""
    chunks = split(content)
    if not chunks:
        return content
    place = int(rng.integers(len(chunks)))
    kind, data = chunks[place]
    match rng.integers(0, 8):
        case 0:
            del chunks[place]
        case 1:
            chunks.insert(int(rng.integers(len(chunks) + 1)), chunks[place])
        case 2:
            chunks[place] = (bytes(rng.choice([b'IDAT', b'tEXt', b'eXIf', b'acTL', b'fcTL', b'PLTE', b'abcD'])), data)
        case 3:
            chunks.insert(place, (b'tEXt', b'a\0' + rng.bytes(int(rng.integers(0, 300)))))
        case 4 | 5:
            chunks = _damage_rows(chunks, rng)
        case 6 if chunks[0][0] == b'IHDR' and len(chunks[0][1]) == 13:
            chunks[0] = (b'IHDR', _damage_header(chunks[0][1], rng))
        case _:
            chunks[place] = (kind, damage_bytes(data, rng))
    return join(chunks)


def _damage_header(header: bytes, rng: np.random.Generator) -> bytes:
    values = list(struct.unpack('>IIBBBBB', header))
    place = int(rng.integers(7))
    if place < 2:
        values[place] = int(rng.choice([*_ODD_NUMBERS, max(values[place] - 1, 0), (values[place] + 1) % 2**32]))
    else:
        values[place] = int(rng.choice([0, 1, 2, 3, 4, 6, 8, 16, 255]))
    return struct.pack('>IIBBBBB', *values)


def _damage_rows(chunks: Chunks, rng: np.random.Generator) -> Chunks:
    """Damages what is compressed, and compresses it again; and now and then the compressed bytes themselves."""
    packed = b''.join(data for kind, data in chunks if kind == b'IDAT')
    if rng.random() < 0.3:
        made = [(b'IDAT', damage_bytes(packed, rng))]
    else:
        unpacker = zlib.decompressobj()
        try:
            made = pack(damage_bytes(unpacker.decompress(packed), rng), rng)
        except zlib.error:
            return chunks
    first = next((place for place, (kind, _) in enumerate(chunks) if kind == b'IDAT'), len(chunks))
    others = [chunk for chunk in chunks if chunk[0] != b'IDAT']
    return [*others[:first], *made, *others[first:]]


def damage_segments(content: bytes, rng: np.random.Generator) -> bytes:
    """Damages a JPEG by its segments: their order, number, lengths and contents."""
    starts, at = [], 2
    while at + 4 <= len(content) and content[at] == 0xFF and content[at + 1] != 0xDA:
        starts.append(at)
        at += 2 + int.from_bytes(content[at + 2 : at + 4])
    if not starts:
        return content
    place = int(rng.choice(starts))
    end = place + 2 + int.from_bytes(content[place + 2 : place + 4])
    before, segment, after = content[:place], content[place:end], content[end:]
    match rng.integers(0, 6):
        case 0:
            return before + after
        case 1:
            return before + segment + segment + after
        case 2:
            return before + segment[:2] + int(rng.integers(1 << 16)).to_bytes(2) + segment[4:] + after
        case 3:  # of a frame's header: its sizes
            numbers = struct.pack('>HH', *rng.choice([0, 1, 8, 17, 65535], 2))
            return before + segment[:5] + numbers + segment[9:] + after
        case 4:
            block = b'Exif\0\0' + exif(rng)
            return before + b'\xff\xe1' + (len(block) + 2).to_bytes(2) + block + segment + after
        case _:
            return before + segment[:4] + damage_bytes(segment[4:], rng)[: len(segment)] + after
