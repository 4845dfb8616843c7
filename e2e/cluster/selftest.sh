#!/usr/bin/env bash
# Tests of the cluster itself on this machine: two runs in a row, runs after everything was
# killed, who may use it, and that nothing is left behind. About two minutes, as root. Refused
# (it fails) while somebody uses the cluster.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. ./progress.sh
trap tock EXIT
./cluster build
tick "the cluster's own tests"
GRAFTWORK_CLUSTER_SELFTEST=1 GOWORK=off CGO_ENABLED=0 go test ./tool -count=1 -timeout 15m -v "$@"
