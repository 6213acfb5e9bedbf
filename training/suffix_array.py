"""An exact index of one block of text: a suffix array, thinned so that no passage of 10 bytes is lost.

A suffix array lists where the suffixes of a text begin, in the order of the suffixes; a passage is found in it by
bisection. One entry for each byte would take four times the room of the text. Here only anchors are entered: in every
window of `WINDOW` consecutive three-byte sequences, the one with the least hash ("minimizers": Roberts et al. 2004,
https://doi.org/10.1093/bioinformatics/bth408). Which it is depends on the ten bytes of the window alone, so equal
passages have equal anchors wherever they stand, and a passage of `SHORTEST` bytes or more has at least one. To find a
passage is to look up what follows its first anchor, and to keep the places where also what precedes is equal. About
2 bytes in 9 become anchors.
"""

from bisect import bisect_left, bisect_right
from itertools import pairwise

import numpy as np
from pydivsufsort import divsufsort

GRAM = 3  # bytes that are hashed
WINDOW = 8  # of them that are compared
SHORTEST = WINDOW + GRAM - 1  # bytes in a window: shorter passages may be missed
BREAK = 0xFF  # stands before, between and after documents; no byte of UTF-8
POSITION = np.dtype("<u4")
CHUNK = 1 << 22  # windows hashed at a time, at about 40 bytes of memory each


def anchors(text: np.ndarray) -> np.ndarray:
    """Where the anchor of each window is: (bytes - SHORTEST + 1,) int64, non-decreasing; of equal hashes the first.

    Args:
        text: (bytes,) uint8, fewer than 2**32.
    """
    if len(text) < SHORTEST:
        return np.empty(0, np.int64)
    wide = text.astype(np.uint32)
    gram = (wide[:-2] << np.uint32(16)) | (wide[1:-1] << np.uint32(8)) | wide[2:]
    hashed = (gram * np.uint32(0x9E3779B1)).astype(np.uint64)  # Knuth's multiplicative hash, modulo 2**32
    least = (hashed << np.uint64(32)) | np.arange(len(gram), dtype=np.uint64)
    for step in (1, 2, 4):  # the least of 2, of 4, of WINDOW = 8 neighbours
        least = np.minimum(least[:-step], least[step:])
    return (least & np.uint64(0xFFFFFFFF)).astype(np.int64)


def suffix_array(text: np.ndarray) -> np.ndarray:
    """The anchors of a text in the order of the suffixes that begin there: (anchors,) uint32.

    Takes about 8 bytes of memory for each byte of text, and one thread unless OMP_NUM_THREADS says otherwise.

    Args:
        text: (bytes,) uint8, writable (the sort asks for that), fewer than 2**31.
    """
    anchor = np.zeros(len(text), bool)
    for start in range(0, len(text), CHUNK):
        anchor[start + anchors(text[start : start + CHUNK + SHORTEST - 1])] = True
    suffixes = divsufsort(text)
    return suffixes[anchor[suffixes]].astype(POSITION)


def _common(a: bytes, b: bytes) -> int:
    """Length of the common prefix."""
    length = min(len(a), len(b))
    return length if a[:length] == b[:length] else next(i for i in range(length) if a[i] != b[i])


class Block:
    """A block of text and its suffix array, to search in.

    Args:
        text: of documents, with BREAK before, between and after them; bytes or a memory map.
        suffixes: what `suffix_array` made of it.
        before: (anchors,) uint8, the byte before each; it can be had from the text, but from places far apart.
    """

    def __init__(self, text, suffixes: np.ndarray, before: np.ndarray):
        self.text, self.suffixes, self.before = text, suffixes, before
        self.bytes = np.frombuffer(text, np.uint8)

    def _range(self, positions: np.ndarray, passage: bytes) -> tuple[int, int]:
        """From where to where in some positions, in the order of their suffixes, a passage stands.

        Where it stands at none, both are where it would be inserted.
        """
        entries, text, low, high, depth = memoryview(positions), self.text, 0, len(positions), 64
        while True:  # a little at a time: most long passages differ early
            part = passage[:depth]
            low = bisect_left(entries, part, low, high, key=lambda p: text[p : p + depth])
            if low == high or text[entries[low] : entries[low] + len(part)] != part:
                return low, low
            high = bisect_right(entries, part, low, high, key=lambda p: text[p : p + len(part)])
            if depth >= len(passage):
                return low, high
            depth *= 8

    def _longest(self, positions: np.ndarray, passage: bytes) -> int:
        """Length of the longest beginning of a passage that stands at any of some positions, in suffix order."""
        low, high = self._range(positions, passage)
        if low < high:
            return len(passage)
        # Those that have the most of it stand beside the place where it would stand.
        beside = positions[max(low - 1, 0) : low + 1].tolist()
        return max(_common(passage, self.text[p : p + len(passage)]) for p in beside)

    def _preceded(self, low: int, high: int, before: bytes) -> np.ndarray:
        """The suffixes from low to high, in their order, before which a passage stands."""
        positions = self.suffixes[low:high]
        if before:
            positions = positions[self.before[low:high] == before[-1]]
        return self._preceded_at(positions, before[:-1], gap=1)

    def _preceded_at(self, positions: np.ndarray, before: bytes, *, gap: int) -> np.ndarray:
        """Those of some positions, in their order, before which a passage stands, and between them `gap` bytes.

        A position is never too small for it: the text begins with BREAK, and there the comparison has ended.
        """
        for distance, byte in enumerate(reversed(before), start=gap + 1):
            positions = positions[self.bytes[positions - POSITION.type(distance)] == byte]
        return positions

    def find(self, passage: bytes) -> np.ndarray:
        """Where a passage of at least SHORTEST bytes stands in the text: all positions, ascending, int64."""
        first = int(anchors(np.frombuffer(passage[:SHORTEST], np.uint8))[0])
        low, high = self._range(self.suffixes, passage[first:])
        return np.sort(self._preceded(low, high, passage[:first])).astype(np.int64) - first

    def reach(self, query: bytes, anchor: np.ndarray, needed: np.ndarray, ends: np.ndarray) -> None:
        """Raise `ends[i]` to where the longest passage of the query that begins at i, and stands here, ends.

        Only passages are looked for that are wanted and end later than those known.

        Args:
            query: (bytes,) without BREAK.
            anchor: its `anchors`.
            needed: (windows,) least end that is wanted of a passage from i, at least i + SHORTEST; non-decreasing.
            ends: (windows,) the ends known so far, 0 where none; changed in place, and non-decreasing after.
        """
        reached, edges = 0, np.append(np.flatnonzero(np.diff(anchor, prepend=-1)), len(anchor)).tolist()
        for i, following in pairwise(edges):  # windows with the same anchor
            at = int(anchor[i])
            reached = max(reached, int(ends[i]))
            need = max(reached + 1, int(needed[i]))
            if need > len(query):
                continue
            low, high = self._range(self.suffixes, query[at:need])
            # The nearest window first: what precedes the anchor from it precedes it from all windows farther off.
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
