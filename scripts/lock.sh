#!/usr/bin/env bash
# Write requirements.lock anew: the project, its developers' tools and the build backend, for
# Python 3.11 and later on every platform, with hashes. It names no index: what a machine calls its
# index is that machine's business, and the hashes hold wherever a file comes from.
set -euo pipefail
. "$(dirname "$0")/step.sh"
cd "$ROOT"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

say "lock: fetching uv"
python3 -m venv "$work/venv"
logged "$work/log" "$work/venv/bin/python" -m pip install --quiet uv ||
    fail "fetching uv" "see pip's words above"

"$work/venv/bin/python" - >"$work/build.in" <<'PYTHON'
import tomllib
with open("pyproject.toml", "rb") as file:
    print(*tomllib.load(file)["build-system"]["requires"], sep="\n")
PYTHON

# uv takes no notice of pip's configuration (no local links or extra indexes get in); only a
# machine's main index is handed on, since it may be the only one that can be reached.
index=$("$work/venv/bin/python" -m pip config get global.index-url 2>/dev/null || true)
while read -r name; do
    unset "$name"
done < <(compgen -e | grep '^UV_' || true)

say "lock: resolving"
logged "$work/log" "$work/venv/bin/uv" pip compile --no-config --cache-dir "$work/cache" \
    ${index:+--default-index "$index"} \
    --universal --python-version 3.11 --upgrade --generate-hashes --extra dev \
    --no-emit-index-url --no-emit-find-links --no-annotate --custom-compile-command "make lock" \
    --output-file "$work/requirements.lock" pyproject.toml "$work/build.in" ||
    fail "resolving the requirements" "see uv's words above"
if grep -nE '://|--index|--find-links' "$work/requirements.lock"; then
    fail "the lock names an index" "see the lines above"
fi
mv "$work/requirements.lock" requirements.lock
chmod 644 requirements.lock
say "lock: requirements.lock holds $(grep -c '==' requirements.lock) packages"
