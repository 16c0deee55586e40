"""Judges the exercises of lesson 13; only `device` needs KVM."""

from struct import pack

from pyvmm.virtio.chain import Chain

SECTORS = 8
IN, OUT, FLUSH, GET_ID = 0, 1, 4, 8
NAMES = {IN: "IN", OUT: "OUT", FLUSH: "FLUSH", GET_ID: "GET_ID"}
STATUS = {0: "OK", 1: "IOERR", 2: "UNSUPP", 0xFF: "not written"}


class Disk:
    def __init__(self, readonly=False, broken=False):
        self.data = bytearray(b"".join(bytes([65 + sector]) * 512 for sector in range(SECTORS)))
        self.readonly, self.broken, self.flushes, self.identity = readonly, broken, 0, b"course"

    def flush(self):
        self.flushes += 1
        if self.broken:
            raise OSError(5, "Input/output error")


def cut(data, size):
    """The same bytes in pieces of `size`."""
    view = memoryview(data)
    return [view[at : at + size] for at in range(0, len(data), size)]


def send(work, disk, kind, sector=0, data=b"", room=0, piece=0):
    """Send a request; (status, used length, what is in the room for data)."""
    readable = bytearray(pack("<IIQ", kind, 0, sector) + data)
    writable = bytearray(b"\x55" * room + b"\xff")
    chain = Chain(0, cut(readable, piece or 1 << 20), cut(writable, piece or 1 << 20))
    used = work.exercise.request(chain, disk)
    return writable[-1], used, bytes(writable[:-1])


def expect(work, what, disk, status, used, holds=None, *, kind, **request):
    """ "" or what is wrong with one request."""
    piece = request.get("piece")
    name = f"{NAMES.get(kind, f'type {kind}')} {what}" + (f", cut into pieces of {piece} bytes" if piece else "")
    found = send(work, disk, kind, **request)
    if found[0] != status:
        wrong = STATUS.get(found[0], hex(found[0]))
        return f"{name}: the status is {wrong}, not {STATUS[status]}"
    if holds is not None and found[2] != holds:
        return f"{name}: the data that the driver gets is wrong"
    if found[1] != used:
        return f"{name}: the used length is {found[1]}, not {used}"
    return ""


def check_request(work):
    disk, untouched = Disk(), b"\x55" * 512
    for piece in (0, 7, 1):
        if wrong := (
            expect(work, "of sector 2", disk, 0, 513, b"C" * 512, kind=IN, sector=2, room=512, piece=piece)
            or expect(work, "of the last sector", disk, 0, 513, b"H" * 512, kind=IN, sector=7, room=512, piece=piece)
            or expect(work, "of 3 sectors", disk, 0, 1537, bytes(disk.data[:1536]), kind=IN, room=1536, piece=piece)
        ):
            return wrong
    for piece in (0, 9):
        if wrong := expect(work, "to sector 3", disk, 0, 1, kind=OUT, sector=3, data=b"x" * 512, piece=piece):
            return wrong
        if bytes(disk.data[3 * 512 : 4 * 512]) != b"x" * 512 or len(disk.data) != SECTORS * 512:
            return "after OUT to sector 3 that sector is not what was written"
        if bytes(disk.data[: 3 * 512]) != bytes(Disk().data[: 3 * 512]) or bytes(disk.data[4 * 512 :]) != bytes(
            Disk().data[4 * 512 :]
        ):
            return "OUT to sector 3 has changed another sector"
    wrong = (
        expect(work, "of the first sector behind the end", disk, 1, 0, untouched, kind=IN, sector=SECTORS, room=512)
        or expect(work, "of two sectors, the second behind the end", disk, 1, 0, kind=IN, sector=SECTORS - 1, room=1024)
        or expect(
            work, "of sector 2**55, whose byte is 2**64", disk, 1, 0, untouched, kind=IN, sector=1 << 55, room=512
        )
        or expect(work, "of half a sector", disk, 1, 0, kind=IN, room=256)
        or expect(work, "with data to read", disk, 1, 0, untouched, kind=IN, data=b"x" * 512, room=512)
        or expect(work, "behind the end", disk, 1, 1, kind=OUT, sector=SECTORS, data=b"y" * 512)
        or expect(work, "of half a sector", disk, 1, 1, kind=OUT, data=b"y" * 256)
        or expect(work, "with room for data", disk, 1, 0, untouched, kind=OUT, data=b"y" * 512, room=512)
        or expect(work, "to a read-only disk", Disk(readonly=True), 1, 1, kind=OUT, data=b"y" * 512)
    )
    if wrong:
        return wrong
    if b"y" in disk.data or len(disk.data) != SECTORS * 512:
        return "an OUT that is refused has changed the disk"
    if wrong := expect(work, "of a disk that works", disk, 0, 1, kind=FLUSH):
        return wrong
    if disk.flushes != 1:
        return f"a FLUSH calls disk.flush() {disk.flushes} times, not once"
    return (
        expect(work, "of a disk whose flush() raises OSError", Disk(broken=True), 1, 1, kind=FLUSH)
        or expect(work, "with 20 bytes of room", disk, 0, 21, b"course".ljust(20, b"\0"), kind=GET_ID, room=20)
        or expect(work, "with 512 bytes of room", disk, 1, 0, untouched, kind=GET_ID, room=512)
        or expect(work, "(which there is not)", disk, 2, 1, kind=99)
        or expect(work, "with room for data", disk, 2, 0, untouched, kind=99, room=512)
    )


