#!/bin/sh
# linux-image.sh PYVMM: builds the tiny Linux into the cache, for the tests that boot it, unless it is there. Where that
# cannot be done they are skipped and named, or fail where PYVMM_REQUIRE lists tiny-image: this ends with 0 anyway.

pyvmm=$1

scripts/check-kvm.sh 2>/dev/null || exit 0
"$pyvmm" image path tiny >/dev/null 2>&1 && exit 0
echo "==> building the tiny Linux: minutes, once"
"$pyvmm" image build tiny || echo "pyvmm: without that image, no test boots Linux"
exit 0
