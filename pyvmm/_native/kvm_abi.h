/*
 * The structures that user space and KVM share on x86-64: the one home of their layout.
 *
 * Read twice: by cffi as the cdef of pyvmm._native._kvm, and by the C compiler as part of it. So it holds no
 * preprocessor line, and whoever includes it includes <stdint.h> first. <linux/kvm.h> is not included beside it;
 * build_kvm.py writes a second translation unit that holds every size and offset here against that header.
 *
 * Names and layout: the KVM API document (Documentation/virt/kvm/api.rst), section beside each. Anonymous parts of
 * the kernel's structures are named here (struct kvm_run_io, ...), because cffi would lay out unnamed ones by itself.
 * Fields called pad*, padding* or reserved* have no meaning and are not held against the header: later kernels cut
 * new fields out of them.
 */

/* 4.11, 4.12: general registers */
struct kvm_regs {
    uint64_t rax, rbx, rcx, rdx;
    uint64_t rsi, rdi, rsp, rbp;
    uint64_t r8, r9, r10, r11;
    uint64_t r12, r13, r14, r15;
    uint64_t rip, rflags;
};

/* 4.13: a segment register with its hidden part; limit in bytes whatever the granularity */
struct kvm_segment {
    uint64_t base;
    uint32_t limit;
    uint16_t selector;
    uint8_t type;
    uint8_t present, dpl, db, s, l, g, avl;
    uint8_t unusable;
    uint8_t padding;
};

struct kvm_dtable {
    uint64_t base;
    uint16_t limit;
    uint16_t padding[3];
};

/* 4.13, 4.14 */
struct kvm_sregs {
    struct kvm_segment cs, ds, es, fs, gs, ss;
    struct kvm_segment tr, ldt;
    struct kvm_dtable gdt, idt;
    uint64_t cr0, cr2, cr3, cr4, cr8;
    uint64_t efer;
    uint64_t apic_base;
    uint64_t interrupt_bitmap[4];
};

/* 4.131, 4.132 */
struct kvm_sregs2 {
    struct kvm_segment cs, ds, es, fs, gs, ss;
    struct kvm_segment tr, ldt;
    struct kvm_dtable gdt, idt;
    uint64_t cr0, cr2, cr3, cr4, cr8;
    uint64_t efer;
    uint64_t apic_base;
    uint64_t flags;
    uint64_t pdptrs[4];
};

/* 4.22, 4.23 */
struct kvm_fpu {
    uint8_t fpr[8][16];
    uint16_t fcw;
    uint16_t fsw;
    uint8_t ftwx;
    uint8_t pad1;
    uint16_t last_opcode;
    uint64_t last_ip;
    uint64_t last_dp;
    uint8_t xmm[16][16];
    uint32_t mxcsr;
    uint32_t pad2;
};

/* 4.42, 4.43, 4.134: the XSAVE area in standard form, CPUID leaf 0xd; extra beyond 4,096 bytes with XSAVE2 */
struct kvm_xsave {
    uint32_t region[1024];
    uint32_t extra[];
};

/* 4.44, 4.45 */
struct kvm_xcr {
    uint32_t xcr;
    uint32_t reserved;
    uint64_t value;
};

struct kvm_xcrs {
    uint32_t nr_xcrs;
    uint32_t flags;
    struct kvm_xcr xcrs[16];
    uint64_t padding[16];
};

/* 4.18, 4.19 */
struct kvm_msr_entry {
    uint32_t index;
    uint32_t reserved;
    uint64_t data;
};

struct kvm_msrs {
    uint32_t nmsrs;
    uint32_t pad;
    struct kvm_msr_entry entries[];
};

/* 4.3 */
struct kvm_msr_list {
    uint32_t nmsrs;
    uint32_t indices[];
};

/* 4.97: bit set allows, clear denies; bit 0 is MSR `base` */
struct kvm_msr_filter_range {
    uint32_t flags;
    uint32_t nmsrs;
    uint32_t base;
    uint8_t *bitmap;
};

struct kvm_msr_filter {
    uint32_t flags;
    struct kvm_msr_filter_range ranges[16];
};

/* 4.46, 4.88 and KVM_SET_CPUID2 */
struct kvm_cpuid_entry2 {
    uint32_t function;
    uint32_t index;
    uint32_t flags;
    uint32_t eax;
    uint32_t ebx;
    uint32_t ecx;
    uint32_t edx;
    uint32_t padding[3];
};

