"""`--root`, `--rwdir` and `--modules`: what they mean, and what the guest is asked to mount."""

from __future__ import annotations

import errno

import pytest

from pyvmm.cli import rootfs
from pyvmm.cli.command import guest_files
from pyvmm.cli.configuration import make_config
from pyvmm.cli.options import parse
from pyvmm.cli.rootfs import NEW, GuestFiles
from pyvmm.cli.runoptions import RUN
from pyvmm.errors import GuestAgentError, PyvmmError, UsageError


class Guest:
    """Notes what is mounted where. Mounting fails with `failures[type or target]`."""

    def __init__(self, **failures):
        self.mounts = []
        self.options = {}
        self.failures = failures

    def mount(self, source, target, kind, options="", flags=0):
        number = self.failures.get(kind) or self.failures.get(target)
        if number:
            raise GuestAgentError(f"the guest could not mount {kind} on {target}", errno=number)
        self.mounts.append(" ".join(filter(None, (kind, source, target, "ro" if flags else ""))))
        self.options[target] = options

    def change_root(self, path):
        self.mounts.append(f"root {path}")


def shares(files):
    return [(share.path, share.tag, share.readonly) for share in files.shares()]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A root with a home/work in it; the current folder is home. What the host has mounted is just its root."""
    (tmp_path / "home/work").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "home")
    monkeypatch.setattr(rootfs, "mount_points", lambda: iter(["/"]))
    return tmp_path


def test_a_root_is_an_overlay_and_work_directories_are_the_hosts(home):
    files = GuestFiles(str(home), ["work"])
    assert (files.root, files.overlay, files.folder) == (str(home), True, "/home")
    assert shares(files) == [(str(home), "pyvmm-root0", True), (str(home / "home/work"), "pyvmm-rw0", False)]
    guest = Guest()
    files.mount(guest)
    assert guest.mounts == [
        "9p pyvmm-root0 /run/lower0 ro",
        "tmpfs tmpfs /run/over0",
        "/run/over0/upper",
        "/run/over0/work",
        f"overlay overlay {NEW}",
        f"root {NEW}",
        "proc proc /proc",
        "sysfs sysfs /sys",
        "devtmpfs devtmpfs /dev",
        "tmpfs tmpfs /dev/shm",
        "tmpfs tmpfs /run",
        "9p pyvmm-rw0 /home/work",
    ]
    assert guest.options[NEW] == "lowerdir=/run/lower0,upperdir=/run/over0/upper,workdir=/run/over0/work"
    assert "cache=loose" in guest.options["/run/lower0"] and "cache=mmap" in guest.options["/home/work"]


def test_a_read_only_root_has_a_tmp_of_the_guests(home, monkeypatch):
    guest = Guest()
    GuestFiles(f"{home},ro").mount(guest)
    assert guest.mounts[:2] == [f"9p pyvmm-root0 {NEW} ro", f"root {NEW}"]
    assert guest.mounts[-2:] == ["tmpfs tmpfs /run", "tmpfs tmpfs /tmp"]
    (home / "tmp").mkdir()
    monkeypatch.chdir(home / "tmp")  # not where somebody works
    GuestFiles(f"{home},ro").mount(guest := Guest())
    assert guest.mounts[-1] == "tmpfs tmpfs /run"
    GuestFiles(f"{home},ro").mount(Guest(**{"/run": errno.EROFS}))


def test_what_is_mounted_on_the_way_to_the_current_folder_is_shared_too(home, monkeypatch):
    points = ["/", "/proc", f"{home}/home", f"{home}/home", f"{home}/usr", f"{home}/proc/x", f"{home}/homes"]
    monkeypatch.setattr(rootfs, "mount_points", lambda: iter(points))
    files = GuestFiles(str(home))
    assert [share.path for share in files.shares()] == [str(home), f"{home}/home"]
    files.mount(guest := Guest())
    assert guest.mounts[4:10] == [
        f"overlay overlay {NEW}",
        "9p pyvmm-root1 /run/lower1 ro",
        "tmpfs tmpfs /run/over1",
        "/run/over1/upper",
        "/run/over1/work",
        f"overlay overlay {NEW}/home",
    ]
    monkeypatch.chdir("/")
    assert [share.path for share in GuestFiles(str(home)).shares()] == [str(home)]


def test_the_mounts_of_this_host_are_found(tmp_path, monkeypatch):
    assert "/" in rootfs.mount_points()
    table = tmp_path / "mounts"
    table.write_text("36 35 98:0 /mnt1 /a\\040b\\134c rw,noatime master:1 - ext3 /dev/root rw\n")
    monkeypatch.setattr(rootfs, "MOUNTS", table)
    assert list(rootfs.mount_points()) == ["/a b\\c"]


def test_without_a_root_work_directories_are_in_the_initramfs(home, monkeypatch):
    files = GuestFiles(rwdirs=["work"])
    assert (files.folder, shares(files)) == ("/", [(str(home / "home/work"), "pyvmm-rw0", False)])
    files.mount(guest := Guest())
    assert guest.mounts == [f"9p pyvmm-rw0 {home}/home/work"]
    monkeypatch.chdir("work")
    assert GuestFiles(rwdirs=["."]).folder == f"{home}/home/work"


def test_modules_are_those_of_an_installation(home):
    version = home / "lib/modules/6.1"
    version.mkdir(parents=True)
    with pytest.raises(UsageError, match=r"no .*/lib/modules/VERSION/modules\.dep in it \(.*make modules_install"):
        GuestFiles(modules=str(home))
    (version / "modules.dep").touch()
    files = GuestFiles(modules=str(home))
    assert shares(files) == [(str(home / "lib/modules"), "pyvmm-modules", True)]
    files.mount(guest := Guest())
    assert guest.mounts == ["9p pyvmm-modules /lib/modules ro"]


def test_a_comma_in_a_path_is_doubled(tmp_path):
    (tmp_path / "a,ro").mkdir()
    assert GuestFiles(f"{tmp_path}/a,,ro,ro").root == f"{tmp_path}/a,ro"


@pytest.mark.parametrize(
    ("root", "work", "modules", "said"),
    [
        ("{}/nothing", [], "", "--root: there is no directory '.*/nothing'"),
        ("{}/file", [], "", "--root .*/file: is no directory"),
        ("", [], "", "--root: there is no directory ''"),
        ("{}/closed", [], "", "--root .*/closed: Permission denied"),
        ("{},rw", [], "", "expected DIR, DIR,ro or DIR,overlay"),
        ("{},ro,overlay", [], "", "expected DIR, DIR,ro or DIR,overlay"),
        ("{}", ["/"], "", "--rwdir /: expected a directory below --root /.+"),
        ("{}", ["{}"], "", "--rwdir /.*: expected a directory below"),
        ("none", ["/"], "", "--rwdir /: expected a directory below --root /$"),
        ("{}", ["{}/file"], "", "--rwdir .*file: is no directory"),
        ("{}", ["{}/nothing"], "", "--rwdir: there is no directory"),
        ("{}", [], "{}/nothing", "--modules: there is no directory"),
    ],
)
def test_what_they_may_not_be(tmp_path, monkeypatch, root, work, modules, said):
    (tmp_path / "file").touch()
    (tmp_path / "closed").mkdir()
    monkeypatch.setattr(rootfs.os, "access", lambda path, mode: not path.endswith("closed"))
    with pytest.raises(UsageError, match=said):
        GuestFiles(root.format(tmp_path), [each.format(tmp_path) for each in work], modules.format(tmp_path))


@pytest.mark.parametrize(
    ("kind", "number", "said"),
    [
        ("9p", errno.ENODEV, "CONFIG_9P_FS"),
        ("9p", errno.ENOENT, "CONFIG_NET_9P_VIRTIO"),
        ("9p", errno.EINVAL, "CONFIG_NET_9P_VIRTIO"),
        ("overlay", errno.ENODEV, "CONFIG_OVERLAY_FS"),
        ("devtmpfs", errno.ENODEV, "CONFIG_DEVTMPFS"),
        ("tmpfs", errno.EPERM, ""),
    ],
)
def test_a_piece_that_the_kernel_lacks_is_named(home, kind, number, said):
    with pytest.raises(PyvmmError, match=f"could not mount {kind} on") as caught:
        GuestFiles(str(home)).mount(Guest(**{kind: number}))
    assert (f"its kernel lacks {said} " in str(caught.value)) == bool(said)


def test_a_kernel_without_initrd_has_the_hosts_root_by_default(home, monkeypatch):
    monkeypatch.setattr("pyvmm.images.image", lambda name: type("Image", (), {"initrd": "i", "kernel": "k"}))

    def config(*arguments):
        made = make_config(parse(RUN, [*arguments, "--", "ls"]))
        return made.initrd, [share.path for share in made.shares]

    assert config("kernel") == ("i", ["/"])
    assert config("kernel", "--root", "none") == ("i", [])
    assert config("kernel", "--root", f"{home},ro", "--rwdir", "work") == ("i", [str(home), f"{home}/home/work"])
    assert config("kernel", "-i", "own") == ("own", [])
    assert config("kernel", "-i", "own", "--root", str(home)) == ("own", [str(home)])
    assert config() == ("i", [])
    assert config("--root", str(home)) == ("i", [str(home)])
    assert guest_files({}) is None
    for option in ("root", "rwdir", "modules"):
        with pytest.raises(UsageError, match=f"--{option} goes with a command in the guest"):
            make_config(parse(RUN, ["kernel", f"--{option}", "/"]))
