"""`pyvmm kconfig`: what a guest kernel's configuration needs; and what a kernel lacks that did not come up.

May import boot's images, the parser and errors. The list is guest-images/kconfig/guest.config, package data.
"""

from __future__ import annotations

import functools

from pyvmm.cli.progress import log
from pyvmm.errors import LoadError, MissingExtraError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from pyvmm.vm import VM

HELP = "print the configuration that a guest kernel needs, or see what one lacks"
LONGEST = 16 << 20
"""Bytes that a configuration may have; Linux's has 300 KB."""
LARGEST = 1 << 30
"""Bytes that a kernel may have."""
IN_KERNEL = b"IKCFG_ST"
"""What is before a kernel's own configuration, in gzip (Linux's kernel/configs.c)."""
GZIP = b"\x1f\x8b"
TRANSPORTS = ("virtio over MMIO", "virtio over PCI")
"""How the pieces begin of which one is enough."""
FOR_COMMANDS = ("every guest", *TRANSPORTS, "the agent")
"""How the pieces begin without which no agent comes up."""
STATUS_LACKING = 1
SYMPTOMS = (
    (b"Unable to mount root fs", "CONFIG_BLK_DEV_INITRD"),
    (b"Cannot open root device", "CONFIG_BLK_DEV_INITRD"),
    (b"failed (error -8)", "CONFIG_BINFMT_SCRIPT or CONFIG_BINFMT_ELF"),
    (b"mounting devtmpfs on /dev failed", "CONFIG_DEVTMPFS"),
    (b"mounting sysfs on /sys failed", "CONFIG_SYSFS"),
    (b"mounting proc on /proc failed", "CONFIG_PROC_FS"),
)
"""What the console says in the tiny initramfs, and what the kernel probably lacks then."""


def main(argv: list[str]) -> int:
    """Runs `pyvmm kconfig argv`. Returns 0, or STATUS_LACKING; raises UsageError, LoadError."""
    from pyvmm.cli.parser import Parser

    parser = Parser(prog="pyvmm kconfig", description=HELP, allow_abbrev=False)
    parser.add_argument(
        "--check",
        metavar="CONFIG",
        help="name what this .config lacks, or this kernel, if it has its own in it (CONFIG_IKCONFIG)",
    )
    path = parser.parse_args(argv).check
    if path is None:
        print(fragment(), end="")
        return 0
    found = lacking(read_config(path))
    for title, options in found.items():
        print(f"# {title}")
        for option, value in options.items():
            print(f"{option}={value}  # here it is a module" if value == "m" else f"{option} is not set")
    if not found:
        log.info(f"{path} lacks nothing")
    return STATUS_LACKING if found else 0


@functools.cache
def fragment() -> str:
    """What `pyvmm kconfig` prints."""
    from importlib.resources import files

    return files("pyvmm").joinpath("_images/kconfig/guest.config").read_text(encoding="ascii")


def pieces() -> dict[str, tuple[str, ...]]:
    """The options of the fragment by what they are for."""
    found: dict[str, tuple[str, ...]] = {}
    for paragraph in fragment().split("\n\n")[1:]:
        title, *lines = paragraph.split("\n")
        found[title.removeprefix("# ")] = tuple(line.partition("=")[0] for line in lines if line)
    return found


def lacking(config: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """The options that are not built in, with the values they have ("" or "m"), by what they are for."""
    found = {}
    for title, options in pieces().items():
        missing = {option: config.get(option, "") for option in options if config.get(option) != "y"}
        if missing:
            found[title] = missing
    transports = [title for title in found if title.startswith(TRANSPORTS)]
    if len(transports) < len(TRANSPORTS):
        for title in transports:  # there is another
            del found[title]
    return found


def read_config(path: str) -> dict[str, str]:
    """The options that are set in a .config, plain or gzip, or in a kernel with CONFIG_IKCONFIG.

    Raises UsageError for what is neither, LoadError.
    """
    from pyvmm.boot.image import Image

    with Image(path) as image:
        if image.size > LARGEST:
            raise UsageError(f"{path}: {image.size} bytes are no kernel and no configuration")
        data = image.read(0, image.size)
        if data.startswith(GZIP):
            data = _unpack(data) or data
        own = own_config(data)
        if own is None and data[0x202:0x206] == b"HdrS":  # Documentation/arch/x86/boot.rst
            own = own_config(_payload(image))
    text = own if own is not None else data if len(data) <= LONGEST and b"\0" not in data else b""
    options = {}
    for line in text.decode("ascii", "replace").splitlines():
        name, equals, value = line.partition("=")
        if equals and name.startswith("CONFIG_"):
            options[name] = value
    if not options:
        raise UsageError(f"{path}: neither a kernel's configuration nor a kernel that has its own (CONFIG_IKCONFIG)")
    return options


def own_config(kernel: bytes) -> bytes | None:
    """The configuration in a vmlinux, or None."""
    at = kernel.find(IN_KERNEL + GZIP)
    return None if at < 0 else _unpack(kernel[at + len(IN_KERNEL) : at + len(IN_KERNEL) + LONGEST])


def _payload(image: object) -> bytes:
    from pyvmm.boot.bzimage import SetupHeader
    from pyvmm.boot.image import Image
    from pyvmm.boot.payload import unpack

    assert isinstance(image, Image)
    try:
        unpacked = unpack(image, SetupHeader(image))
        return unpacked.read(0, unpacked.size)
    except (LoadError, MissingExtraError):
        return b""


def _unpack(data: bytes) -> bytes | None:
    import zlib

    try:
        return zlib.decompressobj(wbits=31).decompress(data, LONGEST)
    except zlib.error:
        return None


# --- A guest whose agent has not come up ------------------------------------------------------------------------------


def likely_lacking(vm: VM) -> str:
    """Which options its kernel lacks, as far as can be told from the kernel, its console or its devices; or ""."""
    try:
        found = lacking(read_config(vm.config.kernel))
    except (LoadError, UsageError):
        found = {}
    options = [option for title in found if title.startswith(FOR_COMMANDS) for option in found[title]]
    if options:
        return f"its kernel lacks {', '.join(options)} (pyvmm kconfig)"
    console = vm.console_log
    for text, option in SYMPTOMS:
        if text in console:
            return f"its kernel probably lacks {option} (pyvmm kconfig)"
    panicked = vm.exit is not None and vm.exit.reason == "panic"  # before its drivers, perhaps
    option = "" if panicked else driverless(vm)
    return f"its kernel probably lacks {option} (pyvmm kconfig)" if option else ""


def driverless(vm: VM) -> str:
    """What is missing where the guest has no driver for its console.

    virtio 1.3, 2.1: ACKNOWLEDGE is Linux's transport driver that has found the device, DRIVER the console's.
    """
    from pyvmm.virtio.spec import STATUS_ACKNOWLEDGE, STATUS_DRIVER

    console = vm._virtio.console if vm._virtio is not None else None
    if console is None or console.status & STATUS_DRIVER:
        return ""
    if console.status & STATUS_ACKNOWLEDGE:
        return "CONFIG_VIRTIO_CONSOLE"
    if vm.slots and vm.slots[0].device is not None:
        return "CONFIG_VIRTIO_PCI"
    return "CONFIG_VIRTIO_MMIO or CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES"
