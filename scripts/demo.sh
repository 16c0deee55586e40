#!/bin/sh
# demo.sh PYVMM: builds two of the guests that come with pyvmm and runs them to their greetings, then Linux.
set -eu

pyvmm=$1

ended() { # ended STATUS: fails unless it is 0
    [ "$1" = 0 ] || {
        echo "pyvmm: the guest ended with $1" >&2
        exit "$1"
    }
}

show() { # show GUEST [ARGUMENT...]: prints the command, runs it, and fails unless the guest ends well
    guest=$("$pyvmm" image path "$1")
    shift
    echo
    echo "\$ pyvmm run $guest $*"
    "$pyvmm" run "$guest" "$@" </dev/null || ended $?
}

echo "==> building two guests"
"$pyvmm" image build hello64 smp
echo "==> running them"
show hello64 --timeout 30s
show smp --cpus 16 --append 16 --timeout 60s

echo
"$pyvmm" image path tiny >/dev/null 2>&1 || {
    echo "==> building a Linux: minutes, once"
    "$pyvmm" image build tiny
}
# What nobody could have known before is in the greeting: it is this guest's first program that has said it.
word=$(od -An -N 6 -t x1 /dev/urandom | tr -d ' \n')
kept=$(mktemp -d)
trap 'rm -rf "$kept"' EXIT
echo "==> booting it, with the word $word"
echo
echo "\$ pyvmm run --cpus 2 --mem 512M --append 'pyvmm.greeting=$word pyvmm.poweroff'"
{
    status=0
    "$pyvmm" run --cpus 2 --mem 512M --append "pyvmm.greeting=$word pyvmm.poweroff" --timeout 5m </dev/null || status=$?
    echo $status >"$kept/status"
} | tee "$kept/console"
ended "$(cat "$kept/status")"
grep -q "^pyvmm: greeting=$word kernel=.* cpus=2" "$kept/console" || {
    echo "pyvmm: the guest's first program did not greet with $word" >&2
    exit 1
}
echo
echo "==> done: pyvmm is $pyvmm; \`$pyvmm run\` gives a shell in Linux."
echo "    Try \`$pyvmm doctor\`, \`$pyvmm image list\` and \`$pyvmm run --help\`."
