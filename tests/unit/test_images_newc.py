"""The initramfs writer: what cpio reads of it, that the same entries give the same bytes, and what it refuses."""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path

import pytest

from pyvmm.errors import ImageError
from pyvmm.images.newc import Archive


def example() -> Archive:
    archive = Archive()
    archive.folder("bin")
    archive.folder("tmp", 0o1777)
    archive.file("bin/a", b"four" * 3 + b"+")
    archive.file("init", b"#!/bin/sh\n", 0o755)
    archive.file("empty", b"")
    archive.symlink("bin/sh", "a")
    archive.character_device("console", 0o600, 5, 1)
    return archive


@pytest.mark.needs("cpio")
def test_cpio_lists_what_was_added() -> None:
    listed = subprocess.run(
        ["cpio", "-tvn", "--quiet"], input=example().finish(), capture_output=True, check=True, env={"TZ": "UTC"}
    )
    assert listed.stderr == b""
    lines = [line.split() for line in listed.stdout.decode().splitlines()]
    assert [(line[0], line[2], line[3], line[-1]) for line in lines] == [
        ("drwxr-xr-x", "0", "0", "bin"),
        ("drwxrwxrwt", "0", "0", "tmp"),
        ("-rw-r--r--", "0", "0", "bin/a"),
        ("-rwxr-xr-x", "0", "0", "init"),
        ("-rw-r--r--", "0", "0", "empty"),
        ("lrwxrwxrwx", "0", "0", "a"),
        ("crw-------", "0", "0", "console"),
    ]
    assert lines[2][4:8] == ["13", "Jan", "1", "1970"]
    assert lines[5][-3:] == ["bin/sh", "->", "a"]
    assert lines[6][4:6] == ["5,", "1"]


@pytest.mark.needs("cpio")
def test_cpio_unpacks_what_was_added(tmp_path: Path) -> None:
    archive = Archive()
    archive.folder("d", 0o700)
    archive.file("d/f", bytes(range(256)) * 17, 0o640)
    archive.symlink("d/l", "f")
    subprocess.run(["cpio", "-i", "--quiet"], input=archive.finish(), cwd=tmp_path, check=True)
    assert (tmp_path / "d/l").read_bytes() == bytes(range(256)) * 17
    assert stat.S_IMODE((tmp_path / "d/f").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "d").stat().st_mode) == 0o700


def test_the_layout_is_the_kernels() -> None:
    archive = Archive()
    archive.file("ab", b"xyz", 0o644)
    data = archive.finish()
    assert data[:6] == b"070701"
    fields = [int(data[6 + 8 * index : 14 + 8 * index], 16) for index in range(13)]
    assert fields == [1, 0o100644, 0, 0, 1, 0, 3, 0, 0, 0, 0, 3, 0]
    assert data[110:116] == b"ab\0" + bytes(3)[:3]  # 113 padded to 116
    assert data[116:120] == b"xyz\0"
    assert data[120:126] == b"070701"
    assert data[230:].rstrip(b"\0") == b"TRAILER!!!"
    assert len(data) % 4 == 0


def test_the_same_entries_give_the_same_bytes() -> None:
    assert example().finish() == example().finish()


@pytest.mark.parametrize(
    "path", ["", "/init", "a/", "no/parent", ".", "..", "bin/..", "TRAILER!!!", "n\0l", "x" * 4096]
)
def test_paths_that_cannot_be(path: str) -> None:
    with pytest.raises(ImageError, match="initramfs: "):
        example().file(path, b"")


def test_nothing_is_there_twice() -> None:
    with pytest.raises(ImageError, match="'init' is there twice"):
        example().symlink("init", "bin/a")


def test_a_file_is_no_folder() -> None:
    with pytest.raises(ImageError, match="no folder 'init'"):
        example().file("init/x", b"")
