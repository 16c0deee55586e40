"""What an ELF kernel's notes tell of it, beside a PVH entry: whether it is Linux.

Imports elf.
"""

from __future__ import annotations

from pyvmm.boot import elf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.boot.elf import Elf
    from pyvmm.boot.image import Image

LINUX = b"Linux\0"
LINUX_ELFNOTE_BUILD_SALT = 0x100
"""include/linux/build-salt.h in Linux: in every vmlinux since 4.19, whether or not there is a salt."""
XEN = b"Xen\0"
XEN_ELFNOTE_GUEST_OS = 6
"""xen/include/public/elfnote.h; "linux" in every vmlinux that can be a Xen guest."""


def is_linux(executable: Elf, image: Image) -> bool:
    """Whether `executable`, read from `image`, is a Linux kernel. Raises LoadError when a note is not sound."""
    if elf.find_note(executable, image, LINUX, LINUX_ELFNOTE_BUILD_SALT) is not None:
        return True
    found = elf.find_note(executable, image, XEN, XEN_ELFNOTE_GUEST_OS)
    return found is not None and found[0].rstrip(b"\0") == b"linux"
