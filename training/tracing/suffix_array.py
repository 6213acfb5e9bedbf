"""Exact index of one block of text: a sparse suffix array that still finds every passage of 10 bytes or more.

A suffix array contains the start of every suffix of a text, in the order of the suffixes; a passage is found in it by
bisection. One entry per byte would need four times the space of the text. This one contains only anchors: in every
window of `WINDOW` consecutive three-byte sequences, the one with the smallest hash ("minimizers": Roberts et al. 2004,
https://doi.org/10.1093/bioinformatics/bth408). The choice depends on the ten bytes of the window alone, so equal
passages have equal anchors at every position, and a passage of `SHORTEST` bytes or more has at least one. A search
looks up the bytes from the first anchor on, and keeps the matches whose preceding bytes are equal too. About 2 bytes
in 9 are anchors.
"""

from bisect import bisect_left, bisect_right
from itertools import pairwise

import numpy as np

GRAM = 3  # bytes per hash
WINDOW = 8  # hashes per window
SHORTEST = WINDOW + GRAM - 1  # bytes in a window: shorter passages may be missed
BREAK = 0xFF  # before, between and after documents; never occurs in UTF-8
POSITION = np.dtype("<u4")
CHUNK = 1 << 22  # windows hashed at a time; each needs about 40 bytes of memory


def anchors(text: np.ndarray) -> np.ndarray:
    """Return the anchor position of each window; of equal hashes, the first.

    Args:
        text: (bytes,) uint8, fewer than 2**32.

    Returns:
        (bytes - SHORTEST + 1,) int64, non-decreasing.
    """
    if len(text) < SHORTEST:
        return np.empty(0, np.int64)
    wide = text.astype(np.uint32)
    gram = (wide[:-2] << np.uint32(16)) | (wide[1:-1] << np.uint32(8)) | wide[2:]
    hashed = (gram * np.uint32(0x9E3779B1)).astype(np.uint64)  # Knuth's multiplicative hash, modulo 2**32
    least = (hashed << np.uint64(32)) | np.arange(len(gram), dtype=np.uint64)
    for step in (1, 2, 4):  # minimum of 2, of 4, of WINDOW = 8 neighbours
        least = np.minimum(least[:-step], least[step:])
    return (least & np.uint64(0xFFFFFFFF)).astype(np.int64)


def suffix_array(text: np.ndarray) -> np.ndarray:
    """Return the anchors of a text, sorted by the suffixes that begin there: (anchors,) uint32.

    Needs about 8 bytes of memory per byte of text, and one thread unless OMP_NUM_THREADS is set.

    Args:
        text: (bytes,) uint8, writable (required by the sort), fewer than 2**31.
    """
    from pydivsufsort import divsufsort  # lazy import: not needed for searching

    anchor = np.zeros(len(text), bool)
    for start in range(0, len(text), CHUNK):
        anchor[start + anchors(text[start : start + CHUNK + SHORTEST - 1])] = True
    suffixes = divsufsort(text)
    return suffixes[anchor[suffixes]].astype(POSITION)


def _common(a: bytes, b: bytes) -> int:
    """Return the length of the common prefix."""
    length = min(len(a), len(b))
    return length if a[:length] == b[:length] else next(i for i in range(length) if a[i] != b[i])


class Block:
    """A searchable block of text with its suffix array.

    Args:
        text: Documents with BREAK before, between and after them; bytes or a memory map.
        suffixes: Suffix array of the text, from `suffix_array`.
        before: Byte before each suffix, (anchors,) uint8. Stored, because reading it from the text is random access.
    """

    def __init__(self, text, suffixes: np.ndarray, before: np.ndarray):
        self.text, self.suffixes, self.before = text, suffixes, before
        self.bytes = np.frombuffer(text, np.uint8)

    def _range(self, positions: np.ndarray, passage: bytes) -> tuple[int, int]:
        """Return the range of the positions, sorted by suffix, at which a passage occurs.

        If there are none, both ends are its insertion point.
        """
        entries, text, low, high, depth = memoryview(positions), self.text, 0, len(positions), 64
        while True:  # with a growing prefix: most long passages differ early
            part = passage[:depth]
            low = bisect_left(entries, part, low, high, key=lambda p: text[p : p + depth])
            if low == high or text[entries[low] : entries[low] + len(part)] != part:
                return low, low
            high = bisect_right(entries, part, low, high, key=lambda p: text[p : p + len(part)])
            if depth >= len(passage):
                return low, high
            depth *= 8

    def _longest(self, positions: np.ndarray, passage: bytes) -> int:
        """Return the length of the longest prefix of a passage at any of the positions, sorted by suffix."""
        low, high = self._range(positions, passage)
        if low < high:
            return len(passage)
        # The suffixes with the longest common prefix are next to its insertion point.
        neighbours = positions[max(low - 1, 0) : low + 1].tolist()
        return max(_common(passage, self.text[p : p + len(passage)]) for p in neighbours)

    def _preceded(self, low: int, high: int, before: bytes) -> np.ndarray:
        """Return the suffixes from low to high that a passage precedes, in order."""
        positions = self.suffixes[low:high]
        if before:
            positions = positions[self.before[low:high] == before[-1]]
        return self._preceded_at(positions, before[:-1], gap=1)

    def _preceded_at(self, positions: np.ndarray, before: bytes, *, gap: int) -> np.ndarray:
        """Return the positions that a passage precedes with `gap` bytes between, in order.

        A position is never too small: the text begins with BREAK, which ends the comparison.
        """
        for distance, byte in enumerate(reversed(before), start=gap + 1):
            positions = positions[self.bytes[positions - POSITION.type(distance)] == byte]
        return positions

    def find(self, passage: bytes) -> np.ndarray:
        """Return all positions of a passage of at least SHORTEST bytes, ascending, int64."""
        first = int(anchors(np.frombuffer(passage[:SHORTEST], np.uint8))[0])
        low, high = self._range(self.suffixes, passage[first:])
        return np.sort(self._preceded(low, high, passage[:first])).astype(np.int64) - first

    def reach(self, query: bytes, anchor: np.ndarray, needed: np.ndarray, ends: np.ndarray) -> None:
        """Raise `ends[i]` to the end of the longest passage that begins at i in the query and occurs in this block.

        Passages that end before `needed` or before a known end are not searched.

        Args:
            query: (bytes,) without BREAK.
            anchor: Its `anchors`.
            needed: Minimum end of a passage from i, at least i + SHORTEST; (windows,), non-decreasing.
            ends: Known ends, 0 if none; (windows,), changed in place, non-decreasing afterwards.
        """
        reached, edges = 0, np.append(np.flatnonzero(np.diff(anchor, prepend=-1)), len(anchor)).tolist()
        for i, following in pairwise(edges):  # windows with the same anchor
            at = int(anchor[i])
            reached = max(reached, int(ends[i]))
            need = max(reached + 1, int(needed[i]))
            if need > len(query):
                continue
            low, high = self._range(self.suffixes, query[at:need])
            # Nearest window first: each farther window extends the bytes compared before the anchor.
            compared = at
            for window in range(following - 1, i - 1, -1):
                if compared == at:
                    positions = self._preceded(low, high, query[window:at])
                else:
                    positions = self._preceded_at(positions, query[window:compared], gap=at - compared)
                compared = window
                if not len(positions):
                    break
                end = at + self._longest(positions, query[at:])
                ends[window] = max(int(ends[window]), end)
                reached = max(reached, end)
        np.maximum.accumulate(ends, out=ends)
