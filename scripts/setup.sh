#!/usr/bin/env bash
# Everything that `make demo` and `make test` need, on a fresh Debian 12 or 13, as root. What is
# there already is left alone: a second run takes a second.
set -euo pipefail
. "$(dirname "$0")/step.sh"
cd "$ROOT"

[ "$(id -u)" -eq 0 ] || fail "set-up needs root" "sudo make setup"
command -v apt-get >/dev/null && command -v dpkg-query >/dev/null ||
    fail "this is no Debian: apt-get is missing" "use Debian 12 or 13, or install by hand what scripts/setup.sh names"

# runc runs the containers, libnftables is called in process (nftables brings nft, to look with),
# redis-tools' redis-check-rdb *is* redis-server (one binary, several names) without the service,
# gcc builds mycoproxy/tcp/_batch.c.
PACKAGES=(
    ca-certificates gcc iproute2 libc6-dev libnftables1 nftables python3 python3-venv redis-tools runc tcpdump util-linux
)

scripts/packages.sh "${PACKAGES[@]}"
scripts/python.sh
scripts/criu.sh
scripts/rlimits.sh
say "done in $((SECONDS - STARTED)) s"
