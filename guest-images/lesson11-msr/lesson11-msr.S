/*
 * Asks an MSR that no processor has, whatever KVM or the VMM make of it. A processor raises #GP for such a
 * one; then the handler says so. Real mode, so that exceptions take the vectors at address 0 (Intel SDM
 * volume 3B, 21.1.4).
 */
        MSR = 0x4b564dff                # in the range that is KVM's, but not one of its own

        .code16
        .section .start, "ax"
        .globl  _start
_start: xorw    %ax, %ax
        movw    %ax, %ds
        movw    $refused, 13 * 4        # vector 13, #GP: offset, then segment
        movw    %ax, 13 * 4 + 2
        movl    $MSR, %ecx
        rdmsr                           # EDX:EAX = what is in it
        addl    $1, %eax
        movl    $MSR, %ecx
        wrmsr                           # one more than was there
        movw    $accepted, %si
        jmp     say

refused:
        movw    $gp, %si
say:    movw    $0x3f8, %dx
        cld
1:      lodsb
        testb   %al, %al
        jz      2f
        outb    %al, %dx
        jmp     1b
2:      movb    $0xfe, %al              # pulse the CPU's reset line
        outb    %al, $0x64
        hlt

accepted:
        .asciz  "read and written\n"
gp:     .asciz  "#GP\n"
