#!/bin/sh
# Says within a second whether this user can use KVM: 0, or one line with the reason and 126, as `pyvmm` itself ends.
# It needs nothing but a shell, so that `make demo` can ask before anything is built or installed. Once pyvmm is
# built, `pyvmm doctor` says far more.

no_kvm() {
    echo "pyvmm: KVM is not usable here: $1" >&2
    exit 126
}

[ "${PYVMM_NO_KVM:-}" != 1 ] || no_kvm "PYVMM_NO_KVM=1 is set"
[ -e /dev/kvm ] || no_kvm "/dev/kvm does not exist (modprobe kvm_intel or kvm_amd; in a container: --device /dev/kvm)"
# Documentation/admin-guide/devices.txt: /dev/kvm is misc (10, 0xa) minor 232 (0xe8).
[ "$(stat -L -c %t:%T /dev/kvm)" = a:e8 ] || no_kvm "/dev/kvm is not the KVM device"
if ! [ -r /dev/kvm ] || ! [ -w /dev/kvm ]; then
    no_kvm "/dev/kvm may not be opened by $(id -un) (it belongs to $(stat -L -c '%U:%G, mode %a' /dev/kvm))"
fi
(: <>/dev/kvm) 2>/dev/null || no_kvm "/dev/kvm cannot be opened (is a kvm module loaded?)"
