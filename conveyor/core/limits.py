"""How much of everything is accepted. In bytes unless stated otherwise; docs/limits.md says why each is what it is."""

from __future__ import annotations

MESSAGE_BYTES = 4 << 20
"""A gRPC message, in either direction."""

PAGE_BYTES = 2 << 20
"""A page of a list ends here, so that it fits into a message with whatever its last object is."""

LABELS = 64
LABEL_KEY_BYTES = 128
LABEL_VALUE_BYTES = 256
REQUEST_ID_BYTES = 128

STRUCT_NESTING = 32
"""Levels of objects and lists in free-form values; protobuf itself reads back little more within its messages."""

SPEC_BYTES = 256 << 10
"""A spec or a schema, as JSON."""

STORED_STRUCT_BYTES = 288 << 10
"""The same as it is stored. Small numbers take more room there than in JSON; a commit holds three copies of a spec."""

PIPELINE_BYTES = 448 << 10
"""A pipeline with its context, as it is stored."""

STEPS = 1000
"""Steps of a pipeline, finally steps included."""

PARAMS = 100
"""Parameters of a pipeline."""

PARAMS_BYTES = 64 << 10
"""What a resource or a start gives for them, as JSON."""

EXPRESSION_BYTES = 4 << 10

STEP_PARAMS_BYTES = 64 << 10
"""What a step's params with expressions come to, as it is stored: the step's record keeps it."""

SELECTOR_BYTES = 16 << 10
"""A step's worker_selector, as it is stored, before and after its expressions are evaluated."""

MATRIX_INSTANCES = 256
"""Combinations of a matrix, after its excludes and with its includes."""

MATRIX_PRODUCT = 1024
"""Combinations of a matrix before its excludes."""

MATRIX_BYTES = 128 << 10
"""The values of all instances of a matrix, as they are stored: one record keeps them."""

RUN_INSTANCES = 2000
"""Instances of all matrices of a run."""

CRON_BYTES = 256
TIME_ZONE_BYTES = 64

DESCRIPTION_BYTES = 4 << 10
STEP_DESCRIPTION_BYTES = 1 << 10
CANCEL_MESSAGE_BYTES = 1 << 10
GATE_MESSAGE_BYTES = 1 << 10
GATE_APPROVALS = 100
DECIDED_BY_BYTES = 128
DECISION_COMMENT_BYTES = 1 << 10
LOCK_KEY_BYTES = 256

LOCK_HOLDERS = 1000
"""What the limit of a lock may be."""

RESULT_DATA_BYTES = 64 << 10
"""Data of a result, as JSON."""

RESULT_MESSAGE_BYTES = 4 << 10
RUN_RESULTS_BYTES = 512 << 10
"""All results of a run together, as they are stored."""

LOG_LINE_BYTES = 256 << 10
"""Longer lines are split."""

RUN_DEPTH = 8
"""How many runs a run may be within."""

RUN_DESCENDANTS = 2000
"""Runs that are stored within one, at any depth, when another one is to be made that is not right within it."""

ATTEMPTS = 100
"""What a retry policy may allow."""

WAITING_RUNS = 1000
"""Runs of one resource that wait for their turn on one pipeline."""

GENERATIONS = 64
"""How many generations of an object are kept; so many that a delete takes them all along in one commit."""
