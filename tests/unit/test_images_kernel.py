"""Building a kernel, with a `make` that only pretends: sources, patches, configuration, resumption, refusals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from pyvmm.errors import ImageError
from pyvmm.images import builder, host, kernel, source, store
from pyvmm.images.builder import Inputs
from pyvmm.images.kernel import refused
from pyvmm.images.linux import LinuxRecipe, SourceKernel
from tests.unit.test_images_linux import static_program

ROOT = Path(__file__).parents[2]

MAKE = """#!/bin/sh
echo "make $*" >>"$HOME/calls"
env >"$HOME/env"
for word in "$@"; do
    case $word in
    tinyconfig) echo '# CONFIG_SMP is not set' >.config ;;
    olddefconfig)
        grep -v UNKNOWN .config | tac >new
        awk '{ n = $0; sub(/^# /, "", n); sub(/[= ].*/, "", n) } !seen[n]++' new | tac >.config
        ;;
    vmlinux)
        for name in a b c d; do
            if [ -e "$HOME/fail" ]; then
                echo "init/main.c:5: error: expected ';'"
                exit 2
            fi
            [ -e $name.o ] || { echo "  CC      $name.o"; touch $name.o; }
            if [ -e "$HOME/slow" ]; then sleep 0.3; fi
        done
        mkdir -p arch/x86/boot
        cat init/main.c .config >vmlinux
        echo packed >arch/x86/boot/bzImage
        echo 0 T _text >System.map
        ;;
    esac
done
"""
PATCH = b"""Subject: more
---
--- a/init/main.c
+++ b/init/main.c
@@ -1 +1 @@
-int main;
+int patched;
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with a source tree in it, a `make` that pretends, and an empty cache."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "make").write_text(MAKE)
    (tools / "make").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PYVMM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CFLAGS", "-DBAD")
    tree = tmp_path / "linux-6.1.9"
    (tree / "init").mkdir(parents=True)
    (tree / "Makefile").write_text("# SPDX\nVERSION = 6\nPATCHLEVEL = 1\nSUBLEVEL = 9\n")
    (tree / "init/main.c").write_text("int main;\n")
    (tree / "init/main.o").write_text("left by a build")
    (tree / ".git").mkdir()
    (tree / ".git/HEAD").write_text("x")
    return tmp_path


def recipe(
    patches: tuple[tuple[str, bytes], ...] = (("1.patch", PATCH),), config: str = "CONFIG_SMP=y\n"
) -> LinuxRecipe:
    source_kernel = SourceKernel("linux-source-6.1", "6.1", config, patches, 4, 1.0)
    return LinuxRecipe("tiny", "a test", source_kernel, "busybox-static", {"init": b"#!/bin/sh\n"}, ("bin", "dev"), {})


def silent(text: str, done: int, total: int) -> None:
    pass


def inputs(home: Path, given: Path | None = None) -> Inputs:
    return Inputs(str(given or home / "linux-6.1.9"), static_program(home, 1))


def test_a_tree_becomes_an_image(home: Path) -> None:
    said: list[tuple[str, int, int]] = []
    image = builder.build(recipe(), inputs(home), 3, lambda *words: said.append(words))
    assert Path(image.kernel).read_text() == "int patched;\nCONFIG_SMP=y\n"
    assert Path(image.bzimage).read_text() == "packed\n"
    assert Path(image.config).read_text() == "CONFIG_SMP=y\n"
    assert image.system_map is not None
    assert b"init\0" in Path(image.initrd).read_bytes()
    assert (home / "linux-6.1.9/init/main.c").read_text() == "int main;\n"  # the user's tree is as it was
    assert "make -j3 vmlinux bzImage" in (home / "calls").read_text()
    variables = (home / "env").read_text().splitlines()
    assert "KBUILD_BUILD_USER=pyvmm" in variables
    assert "LC_ALL=C" in variables
    assert not [line for line in variables if line.startswith("CFLAGS")]
    assert ("compiling", 1, 4) in said
    assert [entry.name for entry in (home / "cache/images/tiny").iterdir() if entry.name.startswith("work-")] == []


def test_what_is_built_is_not_built_again(home: Path) -> None:
    first = builder.build(recipe(), inputs(home), 1, silent)
    (home / "calls").unlink()
    assert builder.build(recipe(), inputs(home), 1, silent).folder == first.folder
    other = recipe()
    other.files = {"init": b"#!/bin/sh\nexit\n"}
    second = builder.build(other, inputs(home), 1, silent)
    assert second.folder != first.folder
    assert not (home / "calls").exists()  # another initramfs, the same kernel
    assert Path(second.kernel).read_bytes() == Path(first.kernel).read_bytes()


def test_a_tarball_and_its_digest(home: Path) -> None:
    tarball = home / "linux.tar.xz"
    with tarfile.open(tarball, "w:xz") as file:
        file.add(home / "linux-6.1.9", "linux-6.1.9")
    image = builder.build(recipe(), inputs(home, tarball), 1, silent)
    assert Path(image.kernel).read_text().startswith("int patched;")
    assert image.manifest.made_from[0].startswith("sha256 ")
    before = source.identity(kernel_of(recipe()), str(tarball))
    tarball.write_bytes(tarball.read_bytes() + b"\0")
    assert source.identity(kernel_of(recipe()), str(tarball)) != before


def kernel_of(recipe: LinuxRecipe) -> SourceKernel:
    assert isinstance(recipe.kernel, SourceKernel)
    return recipe.kernel


