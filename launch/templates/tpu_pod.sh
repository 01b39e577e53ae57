#!/usr/bin/env bash
# A run on a slice of a Cloud TPU v4 pod. To be copied and edited.
#
#   export TPU_NAME=... ZONE=... REPOSITORY=... REVISION=...
#   export DATA_DIR=gs://... WORKDIR=gs://...
#   bash tpu_pod.sh setup  # once: clone, virtual environment, pip install
#   bash tpu_pod.sh train  # until the run is done, also over preemptions
#
# It runs where gcloud does and stays up as long as the run: a VM with tmux. The
# TPU is there already, with servers of the TensorFlow of this project: 2.15.1 and
# libtpu.so 1.9.0. No image has servers of TensorFlow 2.20, so PYTHON is 3.9 to
# 3.11 (docs/many_machines.md, "Versions on TPU v4").
#
#   gcloud compute tpus tpu-vm create "$TPU_NAME" --zone="$ZONE" \
#     --accelerator-type=v4-32 --version=tpu-vm-tf-2.15.1-pod-pjrt
#
# Checked: the syntax, the arguments, and the loop against a pretended gcloud.
# Not run on a pod.
set -euo pipefail

: "${TPU_NAME:?is not set; give the name of the TPU}"
: "${ZONE:?is not set; give the zone of the TPU, such as us-central2-b}"

# Every host gets the same command and this text with it. Worker 0 trains; the
# others end at once with exit code 0, since one process drives the servers of
# TensorFlow that run on all hosts.
train_here() {
  set -euo pipefail
  export TPU_NAME=$1 TPU_LOAD_LIBRARY=0 # libtpu belongs to the host's server
  shift
  local instance="http://metadata.google.internal/computeMetadata/v1/instance"
  TPU_WORKER_ID=$(curl --fail --silent --show-error \
    --header "Metadata-Flavor: Google" \
    "$instance/attributes/agent-worker-number")
  export TPU_WORKER_ID
  cd "$HOME/nfnets_tf"
  # gcloud repeats a command whose connection it lost; the first may still run.
  exec 9> "$HOME/nfnets_tf.lock"
  flock --nonblock 9 || {
    echo "A run is in progress (worker $TPU_WORKER_ID); end it first." >&2
    exit 1
  }
  exec .venv/bin/python launch/train.py "$@"
}

setup_here() {
  set -euo pipefail
  local repository=$1 revision=$2 python=$3
  "$python" -c "import sys; sys.exit(sys.version_info >= (3, 12))" || {
    echo "PYTHON = $python is missing or 3.12 or later, which would install" \
      "TensorFlow 2.20, of which the TPU has no servers; set it to a Python of" \
      "3.9 to 3.11." >&2
    exit 2
  }
  cd "$HOME"
  [ -d nfnets_tf ] || git clone "$repository" nfnets_tf
  cd nfnets_tf
  git fetch --quiet origin
  git checkout --quiet --detach "$revision"
  "$python" -m venv .venv
  .venv/bin/pip install --quiet --editable .
}

# Calls a function of this file, with arguments, on every host.
on_all_hosts() {
  gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone="$ZONE" --worker=all \
    --command="$(declare -f "$1"); $(printf '%q ' "$@")"
}

# Prints READY, PREEMPTED and so on; nothing if there is no such TPU.
state() {
  gcloud compute tpus tpu-vm describe "$TPU_NAME" --zone="$ZONE" \
    --format="value(state)" || true
}

check_setup() {
  : "${REPOSITORY:?is not set; give the address to git clone}"
  : "${REVISION:?is not set; give a tag or commit, for the whole run}"
}

setup() {
  check_setup
  on_all_hosts setup_here "$REPOSITORY" "$REVISION" "${PYTHON:-python3}"
}

train() {
  check_setup # a recreated TPU is set up again
  : "${DATA_DIR:?is not set; give the folder of the shards, gs://...}"
  : "${WORKDIR:?is not set; give the folder of this run, gs://...}"
  # All hosts read the data, and another TPU may resume the run.
  [[ $DATA_DIR == gs://* && $WORKDIR == gs://* ]] || {
    echo "DATA_DIR and WORKDIR must begin with gs://." >&2
    exit 2
  }
  local run=( # to be edited
    --gin_file=gin/f0_jft.gin
    --gin_param="STRATEGY = @distribution.tpu"
    --gin_param="distribution.tpu.address = '$TPU_NAME'"
    --gin_param="DATA_DIR = '$DATA_DIR'"
    --gin_param="NUM_CLASSES = 1_000"
    --gin_param="NUM_EXAMPLES = 1_281_167"
    --workdir="$WORKDIR"
  )
  local code
  while true; do
    code=0
    on_all_hosts train_here "$TPU_NAME" "${run[@]}" || code=$?
    case $code in
      143) ;; # preempted, checkpoint saved
      # The connection was lost. If the TPU is there, the run may be too.
      255) [ "$(state)" != READY ] || return 255 ;;
      # Failed, as by a host that was lost: a preemption takes a while to show.
      1)
        sleep 60
        [ "$(state)" != READY ] || return 1
        ;;
      *) return "$code" ;;
    esac
    # A preempted TPU does not restart: delete it and create another of the
    # same name, by hand or by a queued resource.
    echo "Waiting for $TPU_NAME to be ready, to resume." >&2
    sleep 60
    until [ "$(state)" = READY ]; do sleep 60; done
    setup
  done
}

case "${1:-}" in
  setup | train) "$1" ;;
  *)
    echo "usage: bash $0 setup|train" >&2
    exit 2
    ;;
esac
