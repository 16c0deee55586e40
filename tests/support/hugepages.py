"""The host's reserved huge pages, for the tests that take some: one at a time, so they are `serial`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

RESERVED = Path("/proc/sys/vm/nr_hugepages")


def missing() -> str:
    """Why no huge pages can be had, or ""."""
    try:
        with huge_pages(1):
            return ""
    except (OSError, LookupError) as error:
        return str(error)


@contextmanager
def huge_pages(count: int) -> Iterator[None]:
    """`count` more huge pages of 2 MiB are reserved meanwhile. Raises OSError, LookupError."""
    before = int(RESERVED.read_text())
    if "Hugepagesize:       2048 kB" not in Path("/proc/meminfo").read_text():
        raise LookupError("the host's huge pages are not of 2 MiB")
    RESERVED.write_text(f"{before + count}\n")
    try:
        if int(RESERVED.read_text()) < before + count:
            raise LookupError("the host has no memory for huge pages")
        yield
    finally:
        RESERVED.write_text(f"{before}\n")
