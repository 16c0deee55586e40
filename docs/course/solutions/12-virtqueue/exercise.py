"""Lesson 12: the virtqueue, solved."""

from struct import unpack

NEXT, WRITE = 1, 2


class Queue:
    def __init__(self, size, table, available, used):
        self.size = size
        self.table, self.available, self.used = table, available, used
        self.next_available = self.next_used = 0


class BrokenRing(Exception):
    pass


def pop(memory, queue):
    if memory.read_u16(queue.available + 2) == queue.next_available:
        return None
    head = at = memory.read_u16(queue.available + 4 + 2 * (queue.next_available % queue.size))
    readable, writable = [], []
    for _ in range(queue.size):
        if at >= queue.size:
            raise BrokenRing(f"descriptor {at} of {queue.size}")
        gpa, length, flags, following = unpack("<QIHH", memory.read(queue.table + 16 * at, 16))
        (writable if flags & WRITE else readable).append((gpa, length))
        if not flags & NEXT:
            queue.next_available = (queue.next_available + 1) % 65536
            return head, readable, writable
        at = following
    raise BrokenRing(f"chain {head} does not end")


def push(memory, queue, head, written):
    element = queue.used + 4 + 8 * (queue.next_used % queue.size)
    memory.write_u32(element, head)
    memory.write_u32(element + 4, written)
    # The element is complete before the index shows it: x86 keeps stores in order.
    queue.next_used = (queue.next_used + 1) % 65536
    memory.write_u16(queue.used + 2, queue.next_used)


def must_notify(old, new, event):
    return (new - event - 1) % 65536 < (new - old) % 65536
