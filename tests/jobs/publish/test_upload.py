"""Uploads by huggingface_hub's own client to a server that speaks the Hub's calls."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from r1quant.jobs.publish.pull_check import pull_check
from tests.conftest import Run
from tests.jobs.publish.conftest import TOKEN, Made
from tests.jobs.publish.hub import Hub

REPO = "someone/tiny-w4"
# How huggingface_hub hands a file to httpx2, which would have it called `content`.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


def downloaded(hub: Hub, folder: Path, revision: str = "main") -> Path:
    for name, content in hub.files(REPO, revision).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def large(made: Made, hub: Hub) -> list[str]:
    """Hashes of the files that go the way of git-lfs."""
    paths = [path for path in made.out.rglob("*") if path.is_file() and path.stat().st_size > hub.threshold]
    return sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in paths)


@pytest.mark.parametrize("part", [0, 300_000], ids=["whole", "in parts"])
def test_what_was_uploaded_is_what_pull_check_wants(run: Run, made: Made, hub: Hub, tmp_path: Path, part: int) -> None:
    hub.part = part
    ran = run("publish", made.out, "--to", REPO, "--private", "--message", "as measured", "--json")
    assert ran.code == 0, ran.err
    assert set(hub.files(REPO)) == {file["path"] for file in ran.json["files"]} | {".gitattributes"}
    assert sorted(hub.puts) == large(made, hub) and len(hub.puts) == 3
    assert hub.private[REPO] and hub.commits[0][1]["summary"] == "as measured"
    assert not pull_check(downloaded(hub, tmp_path / "got")).faults
    assert TOKEN not in ran.out + ran.err
    ModelCard.load(tmp_path / "got" / "README.md").validate()  # asks the server


def test_again_sends_nothing_and_only_what_changed(run: Run, own: Made, hub: Hub) -> None:
    assert run("publish", own.out, "--to", REPO).code == 0
    again = run("publish", own.out, "--to", REPO, "--json").json
    assert again["sent"] == [] and len(hub.commits) == 1 and len(hub.puts) == 1
    (own.out / "NOTICE").write_text("new")
    more = run("publish", own.out, "--to", REPO, "--json").json
    assert more["sent"] == ["NOTICE", "provenance.json", "SHA256SUMS"] and len(hub.puts) == 1


def test_one_dropped_connection_is_made_good(run: Run, own: Made, hub: Hub) -> None:
    hub.fragile, hub.drops = hashlib.sha256((own.out / "model.safetensors").read_bytes()).hexdigest(), 1
    assert run("publish", own.out, "--to", REPO).code == 0
    assert hub.dropped == 1 and hub.puts == [hub.fragile]


def test_after_a_broken_upload_only_what_is_missing_is_sent(run: Run, made: Made, hub: Hub) -> None:
    gguf = next((made.out / "gguf").glob("*.gguf"))
    files = [gguf, made.out / "gptq" / "model.safetensors", made.out / "onnx" / "model.onnx.data"]
    first, broken, last = (hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(files))
    hub.fragile, hub.drops = broken, 100
    ran = run("publish", made.out, "--to", REPO)
    assert ran.code == 3 and "same command again" in ran.error[1], ran.err
    assert hub.dropped > 1 and not hub.commits and set(hub.files(REPO)) == {".gitattributes"}
    arrived = list(hub.puts)
    assert first in arrived and broken not in arrived
    hub.drops = 0
    assert run("publish", made.out, "--to", REPO).code == 0
    assert hub.puts[len(arrived) :] == [oid for oid in (first, broken, last) if oid not in arrived]
    assert len(hub.commits) == 1


def test_other_bytes_than_were_sent_are_noticed_by_name(run: Run, own: Made, hub: Hub) -> None:
    hub.tampers = True
    ran = run("publish", own.out, "--to", REPO)
    assert ran.code == 3 and "other bytes" in ran.error[0] and "config.json" in ran.error[0]


def test_a_branch_of_its_own(run: Run, own: Made, hub: Hub, tmp_path: Path) -> None:
    assert run("publish", own.out, "--to", REPO, "--revision", "w4").code == 0
    assert set(hub.files(REPO)) == {".gitattributes"}
    assert not pull_check(downloaded(hub, tmp_path / "got", "w4")).faults


def test_files_of_others_are_told_of_and_left(run: Run, own: Made, hub: Hub) -> None:
    hub.repos[REPO] = {"main": {"picture.png": b"x"}}
    assert run("publish", own.out, "--to", REPO, "--json").json["extra"] == ["picture.png"]
    assert hub.files(REPO)["picture.png"] == b"x"


def test_without_a_token_or_with_one_that_may_not_write(
    run: Run, own: Made, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN[:-1] + "u")
    ran = run("publish", own.out, "--to", REPO)
    assert ran.code == 3 and "401" in ran.error[0] and TOKEN[:-1] not in ran.err
    hub.refuses = 403
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert "403" in run("publish", own.out, "--to", REPO).error[0]
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(own.out / "none"))
    ran = run("publish", own.out, "--to", REPO)
    assert ran.code == 3 and "HF_TOKEN" in ran.error[1]


def test_what_is_refused_reaches_nobody(run: Run, own: Made, hub: Hub) -> None:
    own.record.unlink()
    ran = run("publish", own.out, "--to", REPO, "--json")
    assert ran.code == 1 and ran.json["refused"] and not hub.repos


def test_dry_run_writes_a_folder_and_says_what_would_be_sent(run: Run, own: Made, hub: Hub) -> None:
    ran = run("publish", own.out, "--to", REPO, "--dry-run", "--json")
    folder = Path(ran.json["folder"])
    assert ran.code == 0 and not hub.repos and not pull_check(folder).faults
    assert {file["path"]: file["bytes"] for file in ran.json["files"]} == {
        path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()
    }
    assert REPO in (folder / "README.md").read_text("utf-8")
