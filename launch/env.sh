# shellcheck shell=sh
# Environment for training on a CPU. Source it before Python starts: `. launch/env.sh`
# (the C library reads GLIBC_TUNABLES, and XLA its flags, at start-up only).
# What is set already is kept.

# One device: XLA's own threads keep the cores busy, as fast as one virtual device per
# core did (230 against 247 images/s on two). UNCLIP_CPU_DEVICES tries out a mesh.
case "${XLA_FLAGS:-}" in
  *host_platform_device_count*) ;;
  *) XLA_FLAGS="${XLA_FLAGS:+$XLA_FLAGS }--xla_force_host_platform_device_count=${UNCLIP_CPU_DEVICES:-1}" ;;
esac
export XLA_FLAGS
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"

# Huge pages: XLA maps its buffers anew on each call; this saves most page faults.
case "${GLIBC_TUNABLES:-}" in
  *glibc.malloc.hugetlb*) ;;
  *) GLIBC_TUNABLES="${GLIBC_TUNABLES:+$GLIBC_TUNABLES:}glibc.malloc.hugetlb=1" ;;
esac
export GLIBC_TUNABLES

# No start-up notes of TensorFlow, no warning of tokenizers after a fork.
export TF_CPP_MIN_LOG_LEVEL="${TF_CPP_MIN_LOG_LEVEL:-2}"
export TOKENIZERS_PARALLELISM="${TOKENIZERS_PARALLELISM:-false}"
