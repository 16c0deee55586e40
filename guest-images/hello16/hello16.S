/*
 * Hello from 16-bit real mode, the mode every x86 CPU wakes up in. A flat image: the first byte of the
 * file is the first instruction. It is 512 bytes long and ends in 0x55 0xaa, so a PC's firmware would
 * take it for a boot sector.
 */

        .code16
        .section .start, "ax"
        .globl  _start
_start: xorw    %ax, %ax
        movw    %ax, %ds                # addresses are DS * 16 + offset; this was linked for 0x7c00
        movw    $message, %si
        movw    $0x3f8, %dx             # COM1's data register
        cld
1:      lodsb                           # AL = next byte of the message
        testb   %al, %al
        jz      2f
        outb    %al, %dx                # this instruction leaves the guest: the VMM sees port, size and byte
        jmp     1b

2:      movb    $0xfe, %al              # keyboard controller command: pulse the CPU's reset line
        outb    %al, $0x64
3:      hlt
        jmp     3b

message:
        .asciz  "Hello from 16-bit real mode!\n"

        .org    510
        .word   0xaa55
