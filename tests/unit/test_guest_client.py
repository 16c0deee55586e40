"""The client of the guest's agent against scripted agents: frames, odd answers, ends, a distribution's agent."""

from __future__ import annotations

import json
import random
import socket
import threading

import pytest

from pyvmm import VM
from pyvmm.config import AGENT_PORTS, VmConfig
from pyvmm.errors import GuestAgentError, PyvmmError, TimeLimitError, UsageError
from pyvmm.guest import frames
from pyvmm.guest.agent import GuestAgent
from pyvmm.guest.channel import ExecChannel
from pyvmm.guest.session import Guest
from tests.support.agent import SocketStream
from tests.support.cli import wait_for


def pair():
    """A stream and a socket at its other end."""
    ours, its = socket.socketpair()
    its.settimeout(10)
    return SocketStream(ours), its


def scripted(*answers):
    """A stream to an agent that syncs, and answers every other request with the next of `answers`; what was asked."""
    stream, its = pair()
    asked = []

    def serve():
        left = list(answers)
        file = its.makefile("rwb")
        while line := file.readline():
            request = json.loads(line.lstrip(b"\xff"))
            if request["execute"] == "guest-sync-delimited":
                reply = b"\xff" + json.dumps({"return": request["arguments"]["id"]}).encode() + b"\n"
            elif left:
                asked.append(request)
                reply = left.pop(0)
                reply = reply if isinstance(reply, bytes) else json.dumps(reply).encode() + b"\n"
            else:
                break
            file.write(reply)
            file.flush()
        file.close()
        its.close()

    threading.Thread(target=serve, daemon=True).start()
    return stream, asked


def test_frames_are_the_same_in_whatever_pieces_they_come():
    rng = random.Random(1)
    wanted = [(rng.randrange(10), rng.randrange(65536), rng.randrange(3), rng.randbytes(rng.randrange(50)))]
    wanted += [(frames.DATA, 3, 1, b""), (frames.DATA, 3, 2, bytes(frames.LONGEST))]
    data = b"".join(frames.frame(kind, process, payload, stream) for kind, process, stream, payload in wanted)
    for size in (1, 7, 4096, len(data)):
        cutter, found = frames.Frames(), []
        for at in range(0, len(data), size):
            found += cutter.feed(data[at : at + size])
        assert found == wanted


def test_a_frame_that_is_too_long_is_refused():
    with pytest.raises(ValueError, match="a frame of 131073 bytes"):
        frames.Frames().feed(frames.HEADER.pack(frames.DATA, 1, 0, frames.LONGEST + 1))


def test_the_agents_own_words_are_in_the_error():
    stream, asked = scripted({"error": {"class": "GenericError", "desc": "no such luck"}}, {"return": {}})
    agent = GuestAgent(stream)
    with pytest.raises(GuestAgentError, match=r"^guest-ping: no such luck$"):
        agent.ping()
    agent.ping()
    assert [request["execute"] for request in asked] == ["guest-ping"] * 2


@pytest.mark.parametrize(
    "answer", [b"}\n", b"[1]\n", b"{}\n", b'"x"\n', b"[" * 100000 + b"\n", b"\xff\xfe\n"], ids=lambda answer: answer[:9]
)
def test_an_answer_that_makes_no_sense_is_an_error(answer):
    stream, _ = scripted(answer)
    with pytest.raises(GuestAgentError, match="the agent's answer"):
        GuestAgent(stream).info(5)


def test_a_late_answer_is_not_taken_for_the_next_one():
    stream, its = pair()
    agent = GuestAgent(stream)

    def serve():
        file = its.makefile("rwb")
        for late in (False, True):
            number = json.loads(file.readline().lstrip(b"\xff"))["arguments"]["id"]
            old = b'{"return": "the old one"}\n' if late else b""
            file.write(old + b"\xff" + json.dumps({"return": number}).encode() + b"\n")
            file.flush()
            file.readline()
            if late:
                file.write(b'{"return": 5}\n')
                file.flush()
        file.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    with pytest.raises(TimeLimitError, match="did not answer in time"):
        agent.get_time(0.05)
    assert agent.get_time(5) == 5
    thread.join(5)
    its.close()


def test_the_vms_end_is_an_error_that_says_so():
    stream, _ = scripted()
    with pytest.raises(PyvmmError, match="the VM ended before the agent answered"):
        GuestAgent(stream).ping(5)


