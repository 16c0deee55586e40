#!/bin/sh
# run-tests.sh PYTHON [PYTEST ARGUMENT...]: every test but the long counts, in three runs of pytest: most of them on two
# cores, file by file in their order, so that short ones come last and fill up; those that measure alone; and, for root,
# those that turn on permissions once more as an unprivileged user.
set -u

python=$1
shift
status=0

run() { # run TITLE COMMAND...
    echo "==> $1"
    shift
    "$@"
    result=$?
    [ $result -eq 5 ] && result=0 # pytest: nothing was selected
    [ $result -eq 0 ] || status=$result
}

if [ "$(id -u)" = 0 ]; then
    run "tests, on two cores" "$python" -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "not serial and not unprivileged" "$@"
    run "tests that run alone" "$python" -m pytest -q -m "serial and not unprivileged" "$@"
    run "tests as an unprivileged user" scripts/as-nobody.sh "$python" -m pytest -q -m unprivileged "$@"
else
    run "tests, on two cores" "$python" -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "not serial" "$@"
    run "tests that run alone" "$python" -m pytest -q -m serial "$@"
fi
exit $status
