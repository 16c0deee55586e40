/*
 * `rep insb`: one instruction reads a string from a port into memory at ES:EDI. The debug console at
 * port 0xe9 answers every read with 0xe9 (that is how software finds out that it is there), so the guest
 * knows what must arrive.
 */

        .set    COUNT, 20

        .code32
        .section .start, "ax"
        .globl  _start
_start: movl    $buffer, %edi
        movl    $COUNT, %ecx
        movw    $0xe9, %dx
        cld
        rep insb                        # 20 bytes: the VMM must put all of them where EDI points

        movl    $buffer, %edi
        movl    $COUNT, %ecx
        movb    $0xe9, %al
        repe scasb                      # compare them all, stop at the first that differs
        jne     wrong
        cmpb    $0x55, buffer + COUNT   # and nothing was written behind them
        jne     wrong

        movl    $message, %esi
        movl    $message_length, %ecx
        movw    $0x3f8, %dx
        rep outsb
        movb    $0xfe, %al              # keyboard controller: reset
        outb    %al, $0x64
wrong:  movb    $1, %al                 # debug exit with code 1: status 3
        outb    %al, $0xf4
1:      hlt
        jmp     1b

message:
        .ascii  "20 bytes came in through port 0xe9, all of them 0xe9.\n"
        .set    message_length, . - message

        .data
buffer: .skip   COUNT, 0x55
        .byte   0x55
