#!/usr/bin/env bash
# Stamps parcels: the driver of these examples in Bash. grpcurl speaks with the server, jq reads what it says.
set -uo pipefail
trap '' PIPE # that a stream has broken is seen where it is read
export namespace=${CONVEYOR_NAMESPACE:-default} session='' leaving='' holding=''
job='{}' worker='' drained='' every=1 pause=1
known='def place: {run, step, attempt}; def same: "\(.run) \(.step) \(.attempt)"; def spec: .resource.spec;
  def stamps: [.results[]?.data.stamps // []] | max_by(length) // [];
  def names: if . == [] then "nobody" else join(", ") end;
  def lines: [(.context.greeting // empty) as $hi | "\($hi) from bash, after: \(stamps | names)"] + (spec.log // []);'

rpc() { grpcurl -plaintext -import-path "${BASH_SOURCE%/*}/../../../proto" -proto "conveyor/v1/$1.proto" -d @ "${@:3}" \
  "${CONVEYOR_ADDRESS:-127.0.0.1:7460}" "conveyor.v1.$2"; }

# Makes the call $2 of file $1, again and again until a server answers. $3 is what jq makes of the job for it.
call() {
  local request said
  request=$(jq -c "$known {namespace: env.namespace} + $3" <<<"$job")
  until said=$(rpc "$1" "$2" -max-time 10 <<<"$request") && [[ $said ]]; do
    case $? in 1 | 68 | 78) sleep 1 ;; *) return ;; esac # not reached, too late, away; all else is a refusal
  done
}
answer() { call worker_service WorkerService/ReportResults "{results: [place + {token, driver, result: $1}]}"; }

# Does the job.
stamp() {
  call log_service LogService/WriteLogs '{lines: [place + (lines | to_entries[] | {seq: (.key + 1), text: .value})]}'
  sleep "$(jq "$known spec.seconds // 0" <<<"$job")"
  if jq -e "$known spec.fail" <<<"$job" >/dev/null; then
    answer '{outcome: "OUTCOME_FAILED", message: spec.fail}'
  else
    answer '{outcome: "OUTCOME_SUCCEEDED", data: ((spec.data // {}) + {stamps: (stamps + ["bash"])})}'
  fi
}

# The job's process and all that it starts are a group of their own, without a hand on the stream.
begin() { set -m; { "$@" 3<&- 4>&- & } && set +m && worker=$!; }
working() { [[ $worker ]] && kill -0 "$worker" 2>/dev/null; }
say() { jq -c --unbuffered "$known $1" <<<"$job" >&4; } 2>/dev/null

# What the server says, as lines, and what is done about each.
heard='(.welcome // empty | "welcome \(.session) \([(.heartbeatInterval | rtrimstr("s") | tonumber), 1] | min)"),
  (.welcome.revoked[]? | "revoked \(same)"), (.cancellations[]? | "cancelled \(same)"),
  (.assignments[]? | "job \(.)"), (.drained // empty | "drained")'
hear() {
  case ${1%% *} in
    welcome) read -r _ session every <<<"$1" && pause=1 ;;
    job) job=${1#* } && begin stamp ;;
    drained) drained=1 ;;
    *) # it is revoked or cancelled; only the latter wants an answer
      working && [[ ${1#* } == "$(jq -r "$known same" <<<"$job")" ]] && kill -- "-$worker" &&
        [[ $1 == cancelled* ]] && begin answer '{outcome: "OUTCOME_CANCELLED", message: "stopped as told"}' ;;
  esac
}

# One Work stream, to its end. The heartbeats come from the loop that also listens, and looks after the job.
converse() {
  local line='' part stream
  coproc server { rpc worker_service WorkerService/Work -keepalive-time 10 | jq -rc --unbuffered "$known $heard"; }
  stream=$server_PID drained='' holding=$(working && echo 1)
  exec 3<&"${server[0]}" 4>&"${server[1]}" {server[0]}<&- {server[1]}>&-
  say '{hello: {driver: "bash", slots: 1, protocol: 1, namespace: env.namespace, session: env.session,
    holding: [select(env.holding != "") | place + {token}]}, drain: (if env.leaving == "" then null else {} end)}'
  until [[ $drained ]] && ! working; do
    if read -r -t "$every" -u 3 part; then hear "$line$part"; line=''; else (($? > 128)) || break; line+=$part; fi
    say '{heartbeat: {}}'
  done
  exec 4>&-
  [[ $leaving ]] && ! working && exit
  wait "$stream"
}

trap 'leaving=1; say "{drain: {}}"' INT TERM
while true; do
  converse
  case $? in 67) exit 1 ;; 73 | 74) session='' ;; esac # what it says of itself is refused; the session is not ours
  sleep "$pause" && pause=$((pause < 4 ? 2 * pause : 5))
done
