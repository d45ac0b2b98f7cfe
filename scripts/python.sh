#!/usr/bin/env bash
# Make .venv/ hold exactly what requirements.lock names, and the project itself (editable).
#
# Every file is checked against the lock's hashes, wherever the machine's pip takes it from. The
# build backend is in the lock too, so installing the project fetches nothing.
set -euo pipefail
. "$(dirname "$0")/step.sh"
cd "$ROOT"

exec 9<requirements.lock
flock 9

# The stamp says what the environment was made from, and where: a moved one has wrong paths in it.
stamp=$(cat requirements.lock pyproject.toml mycoproxy/tcp/_batch.c <(echo "$ROOT") | sha256sum)
if [ "$(cat .venv/.made-from 2>/dev/null)" = "$stamp" ] && .venv/bin/python -c '' 2>/dev/null &&
    compgen -G 'mycoproxy/tcp/_batch.*.so' >/dev/null; then
    exit 0
fi

new_enough() {
    "$1" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}
python=""
for candidate in python3 /usr/bin/python3; do
    if new_enough "$candidate"; then
        python=$candidate
        break
    fi
done
[ -n "$python" ] || fail "no Python >= 3.11 with venv found" "apt-get install python3 python3-venv (Debian 12 or later)"

log=$(mktemp)
trap 'rm -f "$log"' EXIT
say "Python: installing requirements.lock into .venv ($("$python" --version))"
rm -f .venv/.made-from
if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    logged "$log" "$python" -m venv --clear .venv || fail "making .venv" "see Python's words above"
fi
pip=(.venv/bin/python -m pip --disable-pip-version-check --no-input install --quiet --no-deps)
logged "$log" "${pip[@]}" --require-hashes --only-binary :all: --requirement requirements.lock ||
    fail "installing requirements.lock" "see pip's words above; is a Python package index reachable?"
logged "$log" "${pip[@]}" --no-index --no-build-isolation --editable . ||
    fail "installing the project" "see pip's words above"
compgen -G 'mycoproxy/tcp/_batch.*.so' >/dev/null ||
    fail "building mycoproxy/tcp/_batch.c" "is gcc there? apt-get install gcc libc6-dev"
printf '%s\n' "$stamp" >.venv/.made-from
