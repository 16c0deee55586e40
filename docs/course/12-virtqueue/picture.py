"""The three areas of a split virtqueue, with one chain of two buffers in it."""

from pyvmm.course.draw import Drawing


def draw():
    d = Drawing(
        "A split virtqueue",
        "In the guest's memory lie a descriptor table, an available ring and a used ring. The driver has put head 2 "
        "into the available ring; descriptor 2 names a readable buffer and goes on with descriptor 3, a writable one. "
        "The device has put head 2 and the bytes written into the used ring.",
    )
    d.box(10, 10, 700, 400, "guest memory", kind="memory", top=True)
    d.label(360, 52, "descriptor table", bold=True)
    rows = ("0", "1", "2:  0x4000, 16 bytes, NEXT, 3", "3:  0x5000, 512 bytes, WRITE", "...")
    table = [
        d.box(235, 66 + 34 * n, 250, 34, text, mono=True, size=12, kind="guest" if n in (2, 3) else "plain")
        for n, text in enumerate(rows)
    ]
    d.label(115, 52, "available ring", bold=True)
    d.label(115, 72, "written by the driver", size=12, soft=True)
    available = [
        d.box(45, 84 + 34 * n, 140, 34, text, mono=True, size=12, kind="guest")
        for n, text in enumerate(("flags 0", "index 1", "2", "..."))
    ]
    d.label(605, 52, "used ring", bold=True)
    d.label(605, 72, "written by the device", size=12, soft=True)
    used = [
        d.box(535, 84 + 34 * n, 140, 34, text, mono=True, size=12, kind="vmm")
        for n, text in enumerate(("flags 0", "index 1", "2, 512 bytes", "..."))
    ]
    readable = d.box(120, 300, 220, 60, "buffer at 0x4000", sub="the device reads it")
    writable = d.box(380, 300, 220, 60, "buffer at 0x5000", sub="the device writes it")
    d.arrow(available[2], table[2])
    d.arrow(used[2], table[2])
    d.arrow((235, 164), (215, 300), via=[(215, 164)])
    d.arrow((485, 188), (505, 300), via=[(505, 188)])
    d.label(360, 386, "a ring's entry is its index modulo the queue's size", size=12, soft=True)
    assert table and readable and writable
    return d
