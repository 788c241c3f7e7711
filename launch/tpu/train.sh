#!/bin/bash
# Train on a TPU pod slice, from the root of the repository on your own machine:
#
#     launch/tpu/train.sh setup NAME ZONE
#     launch/tpu/train.sh run NAME ZONE \
#         --config configs/stage1_vitg.py --workdir /shared/runs/stage1
#
# NAME and ZONE are those of a slice that exists (gcloud compute tpus tpu-vm create).
# "setup" copies this checkout to every host and installs it; "run" starts the command
# on all of them at once, and jax finds out which host is which. /shared stands for a
# disk that all hosts see (Filestore, a mounted bucket): checkpoints, data and weights
# go there. The same line again continues a run that was preempted.

set -euo pipefail

usage="usage: $0 setup|run NAME ZONE [arguments of launch/train.py]"
what=${1:?$usage}
name=${2:?$usage}
zone=${3:?$usage}
shift 3

on_all_hosts() {
    gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker=all --command "$1"
}

case $what in
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
    # Quoted once more, because another shell reads them on the other side.
    arguments=$(printf '%q ' "$@")
    on_all_hosts "cd blip2_jax && .venv/bin/python launch/train.py --multihost $arguments"
    ;;
*)
    echo "$usage" >&2
    exit 1
    ;;
esac
