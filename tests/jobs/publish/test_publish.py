"""publish into a folder and pull-check, on tiny-r1 quantized, measured and exported."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.repocard import metadata_load
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import r1quant
from r1quant.jobs.publish.options import PublishOptions
from r1quant.jobs.publish.pull_check import pull_check
from r1quant.jobs.publish.run import publish
from r1quant.records.speed_rows import rate
from tests.conftest import Run
from tests.jobs.publish.conftest import Made


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {str(path): (path.read_bytes(), path.stat().st_nlink) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def published(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("published") / "all"
    before = snapshot(made.out)
    done = publish(made.out, PublishOptions(str(place)))
    assert done.refused == () and done.folder == place and snapshot(made.out) == before
    return place


def test_a_published_folder_passes(run: Run, published: Path) -> None:
    ran = run("pull-check", published, "--json")
    assert ran.code == 0 and ran.json["failed"] == []
    assert len(ran.json["files"]) == sum(path.is_file() for path in published.rglob("*"))
    assert subprocess.run(["sha256sum", "-c", "--strict", "--quiet", "SHA256SUMS"], cwd=published).returncode == 0


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_one_flipped_bit_anywhere_fails_by_name(published: Path, data: st.DataObject) -> None:
    names = sorted(path.relative_to(published).as_posix() for path in published.rglob("*") if path.is_file())
    name = data.draw(st.sampled_from(names))
    path = published / name
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        path.write_bytes(flipped)
        assert pull_check(published).faults == {name: "changed"}
    finally:
        path.write_bytes(whole)


def test_missing_and_extra_files_are_named(run: Run, published: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(published, tmp_path / "copy")
    (folder / "LICENSE").unlink()
    (folder / "more.txt").write_text("x")
    (folder / "gptq" / "model.safetensors").write_bytes(b"x")
    ran = run("pull-check", folder, "--json")
    assert ran.code == 1
    assert ran.json["missing"] == ["LICENSE"] and ran.json["extra"] == ["more.txt"]
    assert ran.json["changed"] == ["gptq/model.safetensors"]
    assert ran.json["failed"] == ["LICENSE", "gptq/model.safetensors", "more.txt"]
    for name in ("SHA256SUMS", "provenance.json"):
        (folder / name).unlink()
    assert run("pull-check", folder).code == 3
    assert run("pull-check", tmp_path / "nowhere").code == 3


def test_the_card_says_what_it_is_and_how_to_run_what_is_there(published: Path) -> None:
    text = (published / "README.md").read_text("utf-8")
    assert metadata_load(published / "README.md") == ModelCard(text).data.to_dict()
    data = ModelCard.load(published / "README.md").data
    assert data.license == "mit" and data.base_model == "tiny-r1" and data.base_model_relation == "quantized"
    assert data.library_name == "transformers" and "cd gguf && ollama create" in text
    assert data.pipeline_tag == "text-generation" and {"gptq", "gguf", "onnx", "r1quant"} <= set(data.tags)
    for runtime in ("vLLM", "SGLang", "transformers", "llama.cpp", "Ollama", "onnxruntime-genai", "onnxruntime"):
        assert f"### {runtime}, " in text, runtime
    assert r"\boxed{}" in text and "--temp 0.6 --top-p 0.95" in text and "temperature=0.6, top_p=0.95" in text
    assert "2 of 2 gates hold" in text and "bit for bit those of gptq" in text
    record = json.loads((published / "records" / "verified.json").read_text("utf-8"))
    assert f"{record['kl']['mean']:.6f}" in text and f"{record['perplexity']['quantized']:.4f}" in text
    timed = json.loads((published / "records" / "timed.json").read_text("utf-8"))
    assert rate(timed["decode_tokens_per_second"]) in text and "(8 + 4) × 1" in text
    assert (published / "LICENSE").read_text("utf-8").startswith("MIT License")


def test_the_card_of_a_gguf_file_of_our_own_rounding_has_its_type_and_no_bits(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "tiny"
    r1quant.quantize("tiny-r1", out, method="rtn", format="gguf", type="Q4_K_M")
    verified = r1quant.verify(out, windows=2, seq_len=32, gate=("kl.mean<1",))
    (tmp_path / "verified.json").write_text(json.dumps(verified.as_dict()), "utf-8")
    ran = run("publish", out, "--to", "place", "--dry-run", "--json")
    assert ran.code == 0, ran.err
    text = (tmp_path / "place" / "README.md").read_text("utf-8")
    assert "| tiny-r1-Q4_K_M.gguf | gguf | Q4_K_M | 1.63 MB | yes |" in text and "1 of 1 gates hold" in text
    assert "| type | Q4_K_M |" in text and "None" not in text
    for setting in ("grid", "bits", "group_size", "symmetric", "scale_dtype"):
        assert f"| {setting} |" not in text, setting
    data: Any = ModelCard(text).data
    assert data.library_name == "gguf" and {"gguf", "r1quant"} <= set(data.tags)
    for runtime in ("llama.cpp", "Ollama"):
        assert f"### {runtime}" in text
    assert "### vLLM" not in text and run("pull-check", "place").code == 0


def test_provenance_says_where_it_is_from(published: Path, made: Made) -> None:
    body = json.loads((published / "provenance.json").read_bytes())
    record = json.loads((made.out / "gptq" / "r1quant.json").read_bytes())
    assert body["source"]["weights"] == record["weights"] and body["recipe"] == record["recipe"]
    assert body["environment"] == record["environment"] and body["licence"]["id"] == "mit"
    assert [part["same_weights_as"] for part in body["parts"]] == [
        "gptq" if p["name"] != "gptq" else None for p in body["parts"]
    ]
    assert [gate["passed"] for gate in body["gates"]] == [True, True] and body["forced"] == []


def test_only_what_is_there_can_be_run(run: Run, own: Made, tmp_path: Path) -> None:
    ran = run("publish", own.out, "--to", "place", "--json")
    text = (tmp_path / "place" / "README.md").read_text("utf-8")
    assert ran.code == 0 and "### vLLM" in text
    assert not any(f"### {name}" in text for name in ("llama.cpp", "Ollama", "onnxruntime"))
    assert ran.json["refused"] == [] and ran.json["folder"] == str(tmp_path / "place")


def edited(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_bytes())
    change(content)
    path.write_text(json.dumps(content), "utf-8")


def without_record(own: Made) -> None:
    own.record.unlink()


def stale(own: Made) -> None:
    with (own.out / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    edited(own.record, lambda record: record.update(out="somewhere/tiny"))


def failed_gate(own: Made) -> None:
    edited(own.record, lambda record: record["gates"][0].update(passed=False))


def mocked(own: Made) -> None:
    edited(own.record, lambda record: record.update(backend="mock:0.9"))


def foreign_licence(text: str) -> Callable[[Made], None]:
    def change(own: Made) -> None:
        source = own.out.parent / "source"
        source.mkdir()
        (source / "README.md").write_text(f"---\nlicense: {text}\n---\n", "utf-8")
        edited(own.out / "r1quant.json", lambda record: record.update(source="../source"))

    return change


def secret(own: Made) -> None:
    (own.out / "notes.txt").write_text("one\ntoken: hf" + "_" + "aB3" * 11, "utf-8")


def home(own: Made) -> None:
    edited(own.out / "generation_config.json", lambda config: config.update(made_in="/ho" + "me/alice/x"))


def secret_in_weights(own: Made) -> None:
    path = own.out / "model.safetensors"
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header["__metadata__"]["by"] = "gh" + "p_" + "aB3" * 12
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


def unmade(own: Made) -> None:
    (own.out / "r1quant.json").unlink()


REFUSED = {
    "no record": (without_record, "measure it with r1quant verify"),
    "stale record": (stale, "other files than those that are here now"),
    "failed gate": (failed_gate, "the gate kl.mean<1 does not hold"),
    "mock": (mocked, "mock backend"),
    "licence forbids": (foreign_licence("cc-by-nd-4.0"), "forbids"),
    "licence unknown": (foreign_licence("unknown"), "licence of tiny-r1 is not known"),
    "licence of their own": (foreign_licence("other"), "not one that is known"),
    "token": (secret, "notes.txt seems to hold a Hugging Face token (line 2)"),
    "home directory": (home, "generation_config.json seems to hold the path of a home directory"),
    "token in weights": (secret_in_weights, "model.safetensors seems to hold a GitHub token"),
    "no origin": (unmade, "nothing says how it was made"),
}


@pytest.mark.parametrize(("change", "reason"), REFUSED.values(), ids=list(REFUSED))
def test_refused_with_the_reason_and_forced_with_it_on_the_card(
    run: Run, own: Made, tmp_path: Path, change: Callable[[Made], None], reason: str
) -> None:
    change(own)
    ran = run("publish", own.out, "--to", "place", "--json")
    assert ran.code == 1 and any(reason in told for told in ran.json["refused"]), ran.json["refused"]
    assert ran.json["files"] == [] and not (tmp_path / "place").exists()
    assert "aB3aB3" not in ran.out + ran.err
    forced = run("publish", own.out, "--to", "place", "--force", "--json")
    assert forced.code == 0 and forced.json["forced"] and forced.json["refused"] == ran.json["refused"]
    card = (tmp_path / "place" / "README.md").read_text("utf-8")
    body = json.loads((tmp_path / "place" / "provenance.json").read_bytes())
    assert "--force" in card and body["forced"] == ran.json["refused"]
    assert all(told in card for told in body["forced"])
    assert not pull_check(tmp_path / "place").faults


def test_damaged_records_are_named(run: Run, own: Made) -> None:
    edited(own.record, lambda record: record["perplexity"].pop("ratio"))
    ran = run("publish", own.out, "--to", "place")
    assert ran.code == 3 and "verified.json is damaged: perplexity.ratio is missing" in ran.error[0]
    edited(own.record, lambda record: record.update(schema="r1quant.verification/1"))
    assert "measure it with" in run("publish", own.out, "--to", "place").err


def test_a_record_of_another_model_counts_only_where_it_is_named(run: Run, own: Made, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    shutil.copy(own.record, other)
    edited(other, lambda record: record.update(out="another", hashes={"quantized": "0" * 64}))
    assert run("publish", own.out, "--to", "place").code == 0
    shutil.rmtree(tmp_path / "place")
    ran = run("publish", own.out, "--to", "place", "--record", other, "--json")
    assert ran.code == 1 and "other.json is of other files" in ran.json["refused"][0]
    assert run("publish", own.out, "--to", "place", "--record", own.out / "config.json").code == 2
    assert run("publish", own.out, "--to", "place", "--record", "none.json").code == 2


def test_speeds_of_nobody_knows_which_files_are_not_shown(run: Run, own: Made, made: Made, tmp_path: Path) -> None:
    timed = tmp_path / "timed.json"
    shutil.copy(made.record.with_name("timed.json"), timed)
    edited(timed, lambda record: record.pop("hashes"))
    assert run("publish", own.out, "--to", "place").code == 0
    assert "Speed" not in Path("place/README.md").read_text("utf-8")
    shutil.rmtree("place")
    ran = run("publish", own.out, "--to", "place", "--record", timed, "--json")
    assert ran.code == 1 and "timed.json does not say which files were measured" in ran.json["refused"][0]


def test_answers_are_on_the_card_with_their_intervals(run: Run, own: Made) -> None:
    options: dict[str, Any] = {"backend": "mock:0.8", "baseline_backend": "mock:0.9", "windows": 0, "health": True}
    found = r1quant.verify(own.out, **options, aime="mini", limit=6, samples=2).as_dict()
    named = {"backend": "a server", "baseline_backend": "a server"}  # what the mock says is measured all the same
    own.record.write_text(json.dumps({**found, **named}), "utf-8")
    ran = run("publish", own.out, "--to", "place", "--json")
    card = Path("place/README.md").read_text("utf-8")
    assert ran.code == 0, ran.json["refused"]
    low, high = found["aime"]["delta_ci95"]
    assert f"{100 * low:+.1f} .. {100 * high:+.1f} %" in card and "valid JSON" in card
    assert f"{100 * found['aime']['delta']:+.1f} %" in card and "KL divergence, mean" not in card


def test_the_revision_is_that_whose_files_have_the_hashes(
    run: Run, own: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = json.loads((own.out / "r1quant.json").read_bytes())["weights"]
    store, revision = tmp_path / "hub" / "models--Some--Model", "5" * 40
    held = store / "snapshots" / revision
    for folder in (held, store / "blobs", store / "refs"):
        folder.mkdir(parents=True)
    (store / "refs" / "main").write_text(revision)
    (held / "config.json").write_text("{}")
    (held / "README.md").write_text("---\nlicense: gemma\n---\n")
    for name, digest in weights.items():
        (store / "blobs" / digest).write_bytes(b"weights")
        (held / name).symlink_to(store / "blobs" / digest)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(store.parent))
    edited(own.out / "r1quant.json", lambda record: record.update(source="Some/Model"))
    assert run("publish", own.out, "--to", "a").code == 0
    source = json.loads(Path("a/provenance.json").read_bytes())["source"]
    assert (source["repo"], source["revision"]) == ("Some/Model", revision)
    card = Path("a/README.md").read_text("utf-8")
    assert "license: gemma" in card and "https://huggingface.co/Some/Model" in card
    edited(own.out / "r1quant.json", lambda record: record["weights"].update({"model.safetensors": "0" * 64}))
    assert run("publish", own.out, "--to", "b").code == 0
    assert json.loads(Path("b/provenance.json").read_bytes())["source"]["revision"] is None


def test_a_licence_may_be_stated_but_not_against_the_model(run: Run, own: Made) -> None:
    foreign_licence("unknown")(own)
    assert run("publish", own.out, "--to", "a", "--license", "apache-2.0").code == 0
    card = Path("a/README.md").read_text("utf-8")
    assert "license: apache-2.0" in card and "as stated by whoever published this" in card
    assert "apache.org" in Path("a/LICENSE").read_text("utf-8")
    (own.out.parent / "source" / "README.md").write_text("---\nlicense: gemma\n---\n", "utf-8")
    ran = run("publish", own.out, "--to", "b", "--license", "mit", "--json")
    assert ran.code == 1 and "says gemma" in ran.json["refused"][0]


def test_licence_and_base_model_are_carried_over(run: Run, own: Made) -> None:
    (own.out / "LICENSE").write_text("Apache License\nVersion 2.0, January 2004\nand so on", "utf-8")
    edited(own.out / "r1quant.json", lambda record: record.update(source="Some/Model"))
    ran = run("publish", own.out, "--to", "place", "--json")
    assert ran.code == 0, ran.json["refused"]
    data = ModelCard.load("place/README.md").data
    assert data.license == "apache-2.0" and data.base_model == "Some/Model"
    assert Path("place/LICENSE").read_bytes() == (own.out / "LICENSE").read_bytes()


def test_places_that_are_not_free(run: Run, own: Made, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    for place, code in (("full", 2), ("no/such/place", 2), (own.out / "inside", 2)):
        assert run("publish", own.out, "--to", place).code == code
    assert run("publish", own.out, "--to", "place", "--private").code == 2
    assert run("publish", tmp_path / "full", "--to", "place").code == 3
    assert run("publish", tmp_path / "nowhere", "--to", "place").code == 3
    (own.out / "pytorch_model.bin").write_bytes(b"x")
    assert run("publish", own.out, "--to", "place").code == 3
    assert not (tmp_path / "place").exists()


def test_an_interrupted_copy_leaves_nothing(own: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    from r1quant.errors import OutOfSpaceError

    monkeypatch.setattr("r1quant.jobs.publish.run._copy", full)
    with pytest.raises(OutOfSpaceError):
        publish(own.out, PublishOptions(str(tmp_path / "place")))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny", "verified.json"]
