# shellcheck shell=bash
# What every launch script shares; sourced, never run.

# The repository: launch.py lies beside this folder. Ranks start there, on every machine.
REPOSITORY=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=harness/submit/turns.sh
source "$REPOSITORY/harness/submit/turns.sh"
fail() {
  printf '%s: %s\n' "${0##*/}" "$1" >&2
  exit 2
}

# The same interpreter on every machine: an absolute path on a shared file system.
PYTHON=${PYTHON:-$(command -v python3)} || fail "no python3 on PATH; set PYTHON"

# A whole number from 1 on, or the end of the script: such values end up in command lines.
require_number() { # NAME VALUE
  [[ $2 =~ ^[1-9][0-9]{0,5}$ ]] || fail "$1 is '$2', which is no whole number above 0"
}

# Cores for each of N ranks on this machine. Launchers set nothing, or 1: with nothing, every rank takes
# all cores and they crawl; with 1, tokenising and the CPU side of offloading leave most cores idle.
threads_per_rank() { # N
  local cores
  cores=$(nproc)
  echo $((cores >= $1 ? cores / $1 : 1))
}

# The --out among arguments for launch.py; empty where they have none.
out_of() { # ARGUMENT...
  local found='' previous='' argument
  for argument in "$@"; do
    [[ $previous != --out ]] || found=$argument
    [[ $argument != --out=* ]] || found=${argument#--out=}
    previous=$argument
  done
  printf '%s' "$found"
}

# The arguments for launch.py, with files named from here made absolute: ranks start in the repository.
given=()
from_here() { # ARGUMENT...
  local previous='' argument flag value
  for argument in "$@"; do
    flag=$previous value=$argument
    [[ $argument != --*=* ]] || { flag=${argument%%=*} value=${argument#*=}; }
    case $flag in
      --study | --ds_config | --deepspeed_config | --teacher-study) [[ ! -f $value ]] || value=$(realpath -s -- "$value") ;;
      --out) value=$(realpath -ms -- "$value") ;;
    esac
    if [[ $argument == --*=* ]]; then given+=("${argument%%=*}=$value"); else given+=("$value"); fi
    previous=$argument
  done
}

# Signals are taken from here on, before there is a child: one that comes while the script still looks around, or
# while the child starts, is remembered. It is passed on once: a second TERM would cut short torchrun's own waiting.
signals=0
child=
told=
pass_on() {
  kill -TERM "$child" 2>/dev/null || true
}
tell_child() {
  [[ -n $child && -z $told ]] || return 0
  told=yes
  pass_on
}
interrupted() {
  signals=$((signals + 1))
  tell_child
}
trap interrupted TERM USR1 INT

# Run a command as the child that signals go to, by `pass_on`, which a script may define anew; returns its exit code.
supervise() { # COMMAND...
  [[ $signals -eq 0 ]] || return 75
  "$@" &
  child=$!
  [[ $signals -eq 0 ]] || tell_child # it came between the two lines above
  await "$child"
}

# The exit code that the run itself recorded: launchers replace it with their own (75 becomes 1). 66: nothing was recorded
# behind `mark`. What an earlier attempt recorded is not this one's.
mark=
begin_at() { # DIR
  mark=$(mark_of "$1/status.json" "$1/jobs/study.json")
}
recorded_exit_code() { # DIR
  "$PYTHON" "$REPOSITORY/launch.py" status "$1" --exit-code --after "$mark"
}

# The exit code for whoever started the script: the recorded one, or the launcher's where none is.
settle() { # CODE DIR
  local code=$1 recorded=$nothing_recorded progress
  [[ $1 -ne 0 ]] || return 0
  if [[ -n $2 ]]; then
    recorded=0
    recorded_exit_code "$2" || recorded=$?
  fi
  if [[ $recorded -ne $nothing_recorded && $recorded -ne 0 && $recorded -lt 126 ]]; then # from 126 on, the shell's: it did not run
    code=$recorded
  elif [[ $signals -gt 0 && $recorded -ne 0 ]]; then
    # Warned while it was still starting, before it could record anything: nothing is lost, come again.
    code=75
  fi
  # One machine of several keeps the count.
  if [[ $code -eq 75 && -n $2 && ${NODE_RANK:-0} -eq 0 ]]; then
    progress=$("$PYTHON" "$REPOSITORY/launch.py" status "$2" --progress) || progress=
    mkdir -p -- "$2/jobs"
    worth_another "$2/jobs/turns.json" "$progress" || code=1
  fi
  return "$code"
}
