/*
 * Where a 64-bit guest begins that any VMM with a PVH entry can start, and that may work in ring 3. It
 * is entered in 32-bit protected mode with EBX pointing at the start info, maps the first 4 GiB onto
 * themselves for every ring (2 MiB pages), goes to long mode and calls guest_main(magic, info) as
 * start32.S does. ring3.h has the way down.
 */
        PRESENT_WRITABLE_USER = 7       # of a page table entry (Intel SDM volume 3A, 4.5.4)
        LARGE = 0x80
        CR4_PAE = 1 << 5
        CR0_PG = 1 << 31
        EFER = 0xc0000080
        EFER_LME = 1 << 8

        .section .start, "ax"
        .code32
        .globl  _start
_start: movl    $stack_top, %esp
        cld
        movl    %ebx, %esi              # guest_main's second argument
        movl    $level3 + PRESENT_WRITABLE_USER, level4
        movl    $level2 + PRESENT_WRITABLE_USER, %eax
        movl    $level3, %edi
        movl    $4, %ecx
1:      movl    %eax, (%edi)
        addl    $4096, %eax
        addl    $8, %edi
        loop    1b
        movl    $PRESENT_WRITABLE_USER + LARGE, %eax
        movl    $level2, %edi
        movl    $2048, %ecx
2:      movl    %eax, (%edi)
        addl    $0x200000, %eax
        addl    $8, %edi
        loop    2b

        movl    %cr4, %eax              # Intel SDM volume 3A, 10.8.5: PAE, CR3, LME, paging, far jump
        orl     $CR4_PAE, %eax
        movl    %eax, %cr4
        movl    $level4, %eax
        movl    %eax, %cr3
        movl    $EFER, %ecx
        rdmsr
        orl     $EFER_LME, %eax
        wrmsr
        movl    %cr0, %eax
        orl     $CR0_PG, %eax
        movl    %eax, %cr0
        lgdt    gdt_pointer
        ljmp    $8, $3f
        .code64
3:      movl    $16, %eax
        movl    %eax, %ds
        movl    %eax, %es
        movl    %eax, %ss
        xorl    %edi, %edi              # no magic: PVH has none in a register
        call    guest_main
4:      cli
        hlt                             # nobody comes back from here
        jmp     4b

        .data
        .align  8
        .globl  gdt
gdt:    .quad   0
        .quad   0x00af9b000000ffff      # 0x08: code, ring 0, 64-bit
        .quad   0x00cf93000000ffff      # 0x10: data, ring 0
        .quad   0x00cff3000000ffff      # 0x18: data, ring 3
        .quad   0x00affb000000ffff      # 0x20: code, ring 3, 64-bit
        .quad   0, 0                    # 0x28: the task state segment, which ring3.h describes
gdt_pointer:
        .word   . - gdt - 1
        .quad   gdt

        .section .note.pvh, "a", @note  # tells a VMM: enter here, in 32-bit mode
        .align  4
        .long   4, 4, 18                # lengths of name and value, XEN_ELFNOTE_PHYS32_ENTRY
        .asciz  "Xen"
        .long   _start

        .bss
        .align  4096
level4: .skip   4096
level3: .skip   4096
level2: .skip   4 * 4096
        .skip   16384
stack_top:
