"""The cache of built images: where it is, one build however many ask, whole files only, and clear words."""

from __future__ import annotations

import os
import pwd
import threading
import time
from pathlib import Path

import pytest

from pyvmm.errors import ImageError
from pyvmm.images.cache import cache_folder, cached


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYVMM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def build(folder: str) -> None:
    Path(folder, "image").write_bytes(b"whole")


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"PYVMM_CACHE": "/c", "XDG_CACHE_HOME": "/x", "HOME": "/h"}, "/c"),
        ({"PYVMM_CACHE": "", "XDG_CACHE_HOME": "/x", "HOME": "/h"}, "/x/pyvmm"),
        ({"XDG_CACHE_HOME": "relative", "HOME": "/h"}, "/h/.cache/pyvmm"),
        ({"XDG_CACHE_HOME": "", "HOME": "/h"}, "/h/.cache/pyvmm"),
        ({"HOME": ""}, f"{pwd.getpwuid(os.getuid()).pw_dir}/.cache/pyvmm"),
        ({}, f"{pwd.getpwuid(os.getuid()).pw_dir}/.cache/pyvmm"),
    ],
)
def test_the_folder(variables: dict[str, str], folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYVMM_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == folder


def test_no_home_at_all_asks_for_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(uid: int) -> pwd.struct_passwd:
        raise KeyError(uid)

    for name in ("PYVMM_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    with pytest.raises(ImageError, match="set PYVMM_CACHE to a folder") as caught:
        cache_folder()
    assert caught.value.exit_status == 125


def test_built_once_and_then_found(cache: Path) -> None:
    path = cached("guests", "key", "image", build)
    assert path == str(cache / "guests/key/image")
    assert Path(path).read_bytes() == b"whole"

    def again(folder: str) -> None:
        raise AssertionError("it was there")

    assert cached("guests", "key", "image", again) == path
    assert sorted(os.listdir(cache / "guests")) == ["key", "lock"]


def test_another_key_is_another_file(cache: Path) -> None:
    assert cached("guests", "one", "image", build) != cached("guests", "two", "image", build)


def test_a_failed_build_leaves_nothing_and_the_next_succeeds(cache: Path) -> None:
    def broken(folder: str) -> None:
        Path(folder, "image").write_bytes(b"half")
        raise ImageError("no")

    with pytest.raises(ImageError, match="no"):
        cached("guests", "key", "image", broken)
    assert os.listdir(cache / "guests") == ["lock"]
    assert Path(cached("guests", "key", "image", build)).read_bytes() == b"whole"


def test_what_a_killed_build_left_is_cleared_away(cache: Path) -> None:
    left = cache / "guests/building-abc"
    left.mkdir(parents=True)
    (left / "image").write_bytes(b"half")
    cached("guests", "key", "image", build)
    assert not left.exists()


def test_many_at_once_build_once(cache: Path) -> None:
    builds: list[str] = []
    paths: list[str] = []

    def slow(folder: str) -> None:
        builds.append(folder)
        time.sleep(0.05)
        build(folder)

    threads = [threading.Thread(target=lambda: paths.append(cached("guests", "key", "image", slow))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(builds) == 1
    assert paths == [str(cache / "guests/key/image")] * 4


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PYVMM_CACHE", str(tmp_path / "file"))
    with pytest.raises(
        ImageError, match=r"cannot write the image cache .*/file/guests: Not a directory; set PYVMM_CACHE"
    ) as caught:
        cached("guests", "key", "image", build)
    assert caught.value.exit_status == 125
    assert "\n" not in str(caught.value)


@pytest.mark.needs("unprivileged")
def test_a_folder_without_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o500)
    monkeypatch.setenv("PYVMM_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ImageError, match=r"cannot write the image cache .*: Permission denied; set PYVMM_CACHE"):
        cached("guests", "key", "image", build)
