"""The console back-ends on descriptors, sockets, pseudo-terminals and memory, with a VM that only takes notes."""

from __future__ import annotations

import errno
import os
import resource
import select
import socket
import stat
import termios
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from pyvmm.backends.capture import CaptureConsole
from pyvmm.backends.console import make_console
from pyvmm.backends.file import FileConsole
from pyvmm.backends.listener import PATH_MAX
from pyvmm.backends.pty import PtyConsole
from pyvmm.backends.sink import HIGH_WATER
from pyvmm.backends.stdio import StdioConsole
from pyvmm.backends.unixsocket import UnixConsole
from pyvmm.errors import BackendError, PyvmmError, TimeLimitError, UsageError
from tests.support.cli import FakeLink, wait_for


def look(command: str) -> str:
    return "all is well"


class Stdio:
    """A StdioConsole between descriptors of the test: `type` is its user, `read` what the user sees."""

    def __init__(self, link: FakeLink, stdin: int, stdout: int) -> None:
        self.quits = 0
        self.said: list[str] = []
        self.link = link
        self.console = StdioConsole(quit=self.quit, look=look, say=self.said.append, stdin=stdin, stdout=stdout)
        self.console.start(link)

    def quit(self) -> None:
        self.quits += 1


@pytest.fixture
def link() -> FakeLink:
    return FakeLink()


@pytest.fixture
def close() -> Iterator[Callable[..., None]]:
    """Calls every function that it was given at the end, whatever the test did."""
    closers: list[Callable[[], object]] = []

    def add(*functions: Callable[[], object]) -> None:
        closers.extend(functions)

    yield add
    for closer in reversed(closers):
        try:
            closer()
        except OSError:
            pass


def read_until(fd: int, expected: bytes, limit: float = 20) -> bytes:
    data = b""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    deadline = time.monotonic() + limit
    while expected not in data:
        assert time.monotonic() < deadline, f"{data[-200:]!r} has no {expected[:100]!r}"
        if poll.poll(100):
            data += os.read(fd, 65536)
    return data


# --- Standard input and output ----------------------------------------------------------------------------------


def pipes(close: Callable[..., None]) -> tuple[int, int, int, int]:
    stdin, typed = os.pipe()
    shown, stdout = os.pipe()
    close(*(partial(os.close, fd) for fd in (stdin, typed, shown, stdout)))
    return stdin, typed, shown, stdout


def test_bytes_pass_unchanged_through_pipes(link, close):
    stdin, typed, shown, stdout = pipes(close)
    stdio = Stdio(link, stdin, stdout)
    close(stdio.console.close)
    everything = bytes(range(256))
    os.write(typed, everything + b"\x01x")
    wait_for(lambda: len(link.received) == 258, "the input")
    assert link.received == everything + b"\x01x", "no escape key without a terminal"
    stdio.console.write(everything)
    assert stdio.console.drain(5)
    assert os.read(shown, 1000) == everything
    assert stdio.quits == 0 and stdio.said == []


def test_the_end_of_the_input_is_no_event(link, close):
    _stdin, _typed, shown, stdout = pipes(close)
    null = os.open("/dev/null", os.O_RDONLY)
    stdio = Stdio(link, null, stdout)
    close(stdio.console.close, lambda: os.close(null))
    before = time.process_time()
    time.sleep(0.2)
    assert time.process_time() - before < 0.1, "it spins"
    stdio.console.write(b"still here")
    assert stdio.console.drain(5) and os.read(shown, 100) == b"still here"


def test_a_device_that_takes_little_gets_everything_in_the_end(close):
    link = FakeLink(room=0)
    stdin, typed, _shown, stdout = pipes(close)
    stdio = Stdio(link, stdin, stdout)
    close(stdio.console.close)
    pasted = os.urandom(64 << 10)
    writer = threading.Thread(target=lambda: [os.write(typed, pasted[at : at + 999]) for at in range(0, 65536, 999)])
    writer.start()
    before = time.process_time()
    time.sleep(0.2)
    assert time.process_time() - before < 0.15, "it spins while the device takes nothing"

    def grown(had: int) -> bool:
        return len(link.received) > had

    while len(link.received) < len(pasted):
        had = len(link.received)
        with link.lock:
            link.room += 700
        stdio.console.input_ready()
        wait_for(partial(grown, had), "more input")
    writer.join()
    assert link.received == pasted


def test_no_more_is_read_than_waits_for_the_device(close):
    link = FakeLink(room=0)
    stdin, typed, _shown, stdout = pipes(close)
    os.set_blocking(typed, False)
    stdio = Stdio(link, stdin, stdout)
    close(stdio.console.close)
    sent = 0
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline:
        try:
            sent += os.write(typed, bytes(4096))
        except BlockingIOError:
            time.sleep(0.01)
    assert sent <= (64 << 10) + 2 * 4096, "a flood is bounded by the pipe, not kept by us"


