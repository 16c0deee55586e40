"""Lesson 13: a block device. `pyvmm lesson check 13` tells what is still wrong.

A `chain` is one request, as pyvmm's virtqueue gives it to a device:
    chain.readable_length, chain.writable_length    how many bytes there are of each kind
    chain.read(offset, length)                      up to so many of the readable bytes, from `offset` on
    chain.write(data, offset=0)                     puts data into the writable bytes, from `offset` on
How it was cut into descriptors cannot be seen.
"""

from pyvmm import VirtioDevice

SECTOR = 512
IN, OUT, FLUSH, GET_ID = 0, 1, 4, 8  # types of requests (virtio 1.3, 5.2.6)
OK, IOERR, UNSUPP = 0, 1, 2
ID_LENGTH = 20
F_FLUSH = 9  # the number of the feature


def request(chain, disk):
    """Carry out the request in `chain`, set its status byte, and return the used length.

    `disk.data` is a bytearray of whole sectors, `disk.readonly` whether it may be written, `disk.flush()` makes stable
    what was written and `disk.identity` is a name of up to 20 bytes.
        IN       fills the room for data (all writable bytes but the last) from the sector on
        OUT      writes the readable bytes behind the header to the disk
        FLUSH    calls disk.flush(), and is IOERR if that raises OSError
        GET_ID   fills 20 bytes with the identity and zeroes behind it
        others   UNSUPP
    IOERR is what does not lie wholly on the disk, is not a whole number of sectors, writes to a read-only disk, is an
    OUT with room for data or an IN with data to read, or a GET_ID with other than 20 bytes of room. It changes nothing.
    The used length is all writable bytes if the room for data was filled (or is none), else 0.
    Every chain has at least 16 readable bytes and one writable.
    """
    ...


def after_power_cut(log, sector, before):
    """What may be found in `sector` after a power cut: a set of data.

    `log` has what the device has completed, in order: ("write", sector, data) and ("flush",). Each request was sent
    when the one before was completed. `before` is what the sector held at the beginning, which is stable.
    """
    ...


class MyDisk(VirtioDevice):
    """A disk for guests, with the feature FLUSH, that answers with `request`."""

    device_id, queue_sizes = 2, (16,)

    def __init__(self, disk):
        super().__init__("mydisk")
        self.disk = disk

    def device_features(self):
        """Features that are offered, as bits."""
        ...

    def config(self):
        """The configuration space: 8 bytes, the capacity in sectors (5.2.4)."""
        ...

    def serve(self, queue):
        """Answer all requests that are available in `queue`."""
        ...
