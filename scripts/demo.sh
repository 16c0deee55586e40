#!/bin/sh
# demo.sh PYVMM: builds two of the guests that come with pyvmm and runs them to their greetings.
set -eu

pyvmm=$1

show() { # show GUEST [ARGUMENT...]: prints the command, runs it, and fails unless the guest ends well
    guest=$("$pyvmm" image path "$1")
    shift
    echo
    echo "\$ pyvmm run $guest $*"
    "$pyvmm" run "$guest" "$@" </dev/null || {
        status=$?
        echo "pyvmm: the guest ended with $status" >&2
        exit $status
    }
}

echo "==> building two guests"
"$pyvmm" image build hello64 smp
echo "==> running them"
show hello64 --timeout 30s
show smp --cpus 16 --append 16 --timeout 60s
echo
echo "==> done: pyvmm is $pyvmm; try \`$pyvmm doctor\`, \`$pyvmm image list\` and \`$pyvmm run --help\`"
