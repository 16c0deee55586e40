"""One request of a block device's driver, and what becomes of it."""

from pyvmm.course.draw import Drawing


def draw():
    d = Drawing(
        "A request that reads one sector",
        "A chain of three buffers: a header of 16 bytes that the device reads, with type, reserved and sector; 512 "
        "bytes of data that the device fills; and a status byte that it writes last. The used element says 513 bytes.",
    )
    d.label(10, 20, "the chain", bold=True, anchor="start")
    d.label(135, 48, "device reads", size=12, soft=True)
    header = d.box(10, 60, 250, 64, "header, 16 bytes", sub="type 0 (IN), reserved, sector 7", kind="guest")
    d.label(480, 48, "device writes", size=12, soft=True)
    data = d.box(290, 60, 300, 64, "data, 512 bytes", sub="as many sectors as it is long", kind="vmm")
    status = d.box(620, 60, 90, 64, "status", sub="1 byte", kind="vmm")
    d.arrow(header, data)
    d.arrow(data, status)
    disk = d.box(290, 200, 300, 60, "disk image", sub="bytes 3584 to 4095", kind="host")
    d.arrow(disk, data, "1 copied", room=80)
    judge = d.box(10, 200, 250, 60, "device", sub="judges a copy of the header", kind="vmm")
    d.arrow(header, judge)
    used = d.box(10, 320, 250, 60, "used element", sub="head, 513 bytes", kind="memory")
    d.arrow(judge, used, "3 published", room=100)
    d.arrow(judge, status, "2 OK", via=[(275, 230), (275, 290), (665, 290)], room=60)
    return d
