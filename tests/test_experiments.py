"""Every experiment, end to end in the smoke preset: files, claims, controls; and that criteria can tell."""

import json
from typing import ClassVar

import jax
import pytest
import xarray as xr
from rich.console import Console

from innerloop import report
from innerloop.claims import Claim
from innerloop.experiments import EXPERIMENTS
from innerloop.experiments.one_layer.proofs import proof_claims
from innerloop.experiments.one_layer.setting import MAIN, recipes
from innerloop.training import published


@pytest.fixture(scope="class")
def smoke(request, tmp_path_factory):
    """The claims and the folder of the class's smoke run."""
    experiment = EXPERIMENTS[request.cls.name]
    out = tmp_path_factory.mktemp(experiment.name)
    claims = report.reproduce(experiment, preset="smoke", num_seeds=None, out=out, console=Console(quiet=True))
    yield experiment, claims, out / experiment.name
    jax.clear_caches()  # two experiments share few programs; all of them together take gigabytes


class SmokeRun:
    """One experiment's smoke run and what must be true of it; a class each, so that workers share them out."""

    name: ClassVar[str]

    def test_smoke_run_writes_everything(self, smoke):
        experiment, claims, folder = smoke
        written = json.loads((folder / "claims.json").read_text())
        assert [claim["id"] for claim in written] == [claim.id for claim in claims]
        data = xr.load_dataset(folder / "results.nc", engine="h5netcdf")
        figures = experiment.draw(data)  # figures come from the saved numbers alone
        for name in figures:
            assert (folder / "figures" / f"{name}.png").stat().st_size > 5000
            assert (folder / "figures" / f"{name}.svg").read_text().lstrip().startswith("<?xml")
        summary = (folder / "summary.md").read_text()
        assert all(claim.id in summary for claim in claims)

    def test_smoke_claims_say_only_consistent_or_inconclusive(self, smoke):
        _, claims, _ = smoke
        assert {claim.verdict for claim in claims} <= {"consistent", "inconclusive"}

    def test_claims_are_well_formed(self, smoke):
        _, claims, _ = smoke
        assert len({claim.id for claim in claims}) == len(claims)
        for claim in claims:
            assert claim.statement
            assert claim.source
            assert claim.control
            assert claim.kind in ("exact", "statistical")
            assert claim.criterion_low is not None or claim.criterion_high is not None

    def test_every_plotted_quantity_is_labelled(self, smoke):
        _, _, folder = smoke
        data = xr.load_dataset(folder / "results.nc", engine="h5netcdf")
        for name, variable in data.data_vars.items():
            assert set(variable.dims) <= set(data.coords), f"{name} has an axis without labels"


# With ``--dist loadscope`` the tests of one class or module go to one worker, and share its compiled programs.
for _name in EXPERIMENTS:
    _test_case = f"Test{_name.title().replace('-', '')}"
    globals()[_test_case] = type(_test_case, (SmokeRun,), {"name": _name, "__module__": __name__})


def test_proofs_hold_and_their_controls_fail():
    claims: list[Claim] = proof_claims()
    assert {claim.verdict for claim in claims} == {"reproduced"}
    assert {claim.control_verdict for claim in claims} == {"not reproduced"}


def test_quick_preset_trains_the_published_recipe():
    main = recipes("quick", None)[MAIN]
    assert main == published(seeds=(0, 1, 2, 3, 4))
    assert (main.num_steps, main.batch_size) == (5000, 2048)
    assert {recipe.num_steps for recipe in recipes("paper", None).values()} == {5000}
    assert [len(recipe.seeds) for recipe in recipes("quick", 7).values()] == [7] * 5
