/*
 * Where the other CPUs begin. A start-up IPI gives a CPU eight bits: it starts in real mode at that
 * page. smp.c copies this code to 0x8000, so it may only use addresses relative to there until it has
 * reached protected mode.
 */
        .set    TARGET, 0x8000

        .globl  trampoline, trampoline_end
        .code16
trampoline:
        cli
        xorw    %ax, %ax
        movw    %ax, %ds
        lgdtl   TARGET + pointer_copy - trampoline
        movl    %cr0, %eax
        orb     $1, %al                 # CR0.PE
        movl    %eax, %cr0
        ljmpl   $8, $protected

        .align  4
pointer_copy:                           # the boot CPU's GDT serves all
        .word   3 * 8 - 1
        .long   gdt
trampoline_end:

        .code32
protected:
        movl    $16, %eax
        movl    %eax, %ds
        movl    %eax, %es
        movl    %eax, %ss
        movl    0xfee00020, %eax        # local APIC ID register
        shrl    $24, %eax
        leal    1(%eax), %esp           # a stack of 256 bytes for each
        shll    $8, %esp
        addl    $stacks, %esp
        pushl   %eax
        call    count
1:      cli
        hlt
        jmp     1b

        .bss
        .align  16
stacks: .skip   256 * 256
