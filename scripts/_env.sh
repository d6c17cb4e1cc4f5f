# Sourced by the other scripts: makes a virtual environment from lock files, or does nothing when it is up to date.
#   ensure_venv DIR LOCK...   DIR gets what the lock files name, and this project, editable. Where DIR is made anew, what the later locks name
#                             is fetched while the first is installed; what only tests need is not compiled before it is used: most never is
# Needs python3 3.11 or later with its venv module, and pip's own configuration for the package index.
ensure_venv() {
  local dir=$1; shift
  local python=${PYTHON:-python3} root lock
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  if ! command -v "$python" >/dev/null; then
    echo "outboard: python3 is missing; on Debian or Ubuntu: apt-get install python3 python3-venv" >&2; return 1
  fi
  if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "outboard: Python 3.11 or later is needed, $("$python" -V) is what '$python' starts; set PYTHON to another" >&2; return 1
  fi
  python=$(_outside "$python")
  # an environment belongs to one Python and one folder; what is installed in it, to the lock files and the project's own metadata
  local made_by base
  made_by=$("$python" -c 'import sys; print(sys.version.replace("\n", " "), sys.prefix)')" in $root"
  base=$made_by$(sed '/^\[tool\./,$d' "$root/pyproject.toml")
  local stale=()
  for lock in "$@"; do _locked "$dir" "$lock" "$base" || stale+=("$lock"); done
  if ((${#stale[@]} == 0)); then return 0; fi
  if ! "$python" -c 'import ensurepip' 2>/dev/null; then
    echo "outboard: this python3 cannot make virtual environments; on Debian or Ubuntu: apt-get install python3-venv" >&2; return 1
  fi
  ( # a lock of its own: two scripts started together must not build the same folder
    flock 9
    local made='' ahead=$dir.ahead fetching=() how
    if [ "$(cat "$dir/.python" 2>/dev/null)" != "$made_by" ]; then
      rm -rf "$dir" "$ahead"
      "$python" -m venv "$dir" || exit 1  # also where this function is called with `||`
      echo "$made_by" >"$dir/.python"
      made=anew
    fi
    local pip=("$dir/bin/python" -m pip -qq --disable-pip-version-check)
    if [ "$made" ]; then
      trap 'kill "${fetching[@]}" 2>/dev/null || true; wait; rm -rf "$ahead"' EXIT
      for lock in "${@:2}"; do
        "${pip[@]}" wheel --no-deps --wheel-dir "$ahead" -r "$lock" 9>&- & fetching+=($!)
      done
    fi
    for lock in "$@"; do
      if _locked "$dir" "$lock" "$base"; then continue; fi
      echo "outboard: preparing ${dir##*/} ($(basename "$lock" .txt), once)" >&2
      how=(install --no-deps)
      if [ "$made" ] && [ "$lock" != "$1" ]; then
        wait "${fetching[0]}" || exit 1
        fetching=("${fetching[@]:1}")
        how+=(--no-index --find-links "$ahead")
      fi
      if [ "${lock##*/}" = dev.txt ]; then how+=(--no-compile); fi
      "${pip[@]}" "${how[@]}" -r "$lock" || exit 1
      if [ "$lock" = "$1" ]; then
        "${pip[@]}" install --no-deps --no-build-isolation --editable "$root" || exit 1
      fi
      _mark "$lock" "$base" >"$dir/.locked-$(basename "$lock")"
    done
  ) 9>"$dir.lock"
}

# What checks and tests need, in .venv of the folder.
ensure_test_venv() { ensure_venv "$1/.venv" "$1/scripts/locks/runtime.txt" "$1/scripts/locks/dev.txt" "$1/scripts/locks/dialogue.txt"; }

# Where a virtual environment is active, the Python it was made with: what is active may be the very folder that is made anew.
_outside() { "$1" -c 'import sys; print(getattr(sys, "_base_executable", "") or sys.executable)'; }

_mark() { { echo "$2"; cat "$1"; } | sha256sum; }

_locked() { [ -x "$1/bin/python" ] && [ "$(cat "$1/.locked-$(basename "$2")" 2>/dev/null)" = "$(_mark "$2" "$3")" ]; }
