/*
 * Four ways to use a port. At 0x500 the guest expects a device that multiplies: a factor at the first port,
 * one at the second, the product, two bytes wide, at the third. It leaves with the product as its status.
 */

        .code16
        .section .start, "ax"
        .globl  _start
_start: xorw    %ax, %ax
        movw    %ax, %ds
        /* [multiply] */
        movw    $0x500, %dx
        movb    $6, %al
        outb    %al, %dx                # port 0x500: the first factor
        incw    %dx
        movb    $7, %al
        outb    %al, %dx                # port 0x501: the second
        incw    %dx
        inw     %dx, %ax                # ports 0x502 and 0x503 in one access: the product
        /* [/multiply] */
        movw    %ax, %bx
        /* [nobody] */
        movw    $0x510, %dx
        inb     %dx, %al                # where no device is
        /* [/nobody] */
        /* [string] */
        movw    $message, %si
        movw    $message_length, %cx
        movw    $0x3f8, %dx             # COM1's data register
        cld                             # upwards
        rep outsb                       # CX bytes from DS:SI, all to port DX
        /* [/string] */
        movb    %bl, %al
        outb    %al, $0xf4              # debug exit: the VMM ends the run
1:      hlt
        jmp     1b

message:
        .ascii  "Every byte of this line went to the same port.\n"
        .set    message_length, . - message
