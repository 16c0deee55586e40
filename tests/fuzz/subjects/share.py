"""The 9P transport with a shared directory behind it, on which the host works too; what lies beside it must not change.

One directory serves all cases, made as new for each.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from struct import pack, unpack_from
from tempfile import TemporaryDirectory

from pyvmm.backends.share.codec import LAYOUTS, NO_FID
from pyvmm.backends.share.opening import open_share
from pyvmm.virtio import p9
from pyvmm.virtio.p9 import Virtio9p
from tests.fuzz.subjects.base import Subject

FIELDS = (
    {8: "f", 12: "fo", 14: "fNomu", 16: "fNNu", 18: "fNmiiu", 20: "ffN", 22: "f", 24: "fq", 26: "fvmuuqqqqq"}
    | {30: "fnX", 32: "fXqi", 40: "fqr", 50: "fi", 52: "fbiqqiX", 54: "fbqqiX", 70: "ffN", 72: "fNmu", 74: "fNfN"}
    | {76: "fNa", 100: "rV", 104: "neXVu", 108: "t", 110: "fn", 116: "fqr", 118: "f", 120: "f", 122: "f"}
)
"""The fields of each message, by what is likely in them."""
NAMES = (b"a", b"b", b"file", b"link", b"deep", b"new", b"out", b"fifo")
ODD = (b"", b".", b"..", b"a/b", b"/etc", b"\0", b"x" * 256)
NUMBERS = (0, 1, 2, 3, 64, 4096, 1 << 31, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
WIDTHS = {"f": 4, "n": 4, "o": 4, "m": 4, "u": 4, "i": 4, "v": 4, "r": 4, "e": 4, "a": 4, "q": 8, "b": 1, "t": 2}
SECRET = b"what is outside"
MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None
"""Where fsync takes no time."""
SESSION = (
    (0, (pack("<IBHIH", 21, 100, 0xFFFF, 65536, 8) + b"9P2000.L",), (100,)),
    (0, (pack("<IBHIIHHI", 23, 104, 0, 0, NO_FID, 0, 0, 0),), (100,)),
)


def string(text):
    return pack("<H", len(text)) + text


def message(kind, body, tag=1):
    return pack("<IBH", 7 + len(body), kind, tag) + body


def walk(fid, new, *names):
    return message(110, pack("<IIH", fid, new, len(names)) + b"".join(map(string, names)))


def ask(*messages):
    return tuple(("chain", 0, (data,), (4096,), "direct", (), True) for data in messages)


LONG = ask(
    *(message for _, (message,), _ in SESSION),
    walk(0, 1, b"a", b"deep"),
    walk(0, 2, b"a", b"file"),
    walk(0, 3, b"link"),
    message(12, pack("<II", 2, 2)),
    message(118, pack("<IQI", 2, 0, 4) + b"data"),
    message(116, pack("<IQI", 2, 0, 100)),
    message(50, pack("<II", 2, 1)),
    message(52, pack("<IBIQQI", 2, 1, 0, 0, 0, 1) + string(b"guest")),
    message(54, pack("<IBQQI", 2, 1, 0, 0, 2) + string(b"guest")),
    message(22, pack("<I", 3)),
    message(24, pack("<IQ", 2, 0x7FF)),
    message(26, pack("<IIIIIQQQQQ", 2, 8, 0, 0, 0, 100, 0, 0, 0, 0)),
    message(8, pack("<I", 0)),
    walk(0, 4),
    message(12, pack("<II", 4, 0)),
    message(40, pack("<IQI", 4, 0, 4000)),
    message(72, pack("<I", 0) + string(b"new") + pack("<II", 0o755, 0)),
    message(16, pack("<I", 1) + string(b"new") + string(b"x") + pack("<I", 0)),
    message(18, pack("<I", 1) + string(b"file") + pack("<IIII", 0o100644, 0, 0, 0)),
    message(70, pack("<II", 0, 2) + string(b"linked")),
    message(74, pack("<I", 0) + string(b"linked") + pack("<I", 1) + string(b"moved")),
    message(20, pack("<II", 2, 0) + string(b"renamed")),
    message(76, pack("<I", 1) + string(b"moved") + pack("<I", 0)),
    walk(1, 5),
    message(14, pack("<I", 5) + string(b"made") + pack("<III", 2, 0o644, 0)),
    message(30, pack("<II", 5, 6) + string(b"")),
    walk(5, 7),
    message(32, pack("<I", 7) + string(b"user.x") + pack("<QI", 1, 0)),
    message(118, pack("<IQI", 7, 0, 1) + b"1"),
    message(120, pack("<I", 7)),
    message(108, pack("<H", 3)),
    message(122, pack("<I", 5)),
)
"""A client that does a bit of everything."""


class Share(Subject):
    name = "9p"
    modules: tuple[object, ...] = (p9,)
    greeting = SESSION
    seeds = (
        LONG,
        (("host", "readonly"), *LONG),
        (*LONG[:5], ("host", "out"), *LONG[5:]),
        (("host", "removed"), *LONG),
        (*LONG[:5], ("host", "swapped"), *LONG[5:]),
    )
    required = (
        *(f"{layout.name}: done" for layout in LAYOUTS.values()),
        *(f"{layout.name}: refused" for kind, layout in LAYOUTS.items() if kind != 108),
        *("no room for an answer", "another type", "refused: EMSGSIZE", "refused: ESTALE", "refused: EPROTO"),
        *("refused: EROFS", "refused: EINVAL", "refused: ENOENT", "refused: EBADF", "version: unknown"),
    )
    _folder: TemporaryDirectory[str] | None = None

    def __init__(self, settings, kinds):
        self.kinds = kinds
        if Share._folder is None:
            Share._folder = TemporaryDirectory(prefix="fuzz-9p-", dir=MEMORY)
        self.top = Path(Share._folder.name)
        self._make()
        self.device = Virtio9p(open_share(self.top / "shared", readonly=settings["readonly"]), "tag")

    def _make(self):
        for entry in os.scandir(self.top):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry)
            else:
                os.unlink(entry)
        shared, outside = self.top / "shared", self.top / "outside"
        (shared / "a/deep").mkdir(parents=True)
        (shared / "b").mkdir()
        (shared / "a/file").write_bytes(b"data")
        (shared / "a/deep/secret").write_bytes(b"harmless")
        (shared / "link").symlink_to("../outside")
        os.mkfifo(shared / "fifo")
        outside.mkdir()
        (outside / "secret").write_bytes(SECRET)

    @staticmethod
    def settings(draw):
        return {"readonly": draw.rarely(8)}

    @staticmethod
    def request(draw):
        kind = draw.pick(tuple(FIELDS)) if not draw.rarely(40) else draw.below(256)
        body = b"".join(Share._field(draw, letter) for letter in FIELDS.get(kind, ""))
        if kind == 110:
            names = [Share._name(draw) for _ in range(draw.pick((0, 1, 1, 2, 2, 3, 17)))]
            body += pack("<H", len(names)) + b"".join(names)
        elif kind == 118:
            data = draw.filling(draw.pick((0, 1, 4, 100, 5000)))
            count = len(data) + (draw.pick((1, 1 << 31)) if draw.rarely(8) else 0)
            body += pack("<QI", draw.pick((0, 0, 0, *NUMBERS)), count) + data
        size = 7 + len(body) + (draw.pick((-1, 1, -4, 1 << 20)) if draw.rarely(16) else 0)
        data = pack("<IBH", size & 0xFFFFFFFF, kind, draw.pick((0, 1, 0xFFFF))) + body
        if draw.rarely(24):
            data = data[: draw.below(len(data))]
        room = draw.pick((4096, 4096, 4096, 200, 40, 11)) if not draw.rarely(24) else draw.below(11)
        return 0, draw.cut(data), draw.cut(room)

    @staticmethod
    def _name(draw):
        name = string(draw.pick(ODD if draw.rarely(6) else NAMES))
        return name if not draw.rarely(32) else name + b"!"

    @staticmethod
    def _field(draw, letter):
        if letter in "NXV":
            if letter == "N":
                return Share._name(draw)
            choice = (
                (b"user.x", b"", b"security.x", b"guest", b"\0")
                if letter == "X"
                else (b"9P2000.L",) * 9 + (b"", b"/", b"x")
            )
            return string(draw.pick(choice))
        width = WIDTHS[letter]
        if letter in "fn":
            number = draw.pick((0, 0, 1, 2, 3, 4, 5)) if not draw.rarely(12) else draw.pick((77, NO_FID))
        elif letter == "o":
            number = draw.pick((0, 0, 1, 2, 2, 0o1002, 0o2001, 3, 0o200000, 0o200))
        elif letter == "m":
            number = draw.pick((0o644, 0o755, 0o100644, 0o10644, 0o140755, 0o40755, 0o7777))
        elif letter == "u":
            number = draw.pick((0, 0, NO_FID, 1000))
        elif letter == "v":
            number = draw.pick((1, 8, 16, 32, 48, 0x1B0, 0x1FF, 0))
        elif letter == "r":
            number = draw.pick((4096, 65536, 65536, 100, 0, NO_FID))
        elif letter == "e":
            number = NO_FID if not draw.rarely(8) else 1
        elif letter == "a":
            number = draw.pick((0, 0x200, 1))
        elif letter == "b":
            number = draw.pick((0, 1, 2, 3))
        elif letter == "q":
            number = draw.pick((0, 0, 0, 4, 100, *NUMBERS))
        else:
            number = draw.pick((0, 1, 2, 3, 1 << 31))
        return (number & ((1 << 8 * width) - 1)).to_bytes(width, "little")

    @staticmethod
    def host(draw):
        return (draw.pick(("out", "in", "removed", "swapped", "written", "readonly")),)

    def happen(self, what, *arguments):
        shared = self.top / "shared"
        try:
            if what == "out":
                os.rename(shared / "a", self.top / "a")
            elif what == "in":
                os.rename(self.top / "a", shared / "a")
            elif what == "swapped":
                os.rename(shared / "a", shared / "elsewhere")
                (shared / "a").symlink_to("../outside")
            elif what == "readonly":
                self.device.server.readonly = True
            else:
                self._in_a(what)
        except OSError:
            pass  # the guest was there first

    def _in_a(self, what):
        """Nor may the host follow links here: the guest makes some."""
        folder = os.open(self.top / "shared/a", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            if what == "removed":
                os.unlink("file", dir_fd=folder)
            else:
                os.close(os.open("file", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, dir_fd=folder))
        finally:
            os.close(folder)

    def prompt(self, queue):
        return True

    def outcome(self, queue, request, written, answer):
        if len(answer) < 11:
            assert written == 0
            return "no room for an answer"
        assert answer[written:] == b"\xa5" * (len(answer) - written)
        size, kind, tag = unpack_from("<IBH", answer)
        assert size == written
        if len(request) < 7:
            return "too short"
        _, asked, asked_tag = unpack_from("<IBH", request)
        assert tag == asked_tag and kind in (7, asked + 1)
        if kind == 7:
            number = unpack_from("<I", answer, 7)[0]
            self.kinds.add(f"refused: {errno.errorcode[number]}")
        if asked not in LAYOUTS:
            assert kind == 7
            return "another type"
        if asked == 100 and b"unknown" in answer[:written]:
            self.kinds.add("version: unknown")
        if asked == 116 and kind != 7:
            assert SECRET not in answer[:written], "what is outside was read"
        return f"{LAYOUTS[asked].name}: {'refused' if kind == 7 else 'done'}"

    def calm(self):
        assert os.listdir(self.top / "outside") == ["secret"], "something was done outside"
        assert (self.top / "outside/secret").read_bytes() == SECRET

    def probe(self, driver):
        for _, readable, room in SESSION:
            assert driver.request(0, readable, room)[1][4] in (101, 105)
        written, answer = driver.request(0, [message(24, pack("<IQ", 0, 0x7FF))], [160])
        assert written == 160 and answer[4] == 25
