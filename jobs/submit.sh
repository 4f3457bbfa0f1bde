# What the scripts beside this one share; not a command of its own. Submits to the cluster of RAY_API_SERVER_ADDRESS:
#
#   submit NAME -- COMMAND…
#
#   RAY_API_SERVER_ADDRESS  http://HEAD:8265 (the ray command reads it)
#   RAY_AUTH_MODE, RAY_AUTH_TOKEN   token, and the cluster's token, where it wants one
#   TATOK_IMAGES, TATOK_BUCKET      URLs of the image shards and of everything that is made
#   TATOK_RUN          number of the submission, 1 by default; an id is used once, so a job that is to go on gets the next
#   TATOK_WORKING_DIR  what is sent along: this repository by default, nothing where it is empty (the image has it all)
#   TATOK_WAIT         1: follow the log to the end and exit with the job's success; by default come back at once
# shellcheck shell=bash
set -euo pipefail

: "${RAY_API_SERVER_ADDRESS:?the address of the cluster, http://HEAD:8265}"
: "${TATOK_BUCKET:?the URL under which everything is made, such as s3://my-bucket/tatok}"
: "${TATOK_IMAGES:?the URL of the image shards, such as s3://my-bucket/imagenet}"

repository="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

submit() {
    local name="$1" options=()
    shift 2 # name and --
    local directory="${TATOK_WORKING_DIR-$repository}"
    [ -z "$directory" ] || options+=("--working-dir=$directory")
    [ "${TATOK_WAIT:-0}" = 1 ] || options+=(--no-wait)
    ray job submit \
        "--submission-id=$name-${TATOK_RUN:-1}" \
        "--runtime-env=$repository/jobs/runtime_env.yaml" \
        "--metadata-json={\"project\": \"tatok-pipe\", \"job\": \"$name\", \"user\": \"${USER:-unknown}\"}" \
        "${options[@]}" -- "$@"
}
