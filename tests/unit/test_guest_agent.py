"""pyvmm-agent itself, with the sanitizers, as a process of this host: both its protocols, and what breaks them."""

from __future__ import annotations

import json
import os
import pwd
import random
import struct
import time

import pytest

from pyvmm.errors import GuestAgentError, TimeLimitError, UsageError
from pyvmm.guest import frames
from pyvmm.guest.session import Guest
from tests.support.agent import HostAgent, remove

pytestmark = pytest.mark.needs("gcc")


@pytest.fixture(scope="module", autouse=True)
def cleaned():
    yield
    remove()


@pytest.fixture
def host():
    agent = HostAgent()
    yield agent
    agent.close()


@pytest.fixture
def guest(host):
    guest = Guest(host.agent, host.exec)
    guest.wait_ready(10)
    return guest


def ask(host, line):
    """The answer to one line."""
    host.agent.send(line + b"\n")
    reply = b""
    while not reply.endswith(b"\n"):
        piece = host.agent.recv(1 << 16, 10)
        assert piece, "the agent is gone"
        reply += piece
    return json.loads(reply)


def test_it_says_who_it_is(guest):
    assert guest.own
    info = guest.agent.info()
    assert info["version"].startswith("pyvmm")
    assert "guest-exec" in [command["name"] for command in info["supported_commands"]]


def test_a_commands_output_and_status_come_back(guest):
    done = guest.exec(["sh", "-c", "echo out; echo err >&2; exit 7"])
    assert (done.returncode, done.stdout, done.stderr) == (7, b"out\n", b"err\n")
    assert guest.exec(["sh", "-c", "kill -9 $$"]).returncode == -9
    with pytest.raises(GuestAgentError, match="sh in the guest ended with status 7: err"):
        done.check()


def test_megabytes_pass_through_a_command_unchanged(guest):
    data = random.Random(1).randbytes(3 << 20)
    assert guest.exec(["cat"], input=data).stdout == data


def test_one_stream_that_nobody_reads_stops_no_other_command(guest):
    with guest.popen(["sh", "-c", "while :; do echo flood; done"]) as flood:
        time.sleep(0.1)
        assert guest.exec(["echo", "still here"]).stdout == b"still here\n"
        assert flood.stdout.read(12) == b"flood\nflood\n"


def test_input_that_is_not_wanted_is_a_broken_pipe(guest):
    with guest.popen(["sh", "-c", "exec <&-; echo closed; sleep 100"]) as process:
        assert process.stdout.readline() == b"closed\n"
        with pytest.raises(BrokenPipeError):
            for _ in range(100):
                process.stdin.write(bytes(4096))
                time.sleep(0.001)


def test_a_signal_reaches_the_command_and_all_that_it_started(guest):
    with guest.popen(["sh", "-c", "sleep 100 & echo go; wait"]) as process:
        assert process.stdout.readline() == b"go\n"
        process.terminate()
        assert process.wait(10) == -15
        assert process.stdout.read() == b""  # the sleep has gone too


def test_a_terminal_has_a_size_and_control_c(guest):
    with guest.popen(["sh", "-c", "stty size; read x; stty size; sleep 100"], terminal=(33, 101)) as process:
        assert process.stdout.readline() == b"33 101\r\n"
        process.resize(44, 55)
        process.stdin.write(b"x\n")
        assert process.stdout.readline() == b"x\r\n"
        assert process.stdout.readline() == b"44 55\r\n"
        for _ in range(20):  # one that comes while the shell starts its program may be lost on it
            process.stdin.write(b"\x03")
            try:
                assert process.wait(0.5) == -2
                break
            except TimeLimitError:
                pass
        assert process.wait(1) == -2


def test_what_cannot_be_run_says_why(guest, tmp_path):
    with pytest.raises(GuestAgentError, match="No such file") as caught:
        guest.exec([str(tmp_path / "nothing")])
    assert caught.value.errno == 2
    with pytest.raises(GuestAgentError, match="Permission denied"):
        guest.exec([str(tmp_path)])
    with pytest.raises(GuestAgentError, match="its folder: No such file"):
        guest.exec(["true"], cwd="/nothing")
    with pytest.raises(GuestAgentError, match="its user"):
        guest.exec(["true"], user="nobody-of-that-name")
    with pytest.raises(UsageError, match="NUL"):
        guest.exec(["a\0b"])
    with pytest.raises(UsageError, match="a list of words"):
        guest.exec("ls")
    assert guest.exec(["true"]).returncode == 0


