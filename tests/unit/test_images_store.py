"""The store of Linux images: whole ones only, found by key and by recipe, a manifest that shows damage."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pyvmm.errors import ImageError
from pyvmm.images import store
from pyvmm.images.store import File, Image, Manifest
from tests.support.cli import wait_for

KEY = "1" * 64
OTHER_KEY = "2" * 64
RECIPE = "a" * 64
FILES: dict[str, str | bytes] = {"vmlinux": b"kernel", "bzImage": b"packed", "initrd.cpio": b"root", "config": b"C=y\n"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYVMM_CACHE", str(tmp_path))
    return tmp_path


def silent(text: str, done: int, total: int) -> None:
    pass


def publish(key: str = KEY, files: dict[str, str | bytes] = FILES) -> Image:
    with store.locked("tiny", silent):
        return store.publish("tiny", key, RECIPE, ("a source 1.0", "gcc 12"), files)


def test_an_image_is_found_by_key_and_by_recipe(cache: Path) -> None:
    assert store.current("tiny", RECIPE) is None
    publish()
    image = store.current("tiny", RECIPE)
    assert image is not None
    assert image.kernel == str(cache / "images/tiny" / KEY[:16] / "vmlinux")
    assert Path(image.bzimage).read_bytes() == b"packed"
    assert Path(image.initrd).read_bytes() == b"root"
    assert Path(image.config).read_bytes() == b"C=y\n"
    assert (image.system_map, image.modules) == (None, None)
    assert image.manifest.made_from == ("a source 1.0", "gcc 12")
    found = store.find("tiny", KEY)
    assert found is not None and found.folder == image.folder
    assert store.find("tiny", OTHER_KEY) is None
    assert store.current("tiny", "b" * 64) is None


def test_an_image_without_vmlinux_boots_its_bzimage() -> None:
    image = publish(files={"bzImage": b"packed", "config": b"", "initrd.cpio": b"", "modules/6.1/a.ko": b"m"})
    assert image.kernel == image.bzimage
    assert image.modules == f"{image.folder}/modules"


def test_the_newest_one_is_current() -> None:
    publish()
    publish(OTHER_KEY)
    image = store.current("tiny", RECIPE)
    assert image is not None and image.manifest.key == OTHER_KEY
    assert store.find("tiny", KEY) is not None


def test_files_are_linked_and_survive_their_origin(tmp_path: Path) -> None:
    origin = tmp_path / "vmlinux.o"
    origin.write_bytes(b"linked")
    image = publish(files={**FILES, "vmlinux": str(origin)})
    origin.unlink()
    assert Path(image.kernel).read_bytes() == b"linked"


@pytest.mark.parametrize("harm", ["short", "gone", "no manifest", "torn manifest"])
def test_what_is_not_whole_is_no_image(harm: str) -> None:
    image = publish()
    manifest = Path(image.folder, store.MANIFEST)
    if harm == "short":
        Path(image.initrd).write_bytes(b"roo")
    elif harm == "gone":
        Path(image.config).unlink()
    elif harm == "no manifest":
        manifest.unlink()
    else:
        manifest.write_bytes(manifest.read_bytes()[:-9])
    assert store.find("tiny", KEY) is None
    assert store.current("tiny", RECIPE) is None
    publish()
    assert store.find("tiny", KEY) is not None


def test_what_killed_builds_left_is_removed(cache: Path) -> None:
    left = cache / "images/tiny/building-xyz"
    left.mkdir(parents=True)
    (left / "vmlinux").write_bytes(b"half")
    publish()
    assert sorted(entry.name for entry in (cache / "images/tiny").iterdir()) == [
        KEY[:16],
        f"current-{RECIPE[:16]}",
        "lock",
    ]


def test_a_failed_publish_leaves_no_image(cache: Path) -> None:
    with pytest.raises(OSError):
        publish(files={**FILES, "System.map": str(cache / "there is no such file")})
    assert store.find("tiny", KEY) is None
    assert store.current("tiny", RECIPE) is None


def _hold(cache: str, path: str) -> None:
    os.environ["PYVMM_CACHE"] = cache
    with store.locked("tiny", silent):
        Path(path).touch()
        wait_for(lambda: not Path(path).exists(), "the other one to wait")
        Path(path + ".done").touch()


def test_one_builder_at_a_time_and_the_other_is_told(cache: Path) -> None:
    held = cache / "held"
    other = multiprocessing.get_context("spawn").Process(target=_hold, args=(str(cache), str(held)))
    other.start()
    wait_for(held.exists, "the first one")
    said: list[str] = []

    def told(text: str, done: int, total: int) -> None:
        said.append(text)
        held.unlink()

    with store.locked("tiny", told):
        assert (cache / "held.done").exists()
    other.join(10)
    assert said == ["waiting for another process that is at it"]


@pytest.mark.needs("unprivileged")
def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    monkeypatch.setenv("PYVMM_CACHE", str(tmp_path / "closed/cache"))
    with (
        pytest.raises(ImageError, match="cannot write the image cache .* set PYVMM_CACHE"),
        store.locked("tiny", silent),
    ):
        pass


def manifest() -> Manifest:
    return Manifest("tiny", KEY, RECIPE, ("x",), (File("vmlinux", 3, "c" * 64), File("modules/a.ko", 0, "d" * 64)))


def test_a_manifest_is_read_as_it_was_written() -> None:
    text = manifest().to_json()
    assert Manifest.from_json(text, "here").to_json() == text


def edited(change: Callable[[dict[str, object]], object]) -> bytes:
    """The manifest with members changed, and a digest that fits them."""
    members = json.loads(manifest().to_json())
    change(members)
    del members["digest"]
    return json.dumps(members | {"digest": store._digest(members)}).encode()


@pytest.mark.parametrize(
    "path", ["", "/etc/passwd", "../x", "a/../b", "a//b", "./a", "a/", "n\nl", "manifest.json", 7, None, "modules/a.ko"]
)
def test_a_manifest_with_paths_that_lead_elsewhere(path: object) -> None:
    with pytest.raises(ImageError, match="here: this is no image's manifest"):
        Manifest.from_json(
            edited(lambda members: members.update(files=[["modules/a.ko", 1, "c" * 64], [path, 1, "c" * 64]])), "here"
        )


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("name", "../tiny"),
        ("name", 1),
        ("key", "1" * 63),
        ("key", "G" * 64),
        ("recipe", None),
        ("made_from", 5),
        ("files", [["a", -1, "c" * 64]]),
        ("files", [["a", True, "c" * 64]]),
        ("files", [["a", 1, "c" * 63]]),
        ("files", [["a", 1]]),
        ("files", 3),
    ],
)
def test_a_manifest_with_other_things_in_it(member: str, value: object) -> None:
    with pytest.raises(ImageError, match="here: this is no image's manifest"):
        Manifest.from_json(edited(lambda members: members.update({member: value})), "here")


@pytest.mark.parametrize("text", [b"", b"[]", b"7", b"{}", b"\xff", b"[" * 100000])
def test_a_manifest_that_is_something_else(text: bytes) -> None:
    with pytest.raises(ImageError, match="here: this is no image's manifest"):
        Manifest.from_json(text, "here")


def test_a_manifest_of_another_format() -> None:
    with pytest.raises(ImageError, match="here: its format is 2"):
        Manifest.from_json(edited(lambda members: members.update(format=2)), "here")


def test_a_manifest_with_one_letter_changed_is_damaged() -> None:
    text = manifest().to_json()
    for old, new in ((b"tiny", b"tony"), (b'"x"', b'"y"'), (b"ccc", b"ccd"), (b"111", b"112")):
        with pytest.raises(ImageError, match="damaged"):
            Manifest.from_json(text.replace(old, new, 1), "here")
