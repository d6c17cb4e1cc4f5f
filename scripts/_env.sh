# Sourced by the other scripts: makes a virtual environment from lock files, or does nothing when it is up to date.
#   ensure_venv DIR LOCK...   DIR gets what the lock files name, and this project, editable. What the locks after the first name is fetched
#                             while that one is installed; what only tests need is not compiled before it is used, most of it never is
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
    if [ "$(cat "$dir/.python" 2>/dev/null)" != "$made_by" ]; then
      rm -rf "$dir"
      "$python" -m venv "$dir"
      echo "$made_by" >"$dir/.python"
    fi
    local first=$1 fetching=() fetched; fetched=$(mktemp -d)
    trap 'kill "${fetching[@]}" 2>/dev/null || true; rm -rf "$fetched"' EXIT
    for lock in "${@:2}"; do
      if _locked "$dir" "$lock" "$base"; then continue; fi
      "$dir/bin/python" -m pip download -qq --disable-pip-version-check --no-deps --dest "$fetched" -r "$lock" 9>&- & fetching+=($!)
    done
    for lock in "$@"; do
      if _locked "$dir" "$lock" "$base"; then continue; fi
      echo "outboard: preparing ${dir##*/} ($(basename "$lock" .txt), once)" >&2
      local pip=("$dir/bin/python" -m pip install -qq --disable-pip-version-check --no-deps)
      if [ "$lock" = "$first" ]; then
        "${pip[@]}" -r "$lock" || exit 1  # also where this is called with `||`
        "${pip[@]}" --no-build-isolation --editable "$root" || exit 1
      else
        wait "${fetching[0]}" || exit 1
        fetching=("${fetching[@]:1}")
        [ "${lock##*/}" != dev.txt ] || pip+=(--no-compile)
        "${pip[@]}" --no-index --find-links "$fetched" -r "$lock" || exit 1
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
