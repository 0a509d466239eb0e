#!/usr/bin/env bash
# Runs the packed contract suites on a machine that has a GPU and its driver, and neither npm nor a
# compiler: bash gpu-check.sh /path/to/node [--device cuda] [--jobs 4] [part of a file's name …]
# The last line is `N passed, N failed`.
set -euo pipefail
node="${1:?usage: bash gpu-check.sh /path/to/node [--device cuda] [--jobs 4] [name …]}"
shift
cd "$(dirname "${BASH_SOURCE[0]}")"
if command -v nvidia-smi >/dev/null; then
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || true
fi
exec "$node" run.cjs "$@"
