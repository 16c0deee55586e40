"""Solutions of lesson 3."""


def vmx_io(qualification: int) -> dict:
    return {
        "port": qualification >> 16 & 0xFFFF,
        "size": (qualification & 7) + 1,
        "in": bool(qualification & 1 << 3),
        "string": bool(qualification & 1 << 4),
        "rep": bool(qualification & 1 << 5),
    }


def svm_io(exitinfo1: int) -> dict:
    return {
        "port": exitinfo1 >> 16 & 0xFFFF,
        "size": exitinfo1 >> 4 & 7,
        "in": bool(exitinfo1 & 1),
        "string": bool(exitinfo1 & 1 << 2),
        "rep": bool(exitinfo1 & 1 << 3),
    }


def io_exits(bitmap: bytes, port: int, size: int) -> bool:
    ports = range(port, port + size)
    return ports[-1] > 0xFFFF or any(bitmap[one // 8] >> one % 8 & 1 for one in ports)
