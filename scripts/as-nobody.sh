#!/bin/sh
# as-nobody.sh COMMAND...: runs a command from this checkout as the unprivileged user nobody. For root only.
#
# Everything happens in a mount namespace of its own, so nothing on the machine changes: /dev/kvm is a node that
# everybody may open, and where a folder on the way to the checkout or to the interpreter is closed to others (/root
# usually is), an empty one takes its place that shows just those two. HOME, TMPDIR and the cache, which has a copy of
# the tiny Linux if root's has one, are new and go at the end. Where such a namespace cannot be made, says so and ends with 0, or with 1 if PYVMM_REQUIRE lists `unprivileged`.
set -u

checkout=$(cd "$(dirname "$0")/.." && pwd -P)

cannot() {
    echo "pyvmm: no tests as an unprivileged user: $1"
    case ",${PYVMM_REQUIRE:-}," in *,unprivileged,*) exit 1 ;; esac
    exit 0
}

[ "$(id -u)" = 0 ] || cannot "only root can become one"
if [ "${AS_NOBODY_INSIDE:-}" = "" ]; then
    unshare --mount true 2>/dev/null || cannot "a mount namespace cannot be made here"
    home=$(mktemp -d /tmp/pyvmm-nobody.XXXXXX)
    mkdir "$home/stage"
    trap 'rm -rf "$home"' EXIT
    trap 'exit 143' TERM
    AS_NOBODY_INSIDE=$home unshare --mount --propagation private "$0" "$@"
    exit
fi

home=$AS_NOBODY_INSIDE
stage=$home/stage
chown nobody: "$home"
mount -t tmpfs -o mode=755 none "$stage" || cannot "nothing can be mounted here"

if [ -e /dev/kvm ] && [ "$(stat -L -c %t:%T /dev/kvm)" = a:e8 ]; then
    mknod -m 666 "$stage/kvm" c 10 232 && mount --bind "$stage/kvm" /dev/kvm
fi

tiny=${PYVMM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/pyvmm}/images/tiny
if [ -d "$tiny" ]; then
    mkdir -p "$home/cache/images"
    cp -r "$tiny" "$home/cache/images/tiny"
    chown -R nobody: "$home/cache"
fi

closed() { # the topmost folder on the way to $1 that others may not pass
    path=
    IFS=/
    for part in ${1#/}; do
        path=$path/$part
        case $(stat -L -c %a "$path") in *[1357]) ;; *) echo "$path" && return ;; esac
    done
}

interpreter=$("$1" -c 'import sys; print(sys.base_prefix)')
set -- "$checkout" "$interpreter" -- "$@"
number=0
while [ "$1" != -- ]; do
    behind=$(closed "$1")
    if [ -n "$behind" ]; then
        number=$((number + 1))
        mkdir "$stage/$number"
        mount --bind "$1" "$stage/$number"
        covered="${covered:-}$behind
"
        moved="${moved:-}$number $1
"
    fi
    shift
done
shift
printf %s "${covered:-}" | sort -u | while read -r folder; do mount -t tmpfs -o mode=755 none "$folder"; done
printf %s "${moved:-}" | while read -r number folder; do
    mkdir -p "$folder" && mount --bind "$stage/$number" "$folder"
done

nobody() {
    cd "$checkout" && env -u XDG_CACHE_HOME -u AS_NOBODY_INSIDE HOME="$home" TMPDIR="$home" \
        PYVMM_CACHE="$home/cache" PYTHONDONTWRITEBYTECODE=1 \
        setpriv --reuid=nobody --regid="$(id -g nobody)" --clear-groups "$@"
}
nobody "$1" -c '' || cannot "nobody may not read $checkout or $interpreter"
nobody "$@"
