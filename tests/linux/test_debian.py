"""Debian's own kernel, unmodified: as far as this host's KVM lets it come. Many minutes where ring 0 is emulated."""

import subprocess

import pytest

from tests.support.cli import PYVMM, environment, pyvmm
from tests.support.session import Session

MINUTES = 45
pytestmark = [pytest.mark.needs("kvm"), pytest.mark.soak, pytest.mark.timeout((MINUTES + 10) * 60)]

# Hours of ring 0, where that is emulated: self-tests of public-key cryptography, and every trace event's files.
WITHOUT = (
    "cryptomgr.notests initcall_blacklist=tracer_init_tracefs,init_kprobe_trace,init_uprobe_trace,init_dynamic_event,"
    "ftrace_check_for_weak_functions,ftrace_check_init,init_blk_tracer,event_trace_enable_again,"
    "init_trace_printk_function_export,trace_eval_sync"
)
FUNCTIONS = {b"1": b"1042", b"2": b"1041", b"3": b"1043", b"4": b"1044"}
"""The devices that a bzImage finds over PCI: block, net, console and rng (virtio 1.3, 4.1.2), by their slots."""
COMPLAINTS = (b"ACPI Error", b"ACPI Warning", b"ACPI BIOS", b"ACPI Exception", b"ACPI: [Firmware Bug]")


def test_it_finds_its_devices_boots_to_its_first_program_and_has_no_complaint_about_the_tables(tmp_path):
    pyvmm("image", "build", "debian", timeout=600, check=True)
    path = {
        file: subprocess.check_output([*PYVMM, "image", "path", "debian", file], env=environment(), text=True).strip()
        for file in ("kernel", "initrd")
    }
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(1 << 20))
    arguments = [path["kernel"], "--initrd", path["initrd"], "--mem", "512M", "--disk", disk, "--append", WITHOUT]
    arguments += ["--net", f"socket={tmp_path}/switch", "--port", f"log=file:{tmp_path}/log", "--rng"]
    session = Session(*arguments, "--timeout", f"{MINUTES}m", limit=MINUTES * 60)
    try:
        shown = session.see(b"Run /init as init process")
    finally:
        session.close()
    assert b"ACPI: RSDP 0x" in shown and b"ACPI: DSDT 0x" in shown and b"ACPI: Interpreter enabled" in shown
    for slot, device in FUNCTIONS.items():
        assert b"pci 0000:00:0%s.0: [1af4:%s]" % (slot, device) in shown
    assert not [complaint for complaint in COMPLAINTS if complaint in shown]
