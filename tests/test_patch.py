"""The patch that a row of changed code keeps: applied to the commit it gives the workspace again, without secrets."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import command
from tracked_workspace import Workspace, finish

from onecycle.tracking import patch


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "top" / "some where"  # a workspace may be a folder of a larger repository
    (root / "src").mkdir(parents=True)
    (root / "results").mkdir()
    (root / ".dvc").mkdir()
    for name, text in {"src/a.py": "one\ntwo\n", "params.yaml": "epochs: 24\n", "results/m.json": "{}\n"}.items():
        (root / name).write_text(text, encoding="utf-8")
    (root / "dvc.lock").write_text("stages: {}\n", encoding="utf-8")
    (root / ".dvc/config").write_text("[core]\n", encoding="utf-8")
    top = root.parent
    (top / "elsewhere.txt").write_text("not ours\n", encoding="utf-8")
    command(top, "git", "init", "-q")
    for key, value in (("noprefix", "true"), ("context", "0"), ("relative", "true"), ("submodule", "log")):
        command(top, "git", "config", f"diff.{key}", value)
    commit(top)
    monkeypatch.chdir(root)
    return root


def commit(folder: Path) -> None:
    command(folder, "git", "add", "-A")
    command(folder, "git", "-c", "user.name=test", "-c", "user.email=test@example.com", "commit", "-qm", "start")


def apply(repository: Path, content: bytes, folder: Path) -> Path:
    """A checkout of HEAD elsewhere with the patch on top; returns the workspace in it."""
    command(repository.parent, "git", "worktree", "add", "-q", "--detach", str(folder))
    (folder / "it.patch").write_bytes(content)
    command(folder, "git", "apply", "it.patch")
    return folder / repository.name


def test_what_is_changed_new_or_gone_comes_back(repository: Path, tmp_path: Path) -> None:
    (repository / "src/a.py").write_text("one\nzwölf\n", encoding="utf-8")
    (repository / "src/new file.py").write_text("new\n", encoding="utf-8")
    (repository / "src/picture.bin").write_bytes(bytes(range(256)))
    (repository / "params.yaml").unlink()
    for ours in ("results/m.json", "dvc.lock", ".dvc/config", "../elsewhere.txt", "note.txt"):
        (repository / ours).write_text("changed\n", encoding="utf-8")
    index = (repository.parent / ".git/index").read_bytes()
    taken = patch.take()
    assert taken.note == "kept"
    assert (repository.parent / ".git/index").read_bytes() == index
    again = apply(repository, taken.content, tmp_path / "again")
    for name in ("src/a.py", "src/new file.py", "src/picture.bin"):
        assert (again / name).read_bytes() == (repository / name).read_bytes()
    assert not (again / "params.yaml").exists()
    assert (again / "dvc.lock").read_text(encoding="utf-8") == "stages: {}\n"
    assert b"elsewhere" not in taken.content
    assert b"note.txt" not in taken.content  # it may be anything
    assert b".dvc" not in taken.content


def test_nothing_changed_is_no_patch(repository: Path) -> None:
    assert patch.take() == patch.Patch(b"", "")


def test_what_is_too_large_is_not_kept(repository: Path) -> None:
    (repository / "src/a.py").write_text("x" * 70 + "\n" * 1_100_000, encoding="utf-8")
    taken = patch.take()
    assert (taken.content, taken.note) == (b"", "not kept: 2.1 MiB, above 1")


def test_without_git_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert patch.take().note.startswith("not kept: not a git repository")


def test_a_row_keeps_it_without_secrets(tmp_path: Path) -> None:
    """A password in the code, the environment or an address is nowhere in what is recorded."""
    workspace = Workspace(tmp_path / "repo")
    root = workspace.root
    command(root, "git", "init", "-q")
    workspace.write("src/a.py", "URL = None\n")
    workspace.write(".gitignore", "/.state/\n")
    commit(root)
    workspace.write("src/a.py", "URL = 'https://me:hunter22@example.com/x'\nKEY = 'correct horse'\nA = 1\n")
    try:
        finish(workspace.stage("train", ONECYCLE_TRACKING="journal", MY_API_KEY="correct horse"))
    finally:
        workspace.close()
    [kept] = (root / ".state/journal").rglob("changes.patch")
    assert kept.read_text(encoding="utf-8").count("\n+") == 4  # the file's name, and three lines
    told = [entry["values"] for entry in workspace.entries() if "git.patch" in entry.get("values", {})]
    assert [tags["git.patch"] for tags in told] == ["kept, secrets left out"]
    for file in (root / ".state").rglob("*"):
        if file.is_file():
            assert b"hunter22" not in file.read_bytes()
            assert b"correct horse" not in file.read_bytes()


def test_new_files_that_are_no_code_stay_out(repository: Path) -> None:
    for name in ("src/.env", "src/a/.netrc", "src/a.pem", "src/a/b.key", "src/a/new.py"):
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / name).write_text("new\n", encoding="utf-8")
    named = [line.strip() for line in patch.take().content.decode().splitlines() if line.startswith("+++ ")]
    assert len(named) == 1 and named[0].endswith("/src/a/new.py")


def test_a_private_key_is_kept_in_no_row(repository: Path) -> None:
    key = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1r\n-----END OPENSSH PRIVATE KEY-----\n"
    (repository / "src/a.py").write_text(f'KEY = """{key}"""\n', encoding="utf-8")
    assert patch.take() == patch.Patch(b"", "not kept: it holds a private key")


def test_what_would_not_apply_without_its_secrets_is_not_kept(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository / "src/a.py").write_text("KEY = 'correct horse'\nA = 1\n", encoding="utf-8")
    commit(repository)
    monkeypatch.setenv("MY_API_KEY", "correct horse")
    (repository / "src/a.py").write_text("KEY = 'correct horse'\nA = 2\n", encoding="utf-8")
    assert patch.take() == patch.Patch(b"", "not kept: without the secrets in it, it would not apply")


def test_a_row_with_nothing_but_notes_beside_the_code_says_so(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "repo")
    command(workspace.root, "git", "init", "-q")
    workspace.write(".gitignore", "/.state/\n")
    commit(workspace.root)
    workspace.write("notes.txt", "a thought\n")
    try:
        finish(workspace.stage("train", ONECYCLE_TRACKING="journal"))
    finally:
        workspace.close()
    assert not list((workspace.root / ".state/journal").rglob("changes.patch"))
    told = [entry["values"] for entry in workspace.entries() if "git.patch" in entry.get("values", {})]
    assert [(tags["git.dirty"], tags["git.changed"], tags["git.patch"]) for tags in told] == [
        ("true", "notes.txt", patch.EMPTY)
    ]


def test_a_row_of_a_clean_workspace_keeps_none(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "repo")
    command(workspace.root, "git", "init", "-q")
    workspace.write(".gitignore", "/.state/\n")
    commit(workspace.root)
    try:
        finish(workspace.stage("train", ONECYCLE_TRACKING="journal"))
    finally:
        workspace.close()
    assert not list((workspace.root / ".state/journal").rglob("changes.patch"))
    assert not any("git.patch" in entry.get("values", {}) for entry in workspace.entries())
