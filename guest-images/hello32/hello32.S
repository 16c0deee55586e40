/*
 * Hello from 32-bit protected mode. A flat image again, but the VMM has prepared the CPU: CR0.PE is set,
 * all segments span 4 GiB from 0, paging is off. `lodsb` reads from ESI, a full 32-bit address, and the
 * image lies at 1 MiB.
 */

        .code32
        .section .start, "ax"
        .globl  _start
_start: movl    $message, %esi
        movw    $0x3f8, %dx             # COM1's data register
        cld
1:      lodsb
        testb   %al, %al
        jz      2f
        outb    %al, %dx
        jmp     1b

2:      movw    $0xcf9, %dx             # reset control register of Intel's chipsets:
        movb    $0x02, %al              # choose a hard reset,
        outb    %al, %dx
        movb    $0x06, %al              # and do it
        outb    %al, %dx
3:      hlt
        jmp     3b

message:
        .asciz  "Hello from 32-bit protected mode!\n"
