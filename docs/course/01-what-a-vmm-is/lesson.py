"""Lesson 1: the same guest, by an emulator and by the processor itself."""

from pyvmm import VM
from pyvmm.images import guest

ENTRY = 0x7C00


def image():
    with open(guest("hello16").path(), "rb") as file:
        return file.read()


def interpret(memory):
    """Every instruction of hello16, and no other; returns how many were carried out."""
    ip, al, si, dx, zero, count = ENTRY, 0, 0, 0, False, 0
    while True:
        code, byte, word = memory[ip], memory[ip + 1], memory[ip + 1] | memory[ip + 2] << 8
        count += 1
        match code:
            case 0x31:  # xorw %ax, %ax
                al, ip = 0, ip + 2
            case 0x8E:  # movw %ax, %ds: AX is 0, as DS already
                ip += 2
            case 0xBE:  # movw $word, %si
                si, ip = word, ip + 3
            case 0xBA:  # movw $word, %dx
                dx, ip = word, ip + 3
            case 0xFC:  # cld
                ip += 1
            case 0xAC:  # lodsb
                al, si, ip = memory[si], si + 1, ip + 1
            case 0x84:  # testb %al, %al
                zero, ip = al == 0, ip + 2
            case 0x74:  # jz byte
                ip += 2 + byte * zero
            case 0xEE:  # outb %al, %dx
                print(chr(al), end="") if dx == 0x3F8 else None
                ip += 1
            case 0xEB:  # jmp byte, which is signed
                ip += 2 + byte - 2 * (byte & 0x80)
            case 0xB0:  # movb $byte, %al
                al, ip = byte, ip + 2
            case _:  # outb %al, $0x64: the guest resets its processor
                return count


def emulate():
    memory = bytearray(ENTRY) + image()
    count = interpret(memory)
    print(f"{count} instructions, each of them looked at, taken apart and imitated")


def virtualize():
    with VM(guest("hello16").path(), mem="1M", timeout=30) as vm:
        vm.wait()
    print(vm.console.text, end="")
    print(f"{vm.stats.exits['IO']} exits; the VMM has seen nothing else of the guest")
