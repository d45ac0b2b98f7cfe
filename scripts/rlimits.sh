#!/usr/bin/env bash
# Where CAP_SYS_RESOURCE is missing, and only there: build the library that lets CRIU read other
# users' limits all the same ($CACHE/lib/criu_rlimits.so; scripts/criu_rlimits.c says more).
set -euo pipefail
. "$(dirname "$0")/step.sh"

CAP_SYS_RESOURCE=24 # linux/capability.h
capabilities=0x$(sed -n 's/^CapEff:[[:space:]]*//p' /proc/self/status)
if (((capabilities >> CAP_SYS_RESOURCE) & 1)); then
    exit 0
fi

source=$ROOT/scripts/criu_rlimits.c
library=$CACHE/lib/criu_rlimits.so
stamp=$(sha256sum <"$source")
if [ -e "$library" ] && [ "$(cat "$library.source" 2>/dev/null)" = "$stamp" ]; then
    exit 0
fi
"$ROOT/scripts/packages.sh" gcc libc6-dev
mkdir -p "$CACHE/lib"
work=$(mktemp -d "$CACHE/lib/.build.XXXXXX")
trap 'rm -rf "$work"' EXIT
gcc -O2 -Wall -Wextra -Werror -shared -fPIC -o "$work/library" "$source" ||
    fail "compiling $source" "see the compiler's words above"
mv -T "$work/library" "$library"
printf '%s\n' "$stamp" >"$library.source"
say "CAP_SYS_RESOURCE is missing here: CRIU gets its rlimit fallback ($library)"