def test_variables_are_added_and_the_folder_is_changed(guest):
    done = guest.exec(["sh", "-c", "echo $A; pwd; echo ${PATH:+path}"], env={"A": "b c"}, cwd="/usr")
    assert done.stdout == b"b c\n/usr\npath\n"


@pytest.mark.needs("root")
def test_another_user_has_a_home(guest):
    line = "id -un; echo $HOME"
    home = pwd.getpwnam("nobody").pw_dir
    assert guest.exec(["sh", "-c", line], user="nobody").text == f"nobody\n{home}\n"
    assert guest.exec(["sh", "-c", line], user="nobody", env={"HOME": "/x"}).text == "nobody\n/x\n"
    assert guest.exec(["sh", "-c", "id -u; echo $HOME"], user="54321", env={"A": "b"}).text == "54321\n\n"


def test_time_over_kills_the_command(guest):
    with pytest.raises(TimeLimitError, match=r"sleep in the guest did not end within 0\.1 s"):
        guest.exec(["sleep", "100"], timeout=0.1)
    for _ in range(20):  # more than there is room for at a time
        assert guest.exec(["true"]).returncode == 0


def test_more_commands_than_there_is_room_for(guest):
    running = [guest.popen(["sleep", "100"]) for _ in range(8)]
    with pytest.raises(UsageError, match="8 commands run"):
        guest.popen(["true"])
    for process in running:
        process.close()
    assert guest.exec(["true"]).returncode == 0


def test_who_comes_next_finds_a_clean_table(host, guest):
    left = guest.popen(["sleep", "100"])
    host.exec.send(frames.frame(frames.HELLO, data=b"somebody else"))
    deadline = time.monotonic() + 10
    while os.path.exists(f"/proc/{left.pid}"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    guest.agent.ping()


def test_the_json_protocol_runs_commands_too(guest):
    done = guest.agent.exec(["sh", "-c", "cat; echo err >&2; exit 3"], input=b"data", env={"A": "b"}, cwd="/tmp")
    assert (done.returncode, done.stdout, done.stderr) == (3, b"data", b"err\n")
    big = random.Random(2).randbytes(500 << 10)
    assert guest.agent.exec(["cat"], input=big).stdout == big
    with pytest.raises(GuestAgentError, match="wrote more than the 524288 bytes that its agent keeps"):
        guest.agent.exec(["head", "-c", "600000", "/dev/zero"])
    with pytest.raises(TimeLimitError):
        guest.agent.exec(["sleep", "100"], timeout=0.05)
    with pytest.raises(GuestAgentError, match="takes 524288"):
        guest.agent.exec(["cat"], input=bytes(524289))


def test_files_are_pushed_and_pulled(guest, tmp_path):
    data = random.Random(3).randbytes(700_001)
    local, remote, back = (tmp_path / name for name in ("local", "remote", "back"))
    local.write_bytes(data)
    local.chmod(0o755)
    guest.push(local, str(remote))
    assert remote.read_bytes() == data and os.access(remote, os.X_OK)
    guest.pull(str(remote), back)
    assert back.read_bytes() == data
    with pytest.raises(GuestAgentError, match="No such file"):
        guest.pull("/nothing", back)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "local", "remote"]


