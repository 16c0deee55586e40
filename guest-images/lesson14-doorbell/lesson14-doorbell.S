/*
 * Rings a bell a thousand times: a byte written to port 0x500, which is nobody's. Then it halts. What each
 * ring costs is up to whoever listens.
 */
        .code16
        .section .start, "ax"
        .globl  _start
_start: movw    $0x500, %dx
        movw    $1000, %cx
1:      outb    %al, %dx
        loop    1b
        outb    %al, $0xf4              # the debug-exit port: done
2:      cli
        hlt
        jmp     2b
