"""A package index as small as pip accepts it: files come by PUT, and are listed below /simple/."""

import hashlib
import html
import re
import shutil
import tempfile
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import cast

_FILE = re.compile(r"/packages/(([A-Za-z0-9][A-Za-z0-9._]*)-[A-Za-z0-9._+!-]+\.whl)")
_PROJECT = re.compile(r"/simple/([a-z0-9-]+)/")


class Index(ThreadingHTTPServer):
    """Listens on a free port of this machine; `serve_forever` serves what lies in the folder."""

    def __init__(self, folder: Path, *, read_only: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.read_only = read_only
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    timeout = 60

    def do_PUT(self) -> None:
        index, match = self._index(), _FILE.fullmatch(self.path)
        if match is None:
            self._answer(HTTPStatus.BAD_REQUEST, "PUT /packages/NAME.whl")
        elif index.read_only:
            self._answer(HTTPStatus.FORBIDDEN, "this index takes no files")
        else:
            length = int(self.headers.get("Content-Length", 0))
            content = self.rfile.read(length)
            if not content or len(content) < length:
                self._answer(HTTPStatus.BAD_REQUEST, "the file did not arrive whole")
                return
            with tempfile.NamedTemporaryFile(dir=index.folder, delete=False) as file:
                file.write(content)
            # Whoever reads at the same time gets the old file or the new one.
            Path(file.name).replace(index.folder / match[1])
            self._answer(HTTPStatus.CREATED, "")

    def do_GET(self) -> None:
        folder = self._index().folder
        if match := _FILE.fullmatch(self.path):
            if not (folder / match[1]).is_file():
                self._answer(HTTPStatus.NOT_FOUND, "there is no such file")
                return
            with (folder / match[1]).open("rb") as file:
                self.send_response(HTTPStatus.OK)
                self.send_header("Content-Length", str((folder / match[1]).stat().st_size))
                self.end_headers()
                shutil.copyfileobj(file, self.wfile)
        elif match := _PROJECT.fullmatch(self.path):
            files = [path for path in sorted(folder.glob("*.whl")) if _project(path.name) == match[1]]
            self._page([(path.name, f"/packages/{path.name}#sha256={_digest(path)}") for path in files])
        elif self.path == "/simple/":
            projects = sorted({_project(path.name) for path in folder.glob("*.whl")})
            self._page([(project, f"/simple/{project}/") for project in projects])
        else:
            self._answer(HTTPStatus.NOT_FOUND, "there are /simple/ and /packages/")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Says nothing."""

    def _index(self) -> Index:
        return cast(Index, self.server)

    def _page(self, links: list[tuple[str, str]]) -> None:
        rows = "".join(f'<a href="{html.escape(target)}">{html.escape(name)}</a><br>\n' for name, target in links)
        self._answer(HTTPStatus.OK, f"<!DOCTYPE html>\n<html><body>\n{rows}</body></html>\n", "text/html")

    def _answer(self, status: HTTPStatus, text: str, kind: str = "text/plain") -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _project(file: str) -> str:
    return re.sub(r"[-_.]+", "-", file.partition("-")[0]).lower()


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
