#!/usr/bin/env bash
# Starts the TEE environment: an AWS Nitro enclave of a measured image, checked before it starts, after it has started,
# and by a challenge before it serves. Never in debug mode: a debug enclave's memory can be read and its registers are
# zero. Without arguments it runs build/enclave/aos-worker.eif against deploy/enclave/measurements.json.
# A machine without Nitro Enclaves needs none of this: there tee-worker starts a SIMULATED enclave by itself.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
    cat <<'TEXT'
usage: scripts/run_tee.sh [options]
  --eif FILE            image file (build/enclave/aos-worker.eif; scripts/build_enclave.sh makes it)
  --measurements FILE   what it must be (deploy/enclave/measurements.json; `aos tee pcrs --save` writes it)
  --policy FILE         attestation policy for the challenge (deploy/enclave/policy.json)
  --cid N               the enclave's CID, 4 or higher (16)
  --port N              vsock port that the enclave listens on (5005)
  --cpu-count N         processors (6)
  --memory MIB          memory (12288; at least four times the image file)
  --name NAME           the enclave's name (aos-tee-worker)
  --check               check the image file only; start nothing
exit codes: 0 runs and has answered the challenge, 2 usage, 10 refused, 12 a file is missing, 20 it did not start,
30 this machine or configuration cannot
TEXT
}

fail() { # exit code, message, next step
    printf 'run_tee: %s\n  hint: %s\n' "$2" "$3" >&2
    exit "$1"
}

eif=build/enclave/aos-worker.eif
measurements=deploy/enclave/measurements.json
policy=deploy/enclave/policy.json
cid=16 port=5005 cpus=6 memory=12288 name=aos-tee-worker check_only=no

while [ $# -gt 0 ]; do
    case "$1" in
        # --config: a file of options for nitro-cli, debug_mode among them.
        debug | --debug-mode* | --attach-console* | --config*)
            fail 10 "$1: an enclave in debug mode can be read by its host and proves nothing" \
                "run it without; the enclave's log comes over its own connection"
            ;;
        -h | --help)
            usage
            exit 0
            ;;
        --check) check_only=yes && shift && continue ;;
        --eif | --measurements | --policy | --cid | --port | --cpu-count | --memory | --name) ;;
        *)
            usage >&2
            exit 2
            ;;
    esac
    [ $# -ge 2 ] || fail 2 "$1 needs a value" "scripts/run_tee.sh --help"
    case "$1" in
        --eif) eif=$2 ;;
        --measurements) measurements=$2 ;;
        --policy) policy=$2 ;;
        --cid) cid=$2 ;;
        --port) port=$2 ;;
        --cpu-count) cpus=$2 ;;
        --memory) memory=$2 ;;
        --name) name=$2 ;;
    esac
    shift 2
done

number() { # option, value, least, most
    { [[ $2 =~ ^[1-9][0-9]{0,9}$ ]] && [ "$2" -ge "$3" ] && [ "$2" -le "$4" ]; } ||
        fail 2 "$1 must be a number from $3 to $4, not $2" "scripts/run_tee.sh --help"
}
number --cid "$cid" 4 4294967294
number --port "$port" 1 4294967294
number --cpu-count "$cpus" 1 1024
number --memory "$memory" 64 16777216
[[ $name =~ ^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$ ]] ||
    fail 2 "--name must be letters, digits, - and _" "scripts/run_tee.sh --help"

aos=.venv/bin/aos
[ -x "$aos" ] || fail 30 "this checkout is not set up" "make setup"
for file in "$eif" "$measurements"; do
    [ -r "$file" ] || fail 12 "$file is not there" \
        "scripts/build_enclave.sh makes the image; compare its measurements with the published ones"
done

# 1. The image is the expected one, byte for byte, before anything looks at it.
"$aos" tee pcrs "$eif" --expect "$measurements" || exit $?
[ "$check_only" = no ] || exit 0

