#!/usr/bin/env bash
# Trains on a Cloud TPU slice of several hosts: one process a host, which find each other without flags.
#
#   NAME=si-jax ZONE=us-central2-b TYPE=v4-32 launch/tpu_pod.sh create
#   NAME=si-jax ZONE=us-central2-b WORKDIR=/mnt/shared/run DATA=/mnt/shared/data launch/tpu_pod.sh train
#   NAME=si-jax ZONE=us-central2-b launch/tpu_pod.sh delete
#
# The same `train` goes on after a preemption. What follows it goes to train.py, for example
# --config.batch_size=1024 or --dry_run. WORKDIR must be one folder for all hosts (NFS, as Filestore gives it).
set -euo pipefail
: "${NAME:?the name of the TPU}" "${ZONE:?its zone}"
SOURCE=${SOURCE:-si_jax}           # the folder of this repository on every host
PYTHON=${PYTHON:-venv/bin/python}  # in it; the hosts' own is older than 3.11

on_every_host() {
  gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all --command="$1"
}

case "${1:-}" in
  create)
    gcloud compute tpus tpu-vm create "$NAME" --zone="$ZONE" --accelerator-type="${TYPE:?for example v4-32}" \
      --version="${VERSION:-tpu-ubuntu2204-base}" ${SPOT:+--spot}
    gcloud compute tpus tpu-vm scp --recurse . "$NAME:$SOURCE" --zone="$ZONE" --worker=all
    on_every_host "sudo apt-get install -y python3.11-venv && cd $SOURCE && python3.11 -m venv venv && \
$PYTHON -m pip install -r requirements.txt 'jax[tpu]'"
    ;;
  train)
    shift
    on_every_host "cd $SOURCE && $PYTHON train.py --config=${CONFIG:-configs/tradessi_cifar10.py} \
--config.data.dir=${DATA:-} --workdir=${WORKDIR:?a folder that all hosts share} $*"
    ;;
  delete)
    gcloud compute tpus tpu-vm delete "$NAME" --zone="$ZONE" --quiet
    ;;
  *)
    sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
