"""What lies where in guest memory before the first instruction, and the memory map that tells the guest.

Imports image, errors and layout. A loader claims every range before it writes there, so that nothing lands
outside RAM or on something else; the list of claims is what `--dry-run` shows.
"""

from __future__ import annotations

from bisect import bisect_right

from pyvmm import layout
from pyvmm.boot.image import Image
from pyvmm.errors import LoadError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyvmm.memory import GuestMemory

RAM = 1
RESERVED = 2
"""Types of memory map entries: ACPI specification 6.5, section 15. PVH and multiboot count alike."""


def memory_map(memory: GuestMemory) -> list[tuple[int, int, int]]:
    """(gpa, length, type) in ascending order: the RAM a kernel may use, and what is set aside."""
    entries = [
        (layout.EBDA, layout.HIGH_MEMORY - layout.EBDA, RESERVED),
        (layout.KVM_IDENTITY_MAP, layout.KVM_RESERVED_END - layout.KVM_IDENTITY_MAP, RESERVED),
    ]
    for region in memory.regions:
        end = region.gpa + region.length
        if region.gpa < layout.EBDA:
            entries.append((region.gpa, min(end, layout.EBDA) - region.gpa, RAM))
        start = max(region.gpa, layout.HIGH_MEMORY)
        if start < end:
            entries.append((start, end - start, RAM))
    return sorted(entries)


class Piece:
    """One claimed range: `length` bytes from `gpa`; `what` names it."""

    __slots__ = ("gpa", "length", "what")

    def __init__(self, gpa: int, length: int, what: str) -> None:
        self.gpa = gpa
        self.length = length
        self.what = what

    @property
    def end(self) -> int:
        """The first gpa behind it."""
        return self.gpa + self.length

    def __str__(self) -> str:
        return f"{self.what} ({self.gpa:#x}-{self.end - 1:#x})"


