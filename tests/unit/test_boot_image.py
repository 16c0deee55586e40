"""Kernel and initrd files that are none, or cannot be read: one line, status 127, and no waiting."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from pyvmm.boot.image import HEAD_LENGTH, Image
from pyvmm.errors import LoadError


def refused(path: str | Path, *words: str) -> LoadError:
    with pytest.raises(LoadError) as caught:
        Image(str(path))
    error = caught.value
    assert error.exit_status == 127
    assert str(error).count("\n") == 0
    for word in (*words, "expected"):
        assert word in str(error)
    return error


def test_missing(tmp_path: Path) -> None:
    assert refused(tmp_path / "none", "none", "No such file").path == str(tmp_path / "none")


def test_parent_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    refused(tmp_path / "file" / "kernel", "Not a directory")


def test_empty(tmp_path: Path) -> None:
    (tmp_path / "kernel").touch()
    refused(tmp_path / "kernel", "is empty")


def test_directory(tmp_path: Path) -> None:
    refused(tmp_path, "is a directory", "regular file")


@pytest.mark.timeout(10)
def test_fifo_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    refused(tmp_path / "fifo", "is a FIFO")


def test_character_device() -> None:
    refused("/dev/null", "is a character device")


def test_socket(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        refused(tmp_path / "socket", "is a socket")


def test_symbolic_link_loop(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    refused(tmp_path / "loop", "symbolic links")


@pytest.mark.needs("unprivileged")
def test_no_permission(tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(b"x")
    (tmp_path / "kernel").chmod(0)
    refused(tmp_path / "kernel", "Permission denied")


def test_nul_in_path() -> None:
    refused("a\0b", "is not a path")


def test_hyphen_is_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused("-", "No such file")
    (tmp_path / "-").write_bytes(b"kernel")
    with Image("-") as image:
        assert image.head == b"kernel"


def test_reads(tmp_path: Path) -> None:
    data = os.urandom(HEAD_LENGTH + 100)
    (tmp_path / "kernel").write_bytes(data)
    with Image(str(tmp_path / "kernel")) as image:
        assert image.size == len(data)
        assert image.head == data[:HEAD_LENGTH]
        assert image.read(HEAD_LENGTH - 1, 101) == data[-101:]
        assert image.read(5, 0) == b""
        target = bytearray(50)
        image.read_into(memoryview(target)[10:20], 7)
        assert target == bytes(10) + data[7:17] + bytes(30)


def test_end_of_file_is_an_error_with_its_offset(tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(b"0123456789")
    with Image(str(tmp_path / "kernel")) as image, pytest.raises(LoadError, match="ends at offset 0xa") as caught:
        image.read(4, 7)
    assert caught.value.offset == 10


def test_file_that_shrinks_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(bytes(100_000))
    with Image(str(path)) as image:
        os.truncate(path, 50_000)
        with pytest.raises(LoadError, match="ends at offset 0xc350"):
            image.read(40_000, 20_000)


def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(b"x")
    (tmp_path / "empty").touch()
    before = sorted(os.listdir("/proc/self/fd"))
    image = Image(str(tmp_path / "kernel"))
    assert not os.get_inheritable(image.fd)
    image.close()
    image.close()
    for name in ("none", "empty"):
        refused(tmp_path / name)
    assert sorted(os.listdir("/proc/self/fd")) == before
