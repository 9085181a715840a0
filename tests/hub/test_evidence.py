"""Evidence of a removal: made of the records, signed, and checked offline by public tools, to the byte."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hub.local_hub import Blob, LocalHub

from hf_unlearn.errors import UserError
from hf_unlearn.hub.card import write_card
from hf_unlearn.hub.descendants import Descendant, find_descendants
from hf_unlearn.hub.evidence import write_evidence
from hf_unlearn.hub.publishing import publish_run
from hf_unlearn.hub.signing import verify_signature
from hf_unlearn.hub.verification import verify_repo
from hf_unlearn.hub.verification_report import Outcome
from hf_unlearn.records.schemas import EvaluationRecord, UnlearningManifest

EVIDENCE = {"removal.intoto.json", "bom.cdx.json", "digests.sha256", "model.sig"}


def openssl(*words: object, at: Path) -> str:
    return subprocess.run(["openssl", *map(str, words)], cwd=at, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "key.pem", at=folder)
    openssl("ec", "-in", "key.pem", "-pubout", "-out", "public.pem", at=folder)
    openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "other.pem", at=folder)
    openssl("ec", "-in", "other.pem", "-pubout", "-out", "other_public.pem", at=folder)
    return folder


@pytest.fixture
def published(run: Path, hub: LocalHub, keys: Path, tmp_path: Path) -> Path:
    """A signed repository as a stranger downloads it: plain files in a folder."""
    publish_run(run, "org/clip", sign=keys / "key.pem")
    folder = tmp_path / "clip"
    for name, content in hub.files("org/clip").items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def outcomes(target: object, **given: object) -> dict[str, Outcome]:
    return {line.subject: line.outcome for line in verify_repo(target, **given).statements}  # type: ignore[arg-type]


def test_a_signed_repository_verifies_with_its_key_alone(published: Path, hub: LocalHub, keys: Path) -> None:
    assert set(hub.files("org/clip")) >= EVIDENCE
    found = outcomes("org/clip", public_key=keys / "public.pem")
    for subject in ("signature", "removal.intoto.json", "bom.cdx.json", "digests.sha256"):
        assert found[subject] is Outcome.HOLDS, subject
    assert Outcome.FAILS not in found.values()
    assert outcomes("org/clip")["signature"] is Outcome.UNCHECKED
    assert outcomes("org/clip", public_key=keys / "other_public.pem")["signature"] is Outcome.FAILS


def public_tools(folder: Path, keys: Path) -> list[int]:
    """What docs/evidence.md tells a stranger to run, without this library: the exit status of each command."""
    page = (Path(__file__).parents[2] / "docs" / "evidence.md").read_text()
    block = page.partition("<!-- checked by tests/hub/test_evidence.py -->\n```bash\n")[2].partition("```")[0]
    commands = block.splitlines()
    assert len(commands) == 2 and folder.name == "clip"
    shutil.copy(keys / "public.pem", folder.parent)
    surroundings = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    runs = [
        subprocess.run(["sh", "-c", line], cwd=folder.parent, capture_output=True, env=surroundings)
        for line in commands
    ]
    return [run.returncode for run in runs]


@pytest.mark.parametrize("name", [None, "model.safetensors", "unlearning.json", "README.md", "removal.intoto.json"])
def test_public_tools_alone_verify_the_folder_and_catch_one_changed_byte(
    published: Path, keys: Path, name: str | None
) -> None:
    if name is None:
        assert public_tools(published, keys) == [0, 0]
        return
    content = bytearray((published / name).read_bytes())
    content[-3] ^= 1
    (published / name).write_bytes(content)
    assert all(status != 0 for status in public_tools(published, keys))
    if name != "unlearning.json":  # which is no JSON then
        assert outcomes(published, public_key=keys / "public.pem")["signature"] is Outcome.FAILS


def test_a_damaged_signature_is_a_statement_that_does_not_hold(published: Path, keys: Path) -> None:
    whole = (published / "model.sig").read_bytes()
    for place in range(0, len(whole) - 2, len(whole) // 12):  # in the envelope, in what is signed, in the signature
        damaged = bytearray(whole)
        damaged[place] ^= 1
        (published / "model.sig").write_bytes(damaged)
        assert verify_signature(published, keys / "public.pem").fails, place


def test_the_statement_and_the_bill_name_weights_base_request_and_method(published: Path) -> None:
    manifest = UnlearningManifest.load(published)
    statement = json.loads((published / "removal.intoto.json").read_text())
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["subject"] == [{"name": "model.safetensors", "digest": {"sha256": manifest.weights_sha256}}]
    predicate = statement["predicate"]
    assert predicate["base"]["digest"]["sha256"] == manifest.base_model.sha256
    assert predicate["request"]["digest"]["sha256"] == manifest.request.sha256
    assert predicate["evaluation"]["digest"]["sha256"] == manifest.files["evaluation.json"]
    bill = json.loads((published / "bom.cdx.json").read_text())
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.7")
    component = bill["metadata"]["component"]
    assert component["components"][0]["hashes"] == [{"alg": "SHA-256", "content": manifest.weights_sha256}]
    assert component["pedigree"]["ancestors"][0]["name"] == manifest.base_model.name_or_path
    figures = {
        one["type"]: one["value"] for one in component["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    }
    recorded = EvaluationRecord.load(published).metrics["cosine_unlearn"]
    assert float(figures["Matched cosine, unlearn"]) == recorded


def test_the_bill_is_valid_by_the_published_schema(published: Path) -> None:
    """CycloneDX's own validator takes it, strictly, and names a field that the schema does not have."""
    validation = pytest.importorskip("cyclonedx.validation.json", reason="cyclonedx-python-lib is not installed")
    schema = pytest.importorskip("cyclonedx.schema")
    validator = validation.JsonStrictValidator(schema.SchemaVersion.V1_7)
    text = (published / "bom.cdx.json").read_text()
    assert validator.validate_str(text) is None
    assert validator.validate_str(text.replace('"pedigree"', '"lineage"')) is not None