def test_seeking_and_modes(host, tmp_path):
    path = tmp_path / "file"

    def call(command, **arguments):
        return ask(host, json.dumps({"execute": command, "arguments": arguments}).encode())

    handle = call("guest-file-open", path=str(path), mode="w+")["return"]
    assert call("guest-file-write", **{"handle": handle, "buf-b64": "aGVsbG8="})["return"]["count"] == 5
    assert call("guest-file-seek", handle=handle, offset=1, whence="set")["return"]["position"] == 1
    assert call("guest-file-read", handle=handle, count=3)["return"] == {"count": 3, "buf-b64": "ZWxs", "eof": False}
    assert call("guest-file-seek", handle=handle, offset=0, whence=2)["return"]["position"] == 5
    assert call("guest-file-read", handle=handle)["return"]["eof"]
    assert call("guest-file-flush", handle=handle) == {"return": {}}
    assert call("guest-file-close", handle=handle) == {"return": {}}
    assert "error" in call("guest-file-close", handle=handle)
    assert "error" in call("guest-file-open", path=str(path), mode="x")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"{", "expected a member's name"),
        (b"[1,]", "expected a value"),
        (b'"abc', "a string does not end"),
        (b'{"execute": "a\\u0000"}', "a bad escape"),
        (b"[" * 40, "nested too deeply"),
        (b"[" + b"0," * 5000 + b"0]", "too many values"),
        (b"1 2", "something follows"),
        (b"{}", "expected an object with execute"),
        (b'{"execute": "guest-nothing"}', "unknown command guest-nothing"),
        (b'{"execute": "guest-set-time", "arguments": {"time": 1e3}}', "expected an integer: time"),
        (b'{"execute": "guest-set-time", "arguments": {"time": 99999999999999999999}}', "expected an integer: time"),
        (b'{"execute": "guest-exec", "arguments": {"path": "a", "arg": [1]}}', "expected a list of strings: arg"),
        (b'{"execute": "guest-exec", "arguments": {"path": "a", "input-data": "?"}}', "not base64"),
        (b'{"execute": "guest-exec-status", "arguments": {"pid": 1}}', "there is no such process"),
        (b'{"execute": "guest-file-read", "arguments": {"handle": 17}}', "there is no such file"),
        (b'{"execute": "guest-shutdown", "arguments": {"mode": "explode"}}', "expected powerdown, reboot or halt"),
        (b'{"execute": "\xc3\xa4\\n\\ud83d\\ude00"}', "unknown command \xe4\\u000a\U0001f600"),
        (b'{"execute": "' + b"x" * (1 << 20) + b'"}', "the request is too long"),
    ],
)
def test_bad_requests_get_an_answer_and_the_next_is_good(host, line, said):
    assert said.replace("\\u000a", "\n") in ask(host, line)["error"]["desc"]
    assert ask(host, b'{"execute": "guest-ping"}') == {"return": {}}


def test_a_sync_passes_over_half_a_request(host, guest):
    host.agent.send(b'{"execute": "guest-exec", "argum')
    guest.agent.sync(5)
    guest.agent.ping()


def random_request(rng):
    good = [
        b'{"execute": "guest-ping"}',
        b'{"execute": "guest-file-read", "arguments": {"handle": 1, "count": 10}}',
        b'{"execute": "guest-sync", "arguments": {"id": 1}}',
        b'{"execute": "guest-exec-status", "arguments": {"pid": 12, "x": [1, {"y": "\\u00e4\\n"}]}}',
        b'{"execute": "guest-file-write", "arguments": {"handle": 3, "buf-b64": "aGVsbG8="}}',
    ]
    if rng.random() < 0.2:
        return rng.randbytes(rng.randrange(100))
    line = bytearray(rng.choice(good))
    for _ in range(rng.randrange(4)):
        at = rng.randrange(len(line))
        how = rng.randrange(3)
        if how == 0:
            line[at] = rng.randrange(256)
        elif how == 1:
            del line[at : at + rng.randrange(1, 5)]
        else:
            line[at:at] = rng.choice([b'"', b"\\u", b"{", b"[", b"}", b"\xff", b"-", b"99999999999999999999"])
        if not line:
            break
    return bytes(line)


@pytest.mark.parametrize("rounds", [3000, pytest.param(300_000, marks=[pytest.mark.soak, pytest.mark.timeout(1800)])])
def test_random_requests_never_end_it(host, guest, rounds):
    rng = random.Random(4)
    for _ in range(0, rounds, 100):
        host.agent.send(b"".join(random_request(rng) + b"\n" for _ in range(100)))
        guest.agent.sync(20)
        assert host.process.poll() is None
    guest.agent.ping()


