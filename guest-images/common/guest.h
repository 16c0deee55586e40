/*
 * What every C guest needs: ports, a console, and the ways out. All of it is static, for one source
 * file a guest. Nothing here is pyvmm's own: a 16550A at 0x3f8, the keyboard controller at 0x64 and a
 * debug-exit port at 0xf4 are what other VMMs have too.
 */
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define UNUSED __attribute__((unused))

enum {
    SERIAL = 0x3f8,             /* data; the line status register is 5 further */
    SERIAL_LINE_STATUS = SERIAL + 5,
    DATA_READY = 0x01,          /* line status: a byte has come in */
    TRANSMITTER_EMPTY = 0x20,   /* line status: a byte may go out */
    KEYBOARD_CONTROLLER = 0x64,
    PULSE_RESET = 0xfe,         /* keyboard controller: pull the CPU's reset line */
    DEBUG_EXIT = 0xf4,
};

static inline UNUSED void outb(u16 port, u8 value)
{
    __asm__ volatile("outb %0, %1" ::"a"(value), "Nd"(port));
}

static inline UNUSED void outl(u16 port, u32 value)
{
    __asm__ volatile("outl %0, %1" ::"a"(value), "Nd"(port));
}

static inline UNUSED u8 inb(u16 port)
{
    u8 value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static UNUSED void put_char(char c)
{
    while (!(inb(SERIAL_LINE_STATUS) & TRANSMITTER_EMPTY))
        ;
    outb(SERIAL, c);
}

static UNUSED void put(const char *text)
{
    while (*text)
        put_char(*text++);
}

static UNUSED void put_hex(u64 value, int digits)
{
    put("0x");
    while (digits--)
        put_char("0123456789abcdef"[value >> 4 * digits & 15]);
}

static UNUSED void put_decimal(u32 value)
{
    if (value >= 10)
        put_decimal(value / 10);
    put_char('0' + value % 10);
}

static UNUSED void halt(void)
{
    for (;;)
        __asm__ volatile("cli; hlt");
}

/* The good end: reset the machine, which ends a VM with status 0. */
static UNUSED void done(void)
{
    outb(KEYBOARD_CONTROLLER, PULSE_RESET);
    halt();
}

/* The bad end: say why, and leave with status (code << 1) | 1. */
static UNUSED void fail(const char *why, u32 code)
{
    put("FAILED: ");
    put(why);
    put("\n");
    outl(DEBUG_EXIT, code);
    halt();
}