def check_after_power_cut(work):
    cut = work.exercise.after_power_cut
    write, flush = (lambda sector, data: ("write", sector, data)), ("flush",)
    cases = [
        ([], {"old"}, "nobody has written"),
        ([write(1, "a")], {"old", "a"}, "a write that no flush has confirmed may be there or not"),
        ([write(1, "a"), flush], {"a"}, "the flush came after the write: it is stable"),
        ([flush, write(1, "a")], {"old", "a"}, "the flush came before the write"),
        ([write(1, "a"), write(1, "b")], {"old", "a", "b"}, "each of the writes may be the last that reached the disk"),
        ([write(1, "a"), write(1, "b"), flush], {"b"}, "the later write has replaced the earlier one"),
        ([write(1, "a"), flush, write(1, "b")], {"a", "b"}, "'old' is gone since the flush"),
        ([write(2, "a"), flush, write(2, "b")], {"old"}, "these were writes to another sector"),
        ([write(1, "a"), flush, flush], {"a"}, "a second flush changes nothing"),
        ([write(1, "a"), flush, write(2, "b"), flush], {"a"}, "a flush without writes to this sector changes nothing"),
    ]
    for log, expected, why in cases:
        found = cut(log, 1, "old")
        if not isinstance(found, set) or found != expected:
            return f"after {log} sector 1 may hold {sorted(expected)}, not {found!r}: {why}"
    return ""


def check_device(work):
    device = work.exercise.MyDisk(Disk())
    if not isinstance(device.device_features(), int) or not device.device_features() >> 9 & 1:
        return "device_features() does not offer FLUSH (bit 9)"
    if device.config() is None or bytes(device.config())[:8] != SECTORS.to_bytes(8, "little"):
        return f"config() does not begin with the capacity of {SECTORS} sectors in 8 bytes"
    if not work.live:
        return ""
    from pyvmm import VM
    from pyvmm.images import guest

    disk = Disk()
    disk.data[512:1024] = b"It works!".ljust(512, b"\0")
    path, append = guest("lesson13-sector").path(), "1 virtio_mmio.device=4K@0xd0000000:5"
    with VM(path, append=append, transport="mmio", mem="8M", timeout=10, virtio=[work.exercise.MyDisk(disk)]) as vm:
        outcome = vm.wait()
        text = vm.console.text
    if outcome.reason == "time-limit":
        return f"the guest waits for an answer that does not come; it has said {text!r}"
    expected = "read: status 0, bytes written 513\nflush: status 0, bytes written 1\ndata: It works!\n"
    if text != expected:
        return f"the guest says {text!r}, not {expected!r}"
    return "" if disk.flushes == 1 else "the guest's flush has not reached disk.flush()"
