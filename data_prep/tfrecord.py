"""TFRecord framing and the wire format of tf.train.Example, without TensorFlow.

    data = b''.join(tfrecord.serialize_parts({'image_id': b'ulm_000000_000019', 'image_left': encoded}))
    record = tfrecord.frame(data)           # as it stands in a shard; tfrecord.read_record takes it out of there
    tfrecord.parse(data)['image_id']        # b'ulm_000000_000019'

Sources: TFRecord framing, https://www.tensorflow.org/tutorials/load_data/tfrecord (length, its checksum, data, its
checksum, little endian); tf.train.Example, tensorflow/core/example/{example,feature}.proto; protobuf wire format,
https://protobuf.dev/programming-guides/encoding.
"""

import contextlib
import ctypes
import functools
import importlib
import os
import struct
from typing import IO

import google_crc32c
from etils import epath

from launch import entry, files

HEADER = struct.Struct('<QI')  # length of the data, masked CRC-32C of those 8 bytes
FOOTER = struct.Struct('<I')  # masked CRC-32C of the data

_WITHOUT_LOCK = 1 << 16  # bytes from which on it is worth to let other threads have Python's lock meanwhile
# crc32c_extend of the library that google_crc32c brings; a function of ctypes is called without the lock.
_CRC32C = None
with contextlib.suppress(ImportError, AttributeError, OSError):
    _CRC32C = ctypes.CDLL(importlib.import_module('google_crc32c._crc32c').__file__).crc32c_extend
    _CRC32C.argtypes, _CRC32C.restype = [ctypes.c_uint32, ctypes.c_char_p, ctypes.c_size_t], ctypes.c_uint32


def masked_crc(*parts: bytes) -> int:
    """Returns the checksum of the TFRecord format: CRC-32C, rotated right by 15 bits plus a constant."""
    crc = functools.reduce(_extend_crc, parts, 0)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _extend_crc(crc: int, data: bytes) -> int:
    if _CRC32C is None or len(data) < _WITHOUT_LOCK:
        return google_crc32c.extend(crc, data)
    return _CRC32C(crc, data, len(data))


def frame(data: bytes) -> bytes:
    """Returns one TFRecord: length, checksum of the length, data, checksum of the data."""
    return b''.join(frame_parts([data]))


def frame_parts(parts: list[bytes]) -> list[bytes]:
    """Returns one TFRecord of data that comes in parts, in parts too: images are not copied to make one."""
    length = struct.pack('<Q', sum(map(len, parts)))
    return [length, FOOTER.pack(masked_crc(length)), *parts, FOOTER.pack(masked_crc(*parts))]


def record_bytes(length: int) -> int:
    """Returns the bytes in the shard of a record with `length` bytes of data."""
    return HEADER.size + length + FOOTER.size


def serialize_parts(features: dict[str, bytes]) -> list[bytes]:
    """Returns a tf.train.Example with one bytes value per feature, in parts that are yet to be joined.

    Keys are sorted, so that the same features give the same bytes. The values are among the parts: images are not
    copied.
    """
    entries = []
    for key in sorted(features):
        feature = _field(1, *_field(1, features[key]))
        entries += _field(1, *_field(1, key.encode()), *_field(2, *feature))
    return list(_field(1, *entries))


def parse(example: bytes) -> dict[str, bytes]:
    """Returns the first bytes value of each feature of a serialized tf.train.Example.

    Raises:
      ValueError: if the bytes are not such an Example.
    """
    return {name: bytes(value) for name, value in parse_in_place(example).items()}


def parse_in_place(example: bytes) -> dict[str, memoryview]:
    """Does what `parse` does without copying the values, with Python's lock, which are megabytes.

    Raises:
      ValueError: if the bytes are not such an Example.
    """
    view = memoryview(example)
    (features,) = _fields(view, 1)
    found = {}
    for item in _fields(features, 1):
        (key,), (feature,) = _fields(item, 1), _fields(item, 2)
        values = [value for bytes_list in _fields(feature, 1) for value in _fields(bytes_list, 1)]
        if values:
            found[bytes(key).decode()] = values[0]
    return found


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, *payload: bytes) -> tuple[bytes, ...]:
    """A length-delimited field (wire type 2), in parts that are yet to be joined: images are copied only once."""
    return (_varint(number << 3 | 2) + _varint(sum(map(len, payload))), *payload)


def _read_varint(view: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(view) or shift > 63:
            raise ValueError('truncated protobuf message')
        byte = view[at]
        value, at, shift = value | (byte & 0x7F) << shift, at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _fields(view: memoryview, number: int) -> list[memoryview]:
    """The payloads of all length-delimited fields with that number, in order."""
    found, at = [], 0
    while at < len(view):
        tag, at = _read_varint(view, at)
        if tag & 7 != 2:
            raise ValueError(f'not a feature map of byte lists: wire type {tag & 7}')
        length, at = _read_varint(view, at)
        if at + length > len(view):
            raise ValueError('truncated protobuf message')
        if tag >> 3 == number:
            found.append(view[at : at + length])
        at += length
    return found


@functools.lru_cache(maxsize=256)  # far fewer than the 1024 files that a process may usually have open
def _opened(path: str) -> IO[bytes]:
    return open(path, 'rb', buffering=0)  # closes itself once it is evicted and no thread reads it any more


def read_at(path: str, offset: int, size: int) -> bytes:
    """Reads up to `size` bytes at `offset`; local files stay open for all threads, those read most recently."""
    if files.is_remote(path):
        with epath.Path(path).open('rb') as file:
            file.seek(offset)
            return file.read(size)
    file = _opened(path)  # held while it is read: another thread may evict it
    with files.naming(path):
        return os.pread(file.fileno(), size, offset)


def read_record(path: str, offset: int, length: int) -> bytes:
    """Reads the data of the record whose header lies at `offset` of the shard, and checks both checksums.

    Raises:
      UserError: BAD_DATA if the shard does not hold an intact record of that length there.
    """
    end = offset + HEADER.size + length
    if files.is_remote(path):  # one request
        block = read_at(path, offset, end + FOOTER.size - offset)
        header, data, footer = block[: HEADER.size], block[HEADER.size :][:length], block[HEADER.size + length :]
    else:  # megabytes that need not be copied
        header, data = read_at(path, offset, HEADER.size), read_at(path, offset + HEADER.size, length)
        footer = read_at(path, end, FOOTER.size)
    intact = len(header) == HEADER.size and len(data) == length and len(footer) == FOOTER.size
    intact = intact and HEADER.unpack(header) == (length, masked_crc(header[:8]))
    intact = intact and FOOTER.unpack(footer) == (masked_crc(data),)
    if not intact:
        raise entry.UserError(
            entry.BAD_DATA,
            f'{path}: the record at byte {offset} is damaged (its checksum differs). Run '
            'python -m data_prep.verify_tfrecords to find all such records, then build the folder again.',
        )
    return data
