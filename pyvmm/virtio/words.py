"""Whether one of several words is in a text, asked of all that a guest prints: one look of C at each byte.

Imports native.
"""

from __future__ import annotations

from pyvmm.virtio.native import PROBLEM, ffi, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

LIMIT = 64
"""Words."""
SHORTEST, LONGEST = 3, 32
"""Bytes of one."""


class Words:
    """`words`, up to LIMIT of them, each of 3 to 32 bytes."""

    __slots__ = ("_c", "_words")

    def __init__(self, words: Sequence[bytes]) -> None:
        assert len(words) <= LIMIT and all(SHORTEST <= len(word) <= LONGEST for word in words)
        self._words = words
        self._c = None
        if not PROBLEM:
            self._c = c = ffi.new("struct pyvmm_words *")
            c.count = len(words)
            for number, word in enumerate(words):
                c.lengths[number] = len(word)
                ffi.memmove(c.words[number], word, len(word))
            lib.pyvmm_words_prepare(c)

    def are_in(self, text: bytes) -> bool:
        """Whether one of them is in `text`."""
        if self._c is None:
            return any(word in text for word in self._words)
        return bool(lib.pyvmm_words_found(self._c, ffi.from_buffer("uint8_t[]", text), len(text)))
