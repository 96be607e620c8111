"""Changed files and arguments end in a result or in an error of ours, for each kind of input.

A case is a function of its kind and number. One that fails is run again alone by
`SKIPCL_FUZZ=1 SKIPCL_FUZZ_FIRST=number pytest -n 0 -m reliability tests/reliability/test_fuzz.py -k "kind"`.
"""

import contextlib
import io
import os
import re
import resource
import signal
import time
import traceback
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from fuzzed_inputs import COSTLY_KINDS, KINDS, SLOW_KINDS

# Of all kinds together, in the default run and by `-m reliability`.
CASES = 2000
MANY_CASES = int(os.environ.get("SKIPCL_FUZZ", "20000"))
FIRST = int(os.environ.get("SKIPCL_FUZZ_FIRST", "0"))
# Of the kinds that take about 10 ms a case, in the default run.
FEW_CASES = 30
# One in so many, for the kinds that build a parser for each case.
SLOWER = 40
# Of CPU time for one case; most take milliseconds.
MOST_SECONDS = 20
# What all cases of a kind may add to the memory of the process.
MOST_MEBIBYTES = 300
# "`argument` must ..., got ...", the form of our errors; a command puts its name in front.
FORM = re.compile(r"(skipcl \w+: )?`[^`]+`.* must .*", re.DOTALL)
OURS = (ValueError, TypeError, FileNotFoundError)


class HangError(BaseException):
    """A case took too long; no `Exception`, which the library would turn into one of its own."""


def end_hang(*_):
    raise HangError(f"more than {MOST_SECONDS} s")


def run_quietly(run, generator):
    """Run a case within its time, and return what it printed."""
    printed = io.StringIO()
    signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stderr(printed),
            contextlib.redirect_stdout(printed),
        ):
            warnings.simplefilter("ignore")
            run(generator)
    except SystemExit as error:
        # The parser of a command has printed what is wrong.
        error.add_note(printed.getvalue())
        raise
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def is_ours(error):
    """Whether an error is documented and tells what is wrong."""
    if isinstance(error, SystemExit) and error.code == 2:
        return "error: " in error.__notes__[0]
    # Not their subclasses, which Python, polars and json raise.
    return type(error) in (*OURS, SystemExit) and FORM.match(str(error)) is not None


def describe(error):
    """The type and the place of an error, in the library if it passed through it."""
    places = traceback.extract_tb(error.__traceback__)
    place = next((one for one in reversed(places) if "skipcl_lightning" in one.filename), places[-1])
    return f"{type(error).__name__} in {Path(place.filename).name}:{place.lineno}"


def run_cases(kind, numbers, folder, checkpoint):
    """How many of the cases were refused; an error that is not of ours fails, after all cases."""
    run = {**KINDS, **SLOW_KINDS}[kind](folder, checkpoint)
    refused, faults = 0, {}
    before = signal.signal(signal.SIGPROF, end_hang)
    try:
        for number in numbers:
            try:
                run_quietly(run, np.random.default_rng([zlib.crc32(kind.encode()), number]))
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                refused += 1
                if not is_ours(error):
                    faults.setdefault(describe(error), []).append(f"{number}: {str(error)[:300]}")
    finally:
        signal.signal(signal.SIGPROF, before)
    if faults:
        pytest.fail("\n".join(f"{where}: {len(of)} cases, such as {of[0]}" for where, of in faults.items()))
    return refused


@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_input_ends_in_a_result_or_in_an_error_of_ours(kind, tmp_path, trained):
    count = FEW_CASES
    if kind not in COSTLY_KINDS:
        count = -(-(CASES - FEW_CASES * len(COSTLY_KINDS)) // (len(KINDS) - len(COSTLY_KINDS)))
    assert 0 < run_cases(kind, range(count), tmp_path, trained[2]) < count


@pytest.mark.reliability
@pytest.mark.parametrize("kind", [*KINDS, *SLOW_KINDS])
def test_many_changed_inputs(kind, tmp_path, trained, record):
    count = -(-MANY_CASES // (len(KINDS) * (SLOWER if kind in SLOW_KINDS else 1)))
    folders = tmp_path / "before", tmp_path / "cases"
    for folder in folders:
        folder.mkdir()
    run_cases(kind, range(min(count, 20)), folders[0], trained[2])
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    refused = run_cases(kind, range(FIRST, FIRST + count), folders[1], trained[2])
    added = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    seconds = time.process_time() - start
    record(f"{count:,} cases of {kind}: {refused:,} refused, {seconds:.0f} s, {added:.0f} MiB more at most")
    assert added < MOST_MEBIBYTES


def test_a_raw_error_a_hang_and_a_panic_are_faults():
    def fail(error):
        raise error

    assert is_ours(ValueError("`path` must be a file, got 1. Give one."))
    foreign = (
        KeyError("`a` must be"),
        UnicodeError("`a` must be"),
        ValueError("bad"),
        HangError("`a` must be"),
    )
    assert not any(map(is_ours, foreign))
    with pytest.raises(SystemExit) as caught:
        run_quietly(fail, SystemExit(2))
    assert not is_ours(caught.value)
