"""Lesson 13: a block device, solved."""

from struct import unpack

from pyvmm import VirtioDevice

SECTOR = 512
IN, OUT, FLUSH, GET_ID = 0, 1, 4, 8
OK, IOERR, UNSUPP = 0, 1, 2
ID_LENGTH = 20
F_FLUSH = 9


def request(chain, disk):
    kind, _, sector = unpack("<IIQ", chain.read(0, 16))
    given, room = chain.readable_length - 16, chain.writable_length - 1
    start, length = sector * SECTOR, given if kind == OUT else room
    on_disk = length % SECTOR == 0 and start + length <= len(disk.data)
    status, filled = IOERR, room == 0
    if kind == IN:
        if given == 0 and on_disk:
            chain.write(disk.data[start : start + room])
            status, filled = OK, True
    elif kind == OUT:
        if room == 0 and on_disk and not disk.readonly:
            disk.data[start : start + given] = chain.read(16, given)
            status = OK
    elif kind == FLUSH:
        try:
            disk.flush()
            status = OK
        except OSError:
            pass
    elif kind == GET_ID:
        if room == ID_LENGTH:
            chain.write(disk.identity.ljust(ID_LENGTH, b"\0"))
            status, filled = OK, True
    else:
        status = UNSUPP
    chain.write(bytes([status]), room)
    return room + 1 if filled else 0


def after_power_cut(log, sector, before):
    stable, since = before, []
    for kind, *what in log:
        if kind == "flush":
            stable, since = (since or [stable])[-1], []
        elif what[0] == sector:
            since.append(what[1])
    return {stable, *since}


class MyDisk(VirtioDevice):
    device_id, queue_sizes = 2, (16,)

    def __init__(self, disk):
        super().__init__("mydisk")
        self.disk = disk

    def device_features(self):
        return 1 << F_FLUSH

    def config(self):
        return (len(self.disk.data) // SECTOR).to_bytes(8, "little")

    def serve(self, queue):
        for chain in queue.chains():
            queue.push(chain, request(chain, self.disk))
