"""What makes a call safe to repeat."""

from uuid import uuid4

from google.protobuf.message import Message


def new_request_id() -> str:
    """An id that makes a call safe to repeat."""
    return str(uuid4())


def is_repeatable(request: Message) -> bool:
    """Whether a call only reads, or carries a request id."""
    return request.DESCRIPTOR.name.startswith(("Get", "List")) or bool(getattr(request, "request_id", ""))
