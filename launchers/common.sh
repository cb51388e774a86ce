# shellcheck shell=bash
# What every launch script shares; sourced, never run.

# The repository: launch.py lies beside this folder. Ranks start there, on every machine.
REPOSITORY=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
# The same interpreter on every machine: an absolute path on a shared file system.
PYTHON=${PYTHON:-$(command -v python3)}

fail() {
  printf '%s: %s\n' "${0##*/}" "$1" >&2
  exit 2
}

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

# The exit code of a child, however often a trapped signal interrupts the waiting; traps call `interrupted`.
signals=0
interrupted() {
  signals=$((signals + 1))
}
await() { # PID
  local code=0 again seen=0
  wait "$1" || code=$?
  while [[ $signals -gt $seen ]]; do
    seen=$signals
    again=0
    wait "$1" || again=$?
    [[ $again -eq 127 ]] || code=$again # 127: it had ended, and the first answer was its own
  done
  return "$code"
}

# The exit code that the run itself recorded: launchers replace it with their own (75 becomes 1).
# 1: nothing was recorded since this script began. What an earlier attempt recorded is not this one's.
began=$(date +%s)
recorded_exit_code() { # DIR
  "$PYTHON" "$REPOSITORY/launch.py" status "$1" --exit-code --since "$began"
}
