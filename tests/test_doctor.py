"""`innerloop doctor`: its checks pass here, a broken one is seen, and it works without the native library."""

import os

import jax
import jax.numpy as jnp
import pytest

from innerloop.cli import main
from innerloop.kernels import native, native_library
from innerloop.report import doctor
from innerloop.report.doctor import Outcome

needs_native = pytest.mark.skipif(
    os.environ.get("INNERLOOP_NATIVE") != "required" and native_library.library_problem() is not None,
    reason="no native kernels",
)


@pytest.fixture
def quick_checks(monkeypatch):
    """The checks that neither compile gradients nor time anything."""
    for name in ("native gradient", "JAX gradient", "Proposition 1", "time per training step"):
        monkeypatch.setitem(doctor.CHECKS, name, lambda: Outcome("ok", "left out"))


@needs_native
@pytest.mark.parametrize("check", [doctor.library, doctor.native_words, doctor.native_gradient])
def test_native_checks_pass(check, monkeypatch):
    monkeypatch.setenv("INNERLOOP_NATIVE", "required")
    assert check().verdict == "ok"


@pytest.mark.parametrize("check", [doctor.jax_gradient, doctor.proposition_1])
def test_other_checks_pass(check):
    outcome = check()
    assert outcome.verdict == "ok"
    assert "must be below" in outcome.detail


def test_step_time_names_the_paths(monkeypatch):
    monkeypatch.setenv("INNERLOOP_NATIVE", "off")
    outcome = doctor.step_time(batch_size=16)
    assert outcome.verdict == "ok"
    assert outcome.detail.startswith("JAX ")
    assert os.environ["INNERLOOP_NATIVE"] == "off", "the variable was put back"


def test_an_error_that_is_large_or_no_number_fails():
    assert doctor.error_outcome(1e-7, 1e-5).verdict == "ok"
    assert doctor.error_outcome(1e-5, 1e-5).verdict == "FAILED"
    assert doctor.error_outcome(float("nan"), 1e-5).verdict == "FAILED"


@needs_native
def test_wrong_words_are_seen(monkeypatch):
    monkeypatch.setenv("INNERLOOP_NATIVE", "required")
    right = native_library.random_words
    monkeypatch.setattr(native_library, "random_words", lambda key, count: right(key, count).at[-1].add(jnp.uint32(1)))
    assert doctor.native_words().verdict == "FAILED"


@needs_native
@pytest.mark.parametrize("case", doctor.CASES)
def test_a_wrong_native_gradient_is_seen(monkeypatch, case):
    """Of every case by itself."""
    monkeypatch.setenv("INNERLOOP_NATIVE", "required")
    monkeypatch.setattr(doctor, "CASES", {case: doctor.CASES[case]})
    assert doctor.native_gradient().verdict == "ok"
    right = native.native_kernel

    def slightly_wrong(*arguments):
        kernel = right(*arguments)
        assert kernel is not None

        def loss_and_gradient(weights, draw):
            loss, gradient = kernel.loss_and_gradient(weights, draw)
            return loss, jax.tree.map(lambda leaf: leaf * 1.0001, gradient)

        return kernel._replace(loss_and_gradient=loss_and_gradient)

    monkeypatch.setattr(native, "native_kernel", slightly_wrong)
    assert doctor.native_gradient().verdict == "FAILED"


def test_wrong_gradient_is_seen(monkeypatch):
    """A gradient that is off by 1e-4, which training would survive."""
    right = doctor.jax_kernel

    def slightly_wrong(*arguments):
        kernel = right(*arguments)

        def loss_and_gradient(weights, draw):
            loss, gradient = kernel.loss_and_gradient(weights, draw)
            return loss, jax.tree.map(lambda leaf: leaf * 1.0001, gradient)

        return kernel._replace(loss_and_gradient=loss_and_gradient)

    monkeypatch.setattr(doctor, "jax_kernel", slightly_wrong)
    assert doctor.jax_gradient().verdict == "FAILED"


def test_all_is_well(capsys, quick_checks):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for words in ("training path", "INNERLOOP_NATIVE", "jaxlib", "equinox", "platform", "all is well"):
        assert words in out


@pytest.mark.parametrize("broken", ["a wrong result", "an exception"])
def test_a_failed_check_gives_exit_code_1_and_the_others_still_run(capsys, monkeypatch, quick_checks, broken):
    def check():
        if broken == "an exception":
            raise OSError("the disk is gone")
        return Outcome("FAILED", "the disk is gone")

    monkeypatch.setitem(doctor.CHECKS, "JAX gradient", check)
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "FAILED" in out
    assert "the disk is gone" in out
    assert "1 of 6 checks failed: JAX gradient" in out
    assert "left out" in out


def test_without_the_library_it_works_and_says_so(capsys, monkeypatch, quick_checks):
    monkeypatch.delenv("INNERLOOP_NATIVE", raising=False)
    monkeypatch.setattr(native_library, "library_problem", lambda: "it is a test")
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "JAX, because it is a test" in out
    assert "skipped" in out
    monkeypatch.setenv("INNERLOOP_NATIVE", "required")
    assert main(["doctor"]) == 1
    assert "INNERLOOP_NATIVE=required, but it is a test" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("mode", "words"), [("off", "JAX, because INNERLOOP_NATIVE=off"), ("required", "native, because")]
)
@needs_native
def test_the_path_has_its_reason(monkeypatch, mode, words):
    monkeypatch.setenv("INNERLOOP_NATIVE", mode)
    facts = doctor.facts()
    assert facts["training path"].startswith(words)
    assert facts["INNERLOOP_NATIVE"] == mode
    assert facts["instruction set"] in ("avx512", "avx2", "portable")
    assert int(facts["threads"]) >= 1


@pytest.mark.parametrize("command", [["doctor"], ["reproduce", "two-layer", "--dry-run"]])
def test_bad_mode_is_one_line(capsys, monkeypatch, command):
    monkeypatch.setenv("INNERLOOP_NATIVE", "bad")
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "INNERLOOP_NATIVE must be one of required, auto, off, got 'bad'" in error
    assert len(error.strip().splitlines()) == 1
