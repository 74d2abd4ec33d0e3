"""The slots of many UUIDs at once, and UUIDs made to lie in given slots.

CRC-16/XMODEM begins at 0 and ends without an inversion, so it is linear: the CRC of a text is the XOR of what each of
its characters adds at its place. A UUID's text has 36 characters, dashes at fixed places and two hexadecimal digits
for each of its 16 bytes, so 16 tables of 256 entries hold all there is to know.
"""

from __future__ import annotations

from binascii import crc_hqx
from functools import cache
from typing import Final, NamedTuple

import numpy as np

_SLOT_BITS: Final = 0x3FFF
_TEXT_LENGTH: Final = 36
_DASHES: Final = (8, 13, 18, 23)
_PLACES: Final = (0, 2, 4, 6, 9, 11, 14, 16, 19, 21, 24, 26, 28, 30, 32, 34)
"""Where the two digits of each byte stand in the text."""

_LAST_FREE: Final = 13
"""The byte that is changed while no choice of the two behind it gives the wanted slot."""


def slots_of_uuids(raw: np.ndarray) -> np.ndarray:
    """Return the slots of UUIDs, given as (n, 16) uint8: (n,) uint16."""
    tables = _tables()
    # One byte of all UUIDs after the other: numpy reduces over rows of 16 at a fifth of that speed.
    crcs = np.full(len(raw), tables.dashes, dtype=np.uint16)
    for byte in range(16):
        crcs ^= tables.of_byte[byte][raw[:, byte]]
    crcs &= _SLOT_BITS
    return crcs


def uuids_of_slots(slots: np.ndarray, random_bytes: bytes) -> np.ndarray:
    """Return version-4 UUIDs of which each lies in its slot of `slots` (n,) uint16: (n, 16) uint8.

    They are made of `random_bytes` (16 bytes each); the slot takes 14 of their 122 random bits.
    """
    tables = _tables()
    raw = np.frombuffer(random_bytes, dtype=np.uint8).reshape(-1, 16).copy()
    raw[:, 6] = raw[:, 6] & 0x0F | 0x40
    raw[:, 8] = raw[:, 8] & 0x3F | 0x80
    lacking = slots ^ tables.dashes
    for byte in range(_LAST_FREE):
        lacking ^= tables.of_byte[byte][raw[:, byte]]
    chance = raw[:, 14].astype(np.int64) << 8 | raw[:, 15]
    todo = np.arange(len(raw))
    while len(todo):
        wanted = (lacking[todo] ^ tables.of_byte[_LAST_FREE][raw[todo, _LAST_FREE]]) & _SLOT_BITS
        choices = tables.ending_counts[wanted]
        some = choices > 0
        done = todo[some]
        chosen = tables.endings[tables.ending_starts[wanted[some]] + chance[done] % choices[some]]
        raw[done, 14] = chosen >> 8
        raw[done, 15] = chosen & 0xFF
        todo = todo[~some]
        # About one in fifty: the two last bytes do not reach every slot (tests go through all of them).
        raw[todo, _LAST_FREE] += 1
    return raw


class _Tables(NamedTuple):
    """What each byte adds by its value (16, 256) uint16, what the dashes add, and the two last bytes by what they add.

    `endings` (65536,) uint16 are the pairs, those that add the same next to one another: `ending_counts` (16384,) of
    them from `ending_starts` (16384,) on.
    """

    of_byte: np.ndarray
    dashes: np.uint16
    endings: np.ndarray
    ending_starts: np.ndarray
    ending_counts: np.ndarray


@cache
def _tables() -> _Tables:
    of_byte = np.empty((16, 256), dtype=np.uint16)
    for byte, place in enumerate(_PLACES):
        for value in range(256):
            of_byte[byte, value] = _crc_at(place, b"%02x" % value)
    dashes = 0
    for place in _DASHES:
        dashes ^= _crc_at(place, b"-")
    added = (of_byte[14][:, None] ^ of_byte[15][None, :]).ravel() & _SLOT_BITS
    counts = np.bincount(added, minlength=_SLOT_BITS + 1)
    return _Tables(
        of_byte,
        np.uint16(dashes),
        np.argsort(added, kind="stable").astype(np.uint16),
        np.cumsum(counts) - counts,
        counts,
    )


def _crc_at(place: int, text: bytes) -> int:
    """Return the CRC of a text of 36 characters that are all 0 but for `text` at a place."""
    return crc_hqx(text + bytes(_TEXT_LENGTH - place - len(text)), 0)
