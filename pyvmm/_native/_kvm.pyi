"""Types of the compiled module `_kvm`. Not to be edited: build_kvm.py writes it from the headers and requests.py.

A function returns a result that is not negative, or minus an error number; kvm_helper.h and run_loop.h say what each
does. A structure's fields are attributes; kvm_abi.h names the section of the KVM API document that describes it.
"""

from collections.abc import Iterator
from typing import Any, Generic, TypeVar, overload

T = TypeVar("T")

class Array(Generic[T]):
    """A C array: bounds-checked, without negative indexes."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[T]: ...
    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Array[T]: ...
    @overload
    def __setitem__(self, index: int, value: T) -> None: ...
    @overload
    def __setitem__(self, index: slice, value: Any) -> None: ...

class FFI:
    """What pyvmm uses of a compiled cffi module's `ffi`."""

    NULL: Any
    def new(self, cdecl: str, init: Any = ...) -> Any: ...
    def cast(self, cdecl: str, value: Any) -> Any: ...
    def sizeof(self, cdecl: Any) -> int: ...
    def offsetof(self, cdecl: str, *fields: str) -> int: ...
    def addressof(self, cdata: Any, *fields: str) -> Any: ...
    def from_buffer(self, cdecl: Any, buffer: Any = ..., require_writable: bool = ...) -> Any: ...
    def buffer(self, cdata: Any, size: int = ...) -> Any: ...
    def unpack(self, cdata: Any, length: int) -> Any: ...
    def memmove(self, to: Any, source: Any, length: int) -> None: ...
    def release(self, cdata: Any) -> None: ...
    def typeof(self, cdecl: Any) -> Any: ...
    def list_types(self) -> tuple[list[str], list[str], list[str]]: ...

