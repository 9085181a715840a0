"""FSDP2 changes neither a loss nor a gradient, and guards stop all processes alike; asserted on real processes."""

import pytest
import sharding_worker
import torch
from distributed_worker import own_process
from test_distributed import assert_same_gradients

pytestmark = pytest.mark.slow
CASES = (
    "retrain",
    "fine_tune",
    "fine_tune in chunks",
    "gradient_ascent",
    "neg_grad",
    "l1_sparsity",
    "siglip l1_sparsity",
    "alignment_calibration",
    "alignment_calibration reference",
)


@pytest.fixture(scope="session")
def launches(tmp_path_factory):
    """What each process of launches of one (whole) and two (sharded) processes computed."""
    folder = tmp_path_factory.mktemp("launches")
    own_process(sharding_worker.main, folder)
    return {count: torch.load(folder / f"{count}.pt", weights_only=False) for count in (1, 2)}


def assert_same_weights(ours, wanted, **tolerance):
    assert ours.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(ours[name], value, msg=lambda text, name=name: f"{name}: {text}", **tolerance)


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_are_those_of_one_process(launches, case):
    ours, wanted = (launches[count][0]["sharded"]["training"][case] for count in (2, 1))
    assert ours["terms"] == pytest.approx(wanted["terms"], rel=1e-5, abs=1e-5)
    assert ours["last_loss"] == pytest.approx(wanted["last_loss"], rel=1e-5, abs=1e-5)
    gradients = {name: gradient.view_as(wanted["gradients"][name]) for name, gradient in ours["gradients"].items()}
    assert_same_gradients(gradients, wanted["gradients"])


@pytest.mark.parametrize("case", ["nan sgd", "nan adamw_torch_fused", "budget"])
@pytest.mark.parametrize("kind", ["copied", "sharded"])
def test_all_processes_stop_at_one_step_with_one_state(launches, kind, case):
    first, second = (own[kind]["stopped"][case] for own in launches[2])
    alone = launches[1][0][kind]["stopped"][case]
    for ours in (first, second):
        assert (ours["step"], ours["good_step"]) == (alone["step"], alone["good_step"])
        assert ours["note"] == first["note"] and ours["note"]
    assert_same_weights(first["weights"], second["weights"], rtol=0, atol=0)
    if "adamw" not in case:  # which makes whole steps of gradients that are rounding alone
        assert_same_weights(first["weights"], alone["weights"], rtol=1e-4, atol=1e-5)
    if case != "budget":
        assert (alone["step"], alone["good_step"]) == (6, 4) and "step 5 was not finite" in first["note"][0]


def test_what_is_saved_is_an_ordinary_checkpoint(launches):
    assert not launches[1][0]["sharded"]["saved"]["sharded"]
    for own in launches[2]:
        saved = own["sharded"]["saved"]
        assert saved["sharded"]
        for again in ("reloaded", "checkpoint"):
            assert_same_weights(saved[again], saved["weights"], rtol=0, atol=0)


def test_a_sharded_training_resumes_where_it_stopped(launches):
    for own in launches[2]:
        saved = own["sharded"]["saved"]
        assert_same_weights(saved["resumed"], saved["weights"], rtol=1e-6, atol=1e-7)
