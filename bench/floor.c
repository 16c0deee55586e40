/*
 * The floor: the least that any VMM on KVM can do. It loads a 32-bit PVH kernel, runs it on one vCPU, and does nothing
 * for an exit but to call KVM_RUN again; reads are answered with 0. A write to port 0xf4 ends it. What pyvmm costs
 * beyond this is pyvmm.
 *
 *     floor KERNEL MEGABYTES [COMMAND-LINE]
 *
 * Prints one line of JSON: exits, wall and user-space CPU seconds from the first exit to the last, and the CPU time
 * is this thread's alone (getrusage(RUSAGE_THREAD)).
 */
#define _GNU_SOURCE
#include <elf.h>
#include <err.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { START_INFO = 0x600, GDT = 0x500, COMMAND_LINE = 0x20000, DEBUG_EXIT = 0xf4 };
enum { PVH_MAGIC = 0x336ec578, PVH_NOTE = 18 }; /* Xen's public headers: arch-x86/hvm/start_info.h, elfnote.h */

static unsigned char *ram;
static size_t ram_size;

static int must(int result, const char *what)
{
    if (result < 0)
        err(125, "%s", what);
    return result;
}

static void *map(size_t length, int flags, int fd)
{
    void *at = mmap(NULL, length, PROT_READ | PROT_WRITE, flags, fd, 0);
    if (at == MAP_FAILED)
        err(125, "mmap");
    return at;
}

/* Loads the segments and returns the PVH entry point. */
static unsigned load(const char *path)
{
    int fd = must(open(path, O_RDONLY | O_CLOEXEC), path);
    struct stat st;
    must(fstat(fd, &st), path);
    unsigned char *file = map((size_t)st.st_size, MAP_PRIVATE, fd);
    Elf32_Ehdr *elf = (Elf32_Ehdr *)file;
    if ((size_t)st.st_size < sizeof *elf || memcmp(elf->e_ident, ELFMAG, SELFMAG) || elf->e_ident[EI_CLASS] != ELFCLASS32)
        errx(127, "%s: not a 32-bit ELF file", path);
    unsigned entry = 0;
    for (int i = 0; i < elf->e_phnum; i++) {
        Elf32_Phdr *segment = (Elf32_Phdr *)(file + elf->e_phoff) + i;
        if (segment->p_type == PT_LOAD) {
            if ((size_t)segment->p_paddr + segment->p_memsz > ram_size)
                errx(127, "%s: does not fit into RAM", path);
            memcpy(ram + segment->p_paddr, file + segment->p_offset, segment->p_filesz);
        }
        if (segment->p_type == PT_NOTE) {
            Elf32_Nhdr *note = (Elf32_Nhdr *)(file + segment->p_offset);
            if (note->n_type == PVH_NOTE)
                entry = *(unsigned *)((char *)(note + 1) + ((note->n_namesz + 3) & ~3u));
        }
    }
    if (!entry)
        errx(127, "%s: no PVH entry", path);
    munmap(file, (size_t)st.st_size);
    close(fd);
    return entry;
}

static void set_registers(int vcpu, unsigned entry)
{
    struct kvm_sregs sregs;
    struct kvm_segment flat = {.limit = 0xffffffff, .present = 1, .db = 1, .s = 1, .g = 1};
    must(ioctl(vcpu, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
    flat.selector = 0x10;
    flat.type = 3;
    sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = flat;
    flat.selector = 0x8;
    flat.type = 11;
    sregs.cs = flat;
    sregs.cr0 = 0x11; /* PE, ET */
    must(ioctl(vcpu, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
    struct kvm_regs regs = {.rip = entry, .rbx = START_INFO, .rsp = 0x7c00, .rflags = 2};
    must(ioctl(vcpu, KVM_SET_REGS, &regs), "KVM_SET_REGS");
}

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static double user_seconds(void)
{
    struct rusage usage;
    getrusage(RUSAGE_THREAD, &usage);
    return (double)usage.ru_utime.tv_sec + (double)usage.ru_utime.tv_usec * 1e-6;
}

int main(int argc, char **argv)
{
    if (argc < 3 || argc > 4)
        errx(2, "usage: floor KERNEL MEGABYTES [COMMAND-LINE]");
    ram_size = (size_t)atol(argv[2]) << 20;
    ram = map(ram_size, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
    unsigned entry = load(argv[1]);
    unsigned start_info[14] = {PVH_MAGIC, 1};
    start_info[6] = COMMAND_LINE;
    memcpy(ram + START_INFO, start_info, sizeof start_info);
    snprintf((char *)ram + COMMAND_LINE, 4096, "%s", argc == 4 ? argv[3] : "");

    int kvm = must(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
    int vm = must(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
    struct kvm_userspace_memory_region region = {.memory_size = ram_size, .userspace_addr = (unsigned long)ram};
    must(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region), "KVM_SET_USER_MEMORY_REGION");
    int vcpu = must(ioctl(vm, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
    struct kvm_run *run = map((size_t)must(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "mmap size"), MAP_SHARED, vcpu);
    set_registers(vcpu, entry);

    unsigned long exits = 0;
    double wall = 0, user = 0;
    for (;;) {
        must(ioctl(vcpu, KVM_RUN, 0), "KVM_RUN");
        if (!exits++) {
            wall = seconds();
            user = user_seconds();
        }
        if (run->exit_reason == KVM_EXIT_IO) {
            if (run->io.port == DEBUG_EXIT && run->io.direction == KVM_EXIT_IO_OUT)
                break;
            if (run->io.direction == KVM_EXIT_IO_IN)
                memset((char *)run + run->io.data_offset, 0, (size_t)run->io.size * run->io.count);
        } else if (run->exit_reason == KVM_EXIT_MMIO) {
            if (!run->mmio.is_write)
                memset(run->mmio.data, 0, sizeof run->mmio.data);
        } else {
            errx(121, "exit reason %u", run->exit_reason);
        }
    }
    printf("{\"exits\": %lu, \"wall\": %.9f, \"user\": %.9f}\n", exits, seconds() - wall, user_seconds() - user);
    return 0;
}
