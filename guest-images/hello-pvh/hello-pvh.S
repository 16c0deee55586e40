/*
 * Hello by PVH, the direct boot protocol that Xen defined and KVM's VMMs took over: an ELF note names a
 * 32-bit entry point. The VMM enters there in protected mode with EBX pointing at struct hvm_start_info
 * (Xen: public/arch-x86/hvm/start_info.h).
 */

        .section .note.pvh, "a", @note
        .align  4
        .long   4                       # length of the name
        .long   4                       # length of the value
        .long   18                      # XEN_ELFNOTE_PHYS32_ENTRY
        .asciz  "Xen"
        .long   _start                  # physical address of the entry

        .section .start, "ax"
        .globl  _start
_start: movl    $stack, %esp            # the VMM promises none
        cmpl    $0x336ec578, (%ebx)     # magic: "xEn3" with the top bit of the E set
        jne     wrong
        movl    $greeting, %esi
        call    print
        movl    24(%ebx), %esi          # address of the command line (64 bits; 32 are of use here)
        call    print
        movl    $newline, %esi
        call    print
        movb    $0xfe, %al              # keyboard controller: reset
        outb    %al, $0x64
1:      hlt
        jmp     1b

wrong:  movl    $1, %eax
        outb    %al, $0xf4              # debug exit with code 1: status 3
        jmp     1b

print:  movw    $0x3f8, %dx
2:      lodsb
        testb   %al, %al
        jz      3f
        outb    %al, %dx
        jmp     2b
3:      ret

greeting:
        .asciz  "Hello by PVH! Command line: "
newline:
        .asciz  "\n"

        .bss
        .skip   64
stack:
