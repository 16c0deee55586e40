"""`vm.toml`: every field, paths, and mistakes by file and line."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

from pyvmm import VM, VmConfig
from pyvmm.cli.configuration import make_config
from pyvmm.cli.options import parse
from pyvmm.cli.runoptions import RUN
from pyvmm.configfile import FIELDS, SEVERAL, SINGLE, lines_of, read_settings
from pyvmm.errors import UsageError

WHOLE = """\
kernel = "bzImage"
kernel_format = "linux"
flat_mode = "long"
load_addr = 0x200000
kernel_entry = "payload"
host_quirks = false
initrd = "/boot/initrd"
append = ["quiet", "panic=1"]
mem = "256M"
cpus = 2
cpu = "host,-cx16"
timeout = "30s"
stuck = 5
stuck_at_boot = 2.5
on_panic = "pause"
fail_on = ["oops"]
symbols = "vmlinux"
memory_backing = "memfd"
transport = "pci"
name = "web"
agent = true
faults = ["blk0:error"]
fault_seed = 7
datapath = "python"
exits = "plain"
lint = true
switch_interval = 0.001

[[disk]]
path = "a.img"
readonly = true
format = "raw"
cache = "none"
queues = 2
serial = "one"
datapath = "native"

[[disk]]
path = "/b.img"
overlay = true

[[net]]
kind = "socket"
target = "switch"
mac = "52:54:00:12:34:56"
mtu = 1400
pcap = "net.pcap"
spoof = false
datapath = "python"

[[net]]
kind = "user"
forwards = ["8080:80"]

[[port]]
name = "log"
where = "file:log"

[[port]]
name = "own"

[[share]]
path = "."
tag = "work"
readonly = true

[rng]
rate = "4K"

[vsock]
path = "v"
cid = 7

[balloon]
size = "8M"
"""


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "vm.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def everything(config):
    found = {name: getattr(config, name) for name in config.__slots__}
    for name, value in found.items():
        items = value if isinstance(value, tuple) else (value,)
        shown = [{s: getattr(it, s) for s in it.__slots__} if hasattr(it, "__slots__") else it for it in items]
        found[name] = shown
    return found


def test_every_field(write, tmp_path):
    config = VmConfig.from_toml(write(WHOLE))
    here = str(tmp_path)
    assert (config.kernel, config.initrd, config.symbols) == (f"{here}/bzImage", "/boot/initrd", f"{here}/vmlinux")
    assert (config.mem, config.append, config.timeout, config.stuck) == (256 << 20, "quiet panic=1", 30.0, 5)
    assert (config.host_quirks, config.agent, config.load_addr) == (False, True, 0x200000)
    assert [disk.path for disk in config.disks] == [f"{here}/a.img", "/b.img"]
    assert config.nets[0].target == f"{here}/switch" and config.nets[0].mac == bytes.fromhex("525400123456")
    assert config.nets[1].forwards == ("8080:80",)
    assert [port.where for port in config.ports[-2:]] == [f"file:{here}/log", None]
    assert (config.shares[0].path, config.rng.rate, config.vsock.path) == (f"{here}/.", 4096, f"{here}/v")
    assert config.balloon.size == 8 << 20
    default = everything(VmConfig("k"))
    same = [name for name, value in everything(config).items() if value == default[name]]
    assert same == ["cpu"] or same == [] or same == ["virtio"], "each has been set to something else"


def test_there_is_a_key_for_every_field():
    known = {*FIELDS, *SINGLE, *(argument for argument, _ in SEVERAL.values())}
    assert known == set(inspect.signature(VmConfig).parameters) - {"virtio"}
    for kind in (*SINGLE.values(), *(kind for _, kind in SEVERAL.values())):
        assert set(kind.fields) == set(inspect.signature(kind.make).parameters), kind.make
    assert all(f"{name} = " in WHOLE for name in FIELDS)


def test_the_example_of_the_documentation_is_a_configuration():
    from pathlib import Path

    text = (Path(__file__).parents[2] / "docs" / "config.md").read_text()
    blocks = [block.split("```")[0] for block in text.split("```toml\n")[1:]]
    assert blocks
    for block in blocks:
        assert lines_of(block)
    for name in (*FIELDS, *SEVERAL, *SINGLE):
        assert f"`{name}`" in text or f"[{name}]" in text, name


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", ": kernel is missing"),
        ("kernel = 5", ":1: kernel: 5 (expected a text)"),
        ('kernel = "k"\n\n# mem\nmem = 512', ':4: mem: 512 (expected a size, as "512M")'),
        ('kernel = "k"\nmem = "lots"', ":2: mem: 'lots' is not a size"),
        ('mem = "1K"\nkernel = "k"', ":1: mem: memory of 1K: expected 1M"),
        ('kernel = "k"\nmemory = "1G"', ":2: memory: unknown key (expected agent, append, balloon, "),
        ('kernel = "k"\ncpus = 0', ":2: cpus: 0 CPUs: expected 1 to 255"),
        ('kernel = "k"\ncpus = true', ":2: cpus: true (expected a number)"),
        ('kernel = "k"\ntimeout = "soon"', ":2: timeout: 'soon' is not a duration"),
        ('kernel = "k"\ntimeout = [1]', ':2: timeout: [1] (expected a time, as "30s")'),
        ('kernel = "k"\nappend = """\na\nb"""\ncpu = 1', ":5: cpu: 1 (expected a text)"),
        ('kernel = "k"\nfail_on = ["oops",\n"no"]', ":2: fail_on: unknown complaint to fail on 'no'"),
        ('kernel = "k"\non_panic = "dance"', ":2: on_panic: unknown choice for a panic 'dance'"),
        ('kernel = "k"\n[[disk]]\nreadonly = true', ":2: disk: path is missing"),
        ('kernel = "k"\n[disk]\npath = "a"', ":2: disk: expected tables: [[disk]]"),
        ('kernel = "k"\n[[rng]]\nrate = 5', ":2: rng: expected a table: [rng]"),
        (
            'kernel = "k"\n[[disk]]\npath = "a"\n[[disk]]\npath = "b"\nro = true',
            ":6: disk.ro: unknown key (expected path, ",
        ),
        ('kernel = "k"\n[[disk]]\npath = "a"\n[[disk]]\nqueues = 99\npath = "b"', ":5: disk.queues: "),
        ('kernel = "k"\n[[disk]]\npath = "a"\nreadonly = true\noverlay = true', ":5: disk.overlay: "),
        ('kernel = "k"\n[[net]]\nkind = "carrier"', ":3: net.kind: unknown network 'carrier'"),
        ('kernel = "k"\n[[net]]\nkind = "user"\nmac = "x"', ":4: net.mac: 'x' (expected a MAC address"),
        ('kernel = "k"\n[[net]]\nkind = "user"\nmac = "zz:54:00:12:34:56"', ":4: net.mac: "),
        ('kernel = "k"\n[[net]]\nkind = "user"\nmac = "ff:ff:ff:ff:ff:ff"', ":4: net.mac: MAC address"),
        ('kernel = "k"\n[[net]]\nkind = "socket"', ":3: net.kind: a switch needs the path"),
        ('kernel = "k"\nnet = [\n  {kind = "user"},\n  {kind = "tap", mtu = 1},\n]', ":4: net.mtu: MTU of 1"),
        (
            'kernel = "k"\n[[share]]\npath = "a"\ntag = "t"\n[[share]]\npath = "b"\ntag = "t"',
            ":2: share: two shares are",
        ),
        ('kernel = "k"\nballoon.size = "1G"\nmem = "1M"', ":2: balloon: a balloon of 1G in 1M of memory"),
        ('kernel = "k"\n[vsock]\npath = "v"\ncid = 1', ":4: vsock.cid: CID 1"),
        ('kernel = "k"\n[rng]\nrate = 0', ":3: rng.rate: random numbers at 0"),
        ('kernel = "k"\nname = ', ": no TOML: Invalid value (at "),
        (b'kernel = "\xff"', ": no TOML: not UTF-8 at byte 10"),
        ("a = " + "[" * 5000, ": no TOML"),
    ],
)
def test_a_mistake_is_told_with_its_line(write, text, error):
    path = write(text)
    with pytest.raises(UsageError) as caught:
        VM.from_toml(path)
    assert str(caught.value).startswith(f"{path}{error}")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UsageError, match="cannot read .*none.toml: No such file"):
        read_settings(tmp_path / "none.toml")
    with pytest.raises(UsageError, match="cannot read .*: Is a directory"):
        read_settings(tmp_path)


def test_lines_of_all_that_toml_can_write():
    text = '''\
# comment = 1
a = 1 # b = 2
"q.r" . 's' = "x # no = comment"
m = """
k = 1 \\""" still
"""
n = \'\'\'
it = "3"\'\'\'\'
e = ""
list = [ # with
  1, [2,
  3], { x = 1, y.z = "}" },
]
d = 1979-05-27 07:32:00
[t . u]
v = {}
[[w]]
[[w]]
x = [
]
[[w.y]]
z = 1
[w.s]
r = 2'''
    import tomllib

    tomllib.loads(text)
    found = lines_of(text)
    assert found == {
        ("a",): 2,
        ("q.r",): 3,
        ("q.r", "s"): 3,
        ("m",): 4,
        ("n",): 7,
        ("e",): 9,
        ("list",): 10,
        ("list", 0): 11,
        ("list", 1): 11,
        ("list", 1, 0): 11,
        ("list", 1, 1): 12,
        ("list", 2): 12,
        ("list", 2, "x"): 12,
        ("list", 2, "y"): 12,
        ("list", 2, "y", "z"): 12,
        ("d",): 14,
        ("t", "u"): 15,
        ("t", "u", "v"): 16,
        ("w",): 17,
        ("w", 0): 17,
        ("w", 1): 18,
        ("w", 1, "x"): 19,
        ("w", 1, "y"): 21,
        ("w", 1, "y", 0): 21,
        ("w", 1, "y", 0, "z"): 22,
        ("w", 1, "s"): 23,
        ("w", 1, "s", "r"): 24,
    }


def test_arguments_win_over_the_file(write):
    path = write('kernel = "k"\nmem = "64M"\ncpus = 2')
    assert VmConfig.from_toml(path, mem="32M", kernel="/other").mem == 32 << 20
    assert VM.from_toml(path, cpus=3, paused=True).config.cpus == 3


def config_of(*words):
    return make_config(parse(RUN, words))


def test_options_win_over_the_file_and_repeatable_ones_add(write, tmp_path):
    path = str(write(WHOLE))
    config = config_of("--config", path)
    assert everything(config) == everything(VmConfig.from_toml(path))
    config = config_of("--config", path, "/k", "-m", "64M", "-a", "debug", "-d", "/c.img", "--share", "/x,tag=x")
    assert (config.kernel, config.mem, config.append) == ("/k", 64 << 20, "quiet panic=1 debug")
    assert [disk.path for disk in config.disks] == [f"{tmp_path}/a.img", "/b.img", "/c.img"]
    assert [share.tag for share in config.shares] == ["work", "x"]
    assert config_of("--config", path, "-n", "tap").nets[2].kind == "tap"
    assert config_of("--config", path, "-n", "none").nets == ()
    assert config_of("--config", path, "-p", "1:2").nets[1].forwards == ("8080:80", "1:2")
    assert config_of("--config", path, "--fault-seed", "9").fault_seed == 9
    assert config_of("--config", path, "--rng").rng.rate is None


def test_tomllib_is_imported_for_such_a_file_alone():
    program = "import sys, pyvmm.config, pyvmm.cli.run; print('tomllib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
