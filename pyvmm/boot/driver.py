"""Whether a kernel has the driver for virtio over MMIO built in.

Imports image, detect and errors. A driver carries its name as a string (Linux's drivers/virtio/virtio_mmio.c, struct
platform_driver); a kernel without it has that string nowhere.
"""

from __future__ import annotations

import mmap

from pyvmm.boot.detect import detect
from pyvmm.boot.image import Image
from pyvmm.errors import LoadError

DRIVER_NAME = b"virtio-mmio\0"


def has_virtio_mmio(path: str, format: str) -> bool:
    """Whether the kernel at `path`, a key of `boot.FORMATS` or "auto", can be given virtio-mmio devices.

    A kernel that is not Linux is taken to know them. A bzImage is compressed, so that its drivers cannot be seen: no.
    For a file that cannot be loaded the answer is yes; whoever loads it says what is wrong.
    """
    try:
        with Image(path) as image:
            if format == "auto":
                format, _ = detect(image)
            if format != "linux":
                return format != "bzimage"
            with mmap.mmap(image.fd, image.size, access=mmap.ACCESS_READ) as content:
                return content.find(DRIVER_NAME) >= 0
    except LoadError:
        return True