struct kvm_cpuid2 {
    uint32_t nent;
    uint32_t padding;
    struct kvm_cpuid_entry2 entries[];
};

/* 4.57, 4.58: the APIC's register page, one 32-bit register every 16 bytes (Intel SDM 3A, 11.4.1) */
struct kvm_lapic_state {
    uint8_t regs[1024];
};

/* 4.38, 4.39 */
struct kvm_mp_state {
    uint32_t mp_state;
};

/* 4.31, 4.32 */
struct kvm_vcpu_events_exception {
    uint8_t injected;
    uint8_t nr;
    uint8_t has_error_code;
    uint8_t pending;
    uint32_t error_code;
};

struct kvm_vcpu_events_interrupt {
    uint8_t injected;
    uint8_t nr;
    uint8_t soft;
    uint8_t shadow;
};

struct kvm_vcpu_events_nmi {
    uint8_t injected;
    uint8_t pending;
    uint8_t masked;
    uint8_t pad;
};

struct kvm_vcpu_events_smi {
    uint8_t smm;
    uint8_t pending;
    uint8_t smm_inside_nmi;
    uint8_t latched_init;
};

struct kvm_vcpu_events_triple_fault {
    uint8_t pending;
};

struct kvm_vcpu_events {
    struct kvm_vcpu_events_exception exception;
    struct kvm_vcpu_events_interrupt interrupt;
    struct kvm_vcpu_events_nmi nmi;
    uint32_t sipi_vector;
    uint32_t flags;
    struct kvm_vcpu_events_smi smi;
    struct kvm_vcpu_events_triple_fault triple_fault;
    uint8_t reserved[26];
    uint8_t exception_has_payload;
    uint64_t exception_payload;
};

/* 4.33, 4.34 */
struct kvm_debugregs {
    uint64_t db[4];
    uint64_t dr6;
    uint64_t dr7;
    uint64_t flags;
    uint64_t reserved[9];
};

/* 4.87 */
struct kvm_guest_debug_arch {
    uint64_t debugreg[8];
};

struct kvm_guest_debug {
    uint32_t control;
    uint32_t pad;
    struct kvm_guest_debug_arch arch;
};

/* 4.15 */
struct kvm_translation {
    uint64_t linear_address;
    uint64_t physical_address;
    uint8_t valid;
    uint8_t writeable;
    uint8_t usermode;
    uint8_t pad[5];
};

/* 4.16 */
struct kvm_interrupt {
    uint32_t irq;
};

/* 4.21: the kernel's sigset, 8 bytes on x86-64, whatever the C library's is */
struct kvm_signal_mask {
    uint32_t len;
    uint8_t sigset[];
};

/* 4.37 */
struct kvm_enable_cap {
    uint32_t cap;
    uint32_t flags;
    uint64_t args[4];
    uint8_t pad[64];
};

/* 4.35 */
struct kvm_userspace_memory_region {
    uint32_t slot;
    uint32_t flags;
    uint64_t guest_phys_addr;
    uint64_t memory_size;
    uint64_t userspace_addr;
};

/* 4.8 */
struct kvm_dirty_log {
    uint32_t slot;
    uint32_t padding1;
    void *dirty_bitmap;
};

/* 4.117 */
struct kvm_clear_dirty_log {
    uint32_t slot;
    uint32_t num_pages;
    uint64_t first_page;
    void *dirty_bitmap;
};

/* 4.25; with KVM_IRQ_LINE_STATUS, irq reads back as a signed status */
struct kvm_irq_level {
    uint32_t irq;
    uint32_t level;
};

/* 4.26, 4.27 */
struct kvm_pic_state {
    uint8_t last_irr;
    uint8_t irr;
    uint8_t imr;
    uint8_t isr;
    uint8_t priority_add;
    uint8_t irq_base;
    uint8_t read_reg_select;
    uint8_t poll;
    uint8_t special_mask;
    uint8_t init_state;
    uint8_t auto_eoi;
    uint8_t rotate_on_auto_eoi;
    uint8_t special_fully_nested_mode;
    uint8_t init4;
    uint8_t elcr;
    uint8_t elcr_mask;
};

/* redirtbl: the 64-bit redirection entries (82093AA, 3.2.4) */
struct kvm_ioapic_state {
    uint64_t base_address;
    uint32_t ioregsel;
    uint32_t id;
    uint32_t irr;
    uint32_t pad;
    uint64_t redirtbl[24];
};

