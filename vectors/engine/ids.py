"""Ids of vectors: int64, UUID or string, and their one sortable byte form.

Inside a node an id is its *key*: one tag byte, then big-endian offset binary (integers), 16 bytes (UUIDs) or UTF-8
(strings). Keys compare as the contract orders ids: integers, UUIDs, strings by UTF-8 bytes.
"""

from __future__ import annotations

import re
import uuid
from binascii import crc_hqx
from collections.abc import Iterable, Sequence
from hashlib import blake2b

import numpy as np

from vectors.engine.uuid_slots import slots_of_uuids, uuids_of_slots
from vectors.errors import InvalidInput

SLOT_COUNT = 16384
MAX_STRING_BYTES = 255

_INTEGER, _UUID, _STRING = 1, 2, 3
INTEGER_TAG, UUID_TAG, STRING_TAG = b"\x01", b"\x02", b"\x03"
_OFFSET = 1 << 63
_FEW = 16
"""Fewer UUIDs than these are not worth the numpy calls."""
_UUID_FORM = re.compile(r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}")
_INTEGER_FORM = re.compile(r"-?[0-9]+")


def key_of(value: object, *, field: str = "id") -> bytes:
    """Return the key of an id as it stands in JSON or msgpack: an integer or a string.

    A string in UUID form is a UUID. Raise InvalidInput, naming `field`, for anything that is no id.
    """
    if type(value) is str:
        if len(value) == 36 and _UUID_FORM.fullmatch(value):
            return UUID_TAG + bytes.fromhex(value.replace("-", ""))
        try:
            data = value.encode()
        except UnicodeEncodeError:
            raise InvalidInput("an id must be valid Unicode text", field=field) from None
        if not data:
            raise InvalidInput("an id must not be empty", field=field)
        if len(data) > MAX_STRING_BYTES:
            raise InvalidInput(f"an id has at most {MAX_STRING_BYTES} bytes, got {len(data)}", field=field)
        return STRING_TAG + data
    if type(value) is int:
        if not -_OFFSET <= value < _OFFSET:
            raise InvalidInput("an integer id must fit in 64 bits", field=field)
        return INTEGER_TAG + (value + _OFFSET).to_bytes(8, "big")
    if isinstance(value, uuid.UUID):
        return UUID_TAG + value.bytes
    if type(value) is float and value.is_integer() and abs(value) >= _OFFSET:
        # What JSON makes of a longer integer.
        raise InvalidInput("an integer id must fit in 64 bits", field=field)
    raise InvalidInput(f"an id is an integer or a string, got {type(value).__name__}", field=field)


def key_of_text(text: str, *, as_string: bool = False, field: str = "id") -> bytes:
    """Return the key of an id as it stands in a path or query.

    `-?[0-9]+` is an integer and anything else what a JSON string of that text is; `as_string` (the parameter
    `id_type=string`) reads digits as a string too.
    """
    if not as_string and _INTEGER_FORM.fullmatch(text) and text.isascii():
        if len(text) > 20:
            raise InvalidInput("an integer id must fit in 64 bits", field=field)
        return key_of(int(text), field=field)
    return key_of(text, field=field)


def id_of(key: bytes) -> int | str:
    """Return the id of a key as it is answered: an integer, or the text of a UUID or string."""
    tag = key[0]
    if tag == _STRING:
        return key[1:].decode()
    if tag == _UUID:
        return str(uuid.UUID(bytes=key[1:]))
    return int.from_bytes(key[1:], "big") - _OFFSET


def uuid_keys(count: int, *, random_bytes: bytes) -> list[bytes]:
    """Return `count` keys of version-4 UUIDs made of `random_bytes` (16 bytes each)."""
    keys = []
    for start in range(0, 16 * count, 16):
        raw = bytearray(random_bytes[start : start + 16])
        raw[6] = raw[6] & 0x0F | 0x40
        raw[8] = raw[8] & 0x3F | 0x80
        keys.append(UUID_TAG + bytes(raw))
    return keys


def slot_of(key: bytes) -> int:
    """Return the slot of a key: CRC-16/XMODEM of the id's text, mod 16384 (the Redis Cluster specification)."""
    return crc_hqx(key[1:] if key[0] == _STRING else str(id_of(key)).encode(), 0) % SLOT_COUNT


def slots_of(keys: Sequence[bytes]) -> np.ndarray:
    """Return the slots of `keys`: (n,) uint16."""
    uuids = [key for key in keys if key[0] == _UUID]
    if len(uuids) < _FEW:
        return np.fromiter(map(slot_of, keys), dtype=np.uint16, count=len(keys))
    of_uuids = slots_of_uuids(np.frombuffer(b"".join(uuids), dtype=np.uint8).reshape(-1, 17)[:, 1:])
    if len(uuids) == len(keys):
        return of_uuids
    found = iter(of_uuids.tolist())
    return np.fromiter(
        (next(found) if key[0] == _UUID else slot_of(key) for key in keys), dtype=np.uint16, count=len(keys)
    )


def uuid_keys_in(slots: np.ndarray, *, random_bytes: bytes) -> list[bytes]:
    """Return keys of version-4 UUIDs, one in each of `slots` (n,) uint16; `random_bytes` are 16 for each."""
    raw = uuids_of_slots(slots, random_bytes).tobytes()
    return [UUID_TAG + raw[start : start + 16] for start in range(0, len(raw), 16)]


def hashes_of(keys: Sequence[bytes]) -> np.ndarray:
    """Return 64-bit hashes of `keys` that are the same in every process: (n,) uint64 (BLAKE2b, RFC 7693)."""
    joined = b"".join([blake2b(key, digest_size=8).digest() for key in keys])
    return np.frombuffer(joined, dtype="<u8")


def parse_keys(values: Iterable[object], *, field: str = "ids") -> list[bytes]:
    """Return the keys of a list of ids; an error names `field[i]`."""
    keys = []
    for position, value in enumerate(values):
        try:
            keys.append(key_of(value))
        except InvalidInput as error:
            raise InvalidInput(error.message, field=f"{field}[{position}]") from None
    return keys
