"""The block device, on a disk in memory that fails when told to, and on the images of `pyvmm.backends` likewise.

What a read gives is compared with what was written, as long as the driver keeps to the rules.
"""

from __future__ import annotations

import errno
import os
from struct import pack

from pyvmm.backends import overlay, raw
from pyvmm.backends.overlay import OverlayDisk
from pyvmm.backends.raw import RawDisk
from pyvmm.virtio import block, block_request, spec
from pyvmm.virtio.block import VirtioBlock
from pyvmm.virtio.block_request import HEADER, SEGMENT
from tests.fuzz.subjects.base import Subject
from tests.support.memorydisk import MemoryDisk

SECTORS = 32
TYPES = {
    spec.BLK_T_IN: "IN",
    spec.BLK_T_OUT: "OUT",
    spec.BLK_T_FLUSH: "FLUSH",
    spec.BLK_T_GET_ID: "GET_ID",
    spec.BLK_T_DISCARD: "DISCARD",
    spec.BLK_T_WRITE_ZEROES: "WRITE_ZEROES",
}
STATUSES = {spec.BLK_S_OK: "OK", spec.BLK_S_IOERR: "IOERR", spec.BLK_S_UNSUPP: "UNSUPP"}
METHODS = ("read", "write", "flush", "discard", "zero")
PICKED = (0, 1, 0, 1, 0, 1, 4, 4, 8, 11, 13, 11, 13, 0xFFFFFFFF)


REQUESTS = (
    *(
        ("chain", 0, (pack("<IIQ", kind, 0, 1),), (room, 1), "direct", (), True)
        for kind, room in ((0, 512), (4, 0), (8, 20))
    ),
    *(
        ("chain", 0, (pack("<IIQ", kind, 0, 1), data), (1,), "direct", (), True)
        for kind, data in ((1, bytes(512)), (11, pack("<QII", 1, 1, 0)), (13, pack("<QII", 1, 1, 0)))
    ),
)
"""One of each type."""


class Disk(MemoryDisk):
    """Counts the errors that it makes."""

    def __init__(self, kinds, **settings):
        super().__init__(**settings)
        self._kinds = kinds

    def _did(self, name, *numbers):
        if name in self.fails:
            self._kinds.add(f"host: {errno.errorcode[self.fails[name]]} from {name}")
        super()._did(name, *numbers)


