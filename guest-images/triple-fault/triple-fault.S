/*
 * How a CPU dies. It cannot divide by zero, so it looks for the handler of exception 0; the table of
 * handlers is empty, so that fails too (double fault, exception 8), and with no handler for that either
 * the CPU shuts down: a triple fault.
 */

        .code32
        .section .start, "ax"
        .globl  _start
_start: movl    $message, %esi
        movl    $message_length, %ecx
        movw    $0x3f8, %dx             # COM1's data register
        cld
        rep outsb

        lidt    no_handlers
        xorl    %ecx, %ecx
        divl    %ecx                    # exception 0, 8, and out

message:
        .ascii  "Goodbye.\n"
        .set    message_length, . - message
no_handlers:
        .word   0                       # limit 0: not even one gate fits
        .long   0
