"""`pyvmm image` for Linux images: what each verb prints, and progress with and without a terminal."""

from __future__ import annotations

import os
import pty
from contextlib import suppress
from pathlib import Path

import pytest

from pyvmm import images
from pyvmm.cli import image, progress
from pyvmm.errors import ImageError, UsageError
from pyvmm.images import builder, store
from pyvmm.images.store import Image
from tests.unit.test_images_linux import silent


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYVMM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def publish() -> Image:
    files: dict[str, str | bytes] = {"vmlinux": b"v", "bzImage": b"z", "initrd.cpio": b"i", "config": b"c"}
    with store.locked("tiny", silent):
        return store.publish("tiny", "1" * 64, images.image_recipe("tiny").digest(), ("x",), files)


def test_list_names_guests_and_images(capsys: pytest.CaptureFixture[str]) -> None:
    assert image.main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == images.guest_names() + images.image_names()
    assert lines[-1].split()[1] == "Linux"


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ([], "vmlinux"),
        (["kernel"], "vmlinux"),
        (["bzimage"], "bzImage"),
        (["initrd"], "initrd.cpio"),
        (["config"], "config"),
    ],
)
def test_path_prints_one_line(words: list[str], name: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = publish().folder
    assert image.main(["path", "tiny", *words]) == 0
    output = capsys.readouterr()
    assert (output.out, output.err) == (f"{folder}/{name}\n", "")


def test_path_of_what_is_not_built() -> None:
    with pytest.raises(ImageError, match="pyvmm image build tiny"):
        image.main(["path", "tiny"])
    with pytest.raises(UsageError, match="hello16 is a small guest and has no initrd"):
        image.main(["path", "hello16", "initrd"])


def test_export_and_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    publish()
    file = str(tmp_path / "tiny.image")
    assert image.main(["export", "tiny", file]) == 0
    monkeypatch.setenv("PYVMM_CACHE", str(tmp_path / "other"))
    assert image.main(["import", file]) == 0
    assert capfd.readouterr().err == "pyvmm: image tiny is there\n"
    assert Path(images.image("tiny").kernel).read_bytes() == b"v"


@pytest.mark.needs("gcc")
def test_key_is_one_line_and_covers_what_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(builder, "made_from", lambda recipe, inputs: (recipe.name, str(inputs.busybox)))

    def key(*words: str) -> str:
        assert image.main(["key", *words]) == 0
        return capsys.readouterr().out

    assert len(key().strip()) == 64
    assert key() == key("tiny")
    assert len({key(), key("debian"), key("tiny", "--busybox", "b"), key("hello16")}) == 4


def test_build_shows_the_image(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def build(recipe: object, inputs: builder.Inputs, jobs: int, report: image.Progress) -> Image:
        assert (inputs.kernel_source, jobs) == ("tree", 5)
        report("compiling", 1, 100)
        report("compiling", 2, 100)
        report("cleaning up", 0, 0)
        return publish()

    monkeypatch.setattr(builder, "build", build)
    assert image.main(["build", "tiny", "--kernel-source", "tree", "-j5"]) == 0
    lines = capfd.readouterr().err.splitlines()
    minutes = f"{images.image_recipe('tiny').kernel.minutes:.0f}"  # type: ignore[union-attr]
    assert lines[:2] == [f"pyvmm: tiny: compiling, {minutes} minutes on two cores", "pyvmm: tiny: cleaning up"]
    assert lines[2].startswith("pyvmm: image 1 of 1: /")


@pytest.mark.parametrize(
    ("words", "built"),
    [
        (["guests", "tiny"], ["hello", "tiny"]),
        (["all"], ["hello", "debian", "tiny"]),
        (["debian", "hello"], ["debian", "hello"]),
    ],
)
def test_names_that_stand_for_several(words: list[str], built: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    class Guest:
        def path(self) -> str:
            done.append("hello")
            return "/hello"

    monkeypatch.setattr(images, "guest_names", lambda: ["hello"])
    monkeypatch.setattr(images, "guest", lambda name: Guest())

    def build_image(name: str, inputs: builder.Inputs, jobs: int) -> str:
        done.append(name)
        return "/image"

    monkeypatch.setattr(image, "_build_image", build_image)
    assert image.main(["build", *words]) == 0
    assert done == built


def test_a_name_that_is_unknown_fails_before_anything_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "_build_image", lambda *arguments: pytest.fail("built"))
    with pytest.raises(UsageError, match="there is no image 'tinny'"):
        image.main(["build", "tiny", "tinny"])
    with pytest.raises(UsageError, match="--jobs -1"):
        image.main(["build", "tiny", "--jobs", "-1"])


def drained(master: int) -> str:
    """All that was written to a terminal that is closed now; what is in a terminal may come in pieces, and later."""
    shown = b""
    with open(master, "rb", buffering=0) as end, suppress(OSError):  # EIO, at the end
        while data := end.read(4096):
            shown += data
    return shown.decode()


def test_progress_on_a_terminal_is_one_line_that_is_drawn_over(monkeypatch: pytest.MonkeyPatch) -> None:
    master, terminal = pty.openpty()
    monkeypatch.setattr(image, "STDERR", terminal)
    monkeypatch.setattr(progress, "STDERR", terminal)
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    shown = image.Progress("tiny", "3 minutes on two cores")
    for done in range(0, 1001, 250):
        shown("compiling", done, 1000)
        now[0] += 10
    shown.end()
    os.close(terminal)
    text = drained(master)
    assert "\n" not in text
    frames = [frame.removeprefix("\r") for frame in text.split("\x1b[K")]
    assert frames[:5] == [
        "pyvmm: tiny: compiling, 0 %, 3 minutes on two cores",
        "pyvmm: tiny: compiling, 25 %, 0:30 left",
        "pyvmm: tiny: compiling, 50 %, 0:20 left",
        "pyvmm: tiny: compiling, 75 %, 0:10 left",
        "pyvmm: tiny: compiling, 100 %, 0:00 left",
    ]
    assert frames[5] == ""  # taken away
