"""Building the guests: all, without a warning, twice the same, and with no instruction that a KVM may refuse."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from pyvmm.cli import image
from pyvmm.errors import ImageError, UsageError
from pyvmm.images import build, guest, guest_names, image_names

REFUSED = re.compile(
    r"int3|int1|icebp|int|ud2|fwait|wait|f(?!s$)\w+|stac|clac|popcnt|cmpxchg(8|16)b|xsave\w*|xrstor\w*|xgetbv|xsetbv"
    r"|rdtscp|invpcid|movbe|vmcall|vmmcall|v[a-z]+[ps][sd]"
)
"""Mnemonics that KVM's instruction emulator does not know. Where a KVM emulates the guest's ring 0, they end it."""
OBJDUMP_MACHINE = {16: "i8086", 32: "i386", 64: "i386:x86-64"}

pytestmark = pytest.mark.needs("gcc")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("images"))


@pytest.fixture(autouse=True)
def _own_cache(cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYVMM_CACHE", cache)


@pytest.mark.parametrize("name", guest_names())
def test_it_builds_without_a_warning_and_again_to_the_same_bytes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Path(guest(name).path())
    monkeypatch.setenv("PYVMM_CACHE", str(tmp_path / "a deeper" / "one"))
    monkeypatch.setattr(build, "_COMPILE", (*build._COMPILE, "-Werror"))
    monkeypatch.setattr(build, "_LINK", (*build._LINK, "-Wl,--fatal-warnings"))
    second = Path(guest(name).path())
    assert first.parent.name != second.parent.name, "other flags, another key"
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("name", guest_names())
def test_no_instruction_is_one_that_a_kvm_refuses(name: str) -> None:
    it = guest(name)
    flat = ["-D", "-b", "binary", "-m", OBJDUMP_MACHINE[it.recipe.bits]]
    arguments = ["-d"] if it.format.startswith("ELF") else flat
    listing = subprocess.run(
        ["objdump", *arguments, "--no-show-raw-insn", it.path()], capture_output=True, text=True, check=True
    ).stdout
    instructions = re.findall(r"^ *[0-9a-f]+:\t(.*)", listing, re.MULTILINE)
    assert instructions
    words = [re.sub(r"^((rep\w*|lock|data16|addr32) )+", "", text).split() for text in instructions]
    refused = [" ".join(word) for word in words if word and (REFUSED.fullmatch(word[0]) or "%xmm" in " ".join(word))]
    if it.recipe.bits != 64:  # outside long mode IRET is emulated in real mode only
        refused += [" ".join(word) for word in words if word and word[0].startswith("iret")]
    assert refused == []


def test_all_missing_tools_are_named_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PYVMM_CACHE", str(tmp_path / "cache"))
    build.tool_versions.cache_clear()
    try:
        with pytest.raises(ImageError, match="needs gcc, as, ld, not found here") as caught:
            guest("hello16").path()
    finally:
        build.tool_versions.cache_clear()
    assert caught.value.exit_status == 125
    assert not (tmp_path / "cache").exists()


def test_a_source_that_does_not_compile_is_named_with_its_line(tmp_path: Path) -> None:
    recipe = guest("debug-exit").recipe
    files = dict(guest("debug-exit").files())
    files["debug-exit/debug-exit.c"] += b"\nthis is no C\n"
    with pytest.raises(ImageError, match=r"building x\.elf: debug-exit/debug-exit\.c:\d+:\d+: error") as caught:
        build.build(recipe, files.items(), "x.elf", str(tmp_path))
    assert "\n" not in str(caught.value)


def test_the_key_follows_sources_flags_and_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, files = guest("hello16").recipe, guest("hello16").files()
    keys = {build.key(recipe, files, "a.bin"), build.key(recipe, files, "b.bin")}
    keys.add(build.key(recipe, files | {"hello16/hello16.S": b"nop"}, "a.bin"))
    with monkeypatch.context() as patched:
        patched.setattr(build, "tool_versions", lambda: ("gcc 99", "as 99", "ld 99"))
        keys.add(build.key(recipe, files, "a.bin"))
    assert len(keys) == 4
    assert build.key(recipe, dict(reversed(files.items())), "a.bin") in keys


def test_the_verb_lists_every_guest(capsys: pytest.CaptureFixture[str]) -> None:
    assert image.main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == guest_names() + image_names()


def test_the_verb_prints_one_path(capsys: pytest.CaptureFixture[str], cache: str) -> None:
    assert image.main(["path", "hello16"]) == 0
    output = capsys.readouterr()
    assert output.out == guest("hello16").path() + "\n"
    assert output.out.startswith(cache)
    assert output.err == ""


def test_the_verb_builds_and_shows_progress(capfd: pytest.CaptureFixture[str]) -> None:
    assert image.main(["build", "hello16", "hello64"]) == 0
    output = capfd.readouterr()
    assert output.out == ""
    lines = output.err.splitlines()
    assert lines[0] == f"pyvmm: image 1 of 2: {guest('hello16').path()}"
    assert lines[1].startswith("pyvmm: image 2 of 2: ")


def test_the_verb_knows_all_names_before_it_builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYVMM_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UsageError, match="there is no image 'hello17'"):
        image.main(["build", "hello16", "hello17"])
    assert not (tmp_path / "cache").exists()
