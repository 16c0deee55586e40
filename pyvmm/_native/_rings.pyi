"""Types of the compiled module `_rings`. Not to be edited: build_rings.py writes it from the headers.

The headers say what each function does and what the fields of a structure, its attributes, mean.
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
    def pyvmm_pop(self, queue: Any, chains: Any, limit: int, iov: Any, room: int) -> int: ...
    def pyvmm_unpop(self, queue: Any, chains: Any, count: int) -> None: ...
    def pyvmm_push(self, queue: Any, elements: Any, count: int) -> None: ...
    def pyvmm_wants_interrupt(self, queue: Any) -> int: ...
    def pyvmm_suppress(self, queue: Any) -> None: ...
    def pyvmm_listen(self, queue: Any) -> int: ...
    def pyvmm_block_serve(self, block: Any, queue: Any, limit: int) -> int: ...
    def pyvmm_net_transmit(self, net: Any, queue: Any, frames: Any, budget: int) -> int: ...
    def pyvmm_net_receive(self, net: Any, queue: Any, frames: Any, budget: int) -> int: ...
    def pyvmm_console_gather(self, console: Any, queue: Any) -> int: ...
    def pyvmm_console_give_back(self, console: Any, queue: Any, count: int) -> None: ...
    def pyvmm_words_prepare(self, words: Any) -> None: ...
    def pyvmm_words_found(self, words: Any, text: Any, length: int) -> int: ...
    PYVMM_AVAIL_JUMPS: int
    PYVMM_HEAD_RANGE: int
    PYVMM_HEAD_IN_FLIGHT: int
    PYVMM_INDIRECT_REFUSED: int
    PYVMM_INDIRECT_NESTED: int
    PYVMM_INDIRECT_NEXT: int
    PYVMM_INDIRECT_LENGTH: int
    PYVMM_INDIRECT_LONG: int
    PYVMM_INDIRECT_NOT_RAM: int
    PYVMM_CHAIN_LOOPS: int
    PYVMM_CHAIN_LONG: int
    PYVMM_BUFFER_NOT_RAM: int
    PYVMM_CHAIN_ORDER: int
    PYVMM_NEXT_RANGE: int
    PYVMM_KINDS: int
    PYVMM_NO_ROOM: int
    PYVMM_BLOCK_EMPTY: int
    PYVMM_BLOCK_PYTHON: int
    PYVMM_BLOCK_TELL: int
    PYVMM_BLOCK_AGAIN: int
    PYVMM_BLOCK_BATCH: int
    PYVMM_BLOCK_ROOM: int
    PYVMM_NET_BATCH: int
    PYVMM_NET_IOVECS: int
    PYVMM_NET_FEW: int
    PYVMM_NET_FIRST: int
    PYVMM_NET_NO_CHAIN: int
    PYVMM_NET_NO_FRAME: int
    PYVMM_NET_FULL: int
    PYVMM_NET_MORE: int
    PYVMM_NET_PYTHON: int
    PYVMM_NET_TELL: int
    PYVMM_NET_ALL: int
    PYVMM_NET_OWN: int
    PYVMM_NET_BROADCAST: int
    PYVMM_CONSOLE_BATCH: int
    PYVMM_CONSOLE_IOVECS: int

ffi: FFI
lib: Lib

class iovec:
    iov_base: Any
    iov_len: int

class pyvmm_block:
    fd: int
    align: int
    sectors: int
    writable: int
    patience: int
    others: Any
    other_count: int
    window: int
    empty_since: int
    served: int
    chains: Array[pyvmm_chain]
    used: Array[pyvmm_used]
    iov: Array[iovec]

class pyvmm_chain:
    head: int
    readable: int
    writable: int
    first: int
    readable_length: int
    writable_length: int

class pyvmm_console:
    buffer: Any
    size: int
    filled: int
    chains: Array[pyvmm_chain]
    used: Array[pyvmm_used]
    iov: Array[iovec]

class pyvmm_frames:
    fd: int
    failure: int
    stream: int
    header: int
    buffer: Any
    size: int
    start: int
    end: int
    sent: int

class pyvmm_net:
    station: Array[int]
    source: Array[int]
    check_source: int
    wanted: int
    mergeable: int
    longest: int
    wary: int
    told: int
    moved: int
    head: int
    frame: int
    length: int
    stage: Any
    stage_size: int
    ends: Array[int]
    chains: Array[pyvmm_chain]
    used: Array[pyvmm_used]
    iov: Array[iovec]

class pyvmm_queue:
    regions: Any
    region_count: int
    size: int
    table: Any
    avail: Any
    used: Any
    in_flight: Any
    next_avail: int
    next_used: int
    notified: int
    event_idx: int
    indirect: int
    errors: Array[int]

class pyvmm_region:
    gpa: int
    length: int
    host: Any

class pyvmm_used:
    id: int
    length: int

class pyvmm_words:
    count: int
    lengths: Array[int]
    words: Array[Array[int]]
    starts: Array[int]
