"""Further rows: each passes within a budget of its own, and none of them hides a fault."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from conformance import suite
from conformance.judge.measure import BACKWARD_FREE, FORWARD_FORCED, FORWARD_FREE, GRADIENT_FREE, LOSS
from conformance.recordings.bundle import RECORDINGS
from conformance.report.results import headline
from conformance.selftest.network import NETWORK
from conformance.session.bench import Bench, Planned, plan
from conformance.session.targets import targets
from conformance.subjects.precision import KINDS, measure_precision
from conformance.subjects.torch import TorchSubject
from conformance.subjects.variants import VARIANTS, BrainFloatSubject, CompiledSubject, ContiguousSubject, unavailable
from ptycho_torch import model


@pytest.fixture(scope="module")
def planned() -> Planned:
    (planned,) = plan(str(RECORDINGS / "n64_g1_nopad.npz"), None, "quick")
    return planned


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench()


@pytest.mark.parametrize("row", ["float32-contiguous", "bf16"])
def test_a_row_passes_within_its_own_budget(bench: Bench, planned: Planned, row: str) -> None:
    report = bench.report(planned, "cpu", row)
    assert report.passed, headline(report)
    assert report.dtype == row
    assert f"run-to-run spread {report.run_to_run:.1e}" in headline(report)


def test_contiguous_is_another_way_of_running(planned: Planned, bench: Bench) -> None:
    seen = []
    subject = ContiguousSubject("cpu")
    network = subject.network(bench.truth(planned).case)
    network.get_submodule("encoder.1.conv1").register_forward_hook(lambda _, inputs, out: seen.extend([inputs[0], out]))
    loaded = subject._load(bench.truth(planned).case)
    network(loaded.scaled_amplitude, loaded.offsets_px)
    assert all(each.is_contiguous() for each in seen)


@dataclasses.dataclass(frozen=True)
class _Undeclared(BrainFloatSubject):
    """Runs in bfloat16 and says that it runs in float32."""

    products = "float32"


def test_bfloat16_that_is_not_declared_fails_at_the_first_convolution(bench: Bench, planned: Planned) -> None:
    report = bench.judge(planned, _Undeclared("cpu"))
    assert report.first_failing == "encoder.0.conv1"


def test_outside_of_convolutions_bfloat16_has_the_budget_of_float32(bench: Bench, planned: Planned) -> None:
    report, plain = bench.report(planned, "cpu", "bf16"), bench.report(planned, "cpu", "float32")
    for stage in ("patches", "merged", "exit_wave", "amplitude"):
        key = (FORWARD_FORCED, stage)
        assert report.verdicts[key].budget == plain.verdicts[key].budget
    key = (FORWARD_FORCED, "encoder.0.conv1")
    assert report.verdicts[key].budget.e > 1e3 * plain.verdicts[key].budget.e


@pytest.mark.parametrize("row", ["float32-contiguous", "bf16"])
def test_a_row_does_not_hide_a_fault(planned: Planned, row: str) -> None:
    (fault,) = [each for each in NETWORK if each.name == "π dropped"]
    with fault.seeded():
        report = Bench().report(planned, "cpu", row)
    assert report.first_failing == "decoder_phase.output"


def test_physics_in_bfloat16_is_seen(monkeypatch: pytest.MonkeyPatch, planned: Planned) -> None:
    whole = model.ScaleAmplitude.forward

    def rounded(self: model.ScaleAmplitude, amplitude: torch.Tensor, log_scale: torch.Tensor) -> torch.Tensor:
        return whole(self, amplitude.bfloat16().float(), log_scale)

    monkeypatch.setattr(model.ScaleAmplitude, "forward", rounded)
    assert Bench().report(planned, "cpu", "bf16").first_failing == "predicted_amplitude"


def test_a_compiled_graph_shows_stages_losses_and_gradients(
    monkeypatch: pytest.MonkeyPatch, bench: Bench, planned: Planned
) -> None:
    """Not compiled here: the shapes that tests check cannot be traced. `--parity-variants float32-compiled` does it."""
    monkeypatch.setattr(torch, "compile", lambda network: network)
    report = bench.judge(planned, CompiledSubject("cpu"))
    assert report.passed, headline(report)
    assert {clause for clause, _ in report.verdicts} == {FORWARD_FREE, GRADIENT_FREE, LOSS}
    assert (FORWARD_FREE, "encoder.0.conv1") in report.verdicts
    assert (GRADIENT_FREE, "encoder.0.conv1.kernel") in report.verdicts
    tested = {(each.clause, each.stage) for each in targets("test_variant", [planned], ["cpu"], ["float32-compiled"])}
    assert tested == {(clause, report.stage_of[clause, name]) for clause, name in report.verdicts}


def test_a_compiled_graph_does_not_hide_a_fault(monkeypatch: pytest.MonkeyPatch, planned: Planned) -> None:
    monkeypatch.setattr(torch, "compile", lambda network: network)
    (fault,) = [each for each in NETWORK if each.name == "π dropped"]
    with fault.seeded():
        assert not Bench().judge(planned, CompiledSubject("cpu")).passed


def test_what_cannot_run_says_why(monkeypatch: pytest.MonkeyPatch, planned: Planned) -> None:
    assert "CUDA devices of capability 8.0" in unavailable("cpu", "tf32")
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "needs a C++ compiler" in unavailable("cpu", "float32-compiled")
    (target,) = targets("test_variant", [planned], ["cpu"], ["tf32"])
    assert target.stage == "all_stages"


def test_bfloat16_products_look_like_bfloat16() -> None:
    assert measure_precision("cpu", "bfloat16").kind == KINDS["bfloat16"]
    assert measure_precision("cpu").kind == KINDS["float32"]


def test_the_option_knows_every_row() -> None:
    assert set(suite.VARIANTS) == set(VARIANTS)


def test_only_what_can_be_seen_is_shown() -> None:
    subject = CompiledSubject("cpu")
    assert not subject.shows((BACKWARD_FREE, "merged"))
    assert not subject.shows((FORWARD_FREE, "decoder_amp.0.up"))
    assert subject.shows((FORWARD_FREE, "merged"))
    assert TorchSubject("cpu").shows((BACKWARD_FREE, "merged"))
