"""The share benchmark's arithmetic: what it makes of the guest's lines, how both VMMs get the same share and words."""

from __future__ import annotations

import os
import re
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from bench import share, virtio
from bench.contenders import ROOT
from bench.share import STREAMS, TESTS, Result, Samples, initramfs, pyvmm, qemu, ratio, table
from pyvmm.cli.configuration import make_config
from pyvmm.cli.options import parse
from pyvmm.cli.runoptions import RUN

SOURCE = ROOT / "bench" / "share_guest.c"


def result(rate: float) -> Result:
    """One whose guest did `rate` operations in a second."""
    return Result("stat", f"end stat {rate:.0f} 1000000000", cpu=0.0)


class FakeSetting(share.Setting):
    """Nothing is built for it."""

    def __init__(self) -> None:
        self.kernel, self.initrd, self.share = "kernel", Path("initrd"), Path("/shared")
        self.words = f"{share.WORDS} share_count=1"
        self.line = f"console=ttyS0 {self.words}"


def test_a_result_is_a_rate_and_a_share_of_the_cpu_time() -> None:
    found = Result("stat", "end stat 500 250000000", cpu=0.01)  # a quarter of a second
    assert found.rate == pytest.approx(2000)
    assert found.cpu == pytest.approx(20e-6)


@pytest.mark.parametrize("test", STREAMS)
def test_a_stream_has_a_rate_in_megabytes_and_the_cpu_time_of_one_request(test: str) -> None:
    size = int(test.partition(":")[2])
    found = Result(test, f"end {test} 40 500000000", cpu=0.02)
    assert found.rate == pytest.approx(80 * size / 1e6)
    assert found.cpu == pytest.approx(500e-6)


def test_small_requests_count_as_operations() -> None:
    assert Result("randread:4096", "end randread:4096 40 500000000", cpu=0.0).rate == pytest.approx(80)


def test_cpu_time_is_never_less_than_none() -> None:
    assert Result("stat", "end stat 10 1000", cpu=-0.01).cpu == 0  # the vCPU's share comes in steps of 10 ms


@pytest.mark.parametrize(
    "line", ["end", "end stat 1", "end stat 1 x", "end stat 1 2 3", "end open 1 2", "end stat 0 2", "end stat 1 0"]
)
def test_a_line_that_is_not_the_guests_ends_the_benchmark(line: str) -> None:
    with pytest.raises(SystemExit, match="expected `end stat`"):
        Result("stat", line, 0.0)


def test_the_lines_of_a_guest_are_taken_in_the_order_of_the_tests() -> None:
    said = [(f"end {test} 10 1000000000", 0.0) for test in TESTS]
    assert list(share.results(said)) == TESTS
    with pytest.raises(SystemExit, match="expected"):
        share.results(said[::-1])


def test_the_ratio_is_that_of_the_medians() -> None:
    samples: Samples = {"stat": {"pyvmm": [result(rate) for rate in (40, 50, 900)], "qemu": [result(100)]}}
    assert ratio(samples, "stat") == pytest.approx(0.5)


@pytest.mark.parametrize("alone", ["pyvmm", "qemu"])
def test_there_is_no_ratio_without_the_other_side(alone: str) -> None:
    assert ratio({"stat": {alone: [result(50)]}}, "stat") is None


def test_the_table_has_a_line_for_each_contender_and_one_ratio_for_each_test() -> None:
    _, mine, other = table({"stat": {"pyvmm": [result(50)], "qemu": [result(100)]}}).splitlines()
    assert mine.split()[:4] == ["stat", "ops/s", "pyvmm", "50.0"] and mine.endswith("  0.50")
    assert other.split()[:3] == ["stat", "ops/s", "qemu"] and not other.endswith("0.50")


def test_pyvmm_shares_the_directory_over_mmio() -> None:
    argv = pyvmm(FakeSetting())
    config = make_config(parse(RUN, argv[argv.index("run") + 1 :]))
    assert [(str(found.path), found.tag, found.readonly) for found in config.shares] == [("/shared", "host", False)]
    assert config.transport == "mmio" and config.mem == share.MEMORY << 20


def test_qemu_shares_the_same_directory_by_the_same_name_and_boots_the_same() -> None:
    setting = FakeSetting()
    argv = qemu("qemu", setting)
    options = dict(pairwise(argv))
    assert options["-device"] == "virtio-9p-device,fsdev=s,mount_tag=host"
    assert options["-fsdev"].startswith("local,id=s,path=/shared,security_model=")
    assert (options["-kernel"], options["-initrd"], options["-append"]) == ("kernel", "initrd", setting.line)
    assert options["-m"] == str(share.MEMORY)


@pytest.mark.parametrize(("user", "model"), [(0, "passthrough"), (1000, "mapped-xattr")])
def test_qemu_keeps_owners_as_pyvmm_does(monkeypatch: pytest.MonkeyPatch, user: int, model: str) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: user)
    assert any(word.endswith(f"security_model={model}") for word in qemu("qemu", FakeSetting()))


def test_the_initramfs_is_the_program_as_init() -> None:
    made = initramfs(b"the program")
    assert all(name in made for name in (b"init\0", b"dev/console\0", b"mnt\0", b"the program"))


def test_the_guest_makes_the_measurements_that_are_expected_in_their_order() -> None:
    main = SOURCE.read_text().partition("int main")[2]
    order = re.findall(r'(?:metadata|stream)\("([^"]+)"|(list|random_reads|synced_writes)\(', main)
    names = {"list": "list", "random_reads": "randread:4096", "synced_writes": "fsync:4096"}
    assert [name or names[other] for name, other in order] == TESTS


def guest_that_prints(text: str) -> list[str]:
    """A command in a VMM's place."""
    return [sys.executable, "-c", f"print({text!r})"]


def test_a_guest_is_followed_to_its_last_measurement() -> None:
    said = virtio.follow(guest_that_prints("noise\nbegin a\nend a 1 2\nbegin b\nend b 3 4\nmore"), 2, 30)
    assert [line for line, _ in said] == ["end a 1 2", "end b 3 4"]


@pytest.mark.parametrize(
    ("text", "message"),
    [("begin a\nend a 1 2", "it has ended, with 1 measurements of 2"), ("FAILED: mount: no", "FAILED: mount: no")],
)
def test_a_guest_that_does_not_get_there_ends_the_benchmark(text: str, message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        virtio.follow(guest_that_prints(text), 2, 30)


def test_a_guest_that_hangs_ends_the_benchmark() -> None:
    with pytest.raises(SystemExit, match=r"no end within 0\.05 s"):
        virtio.follow([sys.executable, "-c", "import time; time.sleep(30)"], 1, 0.05)
