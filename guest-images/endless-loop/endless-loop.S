/*
 * A guest that never stops and never speaks: only a time limit (or Ctrl-A X) ends it.
 */

        .code16
        .section .start, "ax"
        .globl  _start
_start: pause
        jmp     _start
