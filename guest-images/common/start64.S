/*
 * Where a 64-bit guest written in C begins: an ELF64 executable, entered in long mode with the first 4
 * GiB mapped onto themselves. The GDT is made anew, so that the guest knows its selectors: interrupt
 * gates need one for CS.
 */
        .section .start, "ax"
        .globl  _start
_start: leaq    stack_top(%rip), %rsp
        cld
        lgdt    gdt_pointer(%rip)
        movl    $16, %eax               # in long mode only SS matters, and of it only the privilege level
        movl    %eax, %ds
        movl    %eax, %es
        movl    %eax, %ss
        pushq   $8                      # CS can only be loaded by a far transfer
        leaq    1f(%rip), %rax
        pushq   %rax
        lretq
1:      call    guest_main
2:      cli
        hlt                             # nobody comes back from here
        jmp     2b

        .data
        .align  8
gdt:    .quad   0
        .quad   0x00af9b000000ffff      # 0x08: code, ring 0, 64-bit
        .quad   0x00cf93000000ffff      # 0x10: data, ring 0
gdt_pointer:
        .word   . - gdt - 1
        .quad   gdt

        .bss
        .align  16
        .skip   16384
stack_top:
