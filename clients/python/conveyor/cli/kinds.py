"""The kinds of objects and how they are named on the command line."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of object."""

    name: str
    """As in the field `kind` of files and of output."""
    word: str
    """As in `word/name` in output."""
    words: tuple[str, ...]
    """What the command line takes for it."""
    applied: bool = False
    """Whether files may hold it."""


DEFINITION = Kind(
    "ResourceDefinition",
    "definition",
    ("definition", "definitions", "resourcedefinition", "resourcedefinitions", "def", "defs"),
    applied=True,
)
PIPELINE = Kind("Pipeline", "pipeline", ("pipeline", "pipelines"), applied=True)
RESOURCE = Kind("Resource", "resource", ("resource", "resources"), applied=True)
SCHEDULE = Kind("Schedule", "schedule", ("schedule", "schedules"), applied=True)
RUN = Kind("Run", "run", ("run", "runs"))
DRIVER = Kind("Driver", "driver", ("driver", "drivers"))

# Files are applied in this order: what others refer to comes first.
KINDS = (DEFINITION, PIPELINE, RESOURCE, SCHEDULE, RUN, DRIVER)

_BY_WORD = {word: kind for kind in KINDS for word in kind.words}


def kind_of(word: str) -> Kind | None:
    """The kind that a word of the command line means."""
    return _BY_WORD.get(word.lower())