class Placement:
    """The claims on one VM's memory.

    `path` is the kernel's file, which errors name; `pieces` are in ascending order; `command_line` is what the
    kernel is given, None if nothing; `rsdp` is the gpa of ACPI's root pointer, 0 without ACPI; `notes` are lines that
    the user should see.
    """

    __slots__ = ("memory", "path", "map", "pieces", "command_line", "rsdp", "notes", "_starts")

    def __init__(self, memory: GuestMemory, path: str) -> None:
        self.memory = memory
        self.path = path
        self.map = memory_map(memory)
        self.pieces: list[Piece] = []
        self.command_line: str | None = None
        self.rsdp = 0
        self.notes: list[str] = []
        self._starts: list[int] = []

    def claim(self, gpa: int, length: int, what: str, *, offset: int | None = None) -> None:
        """Set `length` bytes (1 or more) from `gpa` aside for `what`.

        `offset` is where the kernel's file asks for it. Raises LoadError outside RAM and on an earlier claim. What
        the memory map reserves below 1 MiB may be claimed: there is RAM, and a linker puts an ELF header there when
        the code begins at 1 MiB.
        """
        self.require_ram(gpa, length, what, offset=offset)
        piece = Piece(gpa, length, what)
        at = bisect_right(self._starts, gpa)
        for other in self.pieces[max(at - 1, 0) : at + 1]:
            if gpa < other.end and other.gpa < piece.end:
                raise LoadError(self.path, f"{piece} overlaps {other}", offset=offset)
        self.pieces.insert(at, piece)
        self._starts.insert(at, gpa)

    def require_ram(self, gpa: int, length: int, what: str, *, offset: int | None = None) -> None:
        """Raise LoadError, which names the memory that would do, unless `length` bytes from `gpa` lie in RAM."""
        piece = Piece(gpa, length, what)
        if not self.memory.contains(gpa, length):
            expected = f"a place within {self._ram()}"
            if piece.end <= layout.HOLE_START:
                expected += f", or --mem {-(-piece.end // layout.MIB)}M"
            raise LoadError(self.path, f"{piece} does not lie in RAM", offset=offset, expected=expected)

    def put(self, gpa: int, data: bytes, what: str) -> None:
        """Claim room for `data` at `gpa` and write it there."""
        self.claim(gpa, len(data), what)
        self.memory.write(gpa, data)

    def load(
        self,
        image: Image,
        offset: int,
        filesz: int,
        gpa: int,
        memsz: int,
        what: str,
        header_at: int | None = None,
    ) -> None:
        """Claim `memsz` bytes from `gpa`; fill `filesz` of them from `image` at `offset`, the rest with zero.

        `header_at` is the offset of the header that asks for it. The caller has judged that filesz <= memsz.
        """
        self.claim(gpa, memsz, what, offset=header_at)
        with self.memory.view(gpa, filesz) as target:
            image.read_into(target, offset)
        self.memory.fill(gpa + filesz, memsz - filesz)

    def load_module(self, path: str, *, above: int | None = None, below: int = layout.HOLE_END) -> Piece:
        """Load the file at `path`, an initrd or first module, page-aligned into RAM between 1 MiB and 4 GiB.

        As high as possible, out of the kernel's way, with its end at or under `below`; or, with `above`, as low as
        possible from that gpa on. Raises LoadError when the file is unfit or RAM has no room for it.
        """
        with Image(path) as image:
            floor = layout.HIGH_MEMORY if above is None else above
            fits: list[int] = []
            largest = 0
            for start, end in self._gaps(floor, below):
                largest = max(largest, end - start)
                if end - start >= image.size:
                    fits.append(start if above is not None else (end - image.size) & -layout.PAGE)
            if not fits:
                words = "RAM beside the kernel; give it more with --mem"
                if self.memory.contains(below, 1):
                    words = f"RAM below {below:#x}, beyond which this kernel takes no initrd"
                problem = f"{image.size} bytes have no room in {words}"
                raise LoadError(path, problem, expected=f"at most {largest} bytes")
            gpa = fits[0] if above is not None else fits[-1]
            self.claim(gpa, image.size, "initrd")
            with self.memory.view(gpa, image.size) as target:
                image.read_into(target, 0)
        return Piece(gpa, image.size, "initrd")

    def put_command_line(self, text: str, *, limit: int = layout.COMMAND_LINE_SIZE) -> int:
        """Write the command line `text`, NUL-terminated, and return its gpa.

        Raises LoadError when it holds a NUL or takes more than `limit` bytes with the one that ends it.
        """
        # The bytes of the shell's words, whatever encoding they are in (PEP 383).
        try:
            data = text.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as error:
            raise LoadError("--append", f"the command line cannot be encoded: {error.reason}") from error
        if b"\0" in data:
            raise LoadError("--append", "the command line has a NUL", offset=data.index(b"\0"))
        if len(data) >= limit:
            raise LoadError("--append", f"the command line takes {len(data)} bytes", expected=f"at most {limit - 1}")
        self.put(layout.COMMAND_LINE, data + b"\0", "command line")
        self.command_line = text
        return layout.COMMAND_LINE

    def _ram(self) -> str:
        regions = self.memory.regions
        return ", ".join(f"{region.gpa:#x}-{region.gpa + region.length - 1:#x}" for region in regions)

    def _gaps(self, floor: int, ceiling: int) -> Iterator[tuple[int, int]]:
        """Page-aligned (start, end) of unclaimed RAM from `floor` up to `ceiling`, 4 GiB at most, ascending."""
        for base, size, kind in self.map:
            if kind != RAM:
                continue
            start, stop = max(base, floor), min(base + size, ceiling, layout.HOLE_END)
            for piece in self.pieces:
                if piece.end > start and piece.gpa < stop:
                    if start < piece.gpa:
                        yield _aligned(start, piece.gpa)
                    start = piece.end
            if start < stop:
                yield _aligned(start, stop)


def _aligned(start: int, end: int) -> tuple[int, int]:
    return (start + layout.PAGE - 1) & -layout.PAGE, end & -layout.PAGE