union kvm_irqchip_chip {
    uint8_t dummy[512];
    struct kvm_pic_state pic;
    struct kvm_ioapic_state ioapic;
};

struct kvm_irqchip {
    uint32_t chip_id;
    uint32_t pad;
    union kvm_irqchip_chip chip;
};

/* 4.71 KVM_CREATE_PIT2 */
struct kvm_pit_config {
    uint32_t flags;
    uint32_t pad[15];
};

/* 4.72, 4.73 */
struct kvm_pit_channel_state {
    uint32_t count;
    uint16_t latched_count;
    uint8_t count_latched;
    uint8_t status_latched;
    uint8_t status;
    uint8_t read_state;
    uint8_t write_state;
    uint8_t write_latch;
    uint8_t rw_mode;
    uint8_t mode;
    uint8_t bcd;
    uint8_t gate;
    int64_t count_load_time;
};

struct kvm_pit_state2 {
    struct kvm_pit_channel_state channels[3];
    uint32_t flags;
    uint32_t reserved[9];
};

/* 4.99 */
struct kvm_reinject_control {
    uint8_t pit_reinject;
    uint8_t reserved[31];
};

/* 4.29, 4.30 */
struct kvm_clock_data {
    uint64_t clock;
    uint32_t flags;
    uint32_t pad0;
    uint64_t realtime;
    uint64_t host_tsc;
    uint32_t pad[4];
};

/* 4.52 */
struct kvm_irq_routing_irqchip {
    uint32_t irqchip;
    uint32_t pin;
};

struct kvm_irq_routing_msi {
    uint32_t address_lo;
    uint32_t address_hi;
    uint32_t data;
    uint32_t devid;
};

union kvm_irq_routing_target {
    struct kvm_irq_routing_irqchip irqchip;
    struct kvm_irq_routing_msi msi;
    uint32_t pad[8];
};

struct kvm_irq_routing_entry {
    uint32_t gsi;
    uint32_t type;
    uint32_t flags;
    uint32_t pad;
    union kvm_irq_routing_target u;
};

struct kvm_irq_routing {
    uint32_t nr;
    uint32_t flags;
    struct kvm_irq_routing_entry entries[];
};

/* 4.71 KVM_SIGNAL_MSI */
struct kvm_msi {
    uint32_t address_lo;
    uint32_t address_hi;
    uint32_t data;
    uint32_t flags;
    uint32_t devid;
    uint8_t pad[12];
};

/* 4.75 */
struct kvm_irqfd {
    uint32_t fd;
    uint32_t gsi;
    uint32_t flags;
    uint32_t resamplefd;
    uint8_t pad[16];
};

/* 4.59 */
struct kvm_ioeventfd {
    uint64_t datamatch;
    uint64_t addr;
    uint32_t len;
    int32_t fd;
    uint32_t flags;
    uint8_t pad[36];
};

/* 4.116 */
struct kvm_coalesced_mmio_zone {
    uint64_t addr;
    uint32_t size;
    uint32_t pio;
};

struct kvm_coalesced_mmio {
    uint64_t phys_addr;
    uint32_t len;
    uint32_t pio;
    uint8_t data[8];
};

struct kvm_coalesced_mmio_ring {
    uint32_t first, last;
    struct kvm_coalesced_mmio coalesced_mmio[];
};

/* 4.79 to 4.81 */
struct kvm_create_device {
    uint32_t type;
    uint32_t fd;
    uint32_t flags;
};

struct kvm_device_attr {
    uint32_t flags;
    uint32_t group;
    uint64_t attr;
    uint64_t addr;
};

/* 4.133 */
struct kvm_stats_header {
    uint32_t flags;
    uint32_t name_size;
    uint32_t num_desc;
    uint32_t id_offset;
    uint32_t desc_offset;
    uint32_t data_offset;
};

struct kvm_stats_desc {
    uint32_t flags;
    int16_t exponent;
    uint16_t size;
    uint32_t offset;
    uint32_t bucket_size;
    char name[];
};

/* 5: the shared page of a vCPU. First the members of its union, one an exit reason. */
struct kvm_run_hw {
    uint64_t hardware_exit_reason;
};

struct kvm_run_fail_entry {
    uint64_t hardware_entry_failure_reason;
    uint32_t cpu;
};

struct kvm_run_ex {
    uint32_t exception;
    uint32_t error_code;
};

struct kvm_run_io {
    uint8_t direction;
    uint8_t size;
    uint16_t port;
    uint32_t count;
    uint64_t data_offset;
};

