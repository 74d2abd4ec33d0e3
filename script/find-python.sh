# Sourced by the scripts beside it, with `script` as their own path: sets `root` to the checkout and `python` to a
# Python >= 3.11 that starts. One that can make virtual environments is preferred; environment.py says what is missing.
# shellcheck shell=sh

root=$(CDPATH='' cd "$(dirname "$script")/.." && pwd -P) || exit 1
python=
other=
for candidate in "$root/.venv/bin/python" python3.13 python3.12 python3.11 python3 python3.14; do
    "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 || continue
    if "$candidate" -c 'import venv, ensurepip' >/dev/null 2>&1; then
        python=$candidate
        break
    fi
    other=${other:-$candidate}
done
python=${python:-$other}
if [ -z "$python" ]; then
    echo "error: there is no Python 3.11 or newer on the PATH; install one package: python3.11 or later" >&2
    exit 1
fi
