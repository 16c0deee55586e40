"""Lesson 12: the virtqueue, from the device's side. `pyvmm lesson check 12` tells what is still wrong.

`memory` is the guest's: memory.read(gpa, length) gives bytes, memory.write(gpa, data) stores them, and read_u16,
read_u32, read_u64, write_u16 and write_u32 take (gpa) or (gpa, value); all little-endian. Outside of RAM they raise
GuestMemoryError.

A queue (virtio 1.3, 2.7):
    descriptor table    entries of 16 bytes: address u64, length u32, flags u16, next u16
    available ring      flags u16, index u16, then `size` heads, u16 each
    used ring           flags u16, index u16, then `size` elements of 8 bytes: head u32, bytes written u32
"""

NEXT, WRITE = 1, 2  # flags of a descriptor


class Queue:
    """`size` entries; where its three areas are; and how far the device has come in both rings (0 to 65535)."""

    def __init__(self, size, table, available, used):
        self.size = size
        self.table, self.available, self.used = table, available, used
        self.next_available = self.next_used = 0


class BrokenRing(Exception):
    """The driver has broken the rules: the device will ask for a reset."""


def pop(memory, queue):
    """Take the next chain: (head, readable, writable), or None if nothing is available.

    `readable` and `writable` are lists of (gpa, length), in the chain's order. Raises BrokenRing for a head or a `next`
    that is not below `size`, and for a chain of more than `size` descriptors. `next_available` goes on by one, modulo
    65536, if a chain was taken.
    """
    ...


def push(memory, queue, head, written):
    """Give the chain back: the device has written so many bytes to its buffers."""
    ...


def must_notify(old, new, event):
    """Whether the other side wants to be told, by event index (2.7.7.2, 2.7.10).

    The index went from `old` to `new` (modulo 65536) since it was told last; `event` is the entry that it waits for.
    """
    ...
