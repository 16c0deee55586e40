#!/bin/sh
# run-tests.sh PYTHON [PYTEST ARGUMENT...]: every test but the long counts, in three runs of pytest: most of them on two
# cores, file by file in their order, so that short ones come last and fill up; those that measure alone; and, for root,
# those that turn on permissions once more as an unprivileged user, beside the first run: mostly the boot of one guest.
set -u

python=$1
shift
status=0
# Where nothing may be kept, each of the thousands of commands that are run would compile pyvmm anew.
unset PYTHONDONTWRITEBYTECODE

note() { # note RESULT: what pytest ended with
    [ "$1" -eq 5 ] && return # nothing was selected
    [ "$1" -eq 0 ] || status=$1
}

run() { # run TITLE COMMAND...
    echo "==> $1"
    shift
    "$@"
    note $?
}

having() { # having TEXT: the files with it, as an option of pytest's, which need not read all the others then
    echo "testpaths=$(grep -rlF --include='test_*.py' "$1" tests | sort | tr '\n' ' ')"
}

main="not serial"
alone=serial
if [ "$(id -u)" = 0 ]; then
    main="$main and not unprivileged"
    alone="$alone and not unprivileged"
    said=$(mktemp)
    # In a session of its own, so that all of it can be ended with this one.
    setsid scripts/as-nobody.sh "$python" -m pytest -q -o "$(having '"unprivileged"')" -m unprivileged "$@" >"$said" 2>&1 &
    beside=$!
    trap 'kill -s TERM -- "-$beside" 2>/dev/null && wait "$beside"; rm -f "$said"' EXIT
    trap 'exit 130' INT TERM
fi
run "tests, on two cores" "$python" -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "$main" "$@"
if [ "$(id -u)" = 0 ]; then
    echo "==> tests as an unprivileged user, beside them"
    wait "$beside"
    result=$?
    cat "$said"
    note $result
fi
run "tests that run alone" "$python" -m pytest -q -o "$(having mark.serial)" -m "$alone" "$@"
exit $status
