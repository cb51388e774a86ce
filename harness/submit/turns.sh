# shellcheck shell=bash
# What a script of a scheduler asks about the run that it started; sourced by launchers/common.sh, part of every stage's script.

# Nothing was recorded behind a mark; `status --exit-code --after` answers so.
nothing_recorded=66

# What the files that say how a run ended hold now: a mark, behind which its own word will come. No clock is asked.
mark_of() { # FILE...
  local sum
  sum=$({ cat -- "$@" 2>/dev/null || true; } | sha256sum)
  printf '%s' "${sum%% *}"
}

# Whether a job that was preempted should get another turn: not after TURNS in a row that ended no higher than the turn before,
# without a step or a result that is kept, or a run that hangs, or whose time limit is too short to begin, would come back for
# ever. Not compared with the highest ever: a run that fell back, behind a bad checkpoint, goes on from there. FILE holds where
# the last turn ended, and the count. Without PROGRESS, where nobody could say it, the turn brought nothing.
worth_another() { # FILE [PROGRESS]
  local last=0 idle=0 kept='' now
  [[ ! -s $1 ]] || kept=$(<"$1")
  [[ ! $kept =~ ^\[([0-9]{1,15}),\ ([0-9]{1,9})\]$ ]] || last=${BASH_REMATCH[1]} idle=${BASH_REMATCH[2]}
  now=${2:-$last}
  if [[ $now -gt $last ]]; then idle=0; else idle=$((idle + 1)); fi
  if [[ $idle -lt ${TURNS:-5} ]]; then
    echo "[$now, $idle]" >"$1"
    return 0
  fi
  rm -f -- "$1" # whoever starts it again has looked, and it has all its turns
  echo "stopped $idle turns in a row without a step or result that was kept; read the logs and 'status' before you start it again" >&2
  return 1
}

# A queue that does not answer takes no more than the turn: the exit code still says that the job can go on.
ask_again() { # JOB
  scontrol requeue "$1" || echo "scontrol could not requeue $1; submit again: it continues" >&2
}

# The exit code of a child, however often a trapped signal interrupts the waiting.
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
