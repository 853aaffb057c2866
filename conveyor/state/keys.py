"""The layout of the store's keys.

All names that stand in keys are checked before they get here and hold no "/". A prefix ends with "/", so that
`build` never matches `build-image`.
"""

from __future__ import annotations

ROOT = "/conveyor/v1/"

RUNS = ROOT + "runs/"
"""Prefix of all heads and steps; every replica watches it, and sessions."""
ACTIVE = ROOT + "active/"
SESSIONS = ROOT + "sessions/"
SCHEDULES = ROOT + "schedules/"
SCHEDULE_STATUS = ROOT + "schedule-status/"
"""Watched by the replica that leads."""
REPLICAS = ROOT + "replicas/"
LEADER = ROOT + "leader"
QUARANTINE = ROOT + "quarantine/"
LOCKS = ROOT + "locks/"
RESTORED = ROOT + "restored"
"""There from when the store was put back to an earlier state until the runs have been gone through."""
HISTORY = ROOT + "history-name"
"""Names the history of an etcd, which ends when it is restored from a snapshot."""

_INVERT = str.maketrans("0123456789abcdef", "fedcba9876543210")


def invert(run: str) -> str:
    """The run id with each hexadecimal digit complemented, so that ascending order is newest first; its own inverse."""
    return run.translate(_INVERT)


def head(namespace: str, run: str) -> str:
    return f"{RUNS}{namespace}/{run}/head"


def step(namespace: str, run: str, step_id: str) -> str:
    return f"{RUNS}{namespace}/{run}/steps/{step_id}"


def run_prefix(namespace: str, run: str) -> str:
    """Prefix of a run's head and steps."""
    return f"{RUNS}{namespace}/{run}/"


def steps_prefix(namespace: str, run: str) -> str:
    return f"{RUNS}{namespace}/{run}/steps/"


def parse_run_key(key: str) -> tuple[str, str, str]:
    """Namespace, run id and step id ("" for the head) of a key below RUNS. Raises ValueError for any other key."""
    if not key.startswith(RUNS):
        raise ValueError(f"{key} is not a key of a run")
    parts = key[len(RUNS) :].split("/")
    if len(parts) == 3 and parts[2] == "head":
        return parts[0], parts[1], ""
    if len(parts) == 4 and parts[2] == "steps":
        return parts[0], parts[1], parts[3]
    raise ValueError(f"{key} is not a key of a run")


def spec(namespace: str, run: str) -> str:
    return f"{ROOT}specs/{namespace}/{run}"


def active(namespace: str, run: str) -> str:
    return f"{ACTIVE}{namespace}/{run}"


def index_runs(namespace: str) -> str:
    """Prefix of the inverted ids of all runs of a namespace."""
    return f"{ROOT}index/{namespace}/runs/"


def index_pipeline(namespace: str, pipeline: str) -> str:
    """Prefix of the inverted ids of the runs on a pipeline."""
    return f"{ROOT}index/{namespace}/pipeline/{pipeline}/"


def index_resource(namespace: str, definition: str, name: str) -> str:
    """Prefix of the inverted ids of the runs of a resource."""
    return f"{ROOT}index/{namespace}/resource/{definition}/{name}/"


def index_within(namespace: str, root: str) -> str:
    """Prefix of the inverted ids of the runs within a run that itself is within none."""
    return f"{ROOT}index/{namespace}/within/{root}/"


def lane(namespace: str, pipeline: str, definition_name: str, name: str) -> str:
    """Key of the runs that a resource has on a pipeline one after the other."""
    return f"{ROOT}lanes/{namespace}/{pipeline}/{definition_name}/{name}"


def locks(namespace: str, key: str = "") -> str:
    """Prefix of the claims on the locks of a namespace, or on one of them.

    A lock's key may be any text. In hexadecimal digits it has no "/", and keeps its order among others.
    """
    return f"{LOCKS}{namespace}/" + (f"{key.encode().hex()}/" if key else "")


def claim(namespace: str, key: str, run: str, step_id: str) -> str:
    """Key of the claim of a step on a lock; `step_id` is empty for the run as a whole."""
    return f"{locks(namespace, key)}{run}/{step_id or '-'}"


def parse_claim(store_key: str) -> tuple[str, str, str, str]:
    """Namespace, lock key, run and step id ("" for the whole run) of a key below LOCKS."""
    namespace, key, run, step_id = store_key.removeprefix(LOCKS).split("/")
    return namespace, bytes.fromhex(key).decode(), run, "" if step_id == "-" else step_id


def index_schedule(namespace: str, schedule_name: str) -> str:
    """Prefix of the inverted ids of the runs that a schedule started."""
    return f"{ROOT}index/{namespace}/schedule/{schedule_name}/"


def definitions(namespace: str) -> str:
    return f"{ROOT}definitions/{namespace}/"


def definition(namespace: str, name: str) -> str:
    return definitions(namespace) + name


def pipelines(namespace: str) -> str:
    return f"{ROOT}pipelines/{namespace}/"


def pipeline(namespace: str, name: str) -> str:
    return pipelines(namespace) + name


def resources(namespace: str, definition_name: str = "") -> str:
    """Prefix of the resources of a namespace, or of one definition in it."""
    return f"{ROOT}resources/{namespace}/" + (f"{definition_name}/" if definition_name else "")


def resource(namespace: str, definition_name: str, name: str) -> str:
    return resources(namespace, definition_name) + name


def schedules(namespace: str) -> str:
    return f"{SCHEDULES}{namespace}/"


def schedule(namespace: str, name: str) -> str:
    return schedules(namespace) + name


def schedule_status(namespace: str, name: str) -> str:
    """Key of what came of a schedule; written also with each change of the schedule that moves its times."""
    return f"{SCHEDULE_STATUS}{namespace}/{name}"


def drivers(namespace: str) -> str:
    return f"{ROOT}drivers/{namespace}/"


def driver(namespace: str, name: str) -> str:
    return drivers(namespace) + name


def history(object_key: str) -> str:
    """Prefix of the generations of the object stored under `object_key`."""
    return f"{ROOT}history/{object_key[len(ROOT) :]}/"


def generation(object_key: str, number: int) -> str:
    """Key of one generation; inverted, so that ascending order is newest first."""
    return f"{history(object_key)}{0xFFFFFFFFFFFFFFFF - number:016x}"


def sessions(namespace: str, driver_name: str) -> str:
    return f"{SESSIONS}{namespace}/{driver_name}/"


def session(namespace: str, driver_name: str, session_id: str) -> str:
    return sessions(namespace, driver_name) + session_id


def replica(replica_id: str) -> str:
    return REPLICAS + replica_id


def request(namespace: str, method: str, request_id_digest: str) -> str:
    """Key of an idempotency record; the caller's request id may hold any bytes, so its digest stands in the key."""
    return f"{ROOT}requests/{namespace}/{method}/{request_id_digest}"
