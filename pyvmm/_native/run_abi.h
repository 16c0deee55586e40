/*
 * What the run loop in C (run_loop.c) and Python share: the one home of its layout, all of it allocated by Python.
 *
 * Read twice, as kvm_abi.h is: by cffi, and by the C compiler; whoever includes it includes <stdint.h> first.
 * pyvmm/hot.py has the actions' numbers again, for devices; a test holds the two together.
 */

/* What the helper may do alone with an access to a register; 0 is nothing: Python sees it. */
#define PYVMM_POST 1   /* a write: keep it in the ring for Python, and go on */
#define PYVMM_SHADOW 2 /* a read: the window's slot */
#define PYVMM_CLEAR 3  /* a write: clears the bits written in the window's slot */
#define PYVMM_IGNORE 4 /* a write: nothing but count it */

/* What pyvmm_vcpu_run and pyvmm_serve return where it is no error. */
#define PYVMM_OTHER 0      /* an exit that Python reads from the page */
#define PYVMM_PORT_WRITE 1 /* one element; the exit's fields are in the context */
#define PYVMM_PORT_READ 2
#define PYVMM_MMIO_WRITE 3
#define PYVMM_MMIO_READ 4
#define PYVMM_NO_EXIT 5    /* the log is full, and there is nothing else */
#define PYVMM_SERVED 6     /* pyvmm_serve alone: the helper has dealt with it */
#define PYVMM_KIND 15      /* the bits of the above; more of them may be set: */
#define PYVMM_POSTED 16    /* some ring is not empty */
#define PYVMM_WAKE 32      /* a write could have been posted, but nobody would flush it */

#define PYVMM_OFFSETS 8
#define PYVMM_RING 1024 /* a guest that does nothing but write needs longer for these than the timer waits */
#define PYVMM_LOG 64
#define PYVMM_RINGS 4

/* A write that a vCPU has posted. */
struct pyvmm_entry {
    uint32_t value;
    uint16_t offset;
    uint8_t size;
    uint8_t device; /* of those that share the ring */
};

/* Posted writes, oldest first: `posted` and `taken` count on and on, modulo 2^32. */
struct pyvmm_ring {
    uint32_t posted; /* by vCPUs, one at a time: whoever set `busy` */
    uint32_t taken;  /* by Python, under the devices' lock */
    uint8_t busy;
    struct pyvmm_entry entries[PYVMM_RING];
};

/* Posted writes to one register, in a row, as Python takes them: elements of `size` bytes. */
struct pyvmm_writes {
    uint32_t count;
    uint16_t offset;
    uint8_t size;
    uint8_t device;
    uint8_t data[PYVMM_RING * 4];
};

/* Up to PYVMM_OFFSETS bytes of a device's registers. Actions and slot change by single atomic instructions. */
struct pyvmm_window {
    uint8_t reads[PYVMM_OFFSETS]; /* the action for each offset */
    uint8_t writes[PYVMM_OFFSETS];
    uint32_t slot;
    uint16_t offset; /* of the window in the device's range */
    uint8_t width;   /* bytes of each register: any other access is Python's */
    uint8_t device;
    uint64_t ignored;
    struct pyvmm_ring *ring;
};

struct pyvmm_place {
    uint64_t base;
    uint64_t length;
    struct pyvmm_window *window;
};

/* The windows of one bus, by address. Never changed: another one takes its place. */
struct pyvmm_places {
    uint32_t count;
    struct pyvmm_place place[];
};

/* What the vCPUs of a VM share. */
struct pyvmm_hot {
    struct pyvmm_places *ports;
    struct pyvmm_places *mmio;
    struct pyvmm_ring *rings[PYVMM_RINGS];
    int timer;       /* a timerfd, set when a ring is no longer empty */
    uint8_t armed;   /* it is set */
    uint8_t flushed; /* somebody waits for it: without, nothing is posted */
};

/* An access that the helper dealt with or, if `seen`, an exit that Python saw in between. */
struct pyvmm_access {
    uint64_t tsc; /* these two only while tracing */
    uint64_t rip;
    uint64_t address;
    uint64_t value; /* as many of its bytes as fit */
    uint32_t count;
    uint8_t size;
    uint8_t kind;
    uint8_t seen;
};

#define PYVMM_TRACE_EXIT 1 /* the kind of a record */
#define PYVMM_TRACE_WRITE 1 /* and its flags */
#define PYVMM_TRACE_BY_C 2
#define PYVMM_TRACE_OPEN 4 /* it has not been handled yet */
#define PYVMM_TRACE_MMIO 8
#define PYVMM_TRACE_ACCESS 16
#define PYVMM_TRACE_ROOM 66 /* records that an exit takes at most: with a string's data, which fits the page */

/* A record of a trace, which is a file (pyvmm/trace/spool.py has the same layout). Times are nanoseconds. */
struct pyvmm_record {
    uint8_t kind;  /* written last */
    uint8_t flags;
    uint8_t size;
    uint8_t reason; /* KVM_EXIT_ */
    uint32_t count;
    uint64_t t; /* CLOCK_MONOTONIC, when KVM_RUN came back */
    uint64_t run;
    uint64_t handle;
    uint64_t rip;
    uint64_t address;
    uint64_t value; /* up to 8 bytes of data; more stand in the records behind this one */
    uint64_t tsc;
};

/* A piece of that file, mapped, for one vCPU. */
struct pyvmm_chunk {
    uint8_t magic[8];
    uint32_t length;
    uint32_t stream;
    uint64_t lost; /* records for which there was no room */
    uint8_t unused[40];
    struct pyvmm_record records[];
};

/* One vCPU. */
struct pyvmm_vcpu {
    int fd;
    int signal_number;
    int runner;
    uint8_t tracing; /* tell of every access: come back when the log is full */
    uint8_t sync_regs;
    struct pyvmm_hot *hot; /* NULL: Python sees every access */
    struct kvm_run *page;
    uint64_t page_size;
    uint64_t address; /* of an access for Python, with the next three */
    uint64_t value;
    uint32_t size;
    uint32_t data_at; /* where in the page its data is */
    uint32_t told; /* of `logged`, by Python */
    uint32_t logged;
    uint64_t port_accesses; /* dealt with here */
    uint64_t mmio_accesses;
    struct pyvmm_chunk *trace; /* NULL: nobody wants a trace */
    uint32_t trace_room;       /* records that it has room for; 0: there will be no more */
    uint32_t traced;
    uint64_t entered; /* when KVM_RUN was called last */
    struct pyvmm_record *open;
    uint8_t *open_data; /* the data of its access, in the page */
    struct pyvmm_access log[PYVMM_LOG];
};