def test_closed_output_is_told(link, close):
    stdin, _typed, shown, stdout = pipes(close)
    stdio = Stdio(link, stdin, stdout)
    close(stdio.console.close)
    os.close(shown)
    stdio.console.write(b"x")
    wait_for(lambda: link.errors, "the error")
    assert link.errors == [errno.EPIPE] and stdio.console.failure == errno.EPIPE


def test_on_a_terminal_the_escape_key_works_and_bytes_pass_unchanged(link, close):
    leader, follower = os.openpty()
    close(lambda: os.close(leader), lambda: os.close(follower))
    before = termios.tcgetattr(follower)
    stdio = Stdio(link, follower, follower)
    close(stdio.console.close)
    os.write(leader, b"a\r\x03\x04\x1a\x11\x13\x7f\x01\x01z")
    wait_for(lambda: link.received.endswith(b"z"), "the keys")
    assert link.received == b"a\r\x03\x04\x1a\x11\x13\x7f\x01z"
    stdio.console.write(b"lf\ncrlf\r\n\x00\xff")
    assert read_until(leader, b"\xff") == b"lf\ncrlf\r\n\x00\xff"
    os.write(leader, b"\x01s\x01h")
    wait_for(lambda: len(stdio.said) == 2, "state and help")
    assert stdio.said[0] == "all is well" and "Ctrl-A X" in stdio.said[1]
    os.write(leader, b"\x01x")
    wait_for(lambda: stdio.quits == 1, "quit")
    stdio.console.close()
    assert termios.tcgetattr(follower) == before


def test_the_escape_key_is_heard_though_the_guest_reads_nothing(close):
    link = FakeLink(room=0)
    leader, follower = os.openpty()
    close(lambda: os.close(leader), lambda: os.close(follower))
    stdio = Stdio(link, follower, follower)
    close(stdio.console.close)
    for _ in range(16):
        os.write(leader, b"x" * 1000)
    os.write(leader, b"\x01x")
    wait_for(lambda: stdio.quits == 1, "quit")


def test_the_cursor_is_known_to_be_inside_a_line(link, close):
    leader, follower = os.openpty()
    close(lambda: os.close(leader), lambda: os.close(follower))
    stdio = Stdio(link, follower, follower)
    close(stdio.console.close)
    assert not stdio.console.leave_line()
    stdio.console.write(b"login: ")
    assert stdio.console.leave_line() and not stdio.console.leave_line()
    stdio.console.write(b"\r\n")
    assert not stdio.console.leave_line()


def test_nothing_is_left_after_close(link, close):
    stdin, typed, _shown, stdout = pipes(close)
    threads, fds = threading.active_count(), len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        stdio = Stdio(link, stdin, stdout)
        os.write(typed, b"x")
        stdio.console.write(b"x")
        assert stdio.console.drain(5)
        stdio.console.close()
        stdio.console.close()
    assert threading.active_count() == threads and len(os.listdir("/proc/self/fd")) == fds


# --- File -------------------------------------------------------------------------------------------------------


def test_a_file_gets_the_output_and_is_emptied_first(link, tmp_path):
    path = tmp_path / "console.log"
    path.write_bytes(b"old" * 100)
    console = FileConsole(path)
    console.start(link)
    console.write(b"new\n")
    assert console.drain(5)
    console.close()
    console.close()
    assert path.read_bytes() == b"new\n"


@pytest.mark.parametrize("path", ["/nowhere/console", "/", ""])
def test_a_file_that_cannot_be_written_is_named(link, path):
    console = FileConsole(path)
    with pytest.raises(BackendError, match=f"cannot write {path}"):
        console.start(link)
    console.close()


