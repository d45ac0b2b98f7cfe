#!/usr/bin/env bash
# Install those of the named Debian packages that are missing. Asks apt only if some are.
set -euo pipefail
. "$(dirname "$0")/step.sh"

installed() {
    [ "$(dpkg-query --show --showformat '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

missing=()
for package in "$@"; do
    installed "$package" || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

log=$(mktemp)
trap 'rm -f "$log"' EXIT
export DEBIAN_FRONTEND=noninteractive
say "Debian packages: installing ${missing[*]}"
# Another repository of the machine's may be out of reach; what counts is whether ours are found.
logged "$log" apt-get update || say "Debian packages: apt-get update failed in part, going on"
logged "$log" apt-get -o DPkg::Lock::Timeout=300 install --yes --no-install-recommends "${missing[@]}" ||
    fail "installing ${missing[*]}" "see apt's words above; mend the machine's apt configuration (/etc/apt), or its network"
