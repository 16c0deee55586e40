"""A file system that is written as Linux writes ext4, with its journal (JBD2), small enough to be read.

The states it goes through are made by mke2fs and debugfs; what is in between, the order of writes and flushes that lets
a journal survive a power cut, is made here. Documentation/filesystems/ext4/journal.rst of Linux describes the blocks.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from struct import pack, pack_into, unpack_from

BLOCK = 1024
SUPERBLOCK = 1
"""The block in which the superblock lies."""
INCOMPAT, RECOVER = 96, 4
"""Where the superblock has its incompatible features, and "the journal is to be replayed"."""
MAGIC, DESCRIPTOR, COMMIT = 0xC03B3998, 1, 2
LAST, SAME_UUID = 8, 2
ENVIRONMENT = {"PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin", "LC_ALL": "C"}
"""e2fsprogs are where root looks for them."""


def tool(*command: str | Path, stdin: str = "", ok: Sequence[int] = (0,)) -> str:
    found = subprocess.run(
        list(map(str, command)), input=stdin, capture_output=True, text=True, timeout=60, env=ENVIRONMENT
    )
    assert found.returncode in ok, f"{command}: {found.returncode}\n{found.stdout}{found.stderr}"
    return found.stdout


def make(path: Path, folder: Path, size: str = "4M") -> None:
    """An ext4 with what is in `folder`."""
    features = "^metadata_csum,^64bit,^resize_inode"
    tool("mke2fs", "-q", "-F", "-t", "ext4", "-b", str(BLOCK), "-O", features, "-J", "size=1", "-d", folder, path, size)


def changed(path: Path, commands: str) -> bytes:
    """The file system in `path`, after debugfs(8) has done `commands` to it."""
    tool("debugfs", "-w", "-f", "-", path, stdin=commands)
    return path.read_bytes()


def fsck(path: Path) -> str:
    """What is wrong with the file system in `path` once its journal is replayed, or "". Changes the file."""
    tool("e2fsck", "-y", "-E", "journal_only", path, ok=(0, 1))
    found = subprocess.run(
        ["e2fsck", "-fn", str(path)], capture_output=True, text=True, timeout=60, env=ENVIRONMENT, check=False
    )
    return "" if found.returncode == 0 else found.stdout + found.stderr


class Journal:
    """Writes transactions to the file system whose bytes are `image`, by `write(block, data)` and `flush()`."""

    def __init__(
        self, image: bytes, blocks: list[int], write: Callable[[int, bytes], None], flush: Callable[[], None]
    ) -> None:
        """`blocks` are those of the journal, in order."""
        self._blocks, self._write, self._flush = blocks, write, flush
        self._super = bytearray(image[BLOCK * blocks[0] : BLOCK * (blocks[0] + 1)])
        assert unpack_from(">I", self._super)[0] == MAGIC
        self.sequence: int = unpack_from(">I", self._super, 24)[0]
        self._filesystem = bytearray(block(image, SUPERBLOCK))

    def mount(self) -> None:
        """Say that the journal is to be replayed, from its first block on."""
        self._tail(1)
        self._mark(True)
        self._flush()

    def commit(self, changes: dict[int, bytes], *, done: Callable[[], None] = lambda: None) -> None:
        """Write `changes` (by block) to the journal, then where they belong; `done` once they can no longer be lost."""
        changes = dict(changes)
        changes[SUPERBLOCK] = bytes(self._recovering(bytearray(changes.get(SUPERBLOCK, self._filesystem)), True))
        tags = b""
        for number in changes:
            first, last = not tags, number == list(changes)[-1]
            tags += pack(">IHH", number, 0, (0 if first else SAME_UUID) | (LAST if last else 0)) + bytes(16 * first)
        self._log(1, pack(">III", MAGIC, DESCRIPTOR, self.sequence) + tags)
        for at, data in enumerate(changes.values(), 2):
            self._log(at, data)
        self._flush()
        self._log(2 + len(changes), pack(">III", MAGIC, COMMIT, self.sequence))
        self._flush()
        done()
        for number, data in changes.items():
            self._write(number, data)
        self._flush()
        self._filesystem = bytearray(changes[SUPERBLOCK])
        self.sequence += 1
        self._tail(1)
        self._flush()

    def unmount(self) -> None:
        """Say that there is nothing to be replayed."""
        self._tail(0)
        self._flush()
        self._mark(False)
        self._flush()

    def _log(self, at: int, data: bytes) -> None:
        self._write(self._blocks[at], data.ljust(BLOCK, b"\0"))

    def _tail(self, start: int) -> None:
        pack_into(">II", self._super, 24, self.sequence, start)
        self._write(self._blocks[0], bytes(self._super))

    def _mark(self, recover: bool) -> None:
        self._write(SUPERBLOCK, bytes(self._recovering(self._filesystem, recover)))

    @staticmethod
    def _recovering(superblock: bytearray, recover: bool) -> bytearray:
        flags = unpack_from("<I", superblock, INCOMPAT)[0] & ~RECOVER
        pack_into("<I", superblock, INCOMPAT, flags | (RECOVER if recover else 0))
        return superblock


def block(image: bytes, number: int) -> bytes:
    return image[BLOCK * number : BLOCK * (number + 1)]


def journal_blocks(path: Path) -> list[int]:
    """The blocks of the journal of the file system in `path`, in order."""
    return [int(number) for number in tool("debugfs", "-R", "blocks <8>", path).split()]