class Lib:
    def pyvmm_ioctl(self, fd: int, request: int, value: int) -> int: ...
    def pyvmm_ioctl_ptr(self, fd: int, request: int, argument: Any) -> int: ...
    def pyvmm_kick_install(self) -> int: ...
    def pyvmm_run(self, vcpu_fd: int, runner: Any, signal_number: int) -> int: ...
    def pyvmm_kick(self, runner: Any, signal_number: int) -> int: ...
    def pyvmm_cmpxchg(self, address: Any, size: int, expected: Any, desired: Any) -> int: ...
    def pyvmm_vcpu_run(self, vcpu: Any) -> int: ...
    def pyvmm_serve(self, vcpu: Any) -> int: ...
    def pyvmm_take(self, ring: Any, writes: Any) -> int: ...
    def pyvmm_act(self, window: Any, is_write: int, offset: int, action: int) -> int: ...
    def pyvmm_slot(self, window: Any, clear: int, set: int) -> int: ...
    def pyvmm_timer(self) -> int: ...
    def pyvmm_timer_expire(self, timer: int) -> int: ...
    def pyvmm_disarm(self, hot: Any) -> int: ...
    KVM_GET_API_VERSION: int
    KVM_CREATE_VM: int
    KVM_GET_MSR_INDEX_LIST: int
    KVM_CHECK_EXTENSION: int
    KVM_GET_VCPU_MMAP_SIZE: int
    KVM_GET_SUPPORTED_CPUID: int
    KVM_GET_EMULATED_CPUID: int
    KVM_GET_MSR_FEATURE_INDEX_LIST: int
    KVM_CREATE_VCPU: int
    KVM_GET_DIRTY_LOG: int
    KVM_SET_USER_MEMORY_REGION: int
    KVM_SET_TSS_ADDR: int
    KVM_SET_IDENTITY_MAP_ADDR: int
    KVM_CREATE_IRQCHIP: int
    KVM_IRQ_LINE: int
    KVM_GET_IRQCHIP: int
    KVM_SET_IRQCHIP: int
    KVM_IRQ_LINE_STATUS: int
    KVM_REGISTER_COALESCED_MMIO: int
    KVM_UNREGISTER_COALESCED_MMIO: int
    KVM_SET_GSI_ROUTING: int
    KVM_REINJECT_CONTROL: int
    KVM_IRQFD: int
    KVM_CREATE_PIT2: int
    KVM_SET_BOOT_CPU_ID: int
    KVM_IOEVENTFD: int
    KVM_SET_CLOCK: int
    KVM_GET_CLOCK: int
    KVM_GET_PIT2: int
    KVM_SET_PIT2: int
    KVM_SIGNAL_MSI: int
    KVM_CLEAR_DIRTY_LOG: int
    KVM_X86_SET_MSR_FILTER: int
    KVM_CREATE_DEVICE: int
    KVM_SET_DEVICE_ATTR: int
    KVM_GET_DEVICE_ATTR: int
    KVM_HAS_DEVICE_ATTR: int
    KVM_RUN: int
    KVM_GET_REGS: int
    KVM_SET_REGS: int
    KVM_GET_SREGS: int
    KVM_SET_SREGS: int
    KVM_TRANSLATE: int
    KVM_INTERRUPT: int
    KVM_GET_MSRS: int
    KVM_SET_MSRS: int
    KVM_SET_SIGNAL_MASK: int
    KVM_GET_FPU: int
    KVM_SET_FPU: int
    KVM_GET_LAPIC: int
    KVM_SET_LAPIC: int
    KVM_SET_CPUID2: int
    KVM_GET_CPUID2: int
    KVM_GET_MP_STATE: int
    KVM_SET_MP_STATE: int
    KVM_NMI: int
    KVM_SET_GUEST_DEBUG: int
    KVM_GET_VCPU_EVENTS: int
    KVM_SET_VCPU_EVENTS: int
    KVM_GET_DEBUGREGS: int
    KVM_SET_DEBUGREGS: int
    KVM_SET_TSC_KHZ: int
    KVM_GET_TSC_KHZ: int
    KVM_ENABLE_CAP: int
    KVM_GET_XSAVE: int
    KVM_SET_XSAVE: int
    KVM_GET_XCRS: int
    KVM_SET_XCRS: int
    KVM_KVMCLOCK_CTRL: int
    KVM_GET_SREGS2: int
    KVM_SET_SREGS2: int
    KVM_GET_STATS_FD: int
    KVM_GET_XSAVE2: int
    PYVMM_POST: int
    PYVMM_SHADOW: int
    PYVMM_CLEAR: int
    PYVMM_IGNORE: int
    PYVMM_OTHER: int
    PYVMM_PORT_WRITE: int
    PYVMM_PORT_READ: int
    PYVMM_MMIO_WRITE: int
    PYVMM_MMIO_READ: int
    PYVMM_NO_EXIT: int
    PYVMM_SERVED: int
    PYVMM_KIND: int
    PYVMM_POSTED: int
    PYVMM_WAKE: int
    PYVMM_OFFSETS: int
    PYVMM_RING: int
    PYVMM_LOG: int
    PYVMM_RINGS: int
    PYVMM_TRACE_EXIT: int
    PYVMM_TRACE_WRITE: int
    PYVMM_TRACE_BY_C: int
    PYVMM_TRACE_OPEN: int
    PYVMM_TRACE_MMIO: int
    PYVMM_TRACE_ACCESS: int
    PYVMM_TRACE_ROOM: int

ffi: FFI
lib: Lib

class kvm_clear_dirty_log:
    slot: int
    num_pages: int
    first_page: int
    dirty_bitmap: Any

class kvm_clock_data:
    clock: int
    flags: int
    pad0: int
    realtime: int
    host_tsc: int
    pad: Array[int]

class kvm_coalesced_mmio:
    phys_addr: int
    len: int
    pio: int
    data: Array[int]

class kvm_coalesced_mmio_ring:
    first: int
    last: int
    coalesced_mmio: Array[kvm_coalesced_mmio]

class kvm_coalesced_mmio_zone:
    addr: int
    size: int
    pio: int

class kvm_cpuid2:
    nent: int
    padding: int
    entries: Array[kvm_cpuid_entry2]

class kvm_cpuid_entry2:
    function: int
    index: int
    flags: int
    eax: int
    ebx: int
    ecx: int
    edx: int
    padding: Array[int]

class kvm_create_device:
    type: int
    fd: int
    flags: int

class kvm_debug_exit_arch:
    exception: int
    pad: int
    pc: int
    dr6: int
    dr7: int

