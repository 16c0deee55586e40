"""Lesson 14: booting Linux, and removing exits, solved."""

SECTOR = 512


class NotLinux(Exception):
    pass


def setup_header(image):
    def number(offset, size):
        return int.from_bytes(image[offset : offset + size], "little")

    if len(image) < 0x238 or image[0x202:0x206] != b"HdrS":
        raise NotLinux("no setup header")
    kernel = ((number(0x1F1, 1) or 4) + 1) * SECTOR
    if kernel >= len(image):
        raise NotLinux("ends before its kernel")
    version = number(0x206, 2)
    return {"version": version, "kernel": kernel, "entry64": version >= 0x20C and bool(number(0x236, 2) & 1)}


def arm(vm, port, eventfds):
    for number, fd in enumerate(eventfds):
        vm.ioeventfd(fd, port, 1, number, pio=True)
