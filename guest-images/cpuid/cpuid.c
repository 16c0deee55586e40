/*
 * Asks the CPU who it is. CPUID answers what the VMM and KVM want it to: bit 31 of leaf 1 ECX says that
 * there is a hypervisor, leaves from 0x40000000 on say which (a convention of the VMMs; Intel promises
 * never to use them), the rest is the real CPU's. Intel SDM volume 2A, CPUID; KVM's own leaves: Linux
 * Documentation/virt/kvm/x86/cpuid.rst.
 */
#include "guest.h"

struct leaf { u32 eax, ebx, ecx, edx; };

static struct leaf cpuid(u32 number)
{
    struct leaf leaf;
    __asm__ volatile("cpuid"
                     : "=a"(leaf.eax), "=b"(leaf.ebx), "=c"(leaf.ecx), "=d"(leaf.edx)
                     : "a"(number), "c"(0));
    return leaf;
}

static void put_register(u32 value)             /* four characters, the lowest byte first */
{
    for (; value & 0xff; value >>= 8)
        put_char(value);
}

void guest_main(void)
{
    struct leaf leaf = cpuid(0);
    put("vendor ");
    put_register(leaf.ebx);
    put_register(leaf.edx);                     /* the order is EBX, EDX, ECX */
    put_register(leaf.ecx);
    put(", highest leaf ");
    put_hex(leaf.eax, 8);

    put("\nbrand ");
    for (u32 number = 0x80000002; number <= 0x80000004; number++) {
        leaf = cpuid(number);
        put_register(leaf.eax);
        put_register(leaf.ebx);
        put_register(leaf.ecx);
        put_register(leaf.edx);
    }

    put("\nhypervisor ");
    if (cpuid(1).ecx >> 31) {
        leaf = cpuid(0x40000000);
        put_register(leaf.ebx);                 /* here the order is EBX, ECX, EDX */
        put_register(leaf.ecx);
        put_register(leaf.edx);
        put(", highest leaf ");
        put_hex(leaf.eax, 8);
    } else {
        put("none");
    }
    put("\n");
    done();
}