class kvm_debugregs:
    db: Array[int]
    dr6: int
    dr7: int
    flags: int
    reserved: Array[int]

class kvm_device_attr:
    flags: int
    group: int
    attr: int
    addr: int

class kvm_dirty_log:
    slot: int
    padding1: int
    dirty_bitmap: Any

class kvm_dtable:
    base: int
    limit: int
    padding: Array[int]

class kvm_enable_cap:
    cap: int
    flags: int
    args: Array[int]
    pad: Array[int]

class kvm_fpu:
    fpr: Array[Array[int]]
    fcw: int
    fsw: int
    ftwx: int
    pad1: int
    last_opcode: int
    last_ip: int
    last_dp: int
    xmm: Array[Array[int]]
    mxcsr: int
    pad2: int

class kvm_guest_debug:
    control: int
    pad: int
    arch: kvm_guest_debug_arch

class kvm_guest_debug_arch:
    debugreg: Array[int]

class kvm_hyperv_exit:
    type: int
    pad1: int
    u: kvm_hyperv_exit_u

class kvm_hyperv_exit_hcall:
    input: int
    result: int
    params: Array[int]

class kvm_hyperv_exit_syndbg:
    msr: int
    pad2: int
    control: int
    status: int
    send_page: int
    recv_page: int
    pending_page: int

class kvm_hyperv_exit_synic:
    msr: int
    pad2: int
    control: int
    evt_page: int
    msg_page: int

class kvm_interrupt:
    irq: int

class kvm_ioapic_state:
    base_address: int
    ioregsel: int
    id: int
    irr: int
    pad: int
    redirtbl: Array[int]

class kvm_ioeventfd:
    datamatch: int
    addr: int
    len: int
    fd: int
    flags: int
    pad: Array[int]

class kvm_irq_level:
    irq: int
    level: int

class kvm_irq_routing:
    nr: int
    flags: int
    entries: Array[kvm_irq_routing_entry]

class kvm_irq_routing_entry:
    gsi: int
    type: int
    flags: int
    pad: int
    u: kvm_irq_routing_target

class kvm_irq_routing_irqchip:
    irqchip: int
    pin: int

class kvm_irq_routing_msi:
    address_lo: int
    address_hi: int
    data: int
    devid: int

class kvm_irqchip:
    chip_id: int
    pad: int
    chip: kvm_irqchip_chip

class kvm_irqfd:
    fd: int
    gsi: int
    flags: int
    resamplefd: int
    pad: Array[int]

class kvm_lapic_state:
    regs: Array[int]

class kvm_mp_state:
    mp_state: int

class kvm_msi:
    address_lo: int
    address_hi: int
    data: int
    flags: int
    devid: int
    pad: Array[int]

class kvm_msr_entry:
    index: int
    reserved: int
    data: int

class kvm_msr_filter:
    flags: int
    ranges: Array[kvm_msr_filter_range]

class kvm_msr_filter_range:
    flags: int
    nmsrs: int
    base: int
    bitmap: Any

class kvm_msr_list:
    nmsrs: int
    indices: Array[int]

class kvm_msrs:
    nmsrs: int
    pad: int
    entries: Array[kvm_msr_entry]

class kvm_pic_state:
    last_irr: int
    irr: int
    imr: int
    isr: int
    priority_add: int
    irq_base: int
    read_reg_select: int
    poll: int
    special_mask: int
    init_state: int
    auto_eoi: int
    rotate_on_auto_eoi: int
    special_fully_nested_mode: int
    init4: int
    elcr: int
    elcr_mask: int

class kvm_pit_channel_state:
    count: int
    latched_count: int
    count_latched: int
    status_latched: int
    status: int
    read_state: int
    write_state: int
    write_latch: int
    rw_mode: int
    mode: int
    bcd: int
    gate: int
    count_load_time: int

class kvm_pit_config:
    flags: int
    pad: Array[int]

class kvm_pit_state2:
    channels: Array[kvm_pit_channel_state]
    flags: int
    reserved: Array[int]

