/*
 * Where a guest written in C begins. The file carries the marks of two boot protocols, so that more
 * than one VMM can start it; both arrive here in 32-bit protected mode without paging, with EBX
 * pointing at what the VMM has to say:
 *   multiboot 0.6.96   EAX = 0x2badb002, EBX = multiboot information
 *   PVH (Xen)          EBX = struct hvm_start_info
 * Neither promises a stack or a GDT that may still be used, so both are made first.
 */
        .section .start, "ax"
        .align  4
        .long   0x1badb002, 3, -(0x1badb002 + 3)        # multiboot: magic, flags (memory map, please), checksum

        .globl  _start
_start: movl    $stack_top, %esp
        cld
        lgdt    gdt_pointer
        ljmp    $8, $1f                 # CS from our own GDT
1:      movl    $16, %ecx               # and the data segments
        movl    %ecx, %ds
        movl    %ecx, %es
        movl    %ecx, %ss
        pushl   %ebx
        pushl   %eax
        call    guest_main              # guest_main(magic, info)
2:      cli
        hlt                             # nobody comes back from here
        jmp     2b

        .data
        .align  8
        .globl  gdt
gdt:    .quad   0
        .quad   0x00cf9b000000ffff      # 0x08: code, ring 0, 4 GiB from 0
        .quad   0x00cf93000000ffff      # 0x10: data, ring 0, 4 GiB from 0
gdt_pointer:
        .word   . - gdt - 1
        .long   gdt

        .section .note.pvh, "a", @note  # tells a VMM: enter here, in 32-bit mode
        .align  4
        .long   4, 4, 18                # lengths of name and value, XEN_ELFNOTE_PHYS32_ENTRY
        .asciz  "Xen"
        .long   _start

        .bss
        .align  16
        .skip   16384
stack_top:
