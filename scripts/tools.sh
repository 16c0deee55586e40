#!/bin/sh
# tools.sh build|linux|test|bench: finds every Debian package that is missing. `build` is what building pyvmm and its
# guests takes, the others add what building a Linux kernel takes, `test` also what some tests use, and `bench` what
# measurements are compared with. Root gets them installed; anybody else is told the one command and stops here (1),
# before anything slow, unless that would only be left out. Never calls sudo. PYTHON names the interpreter.
set -u

what=${1:?build, linux, test or bench}
PYTHON=${PYTHON:-python3}
needed= # Debian packages that nothing works without
wanted= # those without which something is skipped
absent= # what those are for, in words

have() { command -v "$1" >/dev/null 2>&1; }

need() { # need PACKAGE WHAT
    needed="$needed $1"
    absent="$absent${absent:+, }$2"
}

have gcc || need gcc "a C compiler"
have ld || need binutils "a linker"
if have gcc; then
    echo '#include <stdlib.h>' | gcc -E - >/dev/null 2>&1 || need libc6-dev "the C library's headers"
    echo '#include <linux/kvm.h>' | gcc -E - >/dev/null 2>&1 || need linux-libc-dev "the kernel's headers"
else
    need libc6-dev "the C library's headers" # linux-libc-dev comes with it
fi

# The packages of Debian's own interpreter follow its name: python3 has python3-dev, python3.12 has python3.12-dev.
name=$(basename "$PYTHON")
case $name in python3 | python3.*) ;; *) name=python3 ;; esac
if ! have "$PYTHON" || ! "$PYTHON" -c '' 2>/dev/null; then
    need "$name $name-dev $name-venv" "$PYTHON"
else
    if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        echo "pyvmm: $PYTHON is $("$PYTHON" -V), pyvmm needs Python 3.11 or newer: make PYTHON=python3.12 ..." >&2
        exit 1
    fi
    header=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("include") + "/Python.h")')
    debian=$("$PYTHON" -c 'import sys; print(sys.base_prefix == "/usr")')
    if ! [ -e "$header" ]; then
        if [ "$debian" != True ]; then
            echo "pyvmm: $PYTHON has no C headers ($header): install them, or make PYTHON=python3 ..." >&2
            exit 1
        fi
        need "$name-dev" "$PYTHON's C headers ($header)"
    fi
    "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null || need "$name-venv" "$PYTHON's venv"
fi

want() { # want PACKAGE PROGRAM
    have "$2" || wanted="$wanted $1"
}

linux() { # what `pyvmm image build tiny` takes beside the compiler
    want make make
    want flex flex
    want bison bison
    want bc bc
    want patch patch
    want xz-utils xz
}

case $what in
linux) # all that is asked for: nothing would be left without it
    linux
    if [ -n "$wanted" ]; then
        needed=$needed$wanted
        absent="$absent${absent:+, }what builds a Linux kernel"
        wanted=
    fi
    ;;
test)
    linux
    want git git
    want cpio cpio
    want acpica-tools iasl
    want util-linux setpriv
    want busybox-static busybox
    want passt passt
    want fio fio
    want gdb gdb
    want chromium chromium
    [ -e /usr/share/fonts/truetype/dejavu/DejaVuSans.ttf ] || wanted="$wanted fonts-dejavu-core"
    [ -x /usr/sbin/mke2fs ] || wanted="$wanted e2fsprogs"
    ;;
bench)
    linux
    want qemu-system-x86 qemu-system-x86_64
    ;;
esac

if [ -z "$needed$wanted" ]; then
    # `pyvmm image build` has apt download the kernel's source: apt must have heard of that package.
    if [ "$what" != build ] && [ "$(id -u)" = 0 ] && have apt-cache; then
        apt-cache show linux-source-6.1 >/dev/null 2>&1 || {
            echo "==> updating apt's lists of packages"
            apt-get update -q >/dev/null 2>&1 || echo "pyvmm: apt-get update failed" >&2
        }
    fi
    exit 0
fi
if [ "$(id -u)" = 0 ] && have apt-get; then
    echo "==> installing$needed$wanted"
    export DEBIAN_FRONTEND=noninteractive
    log=$(mktemp)
    # shellcheck disable=SC2086 # the lists are words
    if { apt-get update -q && apt-get install -qy --no-install-recommends $needed $wanted; } >"$log" 2>&1; then
        rm -f "$log"
        exit 0
    fi
    tail -n 20 "$log" >&2
    rm -f "$log"
    echo "pyvmm: apt-get could not install$needed$wanted" >&2
    [ -z "$needed" ] || exit 1
elif [ -n "$needed" ]; then
    echo "pyvmm: missing: $absent. As root: apt-get install$needed$wanted" >&2
    exit 1
else
    echo "pyvmm: some of it will be skipped. For all of it, as root: apt-get install$wanted"
fi