def test_a_fifo_without_reader_is_an_error_not_a_hang(link, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(BackendError, match="cannot write"):
        FileConsole(tmp_path / "fifo").start(link)


def test_a_full_disk_is_told(link):
    console = FileConsole("/dev/full")
    console.start(link)
    console.write(b"x")
    wait_for(lambda: link.errors, "the error")
    assert console.failure == errno.ENOSPC
    console.close()


# --- Pseudo-terminal --------------------------------------------------------------------------------------------


@pytest.fixture
def pty(link: FakeLink) -> Iterator[PtyConsole]:
    said: list[str] = []
    console = PtyConsole(say=said.append)
    console.start(link)
    assert said == [f"console on {console.name}"]
    yield console
    console.close()


def test_a_pseudo_terminal_carries_bytes_both_ways_without_echo(link, pty):
    fd = os.open(pty.name, os.O_RDWR | os.O_NOCTTY)
    everything = bytes(range(256))
    pty.write(everything)
    assert read_until(fd, everything) == everything
    os.write(fd, everything)
    wait_for(lambda: len(link.received) == 256, "the input")
    assert link.received == everything
    time.sleep(0.05)
    assert len(link.received) == 256, "an echo would come back as input"
    os.close(fd)


def test_output_before_anybody_opens_it_is_kept_and_blocks_nobody(link, pty):
    for _ in range(100):
        pty.write(bytes(HIGH_WATER // 50))
    pty.write(b"the end")
    assert link.calls == [] and pty.drain(0.1)
    fd = os.open(pty.name, os.O_RDWR | os.O_NOCTTY)
    read_until(fd, b"the end")
    os.close(fd)


def test_it_can_be_opened_again(link, pty):
    for turn in range(3):
        fd = os.open(pty.name, os.O_RDWR | os.O_NOCTTY)
        pty.write(b"turn %d." % turn)
        read_until(fd, b"turn %d." % turn)
        os.write(fd, b"%d" % turn)
        wait_for(partial(link.received.endswith, b"%d" % turn), "the input")
        os.close(fd)
        time.sleep(0.05)
    assert link.received == b"012"


def test_waiting_for_somebody_costs_little(pty):
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.1


# --- Socket -----------------------------------------------------------------------------------------------------


@pytest.fixture
def unix(link: FakeLink, tmp_path: Path) -> Iterator[UnixConsole]:
    console = UnixConsole(tmp_path / "console.sock")
    console.start(link)
    yield console
    console.close()


def connect(console: UnixConsole) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(20)
    client.connect(console.path)
    return client


def test_a_client_talks_to_the_guest(link, unix):
    unix.write(b"before anybody came;")
    with connect(unix) as client:
        unix.write(b"hello")
        read_until(client.fileno(), b"before anybody came;hello")
        client.sendall(bytes(range(256)))
        wait_for(lambda: len(link.received) == 256, "the input")
    assert link.received == bytes(range(256))


def test_clients_come_one_after_another(link, unix):
    first, second = connect(unix), connect(unix)
    unix.write(b"to the first")
    read_until(first.fileno(), b"to the first")
    second.sendall(b"second waits")
    time.sleep(0.1)
    assert not link.received
    first.close()
    wait_for(lambda: link.received == b"second waits", "the second client's turn")
    unix.write(b"to the second")
    read_until(second.fileno(), b"to the second")
    second.close()


def test_a_client_that_goes_breaks_nothing(link, unix):
    for turn in range(5):
        client = connect(unix)
        unix.write(b"turn %d." % turn)
        read_until(client.fileno(), b"turn %d." % turn)
        client.close()
        unix.write(b"x" * 100)
    assert link.errors == [] and "hold" not in link.calls[-1:]


def test_a_client_that_reads_nothing_holds_the_vm_until_it_goes(link, unix):
    client = connect(unix)
    unix.write(b"hello")
    read_until(client.fileno(), b"hello")
    for _ in range(100):
        unix.write(bytes(8192))
        if link.calls:
            break
        time.sleep(0.01)
    assert link.calls[-1] == "hold"
    client.close()
    wait_for(lambda: link.calls[-1] == "release", "release")


def test_a_client_that_there_is_no_descriptor_for_waits_and_costs_no_cpu(unix):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket(socket.AF_UNIX) as client:
        lowest_free = os.dup(0)
        os.close(lowest_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
        try:
            client.connect(unix.path)
            began = time.process_time()
            time.sleep(0.5)
            assert time.process_time() - began < 0.1
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        unix.write(b"hello")
        read_until(client.fileno(), b"hello")


def test_the_socket_goes_with_the_console(unix):
    assert stat.S_ISSOCK(os.stat(unix.path).st_mode)
    unix.close()
    assert not os.path.exists(unix.path)
    unix.close()


def test_a_stale_socket_is_replaced(link, tmp_path):
    path = tmp_path / "stale"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    console = UnixConsole(path)
    console.start(link)
    connect(console).close()
    console.close()
    assert not path.exists()


def test_a_socket_in_use_is_left_alone(link, unix):
    other = UnixConsole(unix.path)
    with pytest.raises(BackendError, match="another process listens at"):
        other.start(link)
    other.close()
    connect(unix).close()


def test_somebody_elses_file_is_left_alone(link, tmp_path):
    path = tmp_path / "file"
    path.write_text("precious")
    console = UnixConsole(path)
    with pytest.raises(BackendError, match="is not a socket"):
        console.start(link)
    console.close()
    assert path.read_text() == "precious"


def test_a_socket_that_was_replaced_is_left_alone(unix):
    os.unlink(unix.path)
    Path(unix.path).write_text("somebody else's")
    unix.close()
    assert Path(unix.path).read_text() == "somebody else's"


@pytest.mark.parametrize("folder", ["/nowhere", "/proc"])
def test_a_socket_that_cannot_be_made_is_named(link, folder):
    console = UnixConsole(f"{folder}/console")
    with pytest.raises(BackendError, match=f"cannot listen at {folder}/console"):
        console.start(link)
    console.close()


def test_a_socket_without_a_descriptor_is_named(link, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(socket, "socket", full)
    console = UnixConsole(tmp_path / "console")
    with pytest.raises(BackendError, match="console: Too many open files"):
        console.start(link)
    console.close()


def test_a_path_that_is_too_long_is_said_to_be(link, tmp_path):
    for length, fits in ((PATH_MAX, True), (PATH_MAX + 1, False)):
        path = str(tmp_path / "x")
        path += "x" * (length - len(path))
        console = UnixConsole(path)
        if fits:
            console.start(link)
        else:
            with pytest.raises(BackendError, match=f"too long: {length} bytes, expected {PATH_MAX} at most"):
                console.start(link)
        console.close()


# --- Memory -----------------------------------------------------------------------------------------------------


@pytest.fixture
def capture(link: FakeLink) -> CaptureConsole:
    console = CaptureConsole()
    console.start(link)
    return console


def test_output_is_kept_as_bytes_and_text(capture):
    capture.write(b"gr\xc3\xbc\xc3\x9fe \xff")
    assert capture.output == b"gr\xc3\xbc\xc3\x9fe \xff" and capture.text == "grüße \ufffd"


def test_only_the_end_of_the_output_is_kept(link):
    console = CaptureConsole(limit=10)
    for letter in b"abcdefghijklmno":
        console.write(bytes([letter]))
    assert console.output == b"fghijklmno"
    assert console.expect("[f-z]", 1).group() == "f"


def test_expect_goes_on_after_the_last_match(capture):
    capture.write("ä login: ß login: \udcff".encode("utf-8", "surrogateescape"))
    assert capture.expect("(.) login:", 1).group(1) == "ä"
    assert capture.expect("(.) login:", 1).group(1) == "ß"
    assert capture.expect("[\udcff]", 1)
    with pytest.raises(TimeLimitError):
        capture.expect("login", 0.05)


def test_expect_waits_for_output(capture):
    def later() -> None:
        for letter in b"some words, then login: ":
            time.sleep(0.002)
            capture.write(bytes([letter]))

    thread = threading.Thread(target=later)
    thread.start()
    assert capture.expect(r"login: $", 10)
    thread.join()


def test_expect_says_what_it_saw_instead(capture):
    with pytest.raises(TimeLimitError, match=r"did not show 'login' within 0\.05 s, nor anything else"):
        capture.expect("login", 0.05)
    capture.write(b"Kernel panic")
    with pytest.raises(TimeLimitError, match="the last it showed: 'Kernel panic'"):
        capture.expect("login", 0.05)


@pytest.mark.parametrize("how", ["closed", "over"])
def test_expect_does_not_outlive_the_vm(link, capture, how):
    def end() -> None:
        capture.write(b"bye")
        link.over = True
        if how == "closed":
            capture.close()

    timer = threading.Timer(0.1, end)
    timer.start()
    began = time.monotonic()
    with pytest.raises(PyvmmError, match=r"ended before its console showed 'login'.*'bye'"):
        capture.expect("login", 30)
    assert time.monotonic() - began < 10
    timer.join()


def test_expect_finds_what_was_written_last(link, capture):
    capture.write(b"login")
    link.over = True
    capture.close()
    assert capture.expect("login", 1)


def test_send_waits_until_the_device_has_taken_it(close):
    link = FakeLink(room=3)
    capture = CaptureConsole()
    capture.start(link)
    sender = threading.Thread(target=lambda: capture.send("hello world"))
    sender.start()
    wait_for(lambda: link.received == b"hel", "the beginning")
    with link.lock:
        link.room = 100
    capture.input_ready()
    sender.join(10)
    assert link.received == b"hello world"


def test_send_gives_up_in_time(capture, link):
    link.room = 0
    with pytest.raises(TimeLimitError, match=r"did not read its console: 5 bytes left"):
        capture.send("hello", 0.05)
    capture.close()
    with pytest.raises(PyvmmError, match="does not run"):
        capture.send("hello")


# --- What --console means ---------------------------------------------------------------------------------------


def test_each_console_has_its_spelling():
    def made(text: str) -> object:
        return make_console(text, quit=lambda: None, look=look, say=lambda text: None)

    assert isinstance(made("stdio"), StdioConsole) and isinstance(made("pty"), PtyConsole)
    file, unix = made("file:/a:b"), made("unix:c")
    assert isinstance(file, FileConsole) and file.path == "/a:b"
    assert isinstance(unix, UnixConsole) and unix.path == "c"
    for text in ("", "tcp:1", "stdio:x", "pty:", "file:", "unix:", "file", "unix"):
        with pytest.raises(UsageError, match="expected"):
            made(text)
