"""The block device: a disk image as the guest's disk (virtio 1.3, 5.2).

Imports block_request, blockplane, device, chain, native, spec, state and errors. A request is parsed whole, then
executed, then answered: one place writes the status byte. Plain reads and writes C does alone, where it may. Requests
are served one after the other on the device's data plane: never is more than one in hand (C takes some at a time from
the queue, and gives back what it has not done), and a flush comes after every write that was answered before it was
asked for.
"""

from __future__ import annotations

from struct import Struct

from pyvmm.errors import UsageError
from pyvmm.state import FLAG, U64, Maybe, StateError
from pyvmm.virtio import native
from pyvmm.virtio.block_request import (
    DISCARD_SECTORS,
    DISCARD_SEGMENTS,
    ZEROES_SECTORS,
    ZEROES_SEGMENTS,
    Refused,
    Request,
    parse,
)
from pyvmm.virtio.blockplane import EMPTY, FOR_PYTHON, TELL, BlockPlane
from pyvmm.virtio.chain import pieces
from pyvmm.virtio.device import VirtioDevice
from pyvmm.virtio.spec import (
    BLK_F_BLK_SIZE,
    BLK_F_CONFIG_WCE,
    BLK_F_DISCARD,
    BLK_F_FLUSH,
    BLK_F_MQ,
    BLK_F_RO,
    BLK_F_SEG_MAX,
    BLK_F_TOPOLOGY,
    BLK_F_WRITE_ZEROES,
    BLK_ID_BYTES,
    BLK_S_IOERR,
    BLK_S_OK,
    BLK_T_DISCARD,
    BLK_T_FLUSH,
    BLK_T_GET_ID,
    BLK_T_IN,
    BLK_T_OUT,
    BLK_T_WRITE_ZEROES,
    ID_BLOCK,
    QUEUE_SIZE_LIMIT,
    SECTOR,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Protocol

    from pyvmm.virtio.chain import Chain
    from pyvmm.virtio.queue import Virtqueue

    class Disk(Protocol):
        """What the device is connected to. Offsets and lengths are bytes within `size`, multiples of 512.

        Everything that moves data blocks until it is done and raises OSError when the host cannot do it. One thread at
        a time.
        """

        @property
        def path(self) -> str:
            """What messages call it."""

        @property
        def size(self) -> int:
            """Bytes, a multiple of 512."""

        @property
        def readonly(self) -> bool: ...

        @property
        def block_size(self) -> int:
            """Bytes of a logical block, a power of two from 512 on."""

        @property
        def physical_block_size(self) -> int:
            """Bytes that are best written together: `block_size` or a power of two times it."""

        @property
        def durable(self) -> bool:
            """Whether `flush()` means anything; if not, the guest is not offered it (5.2.6.2, the last note)."""

        @property
        def may_unmap(self) -> bool:
            """Whether `write_zeroes` can give space back."""

        @property
        def straight(self) -> tuple[int, int, int] | None:
            """(descriptor, length, align), or None: reads and writes within the first `length` bytes may go straight to
            the descriptor, if place, lengths and memory are multiples of `align`. It may change with every call.
            """

        def readv(self, views: Sequence[memoryview], offset: int) -> None: ...

        def writev(self, views: Sequence[memoryview], offset: int) -> None: ...

        def flush(self) -> None:
            """Return when everything written is on stable storage."""

        def discard(self, offset: int, length: int) -> None: ...

        def write_zeroes(self, offset: int, length: int, unmap: bool) -> None: ...

        def resize(self, size: int | None) -> None:
            """Become `size` bytes long, or, with None, as long as what it is made of has become.

            Raises UsageError, BackendError; it is then as long as before.
            """

        def close(self) -> None:
            """A second call does nothing."""


CONFIG = Struct("<QIIHBBIBBHIBxHIIIIIB3x")
"""struct virtio_blk_config (5.2.4) up to write_zeroes_may_unmap and its padding."""
CONFIG_WRITEBACK = 32
"""Offset of `writeback`, a byte: the only field that a driver may write."""

TELL_AFTER = 16
"""Requests after which a driver that keeps the queue filled is told of those that are done."""
TURN = 2
"""How often a queue's size may be served, at most, before other queues, a pause or a reset have their turn."""

_OPERATIONS = {
    BLK_T_IN: "read",
    BLK_T_OUT: "write",
    BLK_T_FLUSH: "flush",
    BLK_T_GET_ID: "get-id",
    BLK_T_DISCARD: "discard",
    BLK_T_WRITE_ZEROES: "write-zeroes",
}
"""What a fault plan calls the requests."""


class VirtioBlock(VirtioDevice):
    """The disk `disk`, which the device owns from now on.

    `serial` is up to 20 ASCII characters (GET_ID). `queues` is the number of request queues, `queue_size` the entries
    of each. `report`, if given, is told of each kind of error (errno) that the host gives the guest, once.

    Raises UsageError.
    """

    device_id = ID_BLOCK
    STATE = {"_chosen": Maybe(FLAG), "_capacity": U64, "_shown": U64}

    def __init__(
        self,
        disk: Disk,
        *,
        name: str = "",
        serial: str = "",
        queues: int = 1,
        queue_size: int = 256,
        report: Callable[[str], None] | None = None,
    ) -> None:
        if not serial.isascii() or len(serial) > BLK_ID_BYTES:
            raise UsageError(f"disk serial {serial!r}: expected up to {BLK_ID_BYTES} ASCII characters")
        if not 1 <= queues <= 0xFFFF:
            raise UsageError(f"a disk with {queues} queues (expected 1 to 65535)")
        if not 4 <= queue_size <= QUEUE_SIZE_LIMIT or queue_size & (queue_size - 1):
            raise UsageError(f"a disk queue of {queue_size} entries (expected a power of two, 4 to {QUEUE_SIZE_LIMIT})")
        self.queue_sizes = (queue_size,) * queues
        super().__init__(name)
        self.disk = disk
        self._capacity = self._shown = disk.size // SECTOR  # what requests may reach; what the driver reads
        self._id = serial.encode().ljust(BLK_ID_BYTES, b"\0")
        self._seg_max = queue_size - 2  # header and status take the others
        self._report = report
        self._reported: set[int | None] = set()
        self._types: set[int] = set()  # of requests that are served
        self._chosen: bool | None = None  # the cache mode that the driver has written, if it has
        self._plane = None if native.PROBLEM else BlockPlane()

    # --- Features and configuration space -----------------------------------------------------------------------------

    def device_features(self) -> int:
        bits = 1 << BLK_F_SEG_MAX | 1 << BLK_F_BLK_SIZE | 1 << BLK_F_TOPOLOGY
        if self.disk.durable:
            bits |= 1 << BLK_F_FLUSH | 1 << BLK_F_CONFIG_WCE
        if self.disk.readonly:
            bits |= 1 << BLK_F_RO
        else:
            bits |= 1 << BLK_F_DISCARD | 1 << BLK_F_WRITE_ZEROES
        if len(self.queues) > 1:
            bits |= 1 << BLK_F_MQ
        return bits

    def _negotiated(self, feature: int) -> bool:
        return bool(self.features >> feature & 1)

    @property
    def writeback(self) -> bool:
        """Whether a write may be answered before it is on stable storage (5.2.5, 5.2.6.2).

        At first it may if the driver can send flushes.
        """
        return self._negotiated(BLK_F_FLUSH) if self._chosen is None else self._chosen

    def config(self) -> bytes:
        disk = self.disk
        blocks = max(1, disk.physical_block_size // disk.block_size)
        return CONFIG.pack(
            self._shown,
            0,  # size_max, not offered
            self._seg_max,
            *(0, 0, 0),  # geometry, not offered: no driver of this century asks a disk for its heads
            disk.block_size,
            *(blocks.bit_length() - 1, 0, blocks, 0),
            self.writeback,
            len(self.queues),
            *(DISCARD_SECTORS, DISCARD_SEGMENTS, blocks * disk.block_size // SECTOR),
            *(ZEROES_SECTORS, ZEROES_SEGMENTS, disk.may_unmap),
        )

    def write_config(self, offset: int, data: bytes) -> None:
        if offset == CONFIG_WRITEBACK and data in (b"\0", b"\1") and self._negotiated(BLK_F_CONFIG_WCE):
            self._chosen = data == b"\1"
            self._choose_writes()

    def activate(self) -> None:
        offered = {BLK_F_DISCARD: BLK_T_DISCARD, BLK_F_WRITE_ZEROES: BLK_T_WRITE_ZEROES}
        self._types = {BLK_T_IN, BLK_T_OUT, BLK_T_GET_ID}
        self._types.update(type for feature, type in offered.items() if self._negotiated(feature))
        if self.disk.durable:
            self._types.add(BLK_T_FLUSH)  # also if it was not negotiated: it can only do good
        self._choose_writes()

    def _choose_writes(self) -> None:
        """`writeback` may be another now: C may do writes only if no flush that does anything belongs to each."""
        if self._plane is not None:
            self._plane.set_writable((self.writeback or not self.disk.durable) and not self.disk.readonly)

    def discard(self) -> None:
        self._chosen = None
        if self._plane is not None:
            self._plane.forget_queues()

    def restored(self) -> None:
        self._choose_writes()
        if self._capacity * SECTOR != self.disk.size:
            raise StateError(f"{self.name}: the disk had {self._capacity * SECTOR} bytes, and has {self.disk.size}")

    def close(self) -> None:
        self.disk.close()

    def resize(self, size: int | None = None, *, shrink: bool = False) -> int:
        """Make the disk `size` bytes long, or, with None, as long as its image has become; returns how long it is.

        The driver is told (5.2.4). Any thread but the device's; waits until the request in hand is done. Raises
        UsageError, BackendError, and without `shrink` a UsageError for a `size` that would cut off data.
        """
        with self.plane:
            before = self.disk.size
            if size is not None and size < before and not shrink:
                raise UsageError(f"{self.name}: at {size} bytes the disk would lose its last {before - size}")
            self.disk.resize(size)
            now = self.disk.size
            self._capacity = now // SECTOR
        # What is shown changes with the generation: a driver reads it in two halves (2.5.3).
        with self.lock:
            self._shown = self._capacity
            if now != before:
                self.config_changed()
        return now

    # --- Serving ------------------------------------------------------------------------------------------------------

    def serve(self, queue: Virtqueue) -> None:
        straight = self.disk.straight if self.native and self.faults is None else None
        if self._plane is not None and straight is not None:
            self._plane.set_disk(*straight)
            self._serve_native(self._plane, queue)
            return
        for number, chain in enumerate(queue.chains(TURN * queue.size), 1):
            self._serve_chain(queue, chain)
            if number % TELL_AFTER == 0:
                self.tell(queue)

    def _serve_native(self, plane: BlockPlane, queue: Virtqueue) -> None:
        """As the loop above: C does what it can, Python what it leaves."""
        left = TURN * queue.size
        queue.unfinished = False
        if len(self.queues) > 1:
            plane.set_queues(self.queues, queue)
        while queue.ready:
            reason, done = plane.serve(queue, left)
            left -= done or 1  # a driver whose index goes to and fro could have that go on for ever
            if reason == TELL:
                self.interrupt(queue)
            elif reason == EMPTY:
                return
            elif reason == FOR_PYTHON:
                chain = queue.pop()
                if chain is not None:
                    self._serve_chain(queue, chain)
                    self.tell(queue)
            if left <= 0:
                queue.unfinished = queue.ready
                return

    def _serve_chain(self, queue: Virtqueue, chain: Chain) -> None:
        status, done = BLK_S_OK, 0
        try:
            request = parse(chain, self._types, self._capacity, self.disk.readonly)
            if request.type == BLK_T_FLUSH:
                self.tell(queue)  # it takes long: what is done already need not wait for it
            done = self._execute(request) if self.faults is None else self._execute_or_fail(queue, request)
        except Refused as refused:
            status, done = refused.status, refused.done
        except OSError as error:
            status = BLK_S_IOERR
            self._tell_host(error)
        self._answer(queue, chain, status, done)

    def _answer(self, queue: Virtqueue, chain: Chain, status: int, done: int) -> None:
        """Give `chain` back with `status`, and `done` bytes of data before it written.

        The used length tells of bytes written from the first on (2.7.8.2): a driver may not look at what lies behind.
        So the status byte, which is the last one, counts only where all bytes before it were written.
        """
        room = chain.writable_length - 1
        chain.writable[-1][-1] = status
        self.complete(queue, chain, done + 1 if done == room else done)

    def _tell_host(self, error: OSError) -> None:
        if self._report is not None and error.errno not in self._reported:
            self._reported.add(error.errno)
            self._report(f"disk {self.disk.path}: {error.strerror or error}; the guest gets an I/O error")

    # --- Executing ----------------------------------------------------------------------------------------------------

    def _execute(self, request: Request) -> int:
        """Do it; returns how many bytes were written to the guest. Raises OSError."""
        disk, kind = self.disk, request.type
        if kind == BLK_T_IN:
            disk.readv(request.data, request.sector * SECTOR)
            return request.length
        if kind == BLK_T_GET_ID:
            at = 0
            for piece in request.data:
                piece[:] = self._id[at : at + len(piece)]
                at += len(piece)
            return request.length
        if kind == BLK_T_OUT:
            disk.writev(request.data, request.sector * SECTOR)
        elif kind == BLK_T_DISCARD:
            for offset, length, _ in request.segments:
                disk.discard(offset, length)
        elif kind == BLK_T_WRITE_ZEROES:
            for offset, length, unmap in request.segments:
                disk.write_zeroes(offset, length, unmap)
        if kind == BLK_T_FLUSH or not self.writeback:
            disk.flush()
        return 0

    def _execute_or_fail(self, queue: Virtqueue, request: Request) -> int:
        """As the fault plan wants it: "error" is not tried, "short" transfers some sectors, and both are errors."""
        place = request.sector if request.type not in (BLK_T_FLUSH, BLK_T_GET_ID) else None
        fault = self.faults.draw(self.name, queue.index, _OPERATIONS[request.type], place, request.length)
        if fault is None:
            return self._execute(request)
        done = 0
        part = fault.amount // SECTOR * SECTOR if fault.kind == "short" else 0
        if part and request.type in (BLK_T_IN, BLK_T_OUT):
            done = self._execute(Request(request.type, request.sector, pieces(request.data, 0, part), part))
        raise Refused(BLK_S_IOERR, done)
