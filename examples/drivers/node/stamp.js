// Stamps parcels: the driver of these examples in Node.js, from the .proto files, without an SDK or generated code.
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import grpc from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";

const { CONVEYOR_ADDRESS = "127.0.0.1:7460", CONVEYOR_NAMESPACE: namespace, CONVEYOR_SLOTS: slots = 1 } = process.env;
const includeDirs = [fileURLToPath(new URL("../../../proto", import.meta.url))];
const types = { includeDirs, enums: String, longs: Number, arrays: true, objects: true, oneofs: true };
const { WorkerService } = grpc.loadPackageDefinition(loadSync("conveyor/v1/worker_service.proto", types)).conveyor.v1;
const client = new WorkerService(CONVEYOR_ADDRESS, grpc.credentials.createInsecure(), { "grpc.enable_http_proxy": 0 });

// From google.protobuf.Struct and Value to what they stand for, and back.
const object = (struct) => Object.fromEntries(Object.entries(struct?.fields ?? {}).map(([k, v]) => [k, plain(v)]));
const plain = ({ kind, listValue, structValue, ...scalar }) => kind === "nullValue" ? null
  : listValue ? listValue.values.map(plain) : structValue ? object(structValue) : scalar[kind];
const struct = (from) => ({ fields: Object.fromEntries(Object.entries(from).map(([k, v]) => [k, value(v)])) });
const value = (from) => from === null ? { nullValue: 0 }
  : Array.isArray(from) ? { listValue: { values: from.map(value) } }
  : typeof from === "object" ? { structValue: struct(from) } : { [`${typeof from}Value`.replace("ean", "")]: from };

async function stamp({ resource, context, results }, log, signal) {
  const [spec, { greeting }] = [object(resource.spec), object(context)];
  const known = Object.values(results).map(({ data }) => object(data).stamps ?? []);
  const [stamps = []] = known.sort((a, b) => b.length - a.length);
  if (greeting) log(`${greeting} from node, after: ${stamps.join(", ") || "nobody"}`);
  spec.log?.forEach((line) => log(line));
  await sleep(1000 * (spec.seconds ?? 0), undefined, { signal });
  if (spec.fail !== undefined) throw new Error(spec.fail);
  return { ...spec.data, stamps: [...stamps, "node"] };
}

const jobs = new Map(); // what this worker holds, by attempt: lines and result are kept until the result is acked
const key = ({ run, step, attempt }) => `${run} ${step} ${attempt}`;
const held = (each) => jobs.get(key(each)) ?? { logs: [] };
const tell = (message) => stream.write(message); // without a connection it is told after the next Welcome
const ms = ({ seconds = 0, nanos = 0 }) => 1000 * seconds + nanos / 1e6;
let [stream, session, heard, beat, pause, leaving, drained] = [null, "", 0, 0, 0, false, false];

async function work({ run, step, attempt, token, ...assignment }) {
  const job = { place: { run, step, attempt, token }, lines: 0, logs: [], results: [], abort: new AbortController() };
  jobs.set(key(job.place), job);
  const log = (text) => tell({ logs: [job.logs[job.logs.push({ run, step, attempt, seq: ++job.lines, text }) - 1]] });
  const result = await stamp(assignment, log, job.abort.signal).then(
    (data) => ({ outcome: "OUTCOME_SUCCEEDED", data: struct(data) }),
    ({ message }) => ({ outcome: job.abort.signal.aborted ? "OUTCOME_CANCELLED" : "OUTCOME_FAILED", message }));
  job.results = [{ ...job.place, result }];
  if (held(job.place) === job) tell({ results: job.results });
}

function hear({ welcome, assignments, cancellations, logAcks, acks, drained: now }) {
  heard = Date.now();
  for (const each of [...cancellations, ...welcome?.revoked ?? []]) held(each).abort?.abort();
  for (const each of [...acks, ...welcome?.revoked ?? []]) jobs.delete(key(each));
  for (const { nextSeq, ...each } of logAcks) held(each).logs = held(each).logs.filter(({ seq }) => seq >= nextSeq);
  if (welcome) {
    [session, pause] = [welcome.session, 0];
    clearInterval(beat);
    const live = () => (Date.now() - heard > ms(welcome.sessionTtl) ? stream.cancel() : tell({ heartbeat: {} }));
    beat = setInterval(live, ms(welcome.heartbeatInterval));
    for (const { logs, results } of jobs.values()) tell({ logs, results });
  }
  assignments.forEach(work);
  if ((drained ||= now) && !jobs.size) process.exit();
}

for (const signal of ["SIGINT", "SIGTERM"]) process.once(signal, () => tell({ drain: (leaving = {}) }));
for (;;) {
  [heard, drained] = [Date.now(), false];
  const holding = [...jobs.values()].map((job) => job.place);
  stream = client.Work().on("data", hear).on("error", () => {});
  tell({ hello: { driver: "node", namespace, slots, session, holding, protocol: 1 }, drain: leaving || null });
  const { code, details } = await new Promise((ended) => stream.on("status", ended));
  if (leaving && !jobs.size) process.exit();
  console.error(`the stream has ended: ${details}`);
  if (code === grpc.status.INVALID_ARGUMENT) process.exit(1);
  if ([grpc.status.ABORTED, grpc.status.FAILED_PRECONDITION].includes(code)) session = ""; // it is no longer ours
  await sleep((pause = Math.min(2 * pause + 100, 5000)));
}
