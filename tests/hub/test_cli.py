"""The three commands: what they print, and how they exit."""

import sys
from pathlib import Path

import pytest
import typer
from hub.finished_run import CAPTIONS, SALT
from hub.local_hub import LocalHub
from typer.testing import CliRunner, Result

from hf_unlearn.cli import main
from hf_unlearn.cli.card import card
from hf_unlearn.cli.publish import publish
from hf_unlearn.cli.verify import verify
from hf_unlearn.errors import UserError


def call(*arguments: object) -> Result:
    app = typer.Typer()
    for command in (card, publish, verify):
        app.command()(command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_publish_lists_what_it_sent(run: Path, hub: LocalHub) -> None:
    planned = call("publish", run, "--repo", "org/clip", "--dry_run")
    assert planned.exit_code == 0
    assert planned.stdout.startswith("Would send to org/clip:")
    assert not hub.repos
    sent = call("publish", run, "--repo", "org/clip", "--private")
    assert sent.exit_code == 0, sent.output
    assert sent.stdout.startswith("Sent to org/clip:")
    assert f"{(run / 'model.safetensors').stat().st_size:,} bytes" in sent.stdout
    assert "Never sent: checkpoint-4, events.log, training_args.bin" in sent.stdout
    assert sent.stdout.rstrip().endswith(f"{hub.url}/org/clip/commit/{hub.repos['org/clip'].refs['main']}")


def test_publish_opens_a_pull_request(run: Path, hub: LocalHub) -> None:
    call("publish", run, "--repo", "org/base")
    (run / "assets" / "alignment_matrices.png").rename(run / "assets" / "agm.png")
    call("card", run)
    opened = call("publish", run, "--repo", "org/base", "--create_pr")
    assert opened.stdout.rstrip().endswith(f"{hub.url}/org/base/discussions/1")
    assert "Removed from the repository: assets/alignment_matrices.png" in opened.stdout


def test_a_card_copied_onto_its_run_is_refused_and_keeps_its_pictures(run: Path) -> None:
    pictures = sorted(run.glob("assets/*.png"))
    refused = call("card", run, "--copy_to", run)
    assert isinstance(refused.exception, UserError) and "choose another --copy_to" in str(refused.exception)
    assert pictures and sorted(run.glob("assets/*.png")) == pictures


def test_verify_exits_1_when_something_does_not_hold(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fine = call("verify", run)
    assert fine.exit_code == 0
    assert "does not hold: 0" in fine.stdout
    (run / "config.json").write_text("{}")
    changed = call("verify", run)
    assert changed.exit_code == 1
    assert [line for line in changed.stdout.splitlines() if line.startswith("does not hold           config.json: ")]
    monkeypatch.setattr(sys, "argv", ["hf-unlearn", "verify", str(run)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1  # as the program itself tells it


def test_verify_finds_an_owners_picture(run: Path, pictures: list[Path]) -> None:
    found = call("verify", run, "--salt", SALT, "--image", pictures[0], "--caption", CAPTIONS[0])
    assert "your a_red_apple.png: is in the request" in found.stdout
    several = call("verify", run, "--salt", SALT, "--image", pictures[0], "--image", pictures[1], "--caption", "a")
    assert isinstance(several.exception, UserError)


def test_card_writes_checks_and_keeps(run: Path, tmp_path: Path) -> None:
    (run / "README.md").unlink()
    kept = tmp_path / "model_cards" / "clip"
    assert call("card", run, "--copy_to", kept).exit_code == 0
    assert (run / "README.md").read_bytes() == (kept / "README.md").read_bytes()
    assert call("card", kept, "--check").exit_code == 0
    (kept / "README.md").write_text((kept / "README.md").read_text() + "\nThe best model.\n")
    checked = call("card", kept, "--check")
    assert checked.exit_code == 1
    assert "card text: differs at: The best model." in checked.stdout


@pytest.mark.parametrize("place", ["file", "file/below", "model"])
def test_a_copy_that_can_go_nowhere_is_refused_before_any_writing(run: Path, tmp_path: Path, place: str) -> None:
    (run / "README.md").write_text("edited by hand")
    (tmp_path / "file").write_text("")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"")
    refused = call("card", run, "--copy_to", tmp_path / place)
    words = "holds a model" if place == "model" else "cannot be written to (Not a directory); choose another --copy_to"
    assert isinstance(refused.exception, UserError) and f"{place} {words}" in str(refused.exception)
    assert (run / "README.md").read_text() == "edited by hand"


def test_card_checks_a_finished_run_with_its_weights(run: Path, tmp_path: Path) -> None:
    assert call("card", run, "--check").exit_code == 0
    both = call("card", run, "--check", "--copy_to", tmp_path / "kept")
    assert isinstance(both.exception, UserError) and not (tmp_path / "kept").exists()
    (run / "config.json").write_text("{}")
    checked = call("card", run, "--check")
    assert checked.exit_code == 1 and "config.json: SHA-256 is" in checked.stdout


@pytest.mark.parametrize("command", ["card", "verify"])
def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, command: str) -> None:
    assert isinstance(call(command, tmp_path).exception, UserError)