class kvm_regs:
    rax: int
    rbx: int
    rcx: int
    rdx: int
    rsi: int
    rdi: int
    rsp: int
    rbp: int
    r8: int
    r9: int
    r10: int
    r11: int
    r12: int
    r13: int
    r14: int
    r15: int
    rip: int
    rflags: int

class kvm_reinject_control:
    pit_reinject: int
    reserved: Array[int]

class kvm_run:
    request_interrupt_window: int
    immediate_exit: int
    padding1: Array[int]
    exit_reason: int
    ready_for_interrupt_injection: int
    if_flag: int
    flags: int
    cr8: int
    apic_base: int
    hw: kvm_run_hw
    fail_entry: kvm_run_fail_entry
    ex: kvm_run_ex
    io: kvm_run_io
    debug: kvm_run_debug
    mmio: kvm_run_mmio
    hypercall: kvm_run_hypercall
    tpr_access: kvm_run_tpr_access
    internal: kvm_run_internal
    emulation_failure: kvm_run_emulation_failure
    system_event: kvm_run_system_event
    eoi: kvm_run_eoi
    hyperv: kvm_hyperv_exit
    msr: kvm_run_msr
    xen: kvm_xen_exit
    notify: kvm_run_notify
    memory_fault: kvm_run_memory_fault
    padding: Array[int]
    kvm_valid_regs: int
    kvm_dirty_regs: int
    s: kvm_run_s

class kvm_run_debug:
    arch: kvm_debug_exit_arch

class kvm_run_emulation_failure:
    suberror: int
    ndata: int
    flags: int
    insn_size: int
    insn_bytes: Array[int]

class kvm_run_eoi:
    vector: int

class kvm_run_ex:
    exception: int
    error_code: int

class kvm_run_fail_entry:
    hardware_entry_failure_reason: int
    cpu: int

class kvm_run_hw:
    hardware_exit_reason: int

class kvm_run_hypercall:
    nr: int
    args: Array[int]
    ret: int
    longmode: int
    pad: int

class kvm_run_internal:
    suberror: int
    ndata: int
    data: Array[int]

class kvm_run_io:
    direction: int
    size: int
    port: int
    count: int
    data_offset: int

class kvm_run_memory_fault:
    flags: int
    gpa: int
    size: int

class kvm_run_mmio:
    phys_addr: int
    data: Array[int]
    len: int
    is_write: int

class kvm_run_msr:
    error: int
    pad: Array[int]
    reason: int
    index: int
    data: int

class kvm_run_notify:
    flags: int

class kvm_run_system_event:
    type: int
    ndata: int
    data: Array[int]

class kvm_run_tpr_access:
    rip: int
    is_write: int
    pad: int

class kvm_segment:
    base: int
    limit: int
    selector: int
    type: int
    present: int
    dpl: int
    db: int
    s: int
    l: int
    g: int
    avl: int
    unusable: int
    padding: int

class kvm_signal_mask:
    len: int
    sigset: Array[int]

class kvm_sregs:
    cs: kvm_segment
    ds: kvm_segment
    es: kvm_segment
    fs: kvm_segment
    gs: kvm_segment
    ss: kvm_segment
    tr: kvm_segment
    ldt: kvm_segment
    gdt: kvm_dtable
    idt: kvm_dtable
    cr0: int
    cr2: int
    cr3: int
    cr4: int
    cr8: int
    efer: int
    apic_base: int
    interrupt_bitmap: Array[int]

class kvm_sregs2:
    cs: kvm_segment
    ds: kvm_segment
    es: kvm_segment
    fs: kvm_segment
    gs: kvm_segment
    ss: kvm_segment
    tr: kvm_segment
    ldt: kvm_segment
    gdt: kvm_dtable
    idt: kvm_dtable
    cr0: int
    cr2: int
    cr3: int
    cr4: int
    cr8: int
    efer: int
    apic_base: int
    flags: int
    pdptrs: Array[int]

class kvm_stats_desc:
    flags: int
    exponent: int
    size: int
    offset: int
    bucket_size: int
    name: Array[bytes]

class kvm_stats_header:
    flags: int
    name_size: int
    num_desc: int
    id_offset: int
    desc_offset: int
    data_offset: int

