"""Files that are put in their place when they are whole: what a name may lead to instead of a place."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pyvmm.cli.ending import ReportFile
from pyvmm.errors import BackendError, UsageError
from pyvmm.trace.convert import whole
from pyvmm.trace.recorder import Tracer
from pyvmm.trace.recording import Recording
from pyvmm.writing import place


def test_a_new_name_and_an_ordinary_file_are_places(tmp_path):
    (tmp_path / "file").touch()
    assert place(str(tmp_path / "new")) == (str(tmp_path / "new"), True)
    assert place(str(tmp_path / "file")) == (str(tmp_path / "file"), True)


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path):
    (tmp_path / "there").mkdir()
    for name in ("there/old", "there/new"):
        link = tmp_path / name.replace("/", "-")
        link.symlink_to(name)
        if name.endswith("old"):
            (tmp_path / name).write_text("old")
        whole(str(link), lambda file: file.write("text"))
        assert link.is_symlink() and (tmp_path / name).read_text() == "text"
    assert sorted(os.listdir(tmp_path / "there")) == ["new", "old"]


def test_a_pipe_and_a_device_are_written_to_as_they_are(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    assert place(str(tmp_path / "fifo")) == (str(tmp_path / "fifo"), False)
    assert place("/dev/null") == ("/dev/null", False)


WRITES = """
import sys
from pyvmm.cli.ending import ReportFile
from pyvmm.trace.convert import whole
whole("stdout", lambda file: file.write("page"))
ReportFile("stderr").write({})
"""


def test_standard_output_in_a_file_is_written_to_and_its_link_stays(tmp_path):
    """As root in /dev the link would be gone, for everybody."""
    for fd, name in ((1, "stdout"), (2, "stderr")):
        (tmp_path / name).symlink_to(f"/proc/self/fd/{fd}")
    with open(tmp_path / "out", "wb") as out, open(tmp_path / "err", "wb") as err:
        subprocess.run([sys.executable, "-c", WRITES], cwd=tmp_path, stdout=out, stderr=err, check=True, timeout=60)
    assert (tmp_path / "out").read_text() == "page" and (tmp_path / "err").read_text() == "{}\n"
    assert (tmp_path / "stdout").is_symlink() and (tmp_path / "stderr").is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["err", "out", "stderr", "stdout"]


def test_a_trace_is_not_recorded_over_standard_output(tmp_path):
    program = "from pyvmm.trace.recording import Recording; Recording('out', print)"
    with open(tmp_path / "out", "wb") as out:
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, stdout=out, stderr=subprocess.PIPE, timeout=60
        )
    assert b"out: a trace cannot be written there (expected the name of an ordinary file)" in done.stderr
    assert os.listdir(tmp_path) == ["out"]


def test_a_recording_follows_a_link_and_removes_only_itself(tmp_path):
    (tmp_path / "link").symlink_to("file")
    first = Recording(str(tmp_path / "link"), pytest.fail)
    second = Recording(str(tmp_path / "link"), pytest.fail)
    first.remove()
    assert (tmp_path / "file").exists() and (tmp_path / "link").is_symlink()
    second.remove()
    assert os.listdir(tmp_path) == ["link"]
    for recording in (first, second):
        recording.stop()
        recording.close()


@pytest.mark.needs("unprivileged")
def test_a_file_that_may_not_be_written_is_not_replaced(tmp_path):
    path = tmp_path / "file"
    path.write_text("kept")
    path.chmod(0o444)
    with pytest.raises(BackendError, match="file cannot be written: Permission denied"):
        whole(str(path), lambda file: file.write("new"))
    with pytest.raises(BackendError, match="file cannot be written: Permission denied"):
        Recording(str(path), pytest.fail)
    with pytest.raises(UsageError, match="--report: cannot write .*file: Permission denied"):
        ReportFile(str(path))
    assert path.read_text() == "kept" and os.listdir(tmp_path) == ["file"]


def test_a_trace_for_which_there_was_no_room_at_all_leaves_no_file(tmp_path):
    told: list[str] = []
    tracer = Tracer(str(tmp_path / "a.jsonl"), told.append, limit=1)
    tracer._header = True
    tracer.record("phase", name="loaded")
    tracer.close()
    assert os.listdir(tmp_path) == [] and len(told) == 1 and "a.jsonl: the trace has the 0 MiB" in told[0]


def test_a_recording_that_cannot_have_its_name_leaves_nothing(tmp_path, monkeypatch):
    def refused(old, new):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "rename", refused)
    with pytest.raises(BackendError, match="Operation not permitted"):
        Recording(str(tmp_path / "file"), pytest.fail)
    assert os.listdir(tmp_path) == []
