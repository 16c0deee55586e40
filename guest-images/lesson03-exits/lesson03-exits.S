/*
 * Leaves the guest in every way that a few instructions can: by CPUID, whose exit KVM deals with, by two port
 * accesses and a store to where no memory is, which it hands on, and by HLT.
 */
        .code16
        .section .start, "ax"
        .globl  _start
_start: xorl    %eax, %eax
        cpuid                           # leaf 0: how far leaves go, and the vendor

        movw    $0x500, %dx             # a port that is nobody's
        movb    $0x5a, %al
        outb    %al, %dx
        inb     %dx, %al

        movw    $0xffff, %ax
        movw    %ax, %ds
        movb    $0x5a, 0x10             # 0xffff0 + 0x10: the first byte behind a megabyte of RAM

        xorw    %ax, %ax
        outb    %al, $0xf4              # the debug-exit port: `pyvmm run` ends here
        hlt                             # whoever goes on gets here
