#!/usr/bin/env bash
# Proves the compose deployment: builds, comes up healthy, runs the demo in its one-shot service, checks what it says.
#
# COMPOSE_WRAPPER: a command that runs another with a Docker engine (exit status 75: it has none); plain docker without.
# COMPOSE_OVERRIDE: a compose file of the wrapper's, taken as a second one. It gets the services built in $SERVICES.
set -euo pipefail
cd "$(dirname "$0")/.."
NO_ENGINE=75

if [ "${1:-}" != inside ]; then
    status=0
    SERVICES='scheduler engine' ${COMPOSE_WRAPPER:+"$COMPOSE_WRAPPER"} bash compose/prove.sh inside || status=$?
    if [ $status = $NO_ENGINE ]; then
        echo 'SKIPPED: the compose proof, for there is no Docker engine here'
        exit 0
    fi
    exit $status
fi

docker compose version >/dev/null 2>&1 && docker info >/dev/null 2>&1 || exit $NO_ENGINE
export PARROT_MQ_PORT=0
compose() {
    docker compose --project-name parrot-mq-proof --file docker-compose.yml \
        ${COMPOSE_OVERRIDE:+--file "$COMPOSE_OVERRIDE"} "$@"
}
result=$(mktemp)
finish() {
    [ $? = 0 ] || compose logs --tail 30 || true
    compose --profile demo down --volumes --timeout 20 >/dev/null 2>&1 || true
    rm -f "$result"
}
trap finish EXIT

compose build
compose up --detach --wait --wait-timeout 900
compose ps

echo 'checking: AOF on, engine without CUDA and with g++, nobody is root'
compose exec -T redis redis-cli CONFIG GET appendonly | grep -qx yes
compose exec -T engine python /opt/parrot-mq/compose/cpu_only.py
compose exec -T engine g++ --version >/dev/null
for service in scheduler engine; do
    [ "$(compose exec -T $service id -u)" != 0 ]
done

compose run --rm -T demo </dev/null >"$result"
python3 - "$result" <<'PYTHON'
import json
import pathlib
import sys

result = json.loads(pathlib.Path(sys.argv[1]).read_text())
assert result["correct"] is True, result
print(f"PROVED: the demo is correct through compose, {result['tokens']} tokens, ratio {result['ratio']}")
PYTHON