def test_a_tree_is_named_by_its_files(home: Path) -> None:
    tree = home / "linux-6.1.9"

    def identity() -> str:
        return source.identity(kernel_of(recipe()), str(tree))

    before = identity()
    (tree / "init/more.o").write_text("built")
    os.utime(tree / "init/main.c", (1, 1))
    assert identity() == before
    (tree / "init/main.c").write_text("int other;\n")
    assert identity() != before


@pytest.mark.parametrize(
    ("makefile", "words"),
    [
        ("VERSION = 6\nPATCHLEVEL = 6\n", "holds 6.6"),
        ("all:\n", "holds no Linux kernel"),
        (None, "holds no Linux kernel"),
    ],
)
def test_a_source_that_is_another(home: Path, makefile: str | None, words: str) -> None:
    if makefile is None:
        (home / "linux-6.1.9/Makefile").unlink()
    else:
        (home / "linux-6.1.9/Makefile").write_text(makefile)
    with pytest.raises(ImageError, match=rf"{words} \(expected a source of Linux 6.1\)"):
        builder.build(recipe(), inputs(home), 1, silent)
    assert store.current("tiny", recipe().digest()) is None


def test_a_source_that_is_not_there(home: Path) -> None:
    with pytest.raises(ImageError, match="nowhere: there is no such file or folder"):
        builder.build(recipe(), inputs(home, home / "nowhere"), 1, silent)


def test_a_patch_that_does_not_fit(home: Path) -> None:
    wrong = recipe((("9.patch", PATCH.replace(b"int main", b"int mine")),))
    with pytest.raises(ImageError, match=r"applying 9.patch: patch: .*") as caught:
        builder.build(wrong, inputs(home), 1, silent)
    assert "\n" not in str(caught.value)
    assert builder.build(recipe(), inputs(home), 1, silent)  # nothing of it is in the way


def test_an_option_that_kconfig_does_not_take(home: Path) -> None:
    with pytest.raises(ImageError, match=r"configuring the kernel: Kconfig does not take CONFIG_UNKNOWN=y$"):
        builder.build(recipe(config="CONFIG_UNKNOWN=y\nCONFIG_SMP=y\n"), inputs(home), 1, silent)
    assert "vmlinux" not in (home / "calls").read_text()


def test_what_counts_as_refused() -> None:
    assert refused("CONFIG_A=y\n# CONFIG_B is not set\n", "# CONFIG_A is not set\nCONFIG_B=m\n") == [
        "CONFIG_A=y",
        "# CONFIG_B is not set",
    ]
    assert refused("# CONFIG_C is not set\nCONFIG_D=1\n# a comment\n", "CONFIG_D=1\n") == []


def test_a_compiler_error_is_told_and_then_the_build_goes_on(home: Path) -> None:
    (home / "fail").touch()
    with pytest.raises(
        ImageError, match=r"building the kernel: init/main.c:5: error: expected ';' \(all of it: .*/build.log\)"
    ):
        builder.build(recipe(), inputs(home), 1, silent)
    assert store.current("tiny", recipe().digest()) is None
    (home / "fail").unlink()
    assert builder.build(recipe(), inputs(home), 1, silent)
    assert (home / "calls").read_text().count("tinyconfig") == 1  # prepared once


BUILD = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from tests.unit.test_images_kernel import inputs, recipe
from pyvmm.images import builder
print(builder.build(recipe(), inputs(Path(sys.argv[2])), 1, lambda *words: print(*words, flush=True)).folder)
"""


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_build_leaves_no_half_image_and_goes_on(home: Path, end: signal.Signals) -> None:
    (home / "slow").touch()
    command = [sys.executable, "-c", BUILD, str(ROOT), str(home)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("compiling 2"):
                process.send_signal(end)
                break
        process.wait(20)
        assert process.returncode != 0
    assert store.current("tiny", recipe().digest()) is None
    (home / "slow").unlink()
    started = time.monotonic()
    image = builder.build(recipe(), inputs(home), 1, silent)
    assert time.monotonic() - started < 20
    assert Path(image.kernel).read_text() == "int patched;\nCONFIG_SMP=y\n"
    assert (home / "calls").read_text().count("tinyconfig") == 1


def test_all_that_is_missing_is_named_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ImageError) as caught:
        kernel.require_tools(None)
    text = str(caught.value)
    assert "building the kernel needs gcc, as, ld, make, flex, bison, bc, patch, gzip, awk, tar, xz, apt-get" in text
    assert "(Debian: apt-get install gcc binutils make flex bison bc patch gzip mawk tar xz-utils apt dpkg; or" in text
    with pytest.raises(ImageError) as caught:
        kernel.require_tools("/a/tree")
    assert "apt-get," not in str(caught.value) and "--kernel-source" not in str(caught.value)


def test_too_little_space_is_said_before_anything_is_done(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SourceKernel, "space", 1 << 60)
    with pytest.raises(
        ImageError, match="MiB free .expected 1099511627776 for building the image tiny.; set PYVMM_CACHE"
    ):
        builder.build(recipe(), inputs(home), 1, silent)
    assert not (home / "calls").exists()


def test_the_key_names_source_tools_and_recipe(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def key(a_recipe: LinuxRecipe) -> str:
        return builder.key(a_recipe, builder.made_from(a_recipe, inputs(home)))

    keys = {key(recipe()), key(recipe(config="CONFIG_SMP=y\nCONFIG_A=y\n"))}
    assert key(recipe()) in keys
    monkeypatch.setattr(host, "version", lambda program: f"{program} of another day")
    keys.add(key(recipe()))
    (home / "linux-6.1.9/init/main.c").write_text("int later;\n")
    keys.add(key(recipe()))
    assert len(keys) == 4
