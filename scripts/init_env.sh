#!/usr/bin/env bash
# Sets up what the TEE worker needs on an AWS instance with Nitro Enclaves (Amazon Linux 2023): nitro-cli, the
# allocator with memory and processors for an enclave, this checkout. Run it again after changing the allocator's file.
# --check only looks. On a machine without Nitro Enclaves it stops; --simulated sets up the checkout alone.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
    cat <<'TEXT'
usage: scripts/init_env.sh [--check | --simulated] [--memory MIB] [--cpu-count N]
  --check        change nothing; say what is missing
  --simulated    no Nitro Enclaves here: only make setup; the enclave is SIMULATED
  --memory MIB   reserve this much for enclaves (12288: a 7B model in Q4_0, streamed in)
  --cpu-count N  reserve this many processors (6; an even number where each core has two)
exit codes: 0 ready, 1 something is missing, 2 usage
TEXT
}

memory=12288 cpus=6 check=no simulated=no
while [ $# -gt 0 ]; do
    case "$1" in
        --check) check=yes ;;
        --simulated) simulated=yes ;;
        --memory | --cpu-count)
            [[ ${2:-} =~ ^[1-9][0-9]{0,6}$ ]] || {
                usage >&2
                exit 2
            }
            if [ "$1" = --memory ]; then memory=$2; else cpus=$2; fi
            shift
            ;;
        -h | --help)
            usage
            exit 0
            ;;
        *)
            usage >&2
            exit 2
            ;;
    esac
    shift
done

say() { printf 'init_env: %s\n' "$*"; }
missing=0
lack() { # what, next step
    printf 'init_env: missing: %s\n  hint: %s\n' "$1" "$2" >&2
    missing=1
}

device=${AOS_NITRO_DEVICE:-/dev/nitro_enclaves}
allocator=${AOS_NITRO_ALLOCATOR:-/etc/nitro_enclaves/allocator.yaml}

if [ "$simulated" = yes ]; then
    say "SIMULATED: no hardware guards what the TEE worker computes here"
    [ "$check" = yes ] || make setup
    exit 0
fi
if [ ! -e "$device" ]; then
    lack "$device: this machine has no Nitro Enclaves" \
        "start an instance with enclaves enabled (docs/operator-guide.md, \"A Nitro enclave\"), or scripts/init_env.sh --simulated"
    exit 1
fi

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# nitro-cli and the kernel and init that images are built with.
if ! command -v nitro-cli >/dev/null; then
    if [ "$check" = no ] && command -v dnf >/dev/null; then
        say "installing nitro-cli"
        as_root dnf install -y aws-nitro-enclaves-cli aws-nitro-enclaves-cli-devel docker
    fi
    command -v nitro-cli >/dev/null || lack nitro-cli "Amazon Linux 2023: dnf install aws-nitro-enclaves-cli aws-nitro-enclaves-cli-devel docker"
fi

# Memory and processors: one file, read when the allocator starts.
setting() {
    [ ! -r "$allocator" ] || sed -n "s/^$1:[[:space:]]*\([0-9][0-9]*\)[[:space:]]*\$/\1/p" "$allocator" | head -n 1
}
reserved=$(setting memory_mib)
if [ "$check" = no ] && [ "${reserved:-0}" -lt "$memory" ]; then
    say "writing $allocator: $memory MiB, $cpus processors"
    [ ! -e "$allocator" ] || as_root cp -p "$allocator" "$allocator.before-aos"
    sed -e "s/^memory_mib:.*/memory_mib: $memory/" -e "s/^cpu_count:.*/cpu_count: $cpus/" \
        deploy/enclave/allocator.yaml | as_root tee "$allocator" >/dev/null
    reserved=$(setting memory_mib)
fi
[ "${reserved:-0}" -ge "$memory" ] ||
    lack "$allocator reserves ${reserved:-0} MiB, not $memory" "scripts/init_env.sh --memory $memory"
if [ "$check" = no ]; then
    say "starting the allocator"
    as_root systemctl enable nitro-enclaves-allocator.service
    as_root systemctl restart nitro-enclaves-allocator.service ||
        lack "the allocator did not start: memory is fragmented or there is too little" \
            "reboot and run this first, or reserve at boot: default_hugepagesz=1G hugepagesz=1G hugepages=$(((memory + 1023) / 1024))"
    if [ "$(id -u)" != 0 ] && ! id -nG | grep -qw ne; then
        as_root usermod -aG ne "$(id -un)"
        say "log in again: this user is in the group ne only from then on"
    fi
elif ! systemctl is-active --quiet nitro-enclaves-allocator.service; then
    lack "nitro-enclaves-allocator does not run" "scripts/init_env.sh"
fi

if [ "$check" = no ]; then
    make setup
elif [ ! -x .venv/bin/aos ]; then
    lack "this checkout is not set up" "make setup"
fi
[ "$missing" = 0 ] || exit 1
say "ready: scripts/build_enclave.sh, then scripts/run_tee.sh"