class kvm_sync_regs:
    regs: kvm_regs
    sregs: kvm_sregs
    events: kvm_vcpu_events

class kvm_translation:
    linear_address: int
    physical_address: int
    valid: int
    writeable: int
    usermode: int
    pad: Array[int]

class kvm_userspace_memory_region:
    slot: int
    flags: int
    guest_phys_addr: int
    memory_size: int
    userspace_addr: int

class kvm_vcpu_events:
    exception: kvm_vcpu_events_exception
    interrupt: kvm_vcpu_events_interrupt
    nmi: kvm_vcpu_events_nmi
    sipi_vector: int
    flags: int
    smi: kvm_vcpu_events_smi
    triple_fault: kvm_vcpu_events_triple_fault
    reserved: Array[int]
    exception_has_payload: int
    exception_payload: int

class kvm_vcpu_events_exception:
    injected: int
    nr: int
    has_error_code: int
    pending: int
    error_code: int

class kvm_vcpu_events_interrupt:
    injected: int
    nr: int
    soft: int
    shadow: int

class kvm_vcpu_events_nmi:
    injected: int
    pending: int
    masked: int
    pad: int

class kvm_vcpu_events_smi:
    smm: int
    pending: int
    smm_inside_nmi: int
    latched_init: int

class kvm_vcpu_events_triple_fault:
    pending: int

class kvm_xcr:
    xcr: int
    reserved: int
    value: int

class kvm_xcrs:
    nr_xcrs: int
    flags: int
    xcrs: Array[kvm_xcr]
    padding: Array[int]

class kvm_xen_exit:
    type: int
    u: kvm_xen_exit_u

class kvm_xen_exit_hcall:
    longmode: int
    cpl: int
    input: int
    result: int
    params: Array[int]

class kvm_xsave:
    region: Array[int]
    extra: Array[int]

class pyvmm_access:
    tsc: int
    rip: int
    address: int
    value: int
    count: int
    size: int
    kind: int
    seen: int

class pyvmm_chunk:
    magic: Array[int]
    length: int
    stream: int
    lost: int
    unused: Array[int]
    records: Array[pyvmm_record]

class pyvmm_entry:
    value: int
    offset: int
    size: int
    device: int

class pyvmm_hot:
    ports: Any
    mmio: Any
    rings: Array[Any]
    timer: int
    armed: int
    flushed: int

class pyvmm_place:
    base: int
    length: int
    window: Any

class pyvmm_places:
    count: int
    place: Array[pyvmm_place]

class pyvmm_record:
    kind: int
    flags: int
    size: int
    reason: int
    count: int
    t: int
    run: int
    handle: int
    rip: int
    address: int
    value: int
    tsc: int

class pyvmm_ring:
    posted: int
    taken: int
    busy: int
    entries: Array[pyvmm_entry]

class pyvmm_vcpu:
    fd: int
    signal_number: int
    runner: int
    tracing: int
    sync_regs: int
    hot: Any
    page: Any
    page_size: int
    address: int
    value: int
    size: int
    data_at: int
    told: int
    logged: int
    port_accesses: int
    mmio_accesses: int
    trace: Any
    trace_room: int
    traced: int
    entered: int
    open: Any
    open_data: Any
    log: Array[pyvmm_access]

class pyvmm_window:
    reads: Array[int]
    writes: Array[int]
    slot: int
    offset: int
    width: int
    device: int
    ignored: int
    ring: Any

class pyvmm_writes:
    count: int
    offset: int
    size: int
    device: int
    data: Array[int]

class kvm_hyperv_exit_u:
    synic: kvm_hyperv_exit_synic
    hcall: kvm_hyperv_exit_hcall
    syndbg: kvm_hyperv_exit_syndbg

class kvm_irq_routing_target:
    irqchip: kvm_irq_routing_irqchip
    msi: kvm_irq_routing_msi
    pad: Array[int]

class kvm_irqchip_chip:
    dummy: Array[int]
    pic: kvm_pic_state
    ioapic: kvm_ioapic_state

class kvm_run_s:
    regs: kvm_sync_regs
    padding: Array[int]

class kvm_xen_exit_u:
    hcall: kvm_xen_exit_hcall
