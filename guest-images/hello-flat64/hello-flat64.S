/*
 * Long mode without any file format: a flat image that the VMM starts in 64-bit mode because the command
 * line says so. Prints the control registers and EFER, so that one can see what the VMM set up before
 * the first instruction.
 */

        .code64
        .section .start, "ax"
        .globl  _start
_start: leaq    stack(%rip), %rsp
        leaq    cr0(%rip), %rsi
        movq    %cr0, %rax
        call    print
        leaq    cr3(%rip), %rsi
        movq    %cr3, %rax
        call    print
        leaq    cr4(%rip), %rsi
        movq    %cr4, %rax
        call    print
        leaq    efer(%rip), %rsi
        movl    $0xc0000080, %ecx       # IA32_EFER: bit 8 LME (wanted), bit 10 LMA (long mode is active)
        rdmsr
        call    print
        movb    $0x01, %al              # port 0x92 bit 0: the fast reset
        outb    %al, $0x92
1:      hlt
        jmp     1b

print:  movl    %eax, %ebx              # prints five characters at RSI, then EAX in hexadecimal
        movw    $0x3f8, %dx
        movl    $5, %ecx
        rep outsb
        movl    $8, %ecx
3:      roll    $4, %ebx
        movl    %ebx, %eax
        andl    $15, %eax
        leaq    digits(%rip), %rdi
        movb    (%rdi, %rax), %al
        outb    %al, %dx
        loop    3b
        movb    $'\n', %al
        outb    %al, %dx
        ret

cr0:    .ascii  "cr0  "
cr3:    .ascii  "cr3  "
cr4:    .ascii  "cr4  "
efer:   .ascii  "efer "
digits: .ascii  "0123456789abcdef"

        .bss
        .skip   256
stack:
