"""Reads a guest's `guest.toml`: how it is built, how it is run, and what is then seen.

Imports errors and its own package. docs/guests.md describes the file; every ImageError names file and key.
"""

from __future__ import annotations

from pyvmm.errors import ImageError
from pyvmm.images.table import Table, read

FLAT = "flat"
ELF = "elf"


class Expect:
    """What a run must show.

    `stdout` is the guest's output, exactly, or None where `pattern` (a regular expression for the whole output)
    describes it. `status` is the exit status of `pyvmm run`; `time_limit` is in seconds.
    """

    __slots__ = ("pattern", "status", "stdout", "time_limit")

    def __init__(self, stdout: bytes | None, pattern: str | None, status: int, time_limit: float) -> None:
        self.stdout = stdout
        self.pattern = pattern
        self.status = status
        self.time_limit = time_limit

    def matches(self, output: bytes) -> bool:
        """Whether `output` is what the guest should have written."""
        if self.pattern is None:
            return output == self.stdout
        import re

        return re.fullmatch(self.pattern.encode(), output) is not None


class Run:
    """One way to run a guest: `arguments` of `pyvmm run` after the file's name, and bytes for its standard input."""

    __slots__ = ("arguments", "expect", "name", "stdin")

    def __init__(self, name: str, arguments: tuple[str, ...], stdin: bytes, expect: Expect) -> None:
        self.name = name
        self.arguments = arguments
        self.stdin = stdin
        self.expect = expect


class Recipe:
    """A guest.toml.

    `sources` are paths below guest-images/; `output` is FLAT or ELF; `bits` is 16, 32 or 64, the mode it starts in;
    `address` is the gpa that it is linked for.
    """

    __slots__ = ("address", "bits", "output", "runs", "sources", "summary")

    def __init__(
        self, summary: str, sources: tuple[str, ...], output: str, bits: int, address: int, runs: tuple[Run, ...]
    ) -> None:
        self.summary = summary
        self.sources = sources
        self.output = output
        self.bits = bits
        self.address = address
        self.runs = runs


def parse(text: str, folder: str) -> Recipe:
    """The recipe in `text`, the guest.toml of `folder` below guest-images/."""
    place = f"{folder}/guest.toml"
    top = read(text, place)
    summary = top.take("summary", str)
    build = top.take_table("build")
    runs = top.take("run", list)
    top.end()

    output = build.take("output", str)
    bits = build.take("bits", int)
    address = build.take("address", int)
    sources = build.take_strings("sources")
    build.end()
    if output not in (FLAT, ELF):
        build.fail(f"output is {output!r}, expected {FLAT!r} or {ELF!r}")
    if bits not in (16, 32, 64):
        build.fail(f"bits is {bits}, expected 16, 32 or 64")
    if not 0 <= address < 1 << 32:
        build.fail(f"address is {address:#x}, expected one below 4 GiB")
    if not sources:
        build.fail("sources is empty")
    paths = tuple(_source_path(folder, source, build) for source in sources)
    parsed = tuple(_run(entry, index, f"{place}: [[run]] {index + 1}") for index, entry in enumerate(runs))
    if not parsed:
        top.fail("run is empty")
    return Recipe(summary, paths, output, bits, address, parsed)


def _source_path(folder: str, source: str, build: Table) -> str:
    """`source`, written relative to its guest's folder, relative to guest-images/; it may not lead out of there."""
    import posixpath

    path = posixpath.normpath(posixpath.join(folder, source))
    if path.startswith(("/", "..")) or not path.endswith((".S", ".c")):
        build.fail(f"sources has {source!r}, expected a .S or .c file below guest-images/")
    return path


def _run(entry: object, index: int, place: str) -> Run:
    if not isinstance(entry, dict):
        raise ImageError(f"{place} is {entry!r}, expected a table")
    run = Table(entry, place)
    name = run.take("name", str, "" if index else "default")
    arguments = run.take_strings("arguments", [])
    stdin = run.take("stdin", str, "").encode()
    status = run.take("status", int)
    time_limit = float(run.take("time_limit", (int, float), 10.0))
    if run.has("stdout") == run.has("stdout_pattern"):
        run.fail("expected one of stdout and stdout_pattern")
    stdout = run.take("stdout", str).encode() if run.has("stdout") else None
    pattern = run.take("stdout_pattern", str) if run.has("stdout_pattern") else None
    run.end()
    if not name:
        run.fail("name is missing (only the first run may go without)")
    if not 0 <= status <= 255:
        run.fail(f"status is {status}, expected 0 to 255")
    if time_limit <= 0:
        run.fail(f"time_limit is {time_limit}, expected seconds")
    return Run(name, arguments, stdin, Expect(stdout, pattern, status, time_limit))
