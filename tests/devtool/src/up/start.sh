# Starts the appliance with a demo pool, here or in the lab, and stays until it ends.
# Lines that begin with "@@" are for `cargo dev up`; everything else is for people.
# From its caller: ROOT (the appliance's folder), LISTEN (address), DEMO (the image), LOG (the appliance's log).

# With its sessions, and also those of an appliance that has died: nobody comes for them here.
stop() {
  kill -INT "$serve" 2>/dev/null
  cabana stop --root "$ROOT" >/dev/null
}
say() { echo "@@$*"; }
fail() {
  echo "$1. The end of its log:"
  tail -n 20 "$LOG" | sed 's/^/  /'
  say "failed"
  stop
  exit 1
}

cabana serve --root "$ROOT" --listen "$LISTEN" >"$LOG" 2>&1 &
serve=$!
trap 'stop; wait "$serve"; exit 0' TERM INT HUP
# Not reachable yet is exit code 69.
tries=0
until cabana sessionpool list --root "$ROOT" >/dev/null 2>&1; do
  kill -0 "$serve" 2>/dev/null || fail "The appliance ended"
  tries=$((tries + 1))
  [ "$tries" -lt 300 ] || fail "The appliance does not answer"
  sleep 0.1
done
say "serving"
cabana sessionpool create --root "$ROOT" --name demo --image "oci-archive:$DEMO" \
  --cpu 0.5 --memory 0.5Gi --target-port 8080 --max-sessions 4 --ready-sessions 1 --cooldown-period 300 >/dev/null || fail "The pool could not be made"
say "pool"
token=$(cabana token create --root "$ROOT" --pool demo --ttl 24h) || fail "The token could not be made"
say "token $token"
while read -r line; do say "ca $line"; done <"$ROOT/var/lib/cabana/tls/ca.pem"
say "ready"
wait "$serve"
fail "The appliance ended"
