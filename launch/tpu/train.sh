#!/bin/bash
# Train on a TPU pod slice, from the root of the repository on your own machine:
#
#     launch/tpu/train.sh setup NAME ZONE
#     launch/tpu/train.sh run NAME ZONE \
#         --config configs/stage1_vitg.py --workdir /shared/runs/stage1
#
# NAME and ZONE are those of an existing slice (gcloud compute tpus tpu-vm create).
# "setup" copies this checkout to every host and installs it; "run" starts the command on
# all hosts at once, and JAX detects the number of each host. /shared is a disk that all
# hosts share (Filestore, a mounted bucket), for checkpoints, data and weights. The same
# command continues a run that was preempted.

set -euo pipefail

usage="usage: $0 setup|run NAME ZONE [options of launch/train.py]"
action=${1:?$usage}
name=${2:?$usage}
zone=${3:?$usage}
shift 3

on_all_hosts() {
    gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker=all --command "$1"
}

case $action in
setup)
    archive=$(mktemp --suffix=.tar.gz)
    trap 'rm -f "$archive"' EXIT
    git archive --format=tar.gz --output="$archive" HEAD
    gcloud compute tpus tpu-vm scp "$archive" "$name:blip2_jax.tar.gz" \
        --zone "$zone" --worker=all
    on_all_hosts "mkdir -p blip2_jax && tar -xzf blip2_jax.tar.gz -C blip2_jax \
        && cd blip2_jax && python3 -m venv .venv && .venv/bin/pip install -e '.[tpu]'"
    ;;
run)
    # Quote the arguments again: the shell of each host parses them too.
    arguments=$(printf '%q ' "$@")
    on_all_hosts "cd blip2_jax && .venv/bin/python launch/train.py --multihost $arguments"
    ;;
*)
    echo "$usage" >&2
    exit 1
    ;;
esac
