"""Debian's kernel package: what apt is asked, how its modules are ordered, and what is said when it is otherwise."""

from __future__ import annotations

import lzma
import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from pyvmm import images
from pyvmm.errors import ImageError
from pyvmm.images import builder, host, packaged
from pyvmm.images.linux import PackagedKernel
from pyvmm.images.packaged import Unpacked, dependencies, load_order
from tests.unit.test_images_linux import silent, static_program

NAMES = b"\0.modinfo\0.shstrtab\0"


def module(depends: str) -> bytes:
    """An ELF64 file with a .modinfo that says so."""
    info = b"license=GPL\0depends=" + depends.encode() + b"\0name=x\0"
    head = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 1, 62, 1, 0, 0, 64, 0, 64, 0, 0, 64, 3, 2)
    after = 64 + 3 * 64

    def section(name: int, offset: int, size: int) -> bytes:
        return struct.pack("<IIQQQQIIQQ", name, 1, 0, 0, offset, size, 0, 0, 1, 0)

    sections = bytes(64) + section(1, after, len(info)) + section(10, after + len(info), len(NAMES))
    return head + sections + info + NAMES


@pytest.fixture
def unpacked(tmp_path: Path) -> Unpacked:
    folder = tmp_path / "lib/modules/6.1.0-9"
    for path, depends in {"net/a.ko": "b-two,c", "b_two.ko": "c", "c.ko": "", "net/alone.ko": ""}.items():
        (folder / "kernel" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "kernel" / path).write_bytes(module(depends))
    (folder / "kernel/packed.ko.xz").write_bytes(lzma.compress(module("alone")))
    (folder / "modules.builtin").write_text("kernel/fs/inside.ko\n")
    (folder / "build").symlink_to("/usr/src/headers")
    return Unpacked(str(tmp_path / "vmlinuz"), str(tmp_path / "config"), str(folder), "6.1.0-9")


def test_dependencies_are_read() -> None:
    assert dependencies(module("a,b_c"), "x.ko") == ["a", "b_c"]
    assert dependencies(module(""), "x.ko") == []
    with pytest.raises(ImageError, match=r"x.ko is no kernel module"):
        dependencies(b"text", "x.ko")


def test_modules_come_after_what_they_need(unpacked: Unpacked) -> None:
    order = load_order(unpacked, ("a", "inside", "packed"))
    prefix = "lib/modules/6.1.0-9/kernel/"
    assert [path for path, _ in order] == [
        prefix + name for name in ("c.ko", "b_two.ko", "net/a.ko", "net/alone.ko", "packed.ko")
    ]
    assert order[-1][1] == module("alone")  # what the kernel loads is not packed


def test_a_module_that_is_nowhere(unpacked: Unpacked) -> None:
    with pytest.raises(ImageError, match="has no module nothing"):
        load_order(unpacked, ("nothing",))


def test_the_files_of_the_image(unpacked: Unpacked) -> None:
    found = packaged.files(unpacked)
    assert found["bzImage"] == unpacked.bzimage
    assert "modules/6.1.0-9/kernel/net/a.ko" in found
    assert not [path for path in found if path.endswith("/build")]


FAKE_APT = """#!/bin/sh
case "$1 $2" in
"policy "*)
    case $2 in
    linux-image-*|busybox-static) printf '%s:\\n  Installed: (none)\\n  Candidate: 2:1.5\\n' "$2" ;;
    none) printf 'none:\\n  Installed: (none)\\n  Candidate: (none)\\n' ;;
    esac
    ;;
"show linux-image-cloud"*) printf 'Package: x\\nDepends: other, linux-image-6.1.0-9-cloud-amd64 (= 6.1.9-1)\\n' ;;
"show "*) printf 'Package: x\\nSize: 4096\\n' ;;
"-q download")
    name=${3%%=*}
    [ -e "$HOME/broken" ] && { echo 'E: Failed to fetch it' >&2; exit 100; }
    cp "$HOME/$name.deb" "${name}_2%3a1.5_amd64.deb"
    ;;
esac
"""


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with packages and an apt that serves them."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("apt-get", "apt-cache"):
        (tools / name).write_text(FAKE_APT)
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PYVMM_CACHE", str(tmp_path / "cache"))
    host.candidate.cache_clear()
    return tmp_path


def make_package(home: Path, name: str, files: dict[str, bytes]) -> None:
    root = home / f"root-{name}"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN/control").write_text(
        f"Package: {name}\nVersion: 2:1.5\nArchitecture: amd64\nMaintainer: x <x@example.org>\nDescription: x\n"
    )
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    subprocess.run(["dpkg-deb", "--build", str(root), str(home / f"{name}.deb")], check=True, stdout=subprocess.DEVNULL)
    shutil.rmtree(root)


@pytest.mark.needs("dpkg-deb", "gcc")
def test_debians_image(apt: Path) -> None:
    version = "6.1.0-9-cloud-amd64"
    recipe = images.image_recipe("debian")
    assert isinstance(recipe.kernel, PackagedKernel)
    recipe.kernel = PackagedKernel(recipe.kernel.package, ("ext4",))
    files = {
        f"boot/vmlinuz-{version}": b"the kernel",
        f"boot/config-{version}": b"CONFIG_M=y\n",
        f"lib/modules/{version}/modules.builtin": b"",
        f"lib/modules/{version}/kernel/ext4.ko": module(""),
    }
    make_package(apt, f"linux-image-{version}", files)
    make_package(apt, "busybox-static", {"bin/busybox": Path(static_program(apt, 1)).read_bytes()})
    image = builder.build(recipe, builder.Inputs(), 1, silent)
    assert image.kernel == image.bzimage
    assert Path(image.kernel).read_bytes() == b"the kernel"
    assert image.modules is not None
    assert Path(image.modules, version, "kernel/ext4.ko").read_bytes() == module("")
    assert f"/lib/modules/{version}/kernel/ext4.ko\n".encode() in Path(image.initrd).read_bytes()
    assert b"bin/pyvmm-agent\0" in Path(image.initrd).read_bytes()
    package, agent, busybox = image.manifest.made_from
    assert (package, busybox) == (f"linux-image-{version} 2:1.5", "busybox-static 2:1.5")
    assert agent.startswith("agent by gcc ")
    assert sorted(path.name for path in Path(image.folder).parent.iterdir() if path.is_dir()) == [image.folder[-16:]]


@pytest.mark.needs("dpkg-deb")
def test_a_package_that_is_laid_out_otherwise(apt: Path) -> None:
    make_package(apt, "linux-image-6.1.0-9-cloud-amd64", {"boot/vmlinuz": b""})
    make_package(apt, "busybox-static", {"bin/busybox": Path(static_program(apt, 1)).read_bytes()})
    with pytest.raises(ImageError, match="has no boot/vmlinuz-6.1.0-9-cloud-amd64"):
        builder.build(images.image_recipe("debian"), builder.Inputs(), 1, silent)


def test_apt_that_cannot_download(apt: Path) -> None:
    (apt / "broken").touch()
    with pytest.raises(ImageError, match="downloading busybox-static: E: Failed to fetch it"):
        host.download("busybox-static", str(apt / "there"), silent)


def test_a_package_that_apt_does_not_know(apt: Path) -> None:
    for name in ("none", "unheard-of"):
        with pytest.raises(ImageError, match=f"apt knows no package {name}: its lists may be empty"):
            host.candidate(name)
    with pytest.raises(ImageError, match=r"linux-image-cloud-amd64 2:1.5 depends on no firmware-\*"):
        host.dependency("linux-image-cloud-amd64", "firmware-")
