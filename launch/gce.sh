#!/usr/bin/env bash
# TPUs that come through Compute Engine (TPU7x; v5p and v6e too): one slice is a managed
# instance group with a workload policy.
#
#   export NAME=unclip ZONE=us-central1-c MACHINE=tpu7x-standard-4t TOPOLOGY=4x4x4 HOSTS=16
#   export REPOSITORY=https://... BUCKET=gs://...
#   launch/gce.sh create [--provisioning-model=SPOT ...]     flags of the instance template
#   launch/gce.sh setup                the first time, for new code and after a failure
#   launch/gce.sh run --config=configs/paper/prior.py --workdir=$BUCKET/runs/paper/prior
#   launch/gce.sh run embed --config=configs/paper/embed.py --workdir=runs/paper/records
#   launch/gce.sh logs                 follows the first host
#   launch/gce.sh stop                 SIGTERM: every host saves the same step
#   launch/gce.sh delete [--quiet]     asks first; the bucket stays
#
# --dry-run before the command prints what would be run.
set -euo pipefail

: "${NAME:=unclip}" "${ZONE:=us-central1-c}" "${MACHINE:=tpu7x-standard-4t}"
: "${TOPOLOGY:=4x4x4}" "${HOSTS:=16}"
: "${IMAGE_PROJECT:=ubuntu-os-accelerator-images}"
: "${IMAGE_FAMILY:=ubuntu-accel-2404-amd64-tpu-tpu7x}"
region=${ZONE%-*}

hosts() { # names are made up by the group
  if [ "$dry" ]; then
    echo "$NAME-HOST"
  else
    gcloud compute instance-groups managed list-instances "$NAME" --zone="$ZONE" \
      --format="value(name)"
  fi
}

on() { # on each host at once: a run waits until all are there
  local names host pids=() code=0
  names=$(hosts)
  [ "$1" = all ] || names=${names%%$'\n'*}
  for host in $names; do
    call gcloud compute ssh "$host" --zone="$ZONE" --command="$2" </dev/null &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do wait "$pid" || code=1; done
  return "$code"
}

create() {
  call gcloud compute resource-policies create workload-policy "$NAME" \
    --region="$region" --type=HIGH_THROUGHPUT --accelerator-topology="$TOPOLOGY"
  call gcloud compute instance-templates create "$NAME" --machine-type="$MACHINE" \
    --image-family="$IMAGE_FAMILY" --image-project="$IMAGE_PROJECT" \
    --maintenance-policy=TERMINATE --scopes=cloud-platform "$@"
  local project=PROJECT
  [ "$dry" ] || project=$(gcloud config get-value project)
  call gcloud compute instance-groups managed create "$NAME" --zone="$ZONE" \
    --size="$HOSTS" --template="$NAME" --default-action-on-vm-failure=do-nothing \
    --workload-policy="projects/$project/regions/$region/resourcePolicies/$NAME"
}

delete() {
  call gcloud compute instance-groups managed delete "$NAME" --zone="$ZONE" "$@"
  call gcloud compute instance-templates delete "$NAME" --quiet
  call gcloud compute resource-policies delete "$NAME" --region="$region" --quiet
}

# shellcheck source=launch/slice.sh
. "$(dirname "$0")/slice.sh"
