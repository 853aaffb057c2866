"""Writes docs/api-reference.md, the OpenAPI document and the schema of manifests from the protos and their comments.

With --check it says whether they are up to date.
"""

import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import manifest_schema
import openapi
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "conveyor.v1"
HEAD = """# API reference

<!-- Generated from proto/conveyor/v1 by `make gen`; change the comments there. -->

Every call of `conveyor.v1`, with all messages. How calls are refused is in [errors.md](errors.md), how much is accepted
in [limits.md](limits.md). In JSON and YAML the names of fields are in lowerCamelCase, unless a field says otherwise.
"""

# The order in which one reads them; what is not here follows.
FIRST = ("resource_definition", "pipeline", "resource", "run", "log", "driver", "worker", "server")

Path_ = tuple[int, ...]


class File:
    """A proto file and the comments of what is in it, by the path of each."""

    def __init__(self, proto: FileDescriptorProto) -> None:
        self.proto = proto
        self._comments = {tuple(place.path): place.leading_comments for place in proto.source_code_info.location}

    @property
    def stem(self) -> str:
        """The file's name without folder and ending."""
        return Path(self.proto.name).stem

    def comment(self, *path: int) -> str:
        """The comment as one paragraph."""
        return " ".join(self._comments.get(path, "").split())


def read_protos() -> list[File]:
    """All files of the package, with their comments."""
    buf = Path(sys.executable).parent / "buf"
    image = subprocess.run([buf, "build", "-o", "-#format=binpb"], cwd=ROOT, check=True, capture_output=True).stdout
    files = [File(proto) for proto in FileDescriptorSet.FromString(image).file if proto.package == PACKAGE]
    rank = {stem: i for i, stem in enumerate(FIRST)}
    return sorted(files, key=lambda file: (rank.get(file.stem.removesuffix("_service"), len(rank)), file.stem))


def service(file: File, index: int, proto: ServiceDescriptorProto) -> Iterator[str]:
    yield f"### {proto.name}\n"
    yield f"{file.comment(6, index)}\n"
    yield "| rpc | takes | answers | |"
    yield "|---|---|---|---|"
    for i, method in enumerate(proto.method):
        takes = stream(method.client_streaming) + link(method.input_type)
        answers = stream(method.server_streaming) + link(method.output_type)
        yield f"| {method.name} | {takes} | {answers} | {cell(file.comment(6, index, 2, i))} |"
    yield ""


def message(file: File, path: Path_, proto: DescriptorProto) -> Iterator[str]:
    yield f"### {proto.name}\n"
    yield f"{file.comment(*path)}\n"
    if not proto.field:
        return
    yield "| field | type | |"
    yield "|---|---|---|"
    for i, field in enumerate(proto.field):
        text = cell(file.comment(*path, 2, i)) + choice(proto, field)
        yield f"| {field_name(field)} | {field_type(proto, field)} | {text} |"
    yield ""


def enum(file: File, path: Path_, proto: EnumDescriptorProto) -> Iterator[str]:
    yield f"### {proto.name}\n"
    yield f"{file.comment(*path)}\n"
    yield "| value | number | |"
    yield "|---|---|---|"
    for i, value in enumerate(proto.value):
        yield f"| {value.name} | {value.number} | {cell(file.comment(*path, 2, i))} |"
    yield ""


def field_name(field: FieldDescriptorProto) -> str:
    """The name; the JSON name only where it is not the usual one."""
    first, *rest = field.name.split("_")
    usual = first + "".join(word.capitalize() for word in rest)
    return f"`{field.name}`" if field.json_name == usual else f"`{field.name}`, in JSON `{field.json_name}`"


def field_type(parent: DescriptorProto, field: FieldDescriptorProto) -> str:
    entry = next(
        (nested for nested in parent.nested_type if field.type_name.endswith(f".{parent.name}.{nested.name}")), None
    )
    if entry is not None and entry.options.map_entry:
        key, value = entry.field
        return f"map of {field_type(entry, key)} to {field_type(entry, value)}"
    scalar = FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    name = link(field.type_name) if field.type_name else scalar
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        return f"list of {name}"
    return f"optional {name}" if field.proto3_optional else name


def choice(parent: DescriptorProto, field: FieldDescriptorProto) -> str:
    """Of which oneof the field is, if of one that a user sees."""
    if not field.HasField("oneof_index") or field.proto3_optional:
        return ""
    return f" One of `{parent.oneof_decl[field.oneof_index].name}`."


def link(type_name: str) -> str:
    name = type_name.removeprefix(".")
    if name.startswith(f"{PACKAGE}."):
        short = name.removeprefix(f"{PACKAGE}.")
        return f"[{short}](#{short.lower()})"
    return name.removeprefix("google.protobuf.")


def stream(streaming: bool) -> str:
    return "stream of " if streaming else ""


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def section(title: str, parts: Iterable[Iterator[str]]) -> Iterator[str]:
    yield f"## {title}\n"
    for part in parts:
        yield from part


def reference(files: Sequence[File]) -> str:
    services = [service(f, i, s) for f in files for i, s in enumerate(f.proto.service)]
    # The types that many share come before the requests and responses of single calls.
    shared = [f for f in files if not f.proto.service]
    calls = [f for f in files if f.proto.service]
    lines = [
        *section("Services", services),
        *section("Messages", (message(f, (4, i), m) for f in shared for i, m in enumerate(f.proto.message_type))),
        *section("Enums", (enum(f, (5, i), e) for f in files for i, e in enumerate(f.proto.enum_type))),
        *section(
            "Requests and responses", (message(f, (4, i), m) for f in calls for i, m in enumerate(f.proto.message_type))
        ),
    ]
    return "\n".join([HEAD, *lines]).rstrip() + "\n"


def main() -> None:
    files = read_protos()
    texts = {
        "docs/api-reference.md": reference(files),
        "conveyor/http/openapi.json": openapi.document(files),
        "clients/python/conveyor/cli/manifest.schema.json": manifest_schema.document(files),
    }
    stale = [name for name, text in texts.items() if not (ROOT / name).exists() or (ROOT / name).read_text() != text]
    if sys.argv[1:] == ["--check"]:
        if stale:
            sys.exit(f"{' and '.join(stale)} are not what the protos give; run `make gen`")
        return
    for name in stale:
        (ROOT / name).write_text(texts[name])
        print(name)


if __name__ == "__main__":
    main()
