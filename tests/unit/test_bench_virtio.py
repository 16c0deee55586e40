"""The virtio benchmark's arithmetic: what it makes of the guest's lines, whom it compares, how each VMM starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import virtio
from bench.virtio import BLOCK, CONSOLE, NET, TESTS, Pyvmm, Qemu, Result, Samples, announcement, needed
from pyvmm.cli.configuration import make_config
from pyvmm.cli.options import parse
from pyvmm.cli.runoptions import RUN
from pyvmm.slots import slots

KHZ = 2_000_000


def result(rate: float) -> Result:
    """One whose guest did `rate` operations in a second."""
    return Result(f"end {rate:.0f} {KHZ * 1000} 0 0 0", KHZ, cpu=0.0)


class FakeSetting(virtio.Setting):
    """Nothing is built for it."""

    def __init__(self, transport: str = "mmio") -> None:
        self.transport = transport
        self.kernel, self.image, self.peer, self.socket, self.khz = "kernel", Path("image"), "peer", Path("net"), KHZ


def test_a_result_is_a_rate_and_shares_of_one_operation() -> None:
    found = Result(f"end 500 {KHZ * 250} 50 10 3", KHZ, cpu=0.01)  # a quarter of a second
    assert found.rate == pytest.approx(2000)
    assert found.cpu == pytest.approx(20e-6)
    assert (found.interrupts, found.notifications, found.lost) == (0.1, 0.02, 3)


def test_writes_to_a_console_count_when_their_text_has_arrived() -> None:
    line = "end 500 9 8 7 0"
    assert virtio.delivered("begin print:64:32", line, 500 * 64 + 1) == line
    assert virtio.delivered("begin print:64:32", line, 400 * 64) == "end 400 9 8 7 100"
    assert virtio.delivered("begin read:4096:1", line, 0) == line
    assert virtio.delivered("begin print:64:32", "end of it", 0) == "end of it"


def test_text_is_counted_however_it_is_cut_into_reads() -> None:
    said = b"begin print:64:2\\n" + (b"x" * 63 + b"\\n") * 700 + b"end 1000 9 8 7 0\\n"
    script = f"printf 'before\\n'; printf '{said.decode()}'; sleep 5"
    [(line, _)] = virtio.follow(["sh", "-c", script], 1, 4.0)
    assert line == "end 700 9 8 7 300"


def test_cpu_time_is_never_less_than_none() -> None:
    assert Result(f"end 10 {KHZ} 0 0 0", KHZ, cpu=-0.01).cpu == 0  # the vCPU's share comes in steps of 10 ms


def stat(user: int, system: int, in_guest: int) -> str:
    """A thread's line of proc(5), with so many ticks."""
    fields = ["0"] * 50
    fields[11], fields[12], fields[40] = str(user), str(system), str(in_guest)
    return f"7 (CPU 0/KVM (1)) {' '.join(fields)}\n"


def test_the_vcpu_is_the_thread_that_has_been_in_the_guest_or_else_the_busiest() -> None:
    main = stat(400, 100, 0)
    assert virtio.vcpu_cpu([main, stat(2, 8, 1), stat(3, 3, 0)]) == pytest.approx(10 / virtio.TICK)
    assert virtio.vcpu_cpu([stat(1, 1, 0), main, stat(3, 3, 0)]) == pytest.approx(500 / virtio.TICK)


@pytest.mark.parametrize("line", ["end", "end 1 2 3 4", "end 1 2 3 4 five", "end 1 2 3 4 5 6"])
def test_a_line_that_is_not_the_guests_ends_the_benchmark(line: str) -> None:
    with pytest.raises(SystemExit, match="five numbers"):
        Result(line, KHZ, 0.0)


def test_pyvmm_is_compared_with_the_better_of_qemus_modes_for_each_test() -> None:
    samples = Samples()
    for rate in (90, 100, 400):  # an outlier does not make a mode the better one
        samples.add("read:4096:1", "qemu threads", result(rate))
    for rate in (150, 200, 210):
        samples.add("read:4096:1", "qemu io_uring", result(rate))
    samples.add("read:4096:1", "pyvmm", result(50))
    assert samples.best("read:4096:1", "qemu") == "qemu io_uring"
    assert samples.ratio("read:4096:1") == pytest.approx(0.25)