command -v nitro-cli >/dev/null ||
    fail 30 "nitro-cli is not installed: here only a SIMULATED enclave is possible, and tee-worker starts that itself" \
        "on an instance with Nitro Enclaves: scripts/init_env.sh"
[ -r "$policy" ] || fail 12 "$policy is not there" \
    "docs/operator-guide.md, \"A Nitro enclave\": write the policy with the image's PCR0, PCR1 and PCR2"
size=$(wc -c <"$eif")
least=$(((size * 4 + 1048575) / 1048576))
[ "$memory" -ge "$least" ] ||
    fail 30 "--memory $memory MiB is less than four times the image file ($least MiB), which nitro-cli refuses" \
        "give it $least MiB or more, and reserve them in /etc/nitro_enclaves/allocator.yaml"

private=$(mktemp -d)
started=no
# shellcheck disable=SC2317,SC2329  # the trap calls it
leave() {
    status=$?
    rm -rf "$private"
    if [ "$started" = yes ] && [ "$status" -ne 0 ]; then
        echo "run_tee: ending the enclave $name" >&2
        nitro-cli terminate-enclave --enclave-name "$name" >&2 || echo "run_tee: it could not be ended" >&2
    fi
    exit "$status"
}
trap leave EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# 2. AWS's own tool reads the same registers from it.
nitro-cli describe-eif --eif-path "$eif" >"$private/described.json" ||
    fail 20 "nitro-cli cannot describe $eif" "is nitro-cli of a version that knows image files of version 4?"
"$aos" tee pcrs "$eif" --expect "$measurements" --nitro-cli "$private/described.json" >/dev/null || exit $?

# 3. Nobody has this name or CID.
nitro-cli describe-enclaves >"$private/before.json" ||
    fail 30 "nitro-cli cannot list enclaves" "scripts/init_env.sh sets up the driver and the allocator"
if grep -qE "\"EnclaveName\": *\"$name\"|\"EnclaveCID\": *${cid}[^0-9]" "$private/before.json"; then
    fail 30 "an enclave of that name or CID runs already" "nitro-cli terminate-enclave --enclave-name $name, or another --name and --cid"
fi

# 4. Start. The options are these, never any of the caller's.
started=yes
nitro-cli run-enclave --enclave-name "$name" --eif-path "$eif" --enclave-cid "$cid" --cpu-count "$cpus" \
    --memory "$memory" >"$private/run.json" || {
    started=no
    fail 20 "nitro-cli did not start the enclave" \
        "E26: more --memory; E22, E27, E31: reserve more in /etc/nitro_enclaves/allocator.yaml, then scripts/init_env.sh"
}

# 5. What runs is this image, and not in debug mode.
nitro-cli describe-enclaves >"$private/all.json" || fail 20 "nitro-cli cannot list enclaves" "journalctl -u nitro-enclaves-allocator"
.venv/bin/python - "$private/all.json" "$name" >"$private/enclave.json" <<'PROGRAM' || fail 20 "nitro-cli does not list the enclave that it started" "nitro-cli console shows nothing outside debug mode; see /var/log/nitro_enclaves"
import json
import sys

with open(sys.argv[1], encoding="utf-8") as file:
    found = [one for one in json.load(file) if one.get("EnclaveName") == sys.argv[2]]
if len(found) != 1 or found[0].get("State") != "RUNNING" or "Flags" not in found[0]:
    sys.exit(1)
json.dump(found[0], sys.stdout)
PROGRAM
# Compared once more with what is expected: the file may have been exchanged meanwhile.
"$aos" tee pcrs "$eif" --expect "$measurements" --nitro-cli "$private/enclave.json" >/dev/null || exit $?

# 6. It answers a fresh challenge with a document of AWS's that the policy believes.
"$aos" tee challenge --cid "$cid" --port "$port" --policy "$policy" || exit $?

started="done"
echo "run_tee: $name runs at CID $cid, port $port, and has answered a fresh challenge"
