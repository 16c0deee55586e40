"""Frames of gdb's protocol: what a good client sends, and what a broken or hostile one does."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from pyvmm.debug.gdb.packets import ACK, BAD, INTERRUPT, NAK, PACKET, PACKET_SIZE, Framer, encode


def found(*pieces: bytes) -> list[tuple[str, bytes]]:
    framer = Framer()
    return [one for piece in pieces for one in framer.feed(piece)]


def test_a_frame_has_the_sum_of_its_bytes():
    assert encode(b"OK") == b"$OK#9a"
    assert encode(b"") == b"$#00"


@given(st.binary(max_size=200), st.lists(st.integers(1, 9), min_size=1))
def test_what_was_framed_comes_out_whatever_the_pieces(payload, sizes):
    frame = b"+" + encode(payload)
    pieces, at = [], 0
    while at < len(frame):
        size = sizes[at % len(sizes)]
        pieces.append(frame[at : at + size])
        at += size
    assert found(*pieces) == [(ACK, b""), (PACKET, payload)]


def test_what_stands_between_frames_is_told_apart():
    assert found(b"+-\x03garbage$m0,1#fa") == [(ACK, b""), (NAK, b""), (INTERRUPT, b""), (PACKET, b"m0,1")]


def test_an_interrupt_byte_inside_a_frame_is_data():
    assert found(encode(b"a\x03b")) == [(PACKET, b"a\x03b")]


def test_a_wrong_sum_is_told_and_the_next_frame_is_read():
    for wrong in (b"$g#00", b"$g#zz", b"$g# 7", b"$g#+7"):
        assert found(wrong + b"$?#3f") == [(BAD, b""), (PACKET, b"?")]


def test_a_frame_that_begins_anew_drops_the_one_before():
    assert found(b"$m0,1$?#3f") == [(PACKET, b"?")]


def test_a_frame_that_is_too_long_is_thrown_away_as_it_comes():
    framer = Framer()
    for _ in range(100):
        assert list(framer.feed(b"$"[: 1 if _ == 0 else 0] + b"x" * PACKET_SIZE)) == []
    assert len(framer._body) <= 2 * PACKET_SIZE
    assert list(framer.feed(b"#00$?#3f")) == [(BAD, b""), (PACKET, b"?")]


def test_random_bytes_never_raise_and_never_pile_up():
    source = random.Random(8)
    framer = Framer()
    for _ in range(300):
        noise = bytes(source.choice(b"$#}*+-\x03gmXZvc0123,:;\xff\x00") for _ in range(source.randrange(400)))
        for kind, payload in framer.feed(noise):
            assert kind in (ACK, BAD, INTERRUPT, NAK, PACKET)
            assert len(payload) <= 2 * PACKET_SIZE
