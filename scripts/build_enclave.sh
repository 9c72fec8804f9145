#!/usr/bin/env bash
# Builds the enclave's image file from this checkout and measures it. Equal sources, base images and AWS files give
# equal bytes; run it twice and compare (--twice). Needs docker with BuildKit and AWS's kernel, init and driver
# (aws-nitro-enclaves-cli-devel); no enclave hardware.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
    cat <<'TEXT'
usage: scripts/build_enclave.sh --builder IMAGE@sha256:… --runtime IMAGE@sha256:… [options]
  --builder IMAGE   python:3.11-bookworm by digest: compiles the native engine
  --runtime IMAGE   python:3.11-slim-bookworm by digest: what the enclave runs on
  --blobs DIR       AWS's bzImage, cmdline, init, nsm.ko (/usr/share/nitro_enclaves/blobs)
  --engine NAME     native (default), reference, or llama.cpp (not replayable)
  --output DIR      build/enclave
  --twice           build a second time without a cache and compare
TEXT
}

fail() {
    printf 'build_enclave: %s\n  hint: %s\n' "$2" "$3" >&2
    exit "$1"
}

builder='' runtime='' blobs=/usr/share/nitro_enclaves/blobs engine=native output=build/enclave twice=no
while [ $# -gt 0 ]; do
    case "$1" in
        -h | --help)
            usage
            exit 0
            ;;
        --twice) twice=yes && shift && continue ;;
        --builder | --runtime | --blobs | --engine | --output) ;;
        *)
            usage >&2
            exit 2
            ;;
    esac
    [ $# -ge 2 ] || fail 2 "$1 needs a value" "scripts/build_enclave.sh --help"
    case "$1" in
        --builder) builder=$2 ;;
        --runtime) runtime=$2 ;;
        --blobs) blobs=$2 ;;
        --engine) engine=$2 ;;
        --output) output=$2 ;;
    esac
    shift 2
done
for base in "$builder" "$runtime"; do
    [[ $base =~ ^[a-z0-9][a-z0-9./_:-]*@sha256:[0-9a-f]{64}$ ]] ||
        fail 2 "a base image must be named by its digest, not '$base': a tag is another image tomorrow" \
            "docker buildx imagetools inspect python:3.11-slim-bookworm prints it"
done
case "$engine" in native | reference | llama.cpp) ;; *) fail 2 "no engine $engine" "native, reference or llama.cpp" ;; esac
case "$(uname -m)" in
    x86_64) architecture=x86_64 kernel=bzImage platform=linux/amd64 ;;
    aarch64) architecture=aarch64 kernel=Image platform=linux/arm64 ;;
    *) fail 30 "enclaves run on x86_64 and aarch64" "build on such a machine" ;;
esac
for file in "$kernel" cmdline init nsm.ko; do
    [ -r "$blobs/$file" ] || fail 12 "$blobs/$file is not there" "dnf install aws-nitro-enclaves-cli-devel, or --blobs DIR"
done
[ -x .venv/bin/python ] || fail 30 "this checkout is not set up" "make setup"
command -v docker >/dev/null || fail 30 "docker is not installed" "dnf install docker"
[ -z "$(git status --porcelain -- src native deploy/enclave pyproject.toml constraints.txt 2>/dev/null)" ] ||
    echo "build_enclave: warning: the checkout has changes that no commit names" >&2

export SOURCE_DATE_EPOCH=0
pack=(.venv/bin/python scripts/pack_enclave.py)
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)

build() { # directory, further options of docker
    local to=$1
    shift
    mkdir -p "$to"
    docker buildx build "$@" --platform "$platform" --provenance=false --build-arg SOURCE_DATE_EPOCH=0 \
        --build-arg "BUILDER=$builder" --build-arg "RUNTIME=$runtime" \
        --output "type=tar,dest=$to/rootfs.tar,rewrite-timestamp=true" -f deploy/enclave/Dockerfile .
    "${pack[@]}" ramdisk --directory dev --file "init=$blobs/init:755" --file "nsm.ko=$blobs/nsm.ko:755" \
        -o "$to/boot.cpio"
    local lines=()
    while IFS= read -r line; do lines+=(--line "cmd=${line//@ENGINE@/$engine}"); done <deploy/enclave/cmd
    while IFS= read -r line; do lines+=(--line "env=$line"); done <deploy/enclave/env
    "${pack[@]}" ramdisk --tar "$to/rootfs.tar" --prefix rootfs "${lines[@]}" -o "$to/application.cpio"
    "${pack[@]}" image --kernel "$blobs/$kernel" --cmdline-file "$blobs/cmdline" --ramdisk "$to/boot.cpio" \
        --ramdisk "$to/application.cpio" --architecture "$architecture" --name aos-tee-worker \
        --version "$version" -o "$to/aos-worker.eif"
}

build "$output"
if [ "$twice" = yes ]; then
    build "$output/again" --no-cache
    cmp "$output/aos-worker.eif" "$output/again/aos-worker.eif" ||
        fail 10 "two builds differ" "compare the sections: aos tee pcrs on both, then the cpio archives"
    rm -rf "$output/again"
    echo "build_enclave: two builds, equal bytes"
fi
.venv/bin/aos tee pcrs "$output/aos-worker.eif" --save "$output/measurements.json"
