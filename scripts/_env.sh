# Sourced by the other scripts: makes .venv from a lock file, or does nothing when it is up to date.
#   ensure_venv DIR LOCK...   a virtual environment in DIR that holds exactly what the lock files name
# Needs python3 3.11 or later with its venv module, and pip's own configuration for the package index.
ensure_venv() {
  local dir=$1; shift
  local python=${PYTHON:-python3}
  if ! command -v "$python" >/dev/null; then
    echo "outboard: python3 is missing; on Debian or Ubuntu: apt-get install python3 python3-venv" >&2; return 1
  fi
  if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "outboard: Python 3.11 or later is needed, $("$python" -V) is what '$python' starts; set PYTHON to another" >&2; return 1
  fi
  if ! "$python" -c 'import ensurepip' 2>/dev/null; then
    echo "outboard: this python3 cannot make virtual environments; on Debian or Ubuntu: apt-get install python3-venv" >&2; return 1
  fi
  local want; want=$(cat "$@" | sha256sum; "$python" -c 'import sys; print(sys.version, sys.prefix)')
  if [ -x "$dir/bin/python" ] && [ "$(cat "$dir/.locked" 2>/dev/null)" = "$want" ]; then return 0; fi
  # one at a time: two scripts started together must not build the same folder
  exec 9>"$dir.lock"; flock 9
  if [ -x "$dir/bin/python" ] && [ "$(cat "$dir/.locked" 2>/dev/null)" = "$want" ]; then exec 9>&-; return 0; fi
  echo "outboard: preparing $dir (once)" >&2
  rm -rf "$dir"
  "$python" -m venv "$dir"
  local args=() lock
  for lock in "$@"; do args+=(-r "$lock"); done
  "$dir/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps "${args[@]}" >&2
  printf '%s\n' "$want" >"$dir/.locked"
  exec 9>&-
}
