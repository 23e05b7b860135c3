# shellcheck shell=bash
# What XLA and NCCL are told on accelerators; source it: `. launch/accelerator.sh tpu|gpu
# WORKDIR`. What is set already is kept. tests/launch asks the installed compilers whether
# they know each flag; what each is worth here was not measured.

unclip_default() { # NAME VALUE, unless it is set
  eval "[ -n \"\${$1:-}\" ] || export $1='$2'"
}

unclip_flag() { # NAME FLAG=VALUE, added to a list of flags that does not have it
  eval "case \"\${$1:-}\" in *${2%%=*}=*) ;; *) export $1=\"\${$1:-}\${$1:+ }$2\" ;; esac"
}

# Programs that were compiled once are read by all hosts and after restarts; process 0
# writes them (docs.jax.dev/en/latest/persistent_compilation_cache.html). Beside the
# workdir, so that the runs of a bucket share them.
[ -z "${2:-}" ] || unclip_default JAX_COMPILATION_CACHE_DIR "$(dirname "$2")/compile_cache"

case "$1" in
  gpu)
    # collectives move so that they overlap with arithmetic: without it FSDP waits for
    # each gather (docs.jax.dev/en/latest/gpu_performance_tips.html; JAX-Toolbox sets it)
    unclip_flag XLA_FLAGS --xla_gpu_enable_latency_hiding_scheduler=true
    # of the GPU's memory, 0.75 by default; NVIDIA's libraries need the rest
    # (docs.nvidia.com/jax-toolbox/performance-profiling/gpu-performance)
    unclip_default XLA_PYTHON_CLIENT_MEM_FRACTION 0.9
    # NCCL chooses its protocols itself; it names what fails (NCCL user guide, NCCL_DEBUG)
    unclip_default NCCL_DEBUG WARN
    ;;
  tpu)
    # several slices: the gradients' all-reduces between them overlap with the backward
    # pass (MaxText, benchmarks/xla_flags_library.py, DATA_PARALLEL_OVERLAP)
    if [ "${MEGASCALE_NUM_SLICES:-1}" -gt 1 ]; then
      unclip_flag LIBTPU_INIT_ARGS --xla_tpu_enable_data_parallel_all_reduce_opt=true
      unclip_flag LIBTPU_INIT_ARGS --xla_tpu_data_parallel_opt_different_sized_ops=true
    fi
    ;;
esac
