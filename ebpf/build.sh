#!/usr/bin/env bash
# Rebuilds the checked-in kernel object. Debian 12: apt-get install clang-16 llvm-16 libbpf-dev
#   ebpf/build.sh [OUT]     default OUT: ebpf/obj/flowtilla.bpf.o
set -euo pipefail
cd "$(dirname "$0")"
want=16.0.6
have=$(clang-16 --version | sed -n '1s/.*version \([0-9.]*\).*/\1/p')
[ "$have" = "$want" ] || { echo "clang-16 $want wanted, $have found: the octets may differ" >&2; exit 3; }
out=$(realpath -m "${1:-obj/flowtilla.bpf.o}")
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
# -mcpu=v2: the fetching atomics of v3 need Linux 5.12.  -g: BTF.  prefix map: the same octets in any folder.
clang-16 -target bpf -mcpu=v2 -O2 -g -std=gnu11 -Wall -Wextra -Werror -Wno-unused-parameter -Wno-sign-compare \
  -Wno-missing-declarations -Wno-address-of-packed-member -Wno-unused-function \
  -fno-ident -ffile-prefix-map="$PWD"=. -Iinclude -c src/flowtilla.bpf.c -o "$tmp/o"
llvm-strip-16 -g "$tmp/o" # drops DWARF, keeps .BTF and .BTF.ext
install -D -m 644 "$tmp/o" "$out"
sha256sum "$out" | cut -c1-64
