# Sourced by the set-up scripts: how they speak, and the places they all know.
# Every step says one line; every failure says what to do.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
CACHE=${MYCOPROXY_CACHE:-/var/cache/mycoproxy}
STARTED=${STARTED:-$SECONDS}

say() {
    printf 'setup: %s\n' "$*"
}

# fail WHAT-WENT-WRONG WHAT-TO-DO
fail() {
    printf 'setup: failed: %s\n       to do: %s\n' "$1" "$2" >&2
    exit 1
}

# logged LOG COMMAND...: run a long command quietly, with a dot every two seconds on a terminal and
# the end of its output if it fails.
logged() {
    local log=$1 ticker="" status=0
    shift
    if [ -t 1 ]; then
        (while sleep 2; do printf '.'; done) &
        ticker=$!
    fi
    "$@" >"$log" 2>&1 </dev/null || status=$?
    if [ -n "$ticker" ]; then
        kill "$ticker"
        wait "$ticker" 2>/dev/null || true
        printf '\r'
    fi
    if [ "$status" -ne 0 ]; then
        printf 'setup: this failed: %s\n' "$*" >&2
        tail -n 30 "$log" >&2
    fi
    return "$status"
}

# version_at_least FOUND WANTED, in dpkg's order
version_at_least() {
    dpkg --compare-versions "$1" ge "$2"
}