def test_a_distributions_agent_runs_commands_too():
    stream, asked = scripted(
        {"return": {"pid": 5}},
        {"return": {"exited": False}},
        {"return": {"exited": True, "exitcode": 3, "out-data": "b3V0", "err-data": "ZXJy"}},
    )
    other, _ = pair()
    other.opened.clear()  # it does not know our own port
    guest = Guest(stream, other)
    done = guest.exec(["ls", "-l"], env={"A": "b"}, cwd="/tmp", input=b"in")
    assert not guest.own
    assert (done.returncode, done.stdout, done.stderr) == (3, b"out", b"err")
    arguments = asked[0]["arguments"]
    assert [arguments["path"], *arguments["arg"]] == [
        "sh", "-c", 'cd "$0" && exec "$@"', "/tmp", "env", "A=b", "ls", "-l",
    ]  # fmt: skip
    assert (arguments["input-data"], arguments["capture-output"]) == ("aW4=", True)
    with pytest.raises(UsageError, match="need pyvmm's own agent"):
        guest.popen(["ls"])
    with pytest.raises(UsageError, match="as another user"):
        guest.exec(["ls"], user="me")


def test_a_clock_that_is_set_but_for_the_hardwares_is_set():
    """As with QEMU's agent in a guest without hwclock."""
    refused = {"error": {"desc": "hwclock failed to set hardware clock to system time"}}
    stream, asked = scripted(refused, {"return": 1_000_000_123})
    GuestAgent(stream).set_time(1_000_000_000)
    assert [request["execute"] for request in asked] == ["guest-set-time", "guest-get-time"]
    for found in (10**18, 0, -(10**18)):
        stream, _ = scripted(refused, {"return": found})
        with pytest.raises(GuestAgentError, match="hwclock failed"):
            GuestAgent(stream).set_time(10**12)


def test_output_that_the_agent_cut_is_an_error():
    cut = {"exited": True, "exitcode": 0, "out-data": "b3V0", "out-truncated": True}
    stream, _ = scripted({"return": {"pid": 5}}, {"return": cut})
    with pytest.raises(GuestAgentError, match="wrote more than the 3 bytes that its agent keeps"):
        GuestAgent(stream).exec(["yes"])


def channel():
    """A channel whose agent is the socket, with a command that runs there under the number 0; both, and the socket."""
    stream, its = pair()
    made = ExecChannel(stream)

    def serve():
        hello = its.recv(1000)
        its.sendall(frames.frame(frames.HELLO, data=hello[frames.HEADER.size :] + b"test 1"))
        its.recv(1000)
        its.sendall(frames.frame(frames.STARTED, 0, frames.NUMBER.pack(7)))

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    made.open(5)
    process = made.popen(["cat"], timeout=5)
    thread.join(5)
    return made, process, its


def test_nothing_is_sent_beyond_the_credit():
    made, process, its = channel()
    assert (made.version, process.pid) == ("test 1", 7)

    def write():
        with pytest.raises(PyvmmError, match="the VM ended"):
            process.stdin.write(bytes(100_000))

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    cutter = frames.Frames()
    total = 0
    while total < frames.INPUT_CREDIT:
        total += sum(len(payload) for *_, payload in cutter.feed(its.recv(1 << 16)))
    its.settimeout(0.05)
    with pytest.raises(TimeoutError):
        its.recv(1)
    its.settimeout(10)
    its.sendall(frames.frame(frames.CREDIT, 0, frames.NUMBER.pack(1000)))
    while total < frames.INPUT_CREDIT + 1000:
        total += sum(len(payload) for *_, payload in cutter.feed(its.recv(1 << 16)))
    assert total == frames.INPUT_CREDIT + 1000
    its.close()
    writer.join(5)


def test_an_agent_that_sends_more_than_it_may_is_cut_off():
    _, process, its = channel()
    data = frames.frame(frames.DATA, 0, bytes(64 << 10), stream=1)
    # Nobody reads what is beyond the limit: sending it may take until the end.
    threading.Thread(target=lambda: _send_all(its, 4 * data), daemon=True).start()
    wait_for(lambda: process._raw[1]._ended, "it to be cut off")
    assert len(process.stdout.read()) <= 128 << 10
    its.close()


def _send_all(end, data):
    try:
        end.sendall(data)
    except OSError:
        pass


def test_the_vms_end_ends_a_command():
    _, process, its = channel()
    its.close()
    with pytest.raises(PyvmmError, match="the VM ended before the command in the guest did"):
        process.wait(5)
    with pytest.raises(PyvmmError, match="the VM ended"):
        process.stdout.read()


def test_garbage_from_the_agent_ends_its_commands_with_a_reason():
    _, process, its = channel()
    its.sendall(b"\xff" * 100)
    with pytest.raises(PyvmmError, match="does not keep to its protocol"):
        process.wait(5)
    its.close()


def test_an_agent_has_two_ports_and_a_vm_without_one_says_so(tmp_path):
    config = VmConfig(tmp_path / "kernel", agent=True)
    assert tuple(port.name for port in config.ports) == AGENT_PORTS
    assert VmConfig(tmp_path / "kernel").ports == ()
    with pytest.raises(UsageError, match="need agent=True"):
        VM(tmp_path / "kernel").exec(["ls"])
    with pytest.raises(UsageError, match="no agent yet"):
        VM(tmp_path / "kernel", agent=True).exec(["ls"])
