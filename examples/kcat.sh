#!/usr/bin/env bash
# Submits a JSONL file as a batch with kcat and prints its results, one JSON object a line.
#
#     backhaul topics tenant acme         # once, by the operator
#     examples/kcat.sh HOST:PORT acme requests.jsonl [ENDPOINT] > results.jsonl
#
# What is told of the batch beside its results goes to stderr. docs/kafka.md has the protocol.
set -euo pipefail

if [ $# -lt 3 ]; then
    sed -n '2,7s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
kafka=$1 tenant=$2 file=$3 endpoint=${4:-/v1/chat/completions}
prefix=${BACKHAUL_TOPIC_PREFIX:-backhaul}
submit="$prefix.batch-in.$tenant.v1" results="$prefix.batch-out.$tenant.v1"
key="kcat-$(date +%s)-$$"
begin=$(date +%s)000

# Each line of the file is a record; one key keeps them together and in order.
kcat -P -b "$kafka" -t "$submit" -k "$key" -X acks=all -X enable.idempotence=true -l "$file"
seal="{\"endpoint\": \"$endpoint\", \"completion_window\": \"24h\"}"
printf '%s' "$seal" | kcat -P -b "$kafka" -t "$submit" -k "$key" -X acks=all -H backhaul-op=seal

# Key, headers and value of what is told, until this batch's end.
exec 3< <(exec kcat -C -b "$kafka" -t "$results" -o "s@$begin" -u -q -f '%k\t%h\t%s\n')
reader=$!
trap 'kill "$reader" 2>/dev/null || true' EXIT
while IFS=$'\t' read -r its_key headers value <&3; do
    [ "$its_key" = "$key" ] || continue
    case "$headers" in
    *backhaul-kind=output* | *backhaul-kind=error*) printf '%s\n' "$value" ;;
    *backhaul-kind=end*)
        printf 'end %s\n' "$value" >&2
        [[ "$value" == *'"status":"completed"'* ]]
        exit
        ;;
    *backhaul-kind=rejected*)
        printf 'rejected %s\n' "$value" >&2
        exit 1
        ;;
    *) printf '%s\n' "$value" >&2 ;;
    esac
done
echo "The reading of $results ended before the batch did." >&2
exit 1
