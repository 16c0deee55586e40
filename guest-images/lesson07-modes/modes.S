/*
 * From the mode in which every x86 processor wakes up to the one in which operating systems run: real mode (R),
 * 32-bit protected mode (P), compatibility mode (C), 64-bit mode (L); a letter in each, to the debug console. Intel
 * SDM volume 3A, 10.9.1 and 10.8.5. No stack and no IDT: nobody returns, and interrupts are off.
 */
        .macro  say letter
        movb    $\letter, %al
        outb    %al, $0xe9
        .endm

        .code16
        .section .start, "ax"
        .globl  _start
        /* [real] */
_start: xorw    %ax, %ax
        movw    %ax, %ds                # base 0: an address is DS * 16 + offset
        say     'R'
        /* [/real] */
        /* [protected] */
        lgdtl   gdt                     # base and limit of the GDT
        movl    $0x11, %eax
        movl    %eax, %cr0              # PE (and ET, which is always 1): protected mode, with the old CS
        ljmpl   $0x08, $protected       # CS from the GDT: 32-bit code from here on
        .code32
protected: say 'P'
        /* [/protected] */
        /* [tables] */
        movl    $0xa003, 0x9000         # PML4, entry 0: the PDPT is at 0xa000; present, writable
        movl    $0xb003, 0xa000         # PDPT, entry 0: the page directory is at 0xb000
        movl    $0x0083, 0xb000         # page directory, entry 0: a page of 2 MiB at 0
        /* [/tables] */
        /* [long] */
        movl    $0x20, %eax
        movl    %eax, %cr4              # PAE: entries of 8 bytes
        movl    $0x9000, %eax
        movl    %eax, %cr3              # where the PML4 is
        movl    $0xc0000080, %ecx       # IA32_EFER
        rdmsr
        orb     $0x01, %ah              # LME, bit 8: long mode is wanted
        wrmsr
        movl    $0x80000011, %eax
        movl    %eax, %cr0              # PG: paging on, and with it long mode
        say     'C'                     # CS says 32-bit code still: compatibility mode
        ljmpl   $0x10, $long            # CS with L set: 64-bit code
        .code64
long:   say     'L'
        movb    $0xfe, %al              # keyboard controller: reset
        outb    %al, $0x64
        hlt
        /* [/long] */
        /* [gdt] */
gdt:    .word   3 * 8 - 1, gdt, 0, 0    # entry 0 is never used: room for limit and base, which lgdt wants
        .quad   0x004f9a000000ffff      # 0x08: code, 32-bit (D), base 0, limit 1 MiB
        .quad   0x00209a0000000000      # 0x10: code, 64-bit (L), which has no limit
        /* [/gdt] */
