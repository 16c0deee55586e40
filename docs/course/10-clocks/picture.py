"""Who keeps a guest's clocks."""

from pyvmm.course.draw import Drawing


def draw():
    d = Drawing(
        "Who keeps a guest's clocks",
        "The guest reads the PIT through ports and the local APIC's timer through memory; both lie in KVM, which makes "
        "them of timers of the host's kernel. RDTSC reads the processor's counter, plus an offset, without an exit. "
        "kvmclock is a record in the guest's memory that KVM writes and the guest reads.",
    )
    d.box(10, 10, 700, 140, "guest", kind="guest", top=True)
    pit = d.box(30, 52, 140, 50, "PIT", sub="ports 0x40 to 0x43")
    apic = d.box(200, 52, 140, 50, "local APIC", sub="0xfee00000")
    record = d.box(370, 52, 140, 50, "kvmclock", sub="32 bytes of RAM", kind="memory")
    tsc = d.box(540, 52, 150, 50, "RDTSC", sub="one instruction")
    d.box(10, 220, 500, 120, "KVM, in the host's kernel", kind="kvm", top=True)
    timers = d.box(30, 262, 310, 50, "timers of the host's kernel", kind="host")
    writer = d.box(370, 262, 120, 50, "time of the host", kind="host")
    counter = d.box(540, 262, 150, 60, "time stamp counter", sub="plus the VM's offset", kind="hardware")
    d.arrow(pit, (100, 220), "exit to KVM", room=90)
    d.arrow(apic, (270, 220), "exit to KVM", room=90)
    d.arrow(writer, (430, 102), "KVM writes", room=80)
    d.arrow(counter, tsc, "no exit", both=True, room=80)
    assert timers and record
    return d
