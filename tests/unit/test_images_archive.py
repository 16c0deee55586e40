"""Carrying a Linux image in a file: there and back unchanged, and nothing written for an archive that is not right."""

from __future__ import annotations

import io
import os
import random
import tarfile
from pathlib import Path

import pytest

from pyvmm.errors import ImageError
from pyvmm.images import archive, store
from pyvmm.images.store import Image

KEY, RECIPE = "1" * 64, "a" * 64
RECIPES = {"debian": "b" * 64, "tiny": RECIPE}
FILES: dict[str, str | bytes] = {
    "vmlinux": random.Random(1).randbytes(2_500_000),
    "bzImage": b"packed",
    "initrd.cpio": b"",
    "config": b"C=y\n",
    "modules/6.1/kernel/a.ko": b"module",
}


def silent(text: str, done: int, total: int) -> None:
    pass


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Image:
    monkeypatch.setenv("PYVMM_CACHE", str(tmp_path / "here"))
    with store.locked("tiny", silent):
        return store.publish("tiny", KEY, RECIPE, ("source",), FILES)


@pytest.fixture
def exported(image: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An archive of the image; the cache is then another, empty one."""
    path = tmp_path / "tiny.image"
    archive.write(image, str(path))
    monkeypatch.setenv("PYVMM_CACHE", str(tmp_path / "there"))
    return path


def refused(path: Path, words: str) -> None:
    """Reading fails with `words`, and nothing was written."""
    with pytest.raises(ImageError, match=words) as caught:
        archive.read(str(path), RECIPES, silent)
    assert "\n" not in str(caught.value)
    assert not os.path.exists(os.environ["PYVMM_CACHE"])


def test_there_and_back(exported: Path) -> None:
    image = archive.read(str(exported), RECIPES, silent)
    for path, content in FILES.items():
        assert Path(image.folder, path).read_bytes() == content
    assert store.current("tiny", RECIPE) is not None
    again = archive.read(str(exported), RECIPES, silent)  # it is there already
    assert again.folder == image.folder


def test_the_same_image_gives_the_same_bytes(image: Image, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    archive.write(image, str(first))
    os.utime(image.kernel, (5, 5))
    archive.write(image, str(second))
    assert first.read_bytes() == second.read_bytes()
    assert first.stat().st_mode & 0o777 == 0o644


def test_writing_replaces_or_leaves_nothing(image: Image, tmp_path: Path) -> None:
    target = tmp_path / "out" / "file"
    with pytest.raises(ImageError, match="No such file"):
        archive.write(image, str(target))
    target.parent.mkdir()
    target.write_bytes(b"old")
    os.unlink(image.config)
    with pytest.raises(ImageError, match="config"):
        archive.write(image, str(target))
    assert target.read_bytes() == b"old"
    assert os.listdir(target.parent) == ["file"]


def test_any_byte_that_changes_is_found(exported: Path) -> None:
    whole = exported.read_bytes()
    places = random.Random(2)
    with tarfile.open(exported) as file:
        members = file.getmembers()
    # in the content of each file, and anywhere
    offsets = [member.offset_data + member.size // 2 for member in members if member.size]
    offsets += [places.randrange(members[1].offset_data, members[1].offset_data + members[1].size) for _ in range(5)]
    for offset in offsets:
        exported.write_bytes(whole[:offset] + bytes([whole[offset] ^ 1]) + whole[offset + 1 :])
        refused(exported, "damaged")


@pytest.mark.parametrize("length", [0, 1, 511, 512, 600, 5000, 1_000_000, 2_500_000])
def test_cut_short(exported: Path, length: int) -> None:
    exported.write_bytes(exported.read_bytes()[:length])
    refused(exported, "expected what `image export` writes|damaged|not where it should be")


def rewritten(exported: Path, change: str) -> None:
    """The archive with members changed behind the manifest's back."""
    with tarfile.open(exported) as file:
        members = [(member, file.extractfile(member).read()) for member in file.getmembers()]  # type: ignore[union-attr]
    manifest, kernel, *rest = members
    if change == "order":
        members = [manifest, *rest, kernel]
    elif change == "more":
        members.append((tarfile.TarInfo("more"), b""))
    elif change == "less":
        members.pop()
    elif change == "name":
        rest[0][0].name = "../bzImage"
    elif change == "symlink":
        rest[0][0].type, rest[0][0].linkname = tarfile.SYMTYPE, "/etc/passwd"
    elif change == "hard link":
        rest[0][0].type, rest[0][0].linkname = tarfile.LNKTYPE, "vmlinux"
    elif change == "device":
        rest[0][0].type = tarfile.CHRTYPE
    elif change == "no manifest":
        members = members[1:]
    with tarfile.open(exported, "w") as file:
        for member, content in members:
            file.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("order", "bzImage is not where|vmlinux is not where"),
        ("more", "more than the manifest says"),
        ("less", "a.ko is not where"),
        ("name", "bzImage is not where"),
        ("symlink", "bzImage is not where"),
        ("hard link", "bzImage is not where"),
        ("device", "bzImage is not where"),
        ("no manifest", "does not begin with manifest.json"),
    ],
)
def test_members_that_are_not_the_manifests(exported: Path, change: str, words: str) -> None:
    rewritten(exported, change)
    refused(exported, words)


def test_an_image_nobody_knows(exported: Path) -> None:
    with pytest.raises(ImageError, match=r"holds the image 'tiny' \(expected one of debian\)"):
        archive.read(str(exported), {"debian": RECIPE}, silent)


def test_an_image_of_another_recipe(exported: Path) -> None:
    with pytest.raises(ImageError, match="made by another version of pyvmm"):
        archive.read(str(exported), {"tiny": "c" * 64}, silent)


def test_an_image_that_says_it_is_huge(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "IMAGE_MAX", 1_000_000)
    refused(exported, "larger than an image may be")


def test_no_regular_file(exported: Path, tmp_path: Path) -> None:
    refused(tmp_path, "is no regular file")
    os.mkfifo(tmp_path / "fifo")
    refused(tmp_path / "fifo", "is no regular file")
    refused(tmp_path / "missing", "No such file")
