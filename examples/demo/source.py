"""This source tree as a git repository that can be cloned, whole or with a fault in it."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from processes import DemoError

_AUTHOR = ("-c", "user.name=demo", "-c", "user.email=demo@localhost", "-c", "commit.gpgsign=false")
# A fault for each step that lies in the source: a file, and what it then says.
_FAULTS = {
    "compile": ("clients/python/pyproject.toml", "this is not TOML\n"),
    "test": ("clients/python/tests/test_fault.py", "def test_fault():\n    assert 2 + 2 == 5\n"),
}


class Source(NamedTuple):
    """What the demo's Resource names."""

    repository: Path
    revision: str


def find(tree: Path, work: Path, fault: str | None) -> Source:
    """The tree's own repository, else one made of its files; with a commit that makes the step `fault` fail."""
    if shutil.which("git") is None:
        raise DemoError("git is missing; the demo clones this source tree with it")
    source = _own(tree) or _made(tree, work / "source.git")
    if fault == "clone":
        return source._replace(revision="no-such-branch")
    if fault in _FAULTS:
        return _broken(source, work / "source-with-a-fault", *_FAULTS[fault])
    return source


def _own(tree: Path) -> Source | None:
    """None when the tree is no repository, only a part of one, without a commit, or one that git does not trust."""
    try:
        top, revision = _git("-C", tree, "rev-parse", "--show-toplevel", "HEAD").splitlines()
    except DemoError:
        return None
    if not Path(top).samefile(tree):
        return None
    return Source(tree, revision)


def _made(tree: Path, repository: Path) -> Source:
    """A repository of the tree's files, without what .gitignore names. It lies elsewhere: the tree stays as it is."""
    _git("init", "--quiet", "--bare", repository)
    here = repository.parents[1]
    if here.is_relative_to(tree):
        (repository / "info" / "exclude").write_text(f"/{here.relative_to(tree)}/\n")
    of_tree = (*_AUTHOR, "--git-dir", repository, "--work-tree", tree)
    _git(*of_tree, "add", "--all")
    _git(*of_tree, "commit", "--quiet", "--no-verify", "--message", "The unpacked source tree")
    return Source(repository, _git("--git-dir", repository, "rev-parse", "HEAD").strip())


def _broken(source: Source, copy: Path, file: str, text: str) -> Source:
    _git("clone", "--quiet", source.repository, copy)
    _git("-C", copy, "checkout", "--quiet", "--detach", source.revision)
    (copy / file).write_text(text)
    _git("-C", copy, "add", "--force", file)
    _git(*_AUTHOR, "-C", copy, "commit", "--quiet", "--no-verify", "--message", f"Break {file}")
    return Source(copy, _git("-C", copy, "rev-parse", "HEAD").strip())


def _git(*arguments: str | Path) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, env=environment(), check=False)
    if done.returncode:
        raise DemoError(f"git failed: {done.stderr.strip()}")
    return done.stdout


def environment() -> dict[str, str]:
    """Ours, without what would lead git, Python or Conveyor elsewhere, and with no proxy before this machine."""
    elsewhere = {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "PYTHONPATH", "PYTHONHOME"}
    kept = {
        name: value for name, value in os.environ.items() if name not in elsewhere and not name.startswith("CONVEYOR_")
    }
    for name in ("no_proxy", "NO_PROXY"):
        kept[name] = ",".join(filter(None, (kept.get(name), "127.0.0.1")))
    return kept