def test_a_statement_changed_after_the_fact_is_found_without_a_key(run: Path) -> None:
    write_evidence(run)
    assert verify_repo(run).ok
    path = run / "removal.intoto.json"
    path.write_text(path.read_text().replace('"count": 6', '"count": 600'))
    assert outcomes(run)["removal.intoto.json"] is outcomes(run)["digests.sha256"] is Outcome.FAILS


def test_the_erasure_record_is_written_for_its_writer_and_never_published(run: Path, hub: LocalHub, keys: Path) -> None:
    write_evidence(run)
    text = (run / "erasure_record.md").read_text()
    manifest = UnlearningManifest.load(run)
    for part in (manifest.request.sha256, manifest.weights_sha256, "Alignment Calibration", "Recipients told", "5.75"):
        assert part in text
    publish_run(run, "org/clip")
    assert not {"erasure_record.md", *EVIDENCE} & set(hub.files("org/clip"))


def test_a_signature_of_earlier_files_does_not_stay_in_the_repository(
    published: Path, run: Path, hub: LocalHub
) -> None:
    publish_run(run, "org/clip")
    assert not EVIDENCE & set(hub.files("org/clip"))
    with pytest.raises(UserError, match="there is no key"):
        publish_run(run, "org/clip", sign=run / "none.pem")


def test_a_key_of_another_kind_is_refused_before_anything_is_sent(run: Path, hub: LocalHub, tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_text("no key")
    with pytest.raises(UserError, match=r"cannot be signed with key\.pem"):
        publish_run(run, "org/clip", sign=tmp_path / "key.pem")
    assert hub.requests == []


def test_a_time_stamp_of_the_digests_is_checked_offline(published: Path, tmp_path: Path, keys: Path) -> None:
    authority = tmp_path / "authority"
    authority.mkdir()
    (authority / "tsa.cnf").write_text(
        "[req]\ndistinguished_name=dn\nx509_extensions=ext\nprompt=no\n[dn]\nCN=Test authority\n"
        "[ext]\nextendedKeyUsage=critical,timeStamping\nbasicConstraints=CA:TRUE\n"
        "[tsa]\ndefault_tsa=conf\n[conf]\nserial=serial\nsigner_cert=tsa.pem\nsigner_key=tsa.key\n"
        "default_policy=1.2.3.4\nsigner_digest=sha256\ndigests=sha256\ness_cert_id_chain=no\n"
    )
    new = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "tsa.key", "-out", "tsa.pem", "-days", "2"]
    openssl(*new, "-config", "tsa.cnf", at=authority)
    query = ["ts", "-query", "-data", published / "digests.sha256", "-sha256", "-cert", "-out", "query.tsq"]
    openssl(*query, at=authority)
    token = published / "digests.sha256.tsr"
    openssl("ts", "-reply", "-queryfile", "query.tsq", "-config", "tsa.cnf", "-out", token, at=authority)
    given = {"public_key": keys / "public.pem", "tsa_certificate": authority / "tsa.pem"}
    found = outcomes(published, **given)
    assert found["time-stamp"] is found["signature"] is Outcome.HOLDS
    assert outcomes(published)["time-stamp"] is Outcome.UNCHECKED
    (published / "digests.sha256").write_text((published / "digests.sha256").read_text().replace("a", "b", 1))
    assert outcomes(published, **given)["time-stamp"] is Outcome.FAILS
    token.write_bytes(b"no token")
    assert outcomes(published, **given)["time-stamp"] is Outcome.FAILS


def model_named(hub: LocalHub, name: str, base: str) -> None:
    repo = hub.repos.setdefault(name, type(hub.repos["org/clip"])())
    card = f"---\nbase_model: {base}\n---\n".encode()
    repo.commit("main", {"README.md": Blob(card, lfs=False)}, "card")


def test_descendants_are_found_through_others_and_cycles_end(run: Path, hub: LocalHub) -> None:
    publish_run(run, "org/clip")
    for name, base in (("a/one", "org/old"), ("b/two", "a/one"), ("c/three", "b/two"), ("org/old", "c/three")):
        model_named(hub, name, base)
    model_named(hub, "d/other", "org/else")
    found, complete = find_descendants("org/old")
    assert complete
    assert found == (
        Descendant("a/one", "org/old", 1),
        Descendant("b/two", "a/one", 2),
        Descendant("c/three", "b/two", 3),
    )
    assert find_descendants("d/other") == ((), True)
    with pytest.raises(UserError, match="no repository name"):
        find_descendants("../x")


def test_descendants_are_asked_for_with_the_token_that_was_given_alone(
    hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is logged in may see private models, whose names are not to be published."""
    monkeypatch.setenv("HF_TOKEN", "hf_of_who_is_logged_in")
    hub.tokens.clear()
    find_descendants("org/old")
    assert not hub.tokens
    find_descendants("org/old", "hf_given")
    assert hub.tokens == {"hf_given"}


def test_evidence_of_a_card_written_anew_is_written_anew(run: Path) -> None:
    write_evidence(run)
    shutil.copy(run / "assets" / "alignment_matrices.png", run / "assets" / "agm.png")
    write_card(run)
    assert outcomes(run)["digests.sha256"] is Outcome.FAILS
    write_evidence(run)
    assert verify_repo(run).ok