class File(RawDisk):
    """An image in a file that holds as many sectors; its system calls fail when told to, and move less than asked."""

    def __init__(self, kinds, *, readonly, durable):
        self._kinds, self.fails, self.short = kinds, {}, False
        fd = os.memfd_create("disk")
        os.pwrite(fd, b"".join((b"%-15d\n" % number) * 32 for number in range(SECTORS)), 0)
        super().__init__(fd, "memfd", readonly=readonly, durable=durable)

    @property
    def straight(self):
        """What C does no test can make fail, but it may do what is to succeed."""
        return None if self.fails or self.short else super().straight

    def _did(self, name):
        if name in self.fails:
            self._kinds.add(f"host: {errno.errorcode[self.fails[name]]} from {name}")
            raise OSError(self.fails[name], os.strerror(self.fails[name]))

    def _part(self, views, name):
        """The first half of the first buffer, if the host is to be like that."""
        if not self.short or len(views[0]) < 2:
            return views
        self._kinds.add(f"host: short {name}")
        return [views[0][: len(views[0]) // 2]]

    def _preadv(self, views, offset):
        self._did("read")
        return super()._preadv(self._part(views, "read"), offset)

    def _pwritev(self, views, offset):
        self._did("write")
        return super()._pwritev(self._part(views, "write"), offset)

    def flush(self):
        self._did("flush")
        super().flush()

    def discard(self, offset, length):
        self._did("discard")
        super().discard(offset, length)

    def write_zeroes(self, offset, length, unmap):
        self._did("zero")
        super().write_zeroes(offset, length, unmap)


class Block(Subject):
    name = "block"
    modules: tuple[object, ...] = (block, block_request)
    queues = 2
    writable_config = (block.CONFIG_WRITEBACK, block.CONFIG_WRITEBACK, 0)
    seeds = (
        REQUESTS,
        (("host", "fails", "all", errno.EIO), *REQUESTS),
        (("host", "fails", "all", errno.ENOSPC), *REQUESTS),
    )
    required = (
        *(f"{kind}: {status}" for kind in TYPES.values() for status in ("OK", "IOERR")),
        *("FLUSH: UNSUPP", "DISCARD: UNSUPP", "WRITE_ZEROES: UNSUPP", "another type: UNSUPP"),
        *("told: the host's error",),
        *(f"host: {error} from {method}" for error in ("EIO", "ENOSPC") for method in ("write", "zero")),
        *(f"host: EIO from {method}" for method in ("read", "flush", "discard")),
    )

    def __init__(self, settings, kinds):
        self.kinds = kinds
        queues = settings["queues"]
        self.disk, self._failing = self._disk(settings)
        self.ordered = queues == 1
        self.resync()
        self.device = VirtioBlock(
            self.disk, serial="fuzz", queues=queues, queue_size=64, report=lambda _: kinds.add("told: the host's error")
        )
        self.device.native = settings.get("native", True)

    def _disk(self, settings):
        """The disk, and what of it fails when told to."""
        disk = Disk(self.kinds, sectors=SECTORS, **{key: settings[key] for key in settings if key != "queues"})
        return disk, disk

    def _stored(self):
        return bytes(self.disk.data)

    @staticmethod
    def settings(draw):
        return {
            "queues": draw.pick((1, 1, 2)),
            "readonly": draw.rarely(8),
            "durable": not draw.rarely(4),
            "may_unmap": not draw.rarely(4),
            "block_size": draw.pick((512, 512, 4096)),
        }

    @staticmethod
    def request(draw):
        kind = draw.pick(PICKED)
        sector = draw.pick((1, 2, 8, draw.below(SECTORS - 4)))
        if draw.rarely(8):
            sector = draw.pick((SECTORS - 1, SECTORS, SECTORS + 1, 1 << 32, (1 << 55) - 1, 1 << 55, (1 << 64) - 1))
        header, data, room = pack("<IIQ", kind, 0, sector), b"", 0
        length = 512 * draw.pick((1, 1, 2, 8, 0)) + (draw.pick((1, 511, 16)) if draw.rarely(8) else 0)
        if kind == spec.BLK_T_OUT:
            data = draw.filling(length)
        elif kind == spec.BLK_T_IN:
            room = length
        elif kind == spec.BLK_T_GET_ID:
            room = 20 if not draw.rarely(4) else length
        elif kind in (spec.BLK_T_DISCARD, spec.BLK_T_WRITE_ZEROES):
            data = Block._segments(draw, sector)
        if draw.rarely(10):
            data, room = data + bytes(draw.pick((1, 16, 512))), room + draw.pick((0, 1, 512))
        if draw.rarely(24):
            header = header[: draw.pick((0, 1, 15))]
        return draw.below(2), draw.cut(header + data), draw.cut(room + (0 if draw.rarely(24) else 1))

    @staticmethod
    def _segments(draw, sector):
        found = b""
        for _ in range(draw.pick((1, 1, 1, 1, 1, 2, 3, 0, 65))):
            count = draw.pick((1, 2, 3, 0)) if not draw.rarely(6) else draw.pick((SECTORS, 1 << 17, (1 << 32) - 1))
            found += pack("<QII", sector, count, draw.pick((0, 0, 0, 0, 0, 1, 2, 1 << 31)))
        return found if not draw.rarely(8) else found[:-1]

    @staticmethod
    def host(draw):
        if draw.rarely(2):
            return ("works",)
        return ("fails", draw.pick((*METHODS, *("all",) * 7)), draw.pick((errno.EIO, errno.ENOSPC)))

    def happen(self, what, *arguments):
        self._failing.fails = {}
        if what == "fails":
            method, error = arguments
            self._failing.fails = dict.fromkeys(METHODS if method == "all" else [method], error)

    def outcome(self, queue, request, written, answer):
        kind, _, sector = HEADER.unpack_from(request)
        status = answer[-1]
        assert status in STATUSES, f"status {status}"
        assert written in (len(answer), 0) or status, f"{written} of {len(answer)} bytes written, status {status}"
        if self.ordered:
            self._follow(kind, sector, request[HEADER.size :], answer[:-1], status)
        return f"{TYPES.get(kind, 'another type')}: {STATUSES[status]}"

    # --- What the disk must hold: a list of sectors, None where nobody can know ---------------------------------------

    def resync(self):
        data = self._stored()
        self.model = [data[at : at + 512] for at in range(0, len(data), 512)]

    def _follow(self, kind, sector, data, answer, status):
        model, good = self.model, status == spec.BLK_S_OK
        if kind == spec.BLK_T_OUT:
            for number in range(min(len(data) // 512, max(0, SECTORS - sector))):
                model[sector + number] = data[512 * number : 512 * number + 512] if good else None
        elif kind == spec.BLK_T_IN and good:
            for number in range(len(answer) // 512):
                found = answer[512 * number : 512 * number + 512]
                assert model[sector + number] in (None, found), f"sector {sector + number} holds {found[:16]}"
        elif kind in (spec.BLK_T_DISCARD, spec.BLK_T_WRITE_ZEROES):
            for start, count, _ in SEGMENT.iter_unpack(data[: len(data) // SEGMENT.size * SEGMENT.size]):
                for number in range(start, min(start + count, SECTORS)):
                    model[number] = bytes(512) if good and kind == spec.BLK_T_WRITE_ZEROES else None

    def prompt(self, queue):
        return True

    def calm(self):
        self._failing.fails = {}

    def probe(self, driver):
        if not self.disk.readonly:
            assert driver.request(0, [pack("<IIQ", 1, 0, 3), b"new!" * 128], [1])[1] == b"\0"
        answer = self._stored()[1536:2048]
        assert driver.request(0, [pack("<IIQ", 0, 0, 3)], [512, 1]) == (513, answer + b"\0")


class BlockFile(Block):
    """The same, on a raw image in a file, perhaps with an overlay over it; mostly with C's data plane."""

    name = "block-file"
    modules = (block, block_request, raw, overlay)
    everything = False
    required = ("host: short read", "host: short write", "host: EIO from read", "host: EIO from write")

    @staticmethod
    def settings(draw):
        return {
            "queues": 1,
            "readonly": draw.rarely(12),
            "durable": not draw.rarely(4),
            "overlay": draw.rarely(3),
            "native": not draw.rarely(3),
        }

    def _disk(self, settings):
        over = settings["overlay"]
        base = File(self.kinds, readonly=settings["readonly"] or over, durable=settings["durable"])
        if not over:
            return base, base
        disk = OverlayDisk(base)
        disk._top.close()
        top = disk._top = File(self.kinds, readonly=False, durable=True)
        os.ftruncate(top._fd, 0)
        os.ftruncate(top._fd, disk.size)
        return disk, top

    @staticmethod
    def host(draw):
        return ("short", draw.rarely(2)) if draw.rarely(3) else Block.host(draw)

    def happen(self, what, *arguments):
        if what == "short":
            [self._failing.short] = arguments
        else:
            super().happen(what, *arguments)

    def _stored(self):
        fails, short = self._failing.fails, self._failing.short
        self.calm()
        data = bytearray(self.disk.size)
        with memoryview(data) as view:
            self.disk.readv([view], 0)
        self._failing.fails, self._failing.short = fails, short
        return bytes(data)

    def calm(self):
        super().calm()
        self._failing.short = False