struct kvm_debug_exit_arch {
    uint32_t exception;
    uint32_t pad;
    uint64_t pc;
    uint64_t dr6;
    uint64_t dr7;
};

struct kvm_run_debug {
    struct kvm_debug_exit_arch arch;
};

struct kvm_run_mmio {
    uint64_t phys_addr;
    uint8_t data[8];
    uint32_t len;
    uint8_t is_write;
};

struct kvm_run_hypercall {
    uint64_t nr;
    uint64_t args[6];
    uint64_t ret;
    uint32_t longmode;
    uint32_t pad;
};

struct kvm_run_tpr_access {
    uint64_t rip;
    uint32_t is_write;
    uint32_t pad;
};

struct kvm_run_internal {
    uint32_t suberror;
    uint32_t ndata;
    uint64_t data[16];
};

struct kvm_run_emulation_failure {
    uint32_t suberror;
    uint32_t ndata;
    uint64_t flags;
    uint8_t insn_size;
    uint8_t insn_bytes[15];
};

struct kvm_run_system_event {
    uint32_t type;
    uint32_t ndata;
    uint64_t data[16];
};

struct kvm_run_eoi {
    uint8_t vector;
};

struct kvm_hyperv_exit_synic {
    uint32_t msr;
    uint32_t pad2;
    uint64_t control;
    uint64_t evt_page;
    uint64_t msg_page;
};

struct kvm_hyperv_exit_hcall {
    uint64_t input;
    uint64_t result;
    uint64_t params[2];
};

struct kvm_hyperv_exit_syndbg {
    uint32_t msr;
    uint32_t pad2;
    uint64_t control;
    uint64_t status;
    uint64_t send_page;
    uint64_t recv_page;
    uint64_t pending_page;
};

union kvm_hyperv_exit_u {
    struct kvm_hyperv_exit_synic synic;
    struct kvm_hyperv_exit_hcall hcall;
    struct kvm_hyperv_exit_syndbg syndbg;
};

struct kvm_hyperv_exit {
    uint32_t type;
    uint32_t pad1;
    union kvm_hyperv_exit_u u;
};

struct kvm_run_msr {
    uint8_t error;
    uint8_t pad[7];
    uint32_t reason;
    uint32_t index;
    uint64_t data;
};

struct kvm_xen_exit_hcall {
    uint32_t longmode;
    uint32_t cpl;
    uint64_t input;
    uint64_t result;
    uint64_t params[6];
};

union kvm_xen_exit_u {
    struct kvm_xen_exit_hcall hcall;
};

struct kvm_xen_exit {
    uint32_t type;
    union kvm_xen_exit_u u;
};

struct kvm_run_notify {
    uint32_t flags;
};

struct kvm_run_memory_fault {
    uint64_t flags;
    uint64_t gpa;
    uint64_t size;
};

/* 6.74 KVM_CAP_SYNC_REGS */
struct kvm_sync_regs {
    struct kvm_regs regs;
    struct kvm_sregs sregs;
    struct kvm_vcpu_events events;
};

union kvm_run_s {
    struct kvm_sync_regs regs;
    uint8_t padding[2048];
};

struct kvm_run {
    uint8_t request_interrupt_window;
    uint8_t immediate_exit;
    uint8_t padding1[6];
    uint32_t exit_reason;
    uint8_t ready_for_interrupt_injection;
    uint8_t if_flag;
    uint16_t flags;
    uint64_t cr8;
    uint64_t apic_base;
    union {
        struct kvm_run_hw hw;
        struct kvm_run_fail_entry fail_entry;
        struct kvm_run_ex ex;
        struct kvm_run_io io;
        struct kvm_run_debug debug;
        struct kvm_run_mmio mmio;
        struct kvm_run_hypercall hypercall;
        struct kvm_run_tpr_access tpr_access;
        struct kvm_run_internal internal;
        struct kvm_run_emulation_failure emulation_failure;
        struct kvm_run_system_event system_event;
        struct kvm_run_eoi eoi;
        struct kvm_hyperv_exit hyperv;
        struct kvm_run_msr msr;
        struct kvm_xen_exit xen;
        struct kvm_run_notify notify;
        struct kvm_run_memory_fault memory_fault;
        uint8_t padding[256];
    };
    uint64_t kvm_valid_regs;
    uint64_t kvm_dirty_regs;
    union kvm_run_s s;
};
