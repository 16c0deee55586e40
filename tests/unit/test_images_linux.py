"""recipe.toml of the Linux images: what its reader takes and refuses, what its digest covers, the recipes we have."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from pyvmm import images
from pyvmm.errors import ImageError, UsageError
from pyvmm.images import agent, initramfs
from pyvmm.images.linux import PackagedKernel, SourceKernel, parse

ROOT = Path(__file__).parents[2]

RECIPE = """
summary = "says hi"
[kernel]
package = "linux-source-6.1"
series = "6.1"
config = "kernel.config"
patches = ["patches/1.patch", "patches/2.patch"]
steps = 10
minutes = 2.5
[initramfs]
tree = "hi/root"
busybox = "busybox-static"
folders = ["bin", "etc"]
symlinks = { "bin/sh" = "busybox" }
"""
SOURCES = {
    "hi/recipe.toml": RECIPE.encode(),
    "hi/kernel.config": b"CONFIG_64BIT=y\n",
    "hi/patches/1.patch": b"first",
    "hi/patches/2.patch": b"second",
    "hi/root/init": b"#!/bin/sh\n",
    "hi/root/etc/fstab": b"proc /proc proc\n",
    "hi/README.md": b"not part of it",
}


def test_a_recipe_is_read() -> None:
    recipe = parse("hi", SOURCES)
    kernel = recipe.kernel
    assert isinstance(kernel, SourceKernel)
    assert (kernel.package, kernel.series, kernel.config) == ("linux-source-6.1", "6.1", "CONFIG_64BIT=y\n")
    assert kernel.patches == (("patches/1.patch", b"first"), ("patches/2.patch", b"second"))
    assert (kernel.steps, kernel.minutes) == (10, 2.5)
    assert (recipe.name, recipe.summary, recipe.busybox) == ("hi", "says hi", "busybox-static")
    assert recipe.files == {"init": b"#!/bin/sh\n", "etc/fstab": b"proc /proc proc\n"}
    assert (recipe.folders, recipe.symlinks) == (("bin", "etc"), {"bin/sh": "busybox"})


def test_a_recipe_with_a_packaged_kernel() -> None:
    text = re.sub(r"\[kernel\].*\[init", '[packaged-kernel]\npackage = "p"\nmodules = ["a"]\n[init', RECIPE, flags=re.S)
    kernel = parse("hi", {**SOURCES, "hi/recipe.toml": text.encode()}).kernel
    assert isinstance(kernel, PackagedKernel)
    assert (kernel.package, kernel.modules) == ("p", ("a",))


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("summary", "sumary", "hi/recipe.toml: summary is missing"),
        ("steps = 10", "steps = 10\nstep = 1", r"\[kernel\]: step is not known"),
        ("steps = 10", "steps = 'x'", r"\[kernel\]: steps is 'x'"),
        ("patches/2.patch", "patches/3.patch", r"\[kernel\]: there is no file hi/patches/3.patch"),
        ("kernel.config", "../other", r"\[kernel\]: there is no file hi/../other"),
        ("hi/root", "hi/toor", "there is no file hi/toor/init"),
        ("[kernel]", "[kernels]", r"packaged-kernel is missing"),
        ("[initramfs]", "[initramfs", "hi/recipe.toml: "),
    ],
)
def test_what_a_recipe_may_not_be(old: str, new: str, error: str) -> None:
    assert old in RECIPE
    with pytest.raises(ImageError, match=error):
        parse("hi", {**SOURCES, "hi/recipe.toml": RECIPE.replace(old, new, 1).encode()})


def test_the_digest_covers_what_goes_in_and_nothing_else() -> None:
    def digest(**changes: bytes) -> str:
        return parse(
            "hi", {**SOURCES, **{path.replace("__", "/"): content for path, content in changes.items()}}
        ).digest()

    assert digest() == digest(**{"hi/README.md": b"other", "hi/recipe.toml": RECIPE.replace("says", "said").encode()})
    changed = [
        {"hi/kernel.config": b"CONFIG_64BIT=n\n"},
        {"hi/patches/2.patch": b"2"},
        {"hi/root/init": b"#!/bin/ash\n"},
        {"hi/root/more": b""},
        {"hi/recipe.toml": RECIPE.replace('"busybox" }', '"bb" }').encode()},
        {"hi/recipe.toml": RECIPE.replace('"etc"]', '"etc", "x"]').encode()},
    ]
    assert len({digest(), *(digest(**change) for change in changed)}) == len(changed) + 1


def test_the_images_that_come_along() -> None:
    assert images.image_names() == ["debian", "tiny"]
    with pytest.raises(UsageError, match=r"no Linux image 'huge' \(known: debian, tiny\)"):
        images.image("huge")


def test_an_image_that_is_not_built_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYVMM_CACHE", str(tmp_path))
    with pytest.raises(ImageError, match="the image tiny is not built yet: pyvmm image build tiny"):
        images.image("tiny")


def test_every_patch_of_tiny_is_used_and_says_what_and_why() -> None:
    kernel = images.image_recipe("tiny").kernel
    assert isinstance(kernel, SourceKernel)
    folder = ROOT / "guest-images/tiny"
    assert [name for name, _ in kernel.patches] == sorted(
        f"patches/{path.name}" for path in folder.glob("patches/*.patch")
    )
    for name, patch in kernel.patches:
        head, _, _ = patch.decode().partition("\n---\n")
        lines = head.splitlines()
        assert lines[0] == "SPDX-License-Identifier: GPL-2.0-only", name
        assert lines[1].startswith("Subject: "), name
        assert len(head) > 200, f"{name} should say why"


def test_the_fragment_names_each_option_once() -> None:
    kernel = images.image_recipe("tiny").kernel
    assert isinstance(kernel, SourceKernel)
    options = re.findall(r"^(?:# )?(CONFIG_\w+)(?:=| is not set$)", kernel.config, re.M)
    assert len(options) > 100
    assert sorted(set(options)) == sorted(options)


def test_the_initramfs_holds_what_init_needs() -> None:
    recipe = images.image_recipe("tiny")
    data = initramfs.make(recipe, b"busybox", [("lib/modules/1/kernel/a.ko", b"A"), ("lib/modules/1/b.ko", b"B")])
    for wanted in (b"dev/console\0", b"bin/sh\0", b"init\0", b"lib/modules/1/kernel\0", b"/lib/modules/1/b.ko\n"):
        assert wanted in data
    entry = data[data.index(b"init\0") - 110 :]
    assert entry[14:22] == b"000081ed"  # a regular file, 0755
    assert data == initramfs.make(
        recipe, b"busybox", [("lib/modules/1/kernel/a.ko", b"A"), ("lib/modules/1/b.ko", b"B")]
    )


@pytest.mark.parametrize("path", sorted((ROOT / "guest-images/tiny/root").rglob("*")), ids=lambda path: path.name)
def test_the_scripts_are_scripts(path: Path) -> None:
    if path.is_file() and (path.read_bytes().startswith(b"#!") or path.name == "profile"):
        shell = shutil.which("dash") or "sh"
        subprocess.run([shell, "-n", str(path)], check=True)


def static_program(tmp_path: Path, *segments: int) -> str:
    """A file with the head of an ELF64 program for x86-64 that has `segments` of these types."""
    head = bytearray(64)
    head[:6] = b"\x7fELF\x02\x01"
    head[18:20] = (62).to_bytes(2, "little")
    head[32:40] = (64).to_bytes(8, "little")
    head[56:58] = len(segments).to_bytes(2, "little")
    path = tmp_path / "busybox"
    path.write_bytes(head + b"".join(kind.to_bytes(4, "little") + bytes(52) for kind in segments))
    return str(path)


def silent(text: str, done: int, total: int) -> None:
    pass


def test_a_busybox_of_the_users(tmp_path: Path) -> None:
    recipe = images.image_recipe("tiny")
    given = static_program(tmp_path, 1, 1)
    assert initramfs.busybox(recipe, given, str(tmp_path), silent) == Path(given).read_bytes()
    assert initramfs.busybox_identity(recipe, given).startswith("sha256 ")
    with pytest.raises(ImageError, match="needs shared libraries"):
        initramfs.busybox(recipe, static_program(tmp_path, 1, 3), str(tmp_path), silent)
    Path(given).write_bytes(b"#!/bin/sh\n")
    with pytest.raises(ImageError, match="is no program for x86-64"):
        initramfs.busybox(recipe, given, str(tmp_path), silent)
    with pytest.raises(ImageError, match="/nowhere: No such file"):
        initramfs.busybox(recipe, "/nowhere", str(tmp_path), silent)


AGENT = {**SOURCES, "hi/recipe.toml": RECIPE.replace("folders", 'agent = "bin/agent"\nfolders').encode()}


def test_an_agent_is_part_of_the_image_and_of_its_key_but_not_of_the_kernels() -> None:
    sources = {**AGENT, "agent/a.c": b"int a;", "agent/a.h": b"", "agent/README.md": b"x"}
    recipe = parse("hi", sources)
    assert (recipe.agent, sorted(recipe.agent_sources)) == ("bin/agent", ["a.c", "a.h"])
    changed = parse("hi", {**sources, "agent/a.c": b"int b;"})
    assert len({parse("hi", SOURCES).digest(), recipe.digest(), changed.digest()}) == 3
    assert recipe.digest() == parse("hi", {**sources, "agent/README.md": b"y"}).digest()
    assert recipe.kernel.parts() == changed.kernel.parts() == parse("hi", SOURCES).kernel.parts()
    tiny = initramfs.make(images.image_recipe("tiny"), b"busybox", [], b"THE AGENT")
    at = tiny.index(b"bin/pyvmm-agent\0")
    assert tiny[at - 96 : at - 88] == b"000081ed"  # a regular file, 0755
    assert b"THE AGENT" in tiny[at : at + 40]


@pytest.mark.needs("gcc")
def test_the_agent_comes_out_the_same_wherever_it_is_built_and_is_small(tmp_path: Path) -> None:
    sources = images.image_recipe("tiny").agent_sources
    first, second = (agent.build(sources, str(tmp_path / name)) for name in ("a", "b"))
    assert first == second
    assert len(first) < 40_000
    assert b"/lib64/ld-linux" not in first
    with pytest.raises(ImageError, match="building the guest's agent: gcc: a.c"):
        agent.build({"a.c": b"int main(void) { return nothing; }"}, str(tmp_path / "c"))