@pytest.mark.parametrize("rounds", [1000, pytest.param(100_000, marks=[pytest.mark.soak, pytest.mark.timeout(1800)])])
def test_random_frames_never_end_it(host, rounds):
    rng = random.Random(5)
    for _ in range(rounds):
        kind = rng.choice([0, 1, 2, 4, 4, 5, 6, 7, 8, 9, 9, 200])
        data = rng.randbytes(rng.choice([0, 1, 4, 8, 20, 300]))
        if kind == frames.START and rng.random() < 0.8:
            words = b"".join(rng.choice([b"", b"/", b"true", b"cat", b"A=b", b"nobody"]) + b"\0" for _ in range(5))
            data = struct.pack("<HHHHII", rng.randrange(2), 3, 4, 0, rng.randrange(4), rng.randrange(3)) + words
        length = len(data) if rng.random() < 0.99 else rng.choice([1 << 20, 0xFFFFFFFF])
        host.exec.send(frames.HEADER.pack(kind, rng.randrange(4), rng.randrange(4), length) + data)
        try:
            while host.exec.recv(65536, 0):
                pass
        except TimeLimitError:
            pass
    assert host.process.poll() is None
    host.exec.send(bytes(200_000))  # the end of whatever frame it may wait for
    guest = Guest(host.agent, host.exec)
    guest.agent.ping()


def test_mounts_and_roots_that_cannot_be_say_why(guest, tmp_path):
    folder = tmp_path / "a/b"
    guest.mount("", str(folder), "")  # no type: the folder and nothing else
    assert folder.is_dir()
    (tmp_path / "file").touch()
    for target, type, said in [
        (tmp_path / "file", "", "have the folder .*/file: Not a directory"),
        (tmp_path / "file/folder", "", "Not a directory"),
        (folder, "no-such-type", "mount no-such-type on .*/b: (No such device|Operation not permitted)"),
    ]:
        with pytest.raises(GuestAgentError, match=f"the guest could not .*{said}") as caught:
            guest.mount("", str(target), type)
        assert caught.value.errno
    with pytest.raises(GuestAgentError, match="its root file system: No such file") as caught:
        guest.change_root(str(tmp_path / "nothing"))
    assert caught.value.errno == 2
    for words in (("a\0b", "/", "t"), ("a", "/" * 200_000, "t")):
        with pytest.raises(UsageError, match="expected paths"):
            guest.mount(*words)
    assert guest.exec(["true"]).returncode == 0


@pytest.mark.parametrize("kind", [frames.MOUNT, frames.ROOT])
@pytest.mark.parametrize("data", [b"", b"\0\0\0\0", b"\0\0\0\0a", b"\0\0\0\0a\0b\0c\0"])
def test_half_a_mount_is_refused(host, guest, kind, data):
    with pytest.raises(GuestAgentError) as caught:
        guest._channel._ask(kind, data, "no", 10)
    assert caught.value.errno == (71 if kind == frames.MOUNT or not data or data[-1] else 2)


@pytest.mark.needs("root", "net-namespace")
def test_a_root_is_the_agents_and_its_commands(tmp_path):
    """In mount namespaces of its own: nothing of this host's changes."""
    agent = HostAgent(wrapper=("unshare", "--mount", "--propagation", "private"))
    guest = Guest(agent.agent, agent.exec)
    guest.wait_ready(10)
    root = tmp_path / "root"
    guest.mount("/", str(root), "none", flags=0x1000)  # MS_BIND
    guest.mount("", str(root / tmp_path.relative_to("/") / "made"), "")
    guest.change_root(str(root))
    done = guest.exec(["sh", "-c", "pwd; echo /*; echo $PATH; id -un"], user="nobody", cwd="/usr")
    assert done.text.startswith("/usr\n") and " /usr" in done.text
    assert done.text.endswith("\n/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nnobody\n")
    assert (tmp_path / "made").is_dir()
    assert guest.exec(["unshare", "--user", "true"]).returncode == 0  # which is refused below a chroot
    with pytest.raises(GuestAgentError, match="No such file"):
        guest.exec([str(root / "bin/sh")])
    agent.close()
