"""The command around its verbs: help, versions, mistakes, closed descriptors, faults of pyvmm itself. No KVM."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

import pyvmm as package
from pyvmm.cli.configuration import make_config
from pyvmm.cli.ending import ReportFile
from pyvmm.cli.main import VERBS
from pyvmm.cli.options import parse
from pyvmm.cli.runoptions import RUN
from tests.support.cli import LIMIT, environment, pyvmm
from tests.support.madetraces import boot, write


def lines(stderr: bytes) -> list[str]:
    text = stderr.decode().splitlines()
    assert all(line.startswith("pyvmm:") for line in text), stderr
    return text


@pytest.fixture
def kernel(tmp_path):
    path = tmp_path / "kernel.bin"
    path.write_bytes(b"\xf4")
    return path


@pytest.mark.parametrize("arguments", [["--version"], ["run", "--version"]])
def test_version(arguments):
    done = pyvmm(*arguments)
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, f"pyvmm {package.__version__}\n", b"")


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_lists_the_verbs(flag):
    done = pyvmm(flag)
    assert done.returncode == 0 and done.stderr == b""
    assert all(f"  {verb} " in done.stdout.decode() for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb):
    done = pyvmm(verb, "--help")
    assert done.returncode == 0 and done.stderr == b""
    assert done.stdout.decode().startswith(f"usage: pyvmm {verb}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no verb given (expected run, doctor, image, ps, stop, "),
        (["boot"], "unknown verb 'boot'"),
        (["ru"], "unknown verb 'ru'"),
        (["run", "a", "b"], "one KERNEL expected, but there is also 'b'"),
        (
            ["run", "a", "--explain", "serial"],
            "there is also 'serial' (a value goes with its option as --explain=DEVICE",
        ),
        (["run", "--gdb", "1234", "a"], "there is also 'a' (a value goes with its option as --gdb=PORT"),
        (["run", "k", "--"], "no command after --"),
        (["run", "k", "--console", "stdio", "--", "ls"], "standard input and output are the command's"),
        (["run", "k", "--env", "NO_SUCH_NAME", "--", "ls"], "--env: NO_SUCH_NAME has no value here"),
        (["run", "k", "--env", "=x", "--", "ls"], "--env: '=x' has no name"),
        (["run", "k", "--user", "me"], "--user goes with a command in the guest (-- CMD)"),
        (["run", "k", "--memory", "1"], "unknown option --memory"),
        (["run", "k", "--mem"], "--mem needs a value"),
        (["run", "k", "--mem", "lots"], "--mem: 'lots' is not a size"),
        (["run", "k", "--mem", "1K"], "memory of 1K"),
        (["run", "k", "--cpus", "0"], "0 CPUs"),
        (["run", "k", "--console", "tcp:5"], "unknown console 'tcp:5'"),
        (["run", "k", "--report", "/nowhere/report"], "--report: there is no directory /nowhere"),
        (["run", "k", "--report", "/"], "--report: / is a directory"),
        (["run", "k", "--report", "/dev/null/x"], "--report: cannot write /dev/null/x: Not a directory"),
    ],
)
def test_wrong_usage_is_one_line_and_how_it_is_meant(arguments, message):
    done = pyvmm(*arguments)
    assert done.returncode == 2 and done.stdout == b""
    error, *usage = lines(done.stderr)
    assert error.startswith("pyvmm: error: ") and message in error
    assert len(usage) <= 1 and all("usage: pyvmm" in line for line in usage)
    assert usage or arguments[:1] != ["run"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["doctor", "--nonsense"], "unrecognized arguments: --nonsense (pyvmm doctor --help explains)"),
        (["doctor", "--js"], "unrecognized arguments: --js (pyvmm doctor --help explains)"),
        (["image"], "the following arguments are required: VERB (pyvmm image --help explains)"),
        (["image", "path"], "the following arguments are required: NAME (pyvmm image path --help explains)"),
    ],
)
def test_wrong_usage_of_the_other_verbs_is_one_line(arguments, message):
    done = pyvmm(*arguments)
    assert (done.returncode, done.stdout, lines(done.stderr)) == (2, b"", [f"pyvmm: error: {message}"])


def test_the_process_ends_with_its_verb_and_loses_nothing():
    """What atexit has is called, and what is written then, too, is written; modules are not taken apart."""
    script = (
        "import atexit, sys\nfrom pyvmm.cli.main import process\n"
        "class Last:\n    def __del__(self, write=sys.stderr.write): write('taken apart')\n"
        "sys.last = Last()\natexit.register(print, 'bye')\nsys.argv = ['pyvmm', '--version']\nprocess()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=LIMIT, env=environment())
    assert done.returncode == 0 and done.stderr == b""
    assert done.stdout.startswith(b"pyvmm ") and done.stdout.splitlines()[1:] == [b"bye"]


def test_a_kernel_that_is_not_there_is_127(tmp_path):
    """Even without KVM: the dry run loads and does not run."""
    done = pyvmm("run", tmp_path / "nothing", "--dry-run")
    assert done.returncode == 127
    assert len(lines(done.stderr)) == 1 and "nothing: " in done.stderr.decode()


def test_without_a_kernel_it_is_the_tiny_image(monkeypatch):
    """Its initrd comes along, unless another one is named."""
    monkeypatch.setattr("pyvmm.images.image", lambda name: SimpleNamespace(kernel=f"{name}/vmlinux", initrd="i.cpio"))
    for words, initrd in (([], "i.cpio"), (["--initrd", "mine"], "mine")):
        config = make_config(parse(RUN, ["--cpus", "2", *words]))
        assert (config.kernel, config.initrd, config.cpus) == ("tiny/vmlinux", initrd, 2)


def test_without_a_kernel_and_without_the_image(tmp_path):
    done = pyvmm("run", "--dry-run", env=environment() | {"PYVMM_CACHE": str(tmp_path)})
    assert done.returncode == 125
    message = "pyvmm: no KERNEL given, and the image tiny is not built yet: pyvmm image build tiny"
    assert lines(done.stderr) == [message]


@pytest.mark.parametrize(
    ("transport", "shown"),
    [("mmio", r"virtio device +0x00d0001000 GSI 6 +rng0"), ("pci", r"PCI device +00:02.0 GSI 18 +rng0")],
)
def test_a_dry_run_shows_where_virtio_devices_would_be(kernel, transport, shown):
    done = pyvmm("run", kernel, "--dry-run", "--disk", "never-opened", "--rng", "--transport", transport)
    assert done.returncode == 0 and re.search(shown, done.stdout.decode())


def test_a_dry_run_shows_what_would_be_where_and_needs_no_kvm(kernel):
    done = pyvmm("run", kernel, "--dry-run", "--mem", "64M", "--cpus", "3")
    assert done.returncode == 0 and done.stderr == b""
    text = done.stdout.decode()
    assert str(kernel) in text and "0x7c00 in 16-bit real mode" in text and "3 (host)" in text
    assert "0x03f8-0x03ff" in text and "serial" in text


def test_the_report_of_a_failed_start_says_so(tmp_path):
    report = tmp_path / "report.json"
    report.write_text("an older one")
    done = pyvmm("run", tmp_path / "nothing", "--dry-run", "--report", report)
    assert done.returncode == 127
    found = json.loads(report.read_text())
    assert found["reason"] == "error" and found["status"] == 127 and "nothing" in found["detail"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.json"]


def test_a_report_of_an_earlier_run_is_gone_from_the_start(tmp_path):
    path = tmp_path / "report"
    path.write_text("an older one")
    ReportFile(str(path))
    assert not path.exists()


@pytest.mark.parametrize("option", ["--report={}", "--console=file:{}"])
@pytest.mark.parametrize("name", ["kernel", "initrd", "link"])
def test_what_the_vm_is_made_of_is_not_overwritten(tmp_path, option, name):
    (tmp_path / "kernel").write_bytes(b"\xf4")
    (tmp_path / "initrd").write_bytes(b"a module")
    (tmp_path / "link").symlink_to("kernel")
    done = pyvmm("run", "kernel", "--initrd", "initrd", option.format(f"{tmp_path}/{name}"), cwd=tmp_path)
    assert done.returncode == 2
    assert b"is read by this VM and would be overwritten" in done.stderr
    assert (tmp_path / "kernel").read_bytes() == b"\xf4"
    assert (tmp_path / "initrd").read_bytes() == b"a module"


def test_a_report_goes_to_a_device_as_it_is(kernel):
    done = pyvmm("run", kernel, "--dry-run", "--report", "/dev/stderr")
    assert json.loads(done.stderr)["reason"] == "dry-run"
    assert os.path.exists("/dev/stderr")


@pytest.mark.needs("unprivileged")
def test_a_folder_that_may_not_be_written_is_known_before_anything_runs(tmp_path, kernel):
    tmp_path.chmod(0o555)
    done = pyvmm("run", kernel, "--report", tmp_path / "report")
    assert done.returncode == 2 and b"--report: cannot write in" in done.stderr


def test_output_into_a_closed_pipe_is_no_traceback():
    done = subprocess.run(
        f"'{sys.executable}' -m pyvmm run --help | true; exit ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        timeout=LIMIT,
        env=environment(),
    )
    assert done.stderr == b"" and done.returncode in (0, 141)  # `true` may be slow to close it


def test_a_terminal_without_unicode_gets_a_question_mark_and_any_name_of_a_file_comes_out_as_it_is(tmp_path):
    trace = write(tmp_path / "a.jsonl", boot(30))
    done = pyvmm("trace", "summary", trace, env=environment(PYTHONIOENCODING="ascii"))
    assert done.returncode == 0 and b" ?s " in done.stdout and done.stderr == b""
    folder = os.fsencode(tmp_path) + b"/\xff"
    done = pyvmm("lesson", "start", "1", os.fsdecode(folder), env=environment(PYTHONUTF8="1"))
    assert (done.returncode, done.stderr) == (0, b"") and done.stdout.startswith(folder + b"/")


def test_output_onto_a_full_disk_is_one_line():
    with open("/dev/full", "wb") as full:
        done = pyvmm("--help", stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 125
    assert lines(done.stderr) == ["pyvmm: standard output cannot be written: No space left on device"]


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_descriptors_are_not_taken_for_files(kernel, closed):
    done = subprocess.run(
        f"exec '{sys.executable}' -m pyvmm run '{kernel}' --dry-run {closed}",
        shell=True,
        capture_output=True,
        timeout=LIMIT,
        env=environment(),
    )
    assert done.returncode == 0
    assert (b"serial" in done.stdout) == (closed in ("<&-", "2>&-"))


def with_fault(statement: str, *arguments: str, **extra: str) -> subprocess.CompletedProcess[bytes]:
    """The command with a fault planted where the verb begins."""
    script = (
        "import sys\nfrom pyvmm.cli import run\nfrom pyvmm.cli.main import main\n"
        f"def fault(*_): {statement}\nrun.make_config = fault\n"
        f"sys.exit(main(['run', 'k', *{list(arguments)!r}]))"
    )
    return subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=LIMIT, env=environment(**extra))


def test_a_fault_of_pyvmm_is_one_line_and_125():
    done = with_fault("{}['x']")
    assert done.returncode == 125
    assert lines(done.stderr) == ["pyvmm: internal error: KeyError: 'x' (PYVMM_TRACEBACK=1 shows where)"]


@pytest.mark.parametrize("how", ["option", "environment"])
def test_a_fault_of_pyvmm_shows_its_traceback_when_asked(how):
    if how == "option":
        done = with_fault("{}['x']", "--log", "debug")
    else:
        done = with_fault("{}['x']", PYVMM_TRACEBACK="1")
    assert done.returncode == 125
    found = lines(done.stderr)
    assert "pyvmm: Traceback (most recent call last):" in found and found[-1] == "pyvmm: KeyError: 'x'"


def test_an_error_of_several_lines_is_prefixed_on_each():
    done = with_fault("from pyvmm.errors import LoadError; raise LoadError('k', 'one\\ntwo')")
    assert done.returncode == 127 and lines(done.stderr) == ["pyvmm: k: one", "pyvmm: two"]


def test_ctrl_c_in_a_verb_without_handlers_is_130():
    script = (
        "import sys, types, time, os\nfrom pyvmm.cli import main\n"
        "verb = types.ModuleType('pyvmm.cli.image')\n"
        "verb.main = lambda argv: (os.write(1, b'ready'), time.sleep(60))\n"
        "sys.modules['pyvmm.cli.image'] = verb\nsys.exit(main.main(['image']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    )
    assert process.stdout is not None and process.stdout.read(5) == b"ready"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, b"")


def test_help_costs_argparse_and_nothing_else_does(kernel):
    script = (
        "import sys\nfrom pyvmm.cli.main import main\n"
        f"main(['run', {str(kernel)!r}, '--dry-run', '--mem', 'nonsense'])\n"
        "assert 'argparse' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, env=environment(), timeout=LIMIT)
