"""Values with expressions in their texts, compiled: what is the same each time is serialized beforehand."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from google.protobuf.struct_pb2 import Struct, Value

from conveyor.core import limits
from conveyor.expressions import encoding, results
from conveyor.expressions.errors import NoRoom, NoValue, TooLarge
from conveyor.expressions.expression import Expression
from conveyor.expressions.template import OPEN, Compile, Given, Template, compile_text, render_text, spell


@dataclass(frozen=True, slots=True)
class _Text:
    """A text with expressions, and where it is."""

    keys: tuple[str | int, ...]
    template: Template


@dataclass(frozen=True, slots=True)
class _Map:
    """A map: its entries without expressions, serialized, and the others."""

    fixed: bytes
    entries: tuple[tuple[bytes, _Node], ...]


@dataclass(frozen=True, slots=True)
class _List:
    """A list: items without expressions, serialized, and others."""

    items: tuple[bytes | _Node, ...]


_Node = _Text | _Map | _List


@dataclass(frozen=True, slots=True)
class Layout:
    """A struct with expressions. `root` is what it is called, `most` how many bytes it may come to."""

    top: _Map
    templates: tuple[Template, ...]
    root: str
    most: int

    @classmethod
    def of(
        cls, struct: Struct, compiled: Compile, root: str = "params", most: int = limits.STEP_PARAMS_BYTES
    ) -> Layout:
        """Raises NotAnExpression, which registration rules out."""
        compiler = _Compiler(compiled)
        return cls(compiler.struct(struct, ()), tuple(compiler.templates), root, most)

    def expressions(self) -> list[Expression]:
        """All expressions, in the order in which they are rendered."""
        return [part.expression for template in self.templates for part in template.parts()]

    def render(self, given: Given) -> bytes:
        """The struct with what its texts come to, serialized. Raises NoValue whose message begins with the path.

        `given` is what its expressions come to.
        """
        data = _Rendering(self, given).entries(self.top)
        if len(data) > self.most:
            raise TooLarge(f"{self.root} takes {len(data)} bytes; at most {self.most}")
        return data


class _Compiler:
    """Compiles texts in the order in which they are rendered."""

    def __init__(self, compiled: Compile) -> None:
        self._compiled = compiled
        self.templates: list[Template] = []

    def struct(self, struct: Struct, keys: tuple[str | int, ...]) -> _Map:
        fixed, entries = list[bytes](), list[tuple[bytes, _Node]]()
        for name, value in struct.fields.items():
            node = self._node(value, (*keys, name))
            if isinstance(node, bytes):
                fixed.append(encoding.entry(encoding.key(name), node))
            else:
                entries.append((encoding.key(name), node))
        return _Map(b"".join(fixed), tuple(entries))

    def _node(self, value: Value, keys: tuple[str | int, ...]) -> bytes | _Node:
        before = len(self.templates)
        node: _Node | None = None
        if value.HasField("string_value") and OPEN in value.string_value:
            node = _Text(keys, compile_text(value.string_value, self._compiled))
            self.templates.append(node.template)
        elif value.HasField("struct_value"):
            node = self.struct(value.struct_value, keys)
        elif value.HasField("list_value"):
            node = _List(tuple(self._items(value.list_value.values, keys)))
        return node if node is not None and len(self.templates) > before else value.SerializeToString()

    def _items(self, values: Iterable[Value], keys: tuple[str | int, ...]) -> Iterable[bytes | _Node]:
        for place, value in enumerate(values):
            node = self._node(value, (*keys, place))
            yield encoding.item(node) if isinstance(node, bytes) else node


class _Rendering:
    """Renders once."""

    __slots__ = ("_given", "_layout", "_room")

    def __init__(self, layout: Layout, given: Given) -> None:
        self._layout = layout
        self._given = given
        self._room = results.Room(layout.most)

    def entries(self, node: _Map) -> bytes:
        """The entries of a map."""
        found = [node.fixed]
        for key, each in node.entries:
            found.append(encoding.entry(key, self._text(each) if type(each) is _Text else self._nested(each)))
        return b"".join(found)

    def _nested(self, node: _Node) -> bytes:
        if isinstance(node, _Text):
            return self._text(node)
        if isinstance(node, _Map):
            return encoding.mapping(self.entries(node))
        items = [each if isinstance(each, bytes) else encoding.item(self._nested(each)) for each in node.items]
        return encoding.array(b"".join(items))

    def _text(self, node: _Text) -> bytes:
        try:
            if node.template.whole:
                return results.encode(next(self._given), self._room)
            return self._room.text(render_text(node.template, self._given))
        except NoRoom:
            layout = self._layout
            where = spell(node.keys, layout.root)
            raise TooLarge(f"{where}: {layout.root} takes more than {layout.most} bytes") from None
        except NoValue as error:
            raise type(error)(f"{spell(node.keys, self._layout.root)}: {error}") from None
