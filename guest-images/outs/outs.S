/*
 * `rep outsb`: one instruction writes a whole string to a port. DX is the port, ESI the string, ECX the
 * count; the port stays the same for every byte, only ESI moves. A CPU with VT-x or AMD-V may hand the
 * VMM many bytes in one exit.
 */

        .code32
        .section .start, "ax"
        .globl  _start
_start: movl    $message, %esi
        movl    $message_length, %ecx
        movw    $0x3f8, %dx             # COM1's data register
        cld                             # upwards
        rep outsb

        cmpl    $message + message_length, %esi
        jne     1f
        testl   %ecx, %ecx              # ESI and ECX tell how far it came: all the way
        jnz     1f
        movb    $0xfe, %al              # keyboard controller: reset
        outb    %al, $0x64
1:      movb    $1, %al                 # otherwise debug exit with code 1: status 3
        outb    %al, $0xf4
2:      hlt
        jmp     2b

message:
        .ascii  "One instruction, and every byte of this line went through the same port.\n"
        .set    message_length, . - message