def test_there_is_no_ratio_without_the_other_side() -> None:
    samples = Samples()
    samples.add("read:4096:1", "pyvmm", result(50))
    assert samples.ratio("read:4096:1") is None
    samples.add("write:4096:1", "qemu threads", result(50))
    assert samples.ratio("write:4096:1") is None


def test_the_table_has_a_line_for_each_contender_and_one_ratio_for_each_test() -> None:
    samples = Samples()
    samples.add("read:4096:1", "pyvmm", result(50))
    samples.add("read:4096:1", "qemu threads", result(100))
    _, mine, other = virtio.table(samples).splitlines()
    assert mine.split()[:2] == ["read:4096:1", "pyvmm"] and mine.endswith("  0.50")
    assert other.split()[:3] == ["read:4096:1", "qemu", "threads"]


def test_only_the_devices_that_the_tests_use_are_attached() -> None:
    assert needed(BLOCK[:1]) == ["block"]
    assert needed([*CONSOLE, *NET]) == ["net", "console"]
    assert needed(TESTS) == ["block", "net", "console"]


def test_the_guest_is_told_where_pyvmm_puts_its_devices() -> None:
    argv = Pyvmm().argv(FakeSetting(), "ms=1", ["block", "net", "console"])
    config = make_config(parse(RUN, argv[argv.index("run") + 1 :]))
    assert announcement(3) == " ".join(slot.word for slot in slots(config))
    assert announcement(3) in config.append


def test_qemu_gets_the_same_devices() -> None:
    argv = Qemu("qemu", "io_uring", TESTS).argv(FakeSetting(), "ms=1", ["block", "net", "console"])
    devices = [argv[at + 1].partition(",")[0] for at, word in enumerate(argv) if word == "-device"]
    assert devices[1:] == ["virtio-blk-device", "virtio-net-device", "virtio-serial-device", "virtconsole"]
    assert any("aio=io_uring" in word and "cache=writeback" in word for word in argv)


def test_over_pci_both_have_their_devices_there_and_the_guest_looks_for_them() -> None:
    setting = FakeSetting("pci")
    argv = Pyvmm().argv(setting, "ms=1", ["block", "net", "console"])
    config = make_config(parse(RUN, argv[argv.index("run") + 1 :]))
    assert config.transport == "pci" and "virtio_mmio" not in config.append
    argv = Qemu("qemu", "threads", TESTS).argv(setting, "ms=1", ["block", "net", "console"])
    assert "pcie=on" in argv[argv.index("-M") + 1]
    devices = [argv[at + 1] for at, word in enumerate(argv) if word == "-device"]
    names = [device.partition(",")[0] for device in devices[1:]]
    assert names == ["virtio-blk-pci", "virtio-net-pci", "virtio-serial-pci", "virtconsole"]
    assert all("disable-legacy=on" in device for device in devices[1:4])
    assert argv[argv.index("-append") + 1] == "ecam=0xe0000000 ms=1"


def test_every_test_fits_what_the_guest_can_do() -> None:
    for test in TESTS:
        _, size, depth, *_ = test.split(":")
        assert int(size) * int(depth) <= 4 << 20
        assert int(depth) <= virtio.QUEUE_SIZE


def test_a_guest_that_fails_is_started_again_and_told_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failures = [SystemExit("no end"), SystemExit("FAILED: lost")]

    def measure(*_: object) -> list[Result]:
        if failures:
            raise failures.pop()
        return [result(7)]

    monkeypatch.setattr(virtio, "measure", measure)
    (found,) = virtio.measured(FakeSetting(), Pyvmm(), ["read:4096:1"], 10)
    assert found.rate == pytest.approx(7)
    told = capsys.readouterr().err
    assert told.count("pyvmm, to be repeated: ") == 2 and "FAILED: lost" in told
    failures += [SystemExit("always")] * virtio.TRIES
    with pytest.raises(SystemExit, match="always"):
        virtio.measured(FakeSetting(), Pyvmm(), ["read:4096:1"], 10)
    assert not failures
