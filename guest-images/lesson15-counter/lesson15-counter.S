/*
 * Counts for ever: a number of 32 bits at 0x600, and a byte at the beginning of one page after the other, from
 * 0x10000 up to 0x50000, so that memory keeps changing. It makes no exit.
 */
        .code16
        .section .start, "ax"
        .globl  _start
_start: xorw    %ax, %ax
        movw    %ax, %ds
1:      movw    $0x1000, %bx            # a segment: address 0x10000
2:      incl    0x600
        movw    %bx, %es
        incb    %es:0
        addw    $0x100, %bx             # the next page
        cmpw    $0x5000, %bx
        jb      2b
        jmp     1b
