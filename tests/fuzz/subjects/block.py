"""The block device, on a disk in memory that fails when told to."""

from __future__ import annotations

import errno
from struct import pack, unpack_from

from pyvmm.virtio import block, block_request, spec
from pyvmm.virtio.block import VirtioBlock
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
PICKED = (0, 1, 0, 1, 0, 1, 4, 8, 11, 13, 11, 13, 2, 0xFFFFFFFF)


class Disk(MemoryDisk):
    """Counts the errors that it makes."""

    def __init__(self, kinds, **settings):
        super().__init__(**settings)
        self._kinds = kinds

    def _did(self, name, *numbers):
        if name in self.fails:
            self._kinds.add(f"host: {errno.errorcode[self.fails[name]]} from {name}")
        super()._did(name, *numbers)


class Block(Subject):
    name = "block"
    modules = (block, block_request)
    queues = 2
    writable_config = (block.CONFIG_WRITEBACK, block.CONFIG_WRITEBACK, 0)
    required = (
        *(f"{kind}: {status}" for kind in TYPES.values() for status in ("OK", "IOERR")),
        *("FLUSH: UNSUPP", "DISCARD: UNSUPP", "WRITE_ZEROES: UNSUPP", "another type: UNSUPP"),
        *("told: the host's error",),
        *(f"host: {error} from {method}" for error in ("EIO", "ENOSPC") for method in ("write", "zero")),
        *(f"host: EIO from {method}" for method in ("read", "flush", "discard")),
    )

    def __init__(self, settings, kinds):
        self.kinds = kinds
        queues = settings.pop("queues")
        self.disk = Disk(kinds, sectors=SECTORS, **settings)
        self.device = VirtioBlock(
            self.disk, serial="fuzz", queues=queues, queue_size=64, report=lambda _: kinds.add("told: the host's error")
        )

    @staticmethod
    def settings(draw):
        return {
            "queues": draw.pick((1, 1, 2)),
            "readonly": draw.rarely(8),
            "durable": not draw.rarely(8),
            "may_unmap": not draw.rarely(4),
            "block_size": draw.pick((512, 512, 4096)),
        }

    @staticmethod
    def request(draw):
        kind = draw.pick(PICKED)
        sector = draw.below(SECTORS - 4)
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
        return ("fails", draw.pick((*METHODS, "all", "all", "all")), draw.pick((errno.EIO, errno.ENOSPC)))

    def happen(self, what, *arguments):
        self.disk.fails = {}
        if what == "fails":
            method, error = arguments
            self.disk.fails = dict.fromkeys(METHODS if method == "all" else [method], error)

    def outcome(self, queue, request, written, answer):
        kind, status = TYPES.get(unpack_from("<I", request)[0], "another type"), answer[-1]
        assert status in STATUSES, f"status {status}"
        assert written in (len(answer), 0) or status, f"{written} of {len(answer)} bytes written, status {status}"
        return f"{kind}: {STATUSES[status]}"

    def calm(self):
        self.disk.fails = {}

    def probe(self, driver):
        if not self.disk.readonly:
            assert driver.request(0, [pack("<IIQ", 1, 0, 3), b"new!" * 128], [1])[1] == b"\0"
        answer = self.disk.sector(3)
        assert driver.request(0, [pack("<IIQ", 0, 0, 3)], [512, 1]) == (513, answer + b"\0")
