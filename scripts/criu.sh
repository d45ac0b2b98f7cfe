#!/usr/bin/env bash
# Provide CRIU >= 4.2: the system's if it is new enough, else one built from Debian sid's source
# package and kept in the cache: $CACHE/criu/VERSION/sbin/criu, and $CACHE/bin/criu that points to it.
#
# sid's binary package needs sid's libc, its source does not. Only the upstream tarball is taken: its
# checksum comes from sid's signed index, so apt verifies it with Debian's archive keys. apt keeps
# this in directories of its own; the machine's sources and lists stay as they are.
#
# GnuTLS is left out: it is only for page transfers under TLS, and costs time at each start.
#
# The run directory is where CRIU keeps what it found out about the kernel (criu.kdat), so that it
# need not probe at each start. It keeps the file on a tmpfs only. Where /run is none, our own
# build uses a directory in /dev/shm; migrate/runtime/criu_binary.py makes it, for root alone.
set -euo pipefail
. "$(dirname "$0")/step.sh"

WANTED=4.2
BUILD_PACKAGES=(
    gcc make pkg-config libc6-dev xz-utils debian-archive-keyring
    libprotobuf-dev libprotobuf-c-dev protobuf-compiler protobuf-c-compiler
    libcap-dev libnl-3-dev libnet1-dev libnftables-dev libbsd-dev uuid-dev
)

# The version a criu binary says it has; nothing if it does not start.
criu_version() {
    "$1" --version 2>/dev/null | sed -n 's/^Version: *//p'
}

found=$(criu_version "$CACHE/bin/criu" || true)
if [ -n "$found" ] && version_at_least "$found" "$WANTED"; then
    say "CRIU $found in $CACHE/bin"
    exit 0
fi
system=$(command -v criu || true)
if [ -n "$system" ]; then
    found=$(criu_version "$system" || true)
    if [ -n "$found" ] && version_at_least "$found" "$WANTED"; then
        say "CRIU $found of the system ($system)"
        exit 0
    fi
    say "CRIU ${found:-(does not start)} of the system is too old, $WANTED is needed: building our own"
fi

"$ROOT/scripts/packages.sh" "${BUILD_PACKAGES[@]}"

mkdir -p "$CACHE/criu" "$CACHE/bin"
exec 9>"$CACHE/criu/.lock"
flock 9
found=$(criu_version "$CACHE/bin/criu" || true)
if [ -n "$found" ] && version_at_least "$found" "$WANTED"; then
    say "CRIU $found in $CACHE/bin (built by another set-up meanwhile)"
    exit 0
fi

work=$(mktemp -d "$CACHE/criu/.build.XXXXXX")
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
mkdir -p "$work"/apt/state/lists/partial "$work"/apt/cache/archives/partial "$work"/source "$work"/download
if id _apt >/dev/null 2>&1; then
    chown _apt "$work/download"
fi

# The machine's own mirror of Debian proper, as apt understood its configuration (either format).
debian_mirror() {
    apt-get indextargets --format '$(REPO_URI)' \
        'Created-By: Packages' 'Origin: Debian' 'Label: Debian' | head -n 1
}
mirror=$(debian_mirror)
if [ -z "$mirror" ]; then
    logged "$work/log" apt-get update || fail "apt-get update" "mend the machine's apt configuration"
    mirror=$(debian_mirror)
fi
[ -n "$mirror" ] ||
    fail "no Debian mirror in apt's configuration" "add one to /etc/apt/sources.list.d, or install CRIU >= $WANTED"

keyring=/usr/share/keyrings/debian-archive-keyring.gpg
[ -e "$keyring" ] || keyring=${keyring%.gpg}.pgp
printf 'deb-src [signed-by=%s] %s sid main\n' "$keyring" "$mirror" >"$work/apt/sources.list"
options=(
    -o "Dir::Etc::sourcelist=$work/apt/sources.list" -o Dir::Etc::sourceparts=-
    -o "Dir::State=$work/apt/state" -o "Dir::Cache=$work/apt/cache"
    -o Acquire::Languages=none
    # A mirror that is a snapshot serves indexes whose date has passed. Their signature still counts.
    -o Acquire::Check-Valid-Until=false
)

say "CRIU: fetching Debian sid's source package"
logged "$work/log" apt-get "${options[@]}" update ||
    fail "reading sid's index from the machine's mirror" "see apt's words above, or install CRIU >= $WANTED"
version=$(apt-cache "${options[@]}" showsrc --only-source criu | sed -n 's/^Version: *//p' | sort -V | tail -n 1)
version=${version%-*}
version=${version#*:}
[ -n "$version" ] && version_at_least "$version" "$WANTED" ||
    fail "sid has CRIU ${version:-nowhere}, $WANTED is needed" "install CRIU >= $WANTED"
(cd "$work/download" && logged "$work/log" apt-get "${options[@]}" source --download-only --tar-only --only-source criu) ||
    fail "fetching CRIU's source" "see apt's words above"
tar --extract --file "$(echo "$work"/download/criu_*.orig.tar.*)" --directory "$work/source" --strip-components 1

rundir=/run
if [ "$(stat --file-system --format %T /run)" != tmpfs ]; then
    rundir=/dev/shm/mycoproxy-criu
fi

say "CRIU: building $version (about half a minute)"
logged "$work/log" make -C "$work/source" -j "$(nproc)" NO_GNUTLS=1 RUNDIR="$rundir" criu ||
    fail "building CRIU $version" "see the compiler's words above"

prefix=$CACHE/criu/$version
mkdir -p "$work/tree/sbin"
install --mode 755 --strip "$work/source/criu/criu" "$work/tree/sbin/criu"
install --mode 644 "$work/source/COPYING" "$work/tree/COPYING"
printf '%s\n' "$rundir" >"$work/tree/rundir"
built=$(criu_version "$work/tree/sbin/criu" || true)
[ -n "$built" ] || fail "the CRIU just built does not start" "run $work/tree/sbin/criu --version"
rm -rf "$prefix"
mv "$work/tree" "$prefix"
ln -s "../criu/$version/sbin/criu" "$work/link"
mv -T "$work/link" "$CACHE/bin/criu"
say "CRIU $built built into $CACHE/bin"
