/*
 * Hello from 64-bit long mode, as an ordinary ELF executable: its program headers say where the VMM must
 * put it, e_entry says where to begin. Long mode cannot be without paging, so the VMM also made page
 * tables: the first 4 GiB, identity mapped.
 */

        .code64
        .section .start, "ax"
        .globl  _start
_start: leaq    message(%rip), %rsi     # relative to RIP: only 64-bit code can say this
        movw    $0x3f8, %dx             # COM1's data register
        cld
1:      lodsb
        testb   %al, %al
        jz      2f
        outb    %al, %dx
        jmp     1b

2:      movb    $0xfe, %al              # keyboard controller command: pulse the CPU's reset line
        outb    %al, $0x64
3:      hlt
        jmp     3b

message:
        .asciz  "Hello from 64-bit long mode!\n"
