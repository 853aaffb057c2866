"""Finds the files that `-f` names and turns their bytes into text, or says what is wrong with them."""

import codecs
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from conveyor.cli.failures import CliError
from conveyor.cli.json_reader import NotJson, read_json
from conveyor.cli.nodes import Fault, Node
from conveyor.cli.yaml_reader import read_yaml

# Four times what the server takes in one message: a file may hold several objects.
MAX_BYTES = 16 * 1024 * 1024

_SUFFIXES = frozenset({".yaml", ".yml", ".json"})
_OTHER_ENCODINGS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


@dataclass(frozen=True, slots=True)
class Source:
    """A file, or standard input."""

    name: str
    data: bytes

    def documents(self) -> Iterator[Node]:
        """Its documents, the empty ones left out. Raises Fault."""
        text = decoded(self.data)
        if self.name.endswith(".json"):
            return read_json(text)
        if text.lstrip(" \t\r\n")[:1] in {"{", "["}:
            # JSON may hold tabs and pairs of surrogates, which YAML may not.
            try:
                return iter(list(read_json(text)))
            except NotJson:
                return read_yaml(text)
        return read_yaml(text)


def read_sources(names: Iterable[str]) -> list[Source]:
    """The files that the names stand for: files, folders (all *.yaml, *.yml and *.json below, sorted, but the
    hidden ones), `-` for standard input. CliError when there is none or one cannot be read."""
    sources: list[Source] = []
    for name in names:
        if name == "-":
            sources.append(_read("standard input", sys.stdin.buffer))
        elif (path := Path(name)).is_dir():
            found = sorted(each for each in path.rglob("*") if _is_meant(each.relative_to(path)) and each.is_file())
            if not found:
                raise CliError(f"no *.yaml, *.yml or *.json in the folder {name}")
            sources += map(_open, found)
        else:
            sources.append(_open(path))
    return sources


def _is_meant(path: Path) -> bool:
    """Whether a file of a folder may hold manifests. What is hidden belongs to programs: .venv, .github."""
    return path.suffix in _SUFFIXES and not any(part.startswith(".") for part in path.parts)


def decoded(data: bytes) -> str:
    """The text of a file: UTF-8, with or without a byte order mark. Raises Fault."""
    for mark, encoding in _OTHER_ENCODINGS:
        if data.startswith(mark):
            raise Fault(1, "", f"the file is {encoding}; save it as UTF-8")
    data = data.removeprefix(codecs.BOM_UTF8)
    if b"\0" in data[:4]:
        raise Fault(1, "", "the file looks like UTF-16; save it as UTF-8")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = data[error.start]
        raise Fault(line, "", f"the byte 0x{byte:02X} is not UTF-8 (Latin-1?); save the file as UTF-8") from None


def _open(path: Path) -> Source:
    try:
        with path.open("rb") as file:
            return _read(str(path), file)
    except OSError as error:
        raise CliError(f"cannot read {path}: {error.strerror}") from None


def _read(name: str, file: BinaryIO) -> Source:
    data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise CliError(f"{name} has more than {MAX_BYTES // 1024**2} MiB; the server takes objects of up to 4 MiB")
    return Source(name, data)
