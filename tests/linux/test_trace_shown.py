"""What is shown of a boot of Linux: summary, lines and page say what it spent its exits on."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from pyvmm.trace.fields import WIDTH, kind
from pyvmm.trace.reader import read
from tests.support import chromium
from tests.support.cli import pyvmm
from tests.support.linux import LIMIT

pytestmark = [
    pytest.mark.needs("kvm", "tiny-image"),
    pytest.mark.serial,
    pytest.mark.timeout(2 * LIMIT),
]


@pytest.fixture(scope="module")
def exits(traced_boot):
    return [record for record in read(traced_boot.path).records() if record["kind"] == "exit"]


@pytest.fixture(scope="module")
def data(traced_boot):
    return json.loads(pyvmm("trace", "summary", "--json", traced_boot.path, timeout=LIMIT).stdout)


def test_the_summary_names_what_the_boot_spent_its_exits_on(traced_boot, exits):
    done = pyvmm("trace", "summary", traced_boot.path, timeout=LIMIT)
    assert (done.returncode, done.stderr) == (0, b"")
    lines = done.stdout.decode().splitlines()
    assert max(map(len, lines)) <= WIDTH
    first = " ".join(lines[:4])
    assert first.startswith(f"Of {len(exits):,} exits, ") and "went to the serial port (mostly " in first
    assert "THR writes" in first and "inside KVM_RUN" in first
    text = "\n".join(lines)
    for cost in ("serial", "pci", "rtc", "blk0", "rng0", "first output", "init", "insn_emulation"):
        assert cost in text


def test_every_kind_of_exit_worth_naming_is_in_the_first_sentence(data):
    from pyvmm.trace.look.headline import TOLD, WORTH, in_words

    total = data["exits"]["count"]
    for name, cost in list(data["devices"].items())[:TOLD]:
        assert cost["count"] < WORTH * total or in_words(name) in data["headline"]


def test_the_figures_are_the_trace_s(data, exits):
    assert {name: cost["count"] for name, cost in data["devices"].items()} == Counter(map(kind, exits))
    assert data["exits"]["c"] == sum(record["by"] == "c" for record in exits) > len(exits) / 2
    assert data["vcpus"]["0"]["run"] == sum(record["run"] for record in exits if record["vcpu"] == 0)
    assert data["lost"] == 0 and data["end"] == {"reason": "power-off", "status": 0}
    disk = next(queue for queue in data["queues"] if queue["device"] == "blk0")
    assert disk["requests"] > 0 and disk["deepest"] > 0 and disk["latency"]["p50"] > 0
    assert data["kvm"]


def test_lines_are_found_by_device_register_and_words(traced_boot, exits):
    done = pyvmm("trace", "view", "--print", "--device=serial", "--register=LCR", traced_boot.path, timeout=LIMIT)
    assert len(done.stdout.splitlines()) == sum(record.get("register") == "LCR" for record in exits) > 0
    done = pyvmm("trace", "view", "--print", "--kind=phase", "--text=init", traced_boot.path, timeout=LIMIT)
    assert done.stdout.count(b"\n") == 1


@pytest.mark.needs("chromium")
def test_the_page_answers_it_in_a_browser(traced_boot, exits, tmp_path):
    page = tmp_path / "boot.html"
    assert pyvmm("trace", "html", traced_boot.path, page, timeout=LIMIT).returncode == 0
    shown, console = chromium.dom(page)
    assert console == [] and f'data-drawn="{len(exits)}"' in shown
    top = shown[: shown.index("Over time")]
    assert f"Of {len(exits):,} exits, " in top and "went to the serial port" in top
    bars = top[top.index("Where the exits went") :]
    commonest = [name for name, _count in Counter(map(kind, exits)).most_common(2)]
    assert commonest[0] == "serial" and bars.index("the serial port") < bars.index("PCI configuration space")
    assert "THR" in bars and "first output" in shown and "blk0 queue 0" in shown
    assert chromium.picture(page, tmp_path / "boot.png").startswith(b"\x89PNG")
