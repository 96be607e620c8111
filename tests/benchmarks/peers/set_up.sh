#!/usr/bin/env bash
# One virtual environment for each peer that `compare.py` measures.
#
#   bash tests/benchmarks/peers/set_up.sh                      # all three, under .benchmark_environments/
#   bash tests/benchmarks/peers/set_up.sh FOLDER replay        # one of them, elsewhere
#
# PYTHON names the interpreter: 3.10 or 3.11, since RecBole wants a ray that later ones lack. TORCH is the
# release of torch, best that of the environment that `compare.py` runs in: the same kernels everywhere.
set -euo pipefail
repository="$(cd "$(dirname "$0")/../../.." && pwd)"
folder="${1:-$repository/.benchmark_environments}"
shift || true
[ $# -gt 0 ] || set -- recbole replay rectools

for name in "$@"; do
  case "$name" in
    # numpy 2 lacks `np.float_`, which 1.2.1 uses when it is imported. scipy and pandas are of numpy 1's time;
    # later ones were not tried. thop, which it depends on, wants distutils: Python 3.11 still has it.
    recbole) packages=("recbole==1.2.1" "numpy<2" "scipy<1.14" "pandas<3") ;;
    replay) packages=("replay-rec[torch]==0.22.0") ;;
    rectools) packages=("rectools[torch]==0.19.0") ;;
    *) echo "no such peer: $name; there are recbole, replay and rectools" >&2; exit 1 ;;
  esac
  environment="$folder/$name"
  [ -x "$environment/bin/python" ] || "${PYTHON:-python3}" -m venv "$environment"
  # First, and by its exact version: asked for as a dependency, pip takes the CUDA build of several GB.
  "$environment/bin/pip" install --quiet "torch==${TORCH:-2.13.0}"
  "$environment/bin/pip" install --quiet "${packages[@]}"
  "$environment/bin/pip" freeze > "$environment/versions.txt"
  echo "$name: $(grep --count . "$environment/versions.txt") packages, see $environment/versions.txt"
done
