"""Judges the exercises of lesson 3."""

CASES = [  # port, size, in, string, rep
    (0x3F8, 1, False, False, False),
    (0x60, 1, True, False, False),
    (0xCFC, 4, True, False, False),
    (0x1F0, 2, True, True, True),
    (0xFFFF, 1, False, True, False),
]


def _compare(name, function, word):
    for port, size, is_in, string, rep in CASES:
        number = word(port, size, is_in, string, rep)
        expected = {"port": port, "size": size, "in": is_in, "string": string, "rep": rep}
        got = function(number)
        if not isinstance(got, dict):
            return f"{name}({number:#x}) is {got!r}, expected a dict"
        for key, value in expected.items():
            if key not in got or got[key] != value:
                shown = hex(value) if key == "port" else value
                return f"{name}({number:#x}) says {key} {got.get(key)!r}, expected {shown}"
    return ""


def check_vmx_io(work):
    def word(port, size, is_in, string, rep):
        return size - 1 | is_in << 3 | string << 4 | rep << 5 | (not string) << 6 | port << 16

    return _compare("vmx_io", work.exercise.vmx_io, word)


def check_svm_io(work):
    def word(port, size, is_in, string, rep):
        return is_in | string << 2 | rep << 3 | size << 4 | 1 << 7 | port << 16

    return _compare("svm_io", work.exercise.svm_io, word)


def check_io_exits(work):
    bitmap = bytearray(8192)
    for port in (0x3F8, 0xCFF, 0x8000):
        bitmap[port // 8] |= 1 << port % 8
    cases = [
        (0x3F8, 1, True),
        (0x3F7, 1, False),
        (0x3F9, 1, False),
        (0x3F7, 2, True),
        (0xCFC, 4, True),
        (0xCFB, 4, False),
        (0x8000, 1, True),
        (0x7FFF, 1, False),
        (0x7FFF, 2, True),
        (0xFFFF, 1, False),
        (0xFFFF, 2, True),
        (0xFFFD, 4, True),
    ]
    for port, size, expected in cases:
        got = work.exercise.io_exits(bytes(bitmap), port, size)
        if got is not expected:
            return (
                f"with the bits of 0x3f8, 0xcff and 0x8000 set, io_exits(bitmap, {port:#x}, {size}) is {got!r}, "
                f"expected {expected}"
            )
    return ""
