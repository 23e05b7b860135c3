# shellcheck shell=bash
# What launch/tpu_vm.sh and launch/gce.sh share. They define create, delete and
# `on all|first COMMAND`, which runs a command on the hosts, and source this file.
#
# Nothing here removes a file on a host: `git checkout` keeps what it does not know and
# refuses to overwrite what was changed there.

dry=
[ "${1:-}" != --dry-run ] || { dry=1; shift; }
action=${1:-help}
[ $# -eq 0 ] || shift
: "${FOLDER:=unclip_jax}" "${REPOSITORY:=}" "${BRANCH:=main}" "${BUCKET:=}"

call() {
  if [ "$dry" ]; then printf '%q ' "$@"; echo; else "$@"; fi
}

quote() { # words for another shell
  printf ' %q' "$@"
}

fail() {
  echo "error: $1" >&2
  exit "${2:-1}"
}

case "$action" in
  create) create "$@" ;;
  delete) delete "$@" ;;
  setup) # the first time and with new code alike
    [ "$REPOSITORY" ] || fail "set REPOSITORY to the git URL of the code" 2
    on all "git init -q$(quote "$FOLDER") && cd$(quote "$FOLDER") \
&& if pgrep -F run.pid -f unclip_jax >/dev/null 2>&1; then echo 'error: a run goes on here: \
stop it first' >&2; exit 1; fi \
&& git fetch -q --depth=1$(quote "$REPOSITORY" "$BRANCH") && git checkout -q --detach FETCH_HEAD \
&& launch/host.sh setup${BUCKET:+$(quote "$BUCKET")}"
    ;;
  run)
    [ $# -gt 0 ] || fail "$0 run: give --config=FILE --workdir=FOLDER" 2
    on all "$FOLDER/launch/host.sh start$(quote "$@")"
    ;;
  logs) on first "$FOLDER/launch/host.sh logs" ;;
  stop) on all "$FOLDER/launch/host.sh stop" ;;
  help | -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" ;;
  *) fail "$0: unknown command $action (create, setup, run, logs, stop, delete)" 2 ;;
esac
