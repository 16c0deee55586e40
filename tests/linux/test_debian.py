"""Debian's own kernel, unmodified: as far as this host's KVM lets it come. Many minutes where ring 0 is emulated."""

import subprocess

import pytest

from tests.support.cli import PYVMM, environment, pyvmm
from tests.support.session import Session

MINUTES = 45
pytestmark = [pytest.mark.needs("kvm"), pytest.mark.soak, pytest.mark.timeout((MINUTES + 10) * 60)]

COMPLAINTS = (b"ACPI Error", b"ACPI Warning", b"ACPI BIOS", b"ACPI Exception", b"Firmware Bug")


def test_it_boots_to_its_first_program_and_has_no_complaint_about_the_acpi_tables(tmp_path):
    pyvmm("image", "build", "debian", timeout=600, check=True)
    path = {
        file: subprocess.check_output([*PYVMM, "image", "path", "debian", file], env=environment(), text=True).strip()
        for file in ("kernel", "initrd")
    }
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(1 << 20))
    arguments = [path["kernel"], "--initrd", path["initrd"], "--mem", "512M", "--disk", disk]
    session = Session(*arguments, "--timeout", f"{MINUTES}m", limit=MINUTES * 60)
    try:
        shown = session.see(b"Run /init as init process")
    finally:
        session.close()
    assert b"ACPI: RSDP 0x" in shown and b"ACPI: DSDT 0x" in shown and b"ACPI: Interpreter enabled" in shown
    assert not [complaint for complaint in COMPLAINTS if complaint in shown]
