"""What the commands that look at traces say to what is none: one line that names the file, and the right status."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from pyvmm.cli.main import main
from pyvmm.errors import STATUS_NOT_LOADABLE, STATUS_USAGE, STATUS_VMM_ERROR
from pyvmm.trace import spool
from tests.support.cli import NOT_IGNORED, environment, pyvmm
from tests.support.madetraces import HEADER, boot, write

COMMANDS = (["summary"], ["view", "--print"], ["html"])
BAD = {
    "empty": b"",
    "text": b"Hello, I am no trace\n",
    "binary": bytes(range(256)) * 40,
    "other JSON": b'{"kind": "exit"}\n',
    "a list": b"[1, 2, 3]\n",
    "a number": b"7\n",
    "deep": b"[" * 200_000,
    "newer": json.dumps(HEADER | {"format": 2}).encode() + b"\n",
    "no header": b'{"kind": "exit", "t": 1}\n{"kind": "end", "t": 2}\n',
    "damaged within": json.dumps(HEADER).encode() + b'\n{"kind": "exit", \n{"kind": "end"}\n',
    "deep within": json.dumps(HEADER).encode() + b"\n" + b'{"a":' * 100_000 + b"\n{}\n",
}


def command(words, path, tmp_path):
    return pyvmm("trace", *words, path, *([tmp_path / "out.html"] if words == ["html"] else []))


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
@pytest.mark.parametrize("name", BAD)
def test_what_is_no_trace_is_said_in_a_line(words, name, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(BAD[name])
    done = command(words, path, tmp_path)
    lines = done.stderr.decode().splitlines()
    assert done.returncode == STATUS_NOT_LOADABLE, lines
    assert len(lines) == 1 and str(path) in lines[0] and "Traceback" not in lines[0]
    assert not (tmp_path / "out.html").exists() and sorted(one.name for one in tmp_path.iterdir()) == ["bad.jsonl"]


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
def test_a_line_that_a_killed_process_left_half_written_is_left_out(words, tmp_path):
    path = write(tmp_path / "cut.jsonl", boot(30))
    path.write_bytes(path.read_bytes()[:-25])
    done = command(words, path, tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    if words == ["summary"]:
        assert b"no end: the process that wrote it was killed" in done.stdout


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
def test_a_directory_and_a_file_that_is_not_there(words, tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        done = command(words, path, tmp_path)
        assert done.returncode == STATUS_NOT_LOADABLE and done.stderr.count(b"\n") == 1
        assert str(path).encode() in done.stderr


@pytest.mark.needs("unprivileged")
@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
def test_a_file_that_may_not_be_read(words, tmp_path):
    path = write(tmp_path / "secret.jsonl", boot(3))
    path.chmod(0)
    done = command(words, path, tmp_path)
    assert done.returncode == STATUS_NOT_LOADABLE and b"Permission denied" in done.stderr


def test_a_page_is_not_written_over_its_own_trace(tmp_path):
    path = write(tmp_path / "t.jsonl", boot(3))
    before = path.read_bytes()
    (tmp_path / "link").symlink_to(path)
    for target in (path, tmp_path / "link"):
        done = pyvmm("trace", "html", path, target)
        assert done.returncode == STATUS_USAGE and b"would overwrite the trace" in done.stderr
    assert path.read_bytes() == before


def test_a_page_that_cannot_be_written_leaves_nothing(tmp_path):
    path = write(tmp_path / "t.jsonl", boot(3))
    done = pyvmm("trace", "html", path, tmp_path)
    assert done.returncode == STATUS_USAGE and b"is a directory" in done.stderr
    done = pyvmm("trace", "html", path, tmp_path / "no" / "where.html")
    assert done.returncode == STATUS_VMM_ERROR and b"cannot be written: No such file" in done.stderr
    assert [one.name for one in tmp_path.iterdir()] == ["t.jsonl"]


@pytest.mark.parametrize("number", NOT_IGNORED)
@pytest.mark.parametrize("words", [["html"], ["convert"]], ids=" ".join)
def test_a_signal_leaves_no_half_of_a_file(words, number, tmp_path):
    """While the records are read, whose end does not come."""
    path = write(tmp_path / "a.jsonl", boot(2))
    program = (
        "import sys, time, pyvmm.trace.reader as reader\n"
        "def endless(trace, records=reader.Trace.records):\n"
        "    yield from records(trace)\n"
        "    print('reading', flush=True)\n"
        "    time.sleep(60)\n"
        "reader.Trace.records = endless\n"
        "from pyvmm.cli.main import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", program, "trace", *words, str(path), str(tmp_path / "out.json")]
    running = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert running.stdout is not None and running.stdout.readline() == b"reading\n"
    running.send_signal(number)
    assert running.communicate(timeout=60) == (b"", b"") and running.returncode == 128 + number
    assert os.listdir(tmp_path) == ["a.jsonl"]


def test_a_page_replaces_an_older_one_and_goes_down_a_pipe(tmp_path):
    path, page = write(tmp_path / "t.jsonl", boot(3)), tmp_path / "p.html"
    page.write_text("old")
    assert pyvmm("trace", "html", path, page).returncode == 0
    assert page.read_text().startswith("<!DOCTYPE html>")
    done = pyvmm("trace", "html", path, "/dev/stdout")
    assert done.stdout.startswith(b"<!DOCTYPE html>") and done.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--from", "soon"], "'soon' is not a time in the trace (expected 1.5s, 20ms, 300us)"),
        (["--to", "-1s"], "is not a time"),
        (["--to", "1e999s"], "is not a time"),
        (["--from", "nan"], "is not a time"),
        (["--vcpu", "first"], "vCPU 'first' (expected a number)"),
    ],
)
def test_a_filter_that_cannot_be_meant(arguments, said, tmp_path):
    path = write(tmp_path / "t.jsonl", boot(3))
    done = pyvmm("trace", "view", "--print", *[f"{arguments[0]}={arguments[1]}"], path)
    assert done.returncode == STATUS_USAGE and said in done.stderr.decode() and done.stderr.count(b"\n") == 1


def test_without_a_terminal_the_browser_says_what_to_do(tmp_path):
    done = pyvmm("trace", "view", write(tmp_path / "t.jsonl", boot(3)))
    assert done.returncode == STATUS_USAGE and done.stderr.count(b"\n") == 1
    assert b"needs a terminal; --print" in done.stderr


ODD = {
    "an exit that says nothing": {"kind": "exit"},
    "fields of other kinds": {"kind": "exit", "t": "x", "vcpu": "y", "reason": [1], "at": {}, "data": "zz"},
    "numbers beyond all": {"kind": "exit", "t": 1e300, "vcpu": 1e308, "reason": "IO", "at": 1e30, "size": -1},
    "a device of no kind": {"kind": "exit", "device": ["serial"], "at": 1, "t": 1, "vcpu": 0, "reason": "IO"},
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize(
    "words", [["diff"], ["replay"], ["replay", "--device", "serial"], ["summary"], ["explain"]], ids=" ".join
)
def test_a_record_that_makes_no_sense_is_no_fault_of_pyvmm(words, name, tmp_path):
    good, odd = write(tmp_path / "good.jsonl", boot(3)), write(tmp_path / "odd.jsonl", [ODD[name]])
    done = pyvmm("trace", *words, odd, *([good] if words == ["diff"] else []))
    assert done.returncode in (0, 1, STATUS_USAGE, STATUS_NOT_LOADABLE) and b"internal error" not in done.stderr
    assert done.stderr.count(b"\n") <= 1


def test_the_comparison_cannot_steer_a_terminal(tmp_path):
    odd = {"kind": "exit", "t": 1, "vcpu": 0, "reason": "IO", "space": "pio", "at": 1, "size": 1, "count": 1}
    path = write(tmp_path / "odd.jsonl", [{**odd, "write": True, "data": "00", "words": "\x1b[2J", "device": "a\nb"}])
    done = pyvmm("trace", "diff", path, write(tmp_path / "good.jsonl", []))
    assert done.returncode == 1 and b"\x1b" not in done.stdout and b"\\x1b[2J" in done.stdout


def test_a_device_that_neither_trace_knows_is_no_comparison(tmp_path):
    path = write(tmp_path / "a.jsonl", boot(3))
    done = pyvmm("trace", "diff", path, path, "--device", "seriel")
    assert done.returncode == STATUS_USAGE and b"has an access of a device 'seriel'" in done.stderr


def test_a_recording_of_another_version_is_called_so(tmp_path):
    path = tmp_path / "old.trace"
    path.write_bytes(b"PYVMMTR0" + bytes(4096))
    done = pyvmm("trace", "summary", path)
    assert done.returncode == STATUS_NOT_LOADABLE and b"was recorded by another version of pyvmm" in done.stderr


@pytest.mark.parametrize(
    "text", [b'{"kind": "device"}', b'{"kind": "device", "space": "pio", "base": 1}', b"[]", b"{}", b"[" * 9999]
)
def test_a_recording_whose_text_makes_no_sense_is_told_in_a_line(text, tmp_path):
    chunks = bytearray()
    for data in (json.dumps(HEADER).encode(), text):
        chunks += spool.RECORD.pack(spool.TEXT, 0, 0, 0, len(data), 1, 0, 0, 0, 0, 0, 0)
        chunks += data.ljust(spool.trailing(len(data)), b"\0")
    length = spool.CHUNK.size + len(chunks) + spool.SIZE
    head = spool.CHUNK.pack(spool.MAGIC, length, spool.EVENTS, 0)
    path = tmp_path / "odd.trace"
    path.write_bytes(head + chunks + bytes(spool.SIZE))
    done = pyvmm("trace", "view", "--print", path)
    assert b"internal error" not in done.stderr
    if b"device" in text:
        assert done.returncode == STATUS_NOT_LOADABLE and b"'device' that makes no sense" in done.stderr
    else:
        assert done.returncode == 0 and b"damaged" in done.stdout


UNWRITTEN = {
    "an access without more": {"kind": "exit", "space": "pio"},
    "words for numbers": {"vcpu": "x", "at": "y", "t": "z", "run": "a", "handle": [], "size": {}, "count": None},
    "no text": {"device": [1], "register": {}, "reason": 7, "write": "yes"},
    "enormous numbers": {"at": 10**400, "vcpu": -1, "t": 1.5, "run": 10**400},
    "a queue": {"kind": "queue", "depth": "deep"},
    "an interrupt": {"kind": "interrupt"},
    "a state": {"kind": "lifecycle", "state": ["running"]},
}
"""What no recorder writes: other fields of an access, or another record."""


@pytest.mark.parametrize("name", UNWRITTEN)
def test_a_record_that_no_recorder_writes_is_converted_as_far_as_it_says_something(name, tmp_path):
    lines = write(tmp_path / "good.jsonl", boot(3)).read_text().splitlines()
    access = next(found for found in map(json.loads, lines) if "space" in found)
    odd = UNWRITTEN[name] if "kind" in UNWRITTEN[name] else access | UNWRITTEN[name]
    path, out = tmp_path / "odd.jsonl", tmp_path / "out.json"
    path.write_text("\n".join([*lines, json.dumps(odd)]) + "\n")
    assert main(["trace", "convert", str(path), str(out)]) == 0
    events = json.loads(out.read_text())["traceEvents"]
    assert all(type(event[key]) in (int, float) for event in events for key in ("ts", "dur", "tid") if key in event)
    assert [one["args"]["record"] for one in events if "record" in one.get("args", {})][-1] == odd


def test_a_header_with_a_host_of_processors_makes_no_endless_file(tmp_path):
    path, out = tmp_path / "many.jsonl", tmp_path / "out.json"
    path.write_text(json.dumps(HEADER | {"cpus": 1 << 60}) + "\n")
    assert main(["trace", "convert", str(path), str(out)]) == 0
    assert len(out.read_text().splitlines()) < 2000
