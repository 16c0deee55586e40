/*
 * Hello from a multiboot kernel (Multiboot specification 0.6.96): an ELF32 file with a 12-byte header in
 * its first 8 KiB. The loader enters it in 32-bit protected mode with EAX = 0x2badb002 and EBX pointing
 * at a structure of facts.
 */

        .set    FLAGS, 0                # nothing wanted from the loader; ELF headers say where to load

        .section .start, "ax"
        .align  4
        .long   0x1badb002, FLAGS, -(0x1badb002 + FLAGS)        # magic, flags, and what makes the sum zero

        .globl  _start
_start: movl    $stack, %esp            # the loader promises none
        cmpl    $0x2badb002, %eax
        jne     wrong
        movl    $greeting, %esi
        call    print
        testl   $1 << 2, (%ebx)         # flags: bit 2 says that the command line is valid
        jz      1f
        movl    16(%ebx), %esi
        call    print
1:      movl    $newline, %esi
        call    print
        movb    $0xfe, %al              # keyboard controller: reset
        outb    %al, $0x64
2:      hlt
        jmp     2b

wrong:  movl    $1, %eax
        outb    %al, $0xf4              # debug exit with code 1: status 3
        jmp     2b

print:  movw    $0x3f8, %dx
3:      lodsb
        testb   %al, %al
        jz      4f
        outb    %al, %dx
        jmp     3b
4:      ret

greeting:
        .asciz  "Hello from multiboot! Command line: "
newline:
        .asciz  "\n"

        .bss
        .skip   64
stack:
