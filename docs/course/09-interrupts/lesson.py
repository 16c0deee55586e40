"""Lesson 9: interrupts from Python, by a device's line and by an eventfd."""

from pyvmm import VM, PortDevice
from pyvmm.events import EventFd
from pyvmm.images import guest
from pyvmm.kvm.constants import KVM_IRQCHIP_IOAPIC

LINE = 5


class Mailbox(PortDevice):
    """Offset 0: the next letter, which is taken by reading it. Offset 1: bit 0 is set while there is one."""

    length = 2

    def __init__(self):
        self.letters = b""

    def post(self, letters):
        with self.lock:  # we are not on a vCPU's thread: the bus has not taken it for us
            self.letters += letters
            self.irq.set(True)

    def read(self, offset, size):
        if offset == 1:
            return 1 if self.letters else 0
        letter, self.letters = self.letters[:1], self.letters[1:]
        self.irq.set(bool(self.letters))
        return int.from_bytes(letter, "little")


def started(box):
    vm = VM(guest("lesson09-mailbox").path(), timeout=30)
    vm.attach(box, port=0x500, irq=LINE)
    return vm


def post():
    box = Mailbox()
    with started(box) as vm:
        vm.console.expect("ready\n", timeout=30)
        box.post(b"abc")
        vm.wait()
    print(vm.console.text, end="")


def controller():
    """The I/O APIC's entry for our line, while the guest waits and each time that it takes a letter."""
    box = Mailbox()

    def look(when):
        ioapic = vm.vcpus[0].vm.get_irqchip(KVM_IRQCHIP_IOAPIC).chip.ioapic
        entry = ioapic.redirtbl[LINE]
        parts = f"vector {entry & 0xFF:#x}, level {entry >> 15 & 1}, masked {entry >> 16 & 1}"
        print(f"{when:>8}: {parts}, line {ioapic.irr >> LINE & 1}, remote IRR {entry >> 14 & 1}")

    with started(box) as vm:
        vm.console.expect("ready\n", timeout=30)
        look("waiting")
        vm.on_exit("IO", lambda vcpu, exit: exit.port == 0x500 and look(f"{exit.data.decode()} taken"))
        box.post(b"abc")
        vm.wait()


def signal():
    box, event = Mailbox(), EventFd()
    with started(box) as vm:
        vm.console.expect("ready\n", timeout=30)
        vm.vcpus[0].vm.irqfd(event.fd, LINE)
        event.signal()  # this could be any process that has the descriptor, or the kernel
        vm.console.expect("no letter\n", timeout=30)
        box.post(b"xyz")
        vm.wait()
    # Each line once: an interrupt may come once more than needed, and the guest says so each time.
    print(*dict.fromkeys(vm.console.text.splitlines()), sep="\n")
    event.close()
