"""Judges the exercises of lesson 14; `arm` needs KVM."""


def bzimage(sectors=27, version=0x20F, xloadflags=0x3F, length=40000, magic=b"HdrS"):
    image = bytearray(length)
    for offset, data in ((0x1F1, bytes([sectors])), (0x1FE, b"\x55\xaa"), (0x202, magic)):
        image[offset : offset + len(data)] = data
    image[0x206:0x208] = version.to_bytes(2, "little")
    image[0x236:0x238] = xloadflags.to_bytes(2, "little")
    return bytes(image)


def check_setup_header(work):
    header, NotLinux = work.exercise.setup_header, work.exercise.NotLinux
    found = header(bzimage())
    if not isinstance(found, dict) or set(found) != {"version", "kernel", "entry64"}:
        return f"expected a dict with version, kernel and entry64, not {found!r}"
    cases = [
        ({}, {"version": 0x20F, "kernel": 14336, "entry64": True}, "setup_sects 27: (27 + 1) * 512 is 14336"),
        ({"sectors": 0}, {"version": 0x20F, "kernel": 2560, "entry64": True}, "setup_sects 0 stands for 4"),
        ({"sectors": 64}, {"version": 0x20F, "kernel": 33280, "entry64": True}, "setup_sects is one byte"),
        ({"xloadflags": 0x3E}, {"version": 0x20F, "kernel": 14336, "entry64": False}, "bit 0 of xloadflags is clear"),
        ({"version": 0x20B}, {"version": 0x20B, "kernel": 14336, "entry64": False}, "2.11 had no xloadflags yet"),
    ]
    for settings, expected, why in cases:
        if (found := header(bzimage(**settings))) != expected:
            return f"{found} should be {expected}: {why}"
    for image, what in (
        (bzimage(magic=b"HdrX"), "without 'HdrS' at 0x202"),
        (b"", "without any byte"),
        (bzimage()[:0x204], "that ends in the middle of 'HdrS'"),
        (bzimage(length=14336), "that ends where its kernel would begin"),
    ):
        try:
            found = header(image)
        except NotLinux:
            continue
        return f"a file {what} should be NotLinux, not {found}"
    return ""


def check_arm(work):
    import mmap
    import threading

    from pyvmm.events import EventFd
    from pyvmm.kvm import Kvm
    from pyvmm.kvm.exits import Interrupted, Pio

    # mov $0x500, %dx; then 0, 1, 1, 2 as bytes; then 0 as a word; then to port 0xf4
    code = bytes.fromhex("ba0005 b000 ee b001 ee ee b002 ee b80000 ef e6f4 f4")
    events = [EventFd(), EventFd()]
    seen = []
    with mmap.mmap(-1, 1 << 16) as memory, Kvm() as kvm, kvm.create_vm() as vm:
        vm.set_tss_addr(0xFFFBD000)
        memory[0x1000 : 0x1000 + len(code)] = code
        vm.set_user_memory_region(0, 0, memoryview(memory))
        vcpu = vm.create_vcpu(0)
        sregs, regs = vcpu.get_sregs(), vcpu.get_regs()
        sregs.cs.base, sregs.cs.selector, regs.rip = 0, 0, 0x1000
        vcpu.set_sregs(sregs)
        vcpu.set_regs(regs)
        work.exercise.arm(vm, 0x500, [event.fileno() for event in events])
        limit = threading.Timer(5, vcpu.kick)
        limit.start()
        while isinstance(exit := vcpu.run(), Pio) and exit.port == 0x500:
            seen.append((exit.size, exit.value))
        limit.cancel()
        if isinstance(exit, Interrupted):
            return "the guest does not come to its end"
    counts = [event.drain() for event in events]
    for event in events:
        event.close()
    if (1, 0) in seen or (1, 1) in seen:
        return f"the bells are still exits: {seen}, each (width, value)"
    if counts == [3, 0] or counts == [4, 0]:
        return "every write rings the first bell: which of the two it is stands in the value"
    if (1, 2) not in seen:
        return "a write of 2, for which there is no bell, should be an exit"
    if (2, 0) not in seen:
        return "a write of two bytes is no ring: the width is 1"
    return "" if counts == [1, 2] else f"the guest has rung 0 once and 1 twice; the eventfds say {counts}"
