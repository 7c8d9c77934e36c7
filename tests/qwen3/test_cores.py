"""A pass on several cores: what BLAS shares out, and what is shared out to threads, give what one thread gives."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import threadpoolctl

from examples.qwen3 import cores, decode, forward, prefill
from examples.qwen3.config import Config
from examples.qwen3.cores import Blas, Relay, Stopped, run_together
from examples.qwen3.decode import make_decode_step, stretched
from examples.qwen3.direct import DirectModel
from examples.qwen3.parallel import open_worker
from examples.qwen3.prefill import shares
from examples.qwen3.programs import make_programs
from examples.qwen3.runner import Qwen3
from examples.qwen3.weights import GAP, Part, without_gap
from tests.qwen3.test_forward import config_of, ids, model_of, trained

COUNT = 150


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    """Of BLAS, which nobody has used."""
    with threadpoolctl.threadpool_limits(2):
        cores.blas._used = -math.inf
        yield


def numbers_of_works(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of each call of `run_together` from now on."""
    numbers: list[int] = []

    def run(works: Sequence[Callable[[], None]], relay: Relay) -> None:
        numbers.append(len(works))
        run_together(works, relay)

    monkeypatch.setattr(cores, "run_together", run)
    return numbers


def threads_of_blas() -> int:
    return int(max(library.num_threads for library in cores._libraries()))


# ------------------------------------------------------------------------------------------------ prefill by rows


@pytest.mark.parametrize("threads", [2, 3, 5])
@pytest.mark.parametrize("bias", [False, True])
def test_a_prompt_in_shares_is_the_prompt(threads: int, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(bias=bias)
    whole, shared = model_of(config, 2), model_of(config, 2)
    with threadpoolctl.threadpool_limits(1):
        wanted = whole.prefill(ids(COUNT), 1)
    monkeypatch.setattr(prefill, "LEAST_SHARE", COUNT // threads)
    begun = numbers_of_works(monkeypatch)
    with threadpoolctl.threadpool_limits(threads):
        got = shared.prefill(ids(COUNT), 1)
    assert begun == [threads]
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    np.testing.assert_allclose(shared.keys, whole.keys, atol=1e-5)
    np.testing.assert_allclose(shared.values, whole.values, atol=1e-5)
    assert threads_of_blas() == 2


@pytest.mark.parametrize(("count", "parts"), [(1, 1), (2 * prefill.LEAST_SHARE - 1, 1), (2 * prefill.LEAST_SHARE, 2)])
def test_a_short_prompt_is_not_shared_out(count: int, parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = numbers_of_works(monkeypatch)
    model_of(config_of()).prefill(ids(count))
    assert begun == [parts]


@pytest.mark.parametrize("count", [256, 1000, 30_000])
@pytest.mark.parametrize("parts", [1, 2, 3, 8])
def test_shares_cost_the_same(count: int, parts: int) -> None:
    config = config_of()
    ends = shares(config, count, parts)
    starts = [0, *ends[:-1]]
    assert len(ends) == parts
    assert ends[-1] == count
    of_weights = config.hidden_size * (2 * config.q_size + 2 * config.kv_size + 3 * config.intermediate_size)
    costs = [
        sum(of_weights + 2 * config.q_size * prefill.ATTENTION_WEIGHT * row for row in range(start, end))
        for start, end in zip(starts, ends, strict=True)
    ]
    assert max(costs) - min(costs) < 0.03 * sum(costs)


@pytest.mark.parametrize("backend", ["inline", "thread", "process"])
async def test_a_long_prompt_and_a_step_on_a_worker(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config, count = Config(40, 24, 40, 2, 4, 2, 8, 300), 2 * prefill.LEAST_SHARE + 5
    weights = trained(config)
    programs = make_programs(config, config.max_positions)
    parts = [Part(field, None, array) for field, array in weights._asdict().items()]
    direct = DirectModel(config, weights)
    prompt = ids(count)
    with threadpoolctl.threadpool_limits(1):
        wanted = direct.prefill(prompt), direct.decode_step(np.array([7]), np.array([count]))
    begun = numbers_of_works(monkeypatch)
    async with open_worker(programs.both, backend, 1, None, 2) as worker, Qwen3(worker, programs, parts) as model:
        np.testing.assert_allclose(await model.prefill(prompt), wanted[0], atol=1e-5)
        np.testing.assert_allclose(await model.decode([7], [count]), wanted[1], atol=1e-5)
    assert begun == ([] if backend == "process" else [2])  # a process has a `cores` of its own


# ------------------------------------------------------------------------------------------------ works together


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_what_fails_is_raised_and_nobody_waits_for_it(failing: int) -> None:
    relay = Relay(3)
    ended: list[int] = []

    def work(number: int) -> None:
        try:
            if number == failing:
                raise KeyError(number)
            while True:
                relay.come(number)
        except Stopped:
            ended.append(number)
            raise

    with pytest.raises(KeyError, match=str(failing)):
        run_together([partial(work, number) for number in range(3)], relay)
    assert sorted(ended) == [number for number in range(3) if number != failing]
    assert threads_of_blas() == 2


@pytest.mark.parametrize(("places", "number", "waits"), [((1, 0), 2, True), ((0, 1), 2, True), ((1, 2), 2, False), ((0, 0), 0, False)])
def test_who_is_behind_waits_for_all_in_front(places: tuple[int, int], number: int, waits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those in front have come to `places`, and `number` comes to its first."""
    relay, waited = Relay(3), []
    relay._places[:2] = places
    monkeypatch.setattr(relay._changed, "wait_for", lambda ready: waited.append(not ready()))
    relay.come(number)
    assert waited == [waits]


def test_threads_that_cannot_be_started_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that was started already does not wait for them."""
    start, started = threading.Thread.start, []

    def refuse(thread: threading.Thread) -> None:
        started.append(thread)
        if len(started) == 3:  # who conducts, one that works, and this one
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    relay = Relay(3)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        run_together([partial(relay.come, number) for number in range(3)], relay)
    assert not any(thread.is_alive() for thread in started)
    assert threads_of_blas() == 2


@pytest.mark.parametrize("working", [0, 1])
def test_an_interruption_ends_all(working: int) -> None:
    """Ctrl-C reaches the main thread, which only waits."""
    relay = Relay(2)

    def work(number: int) -> None:
        if number == working:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        while True:
            relay.come(number)

    before = set(threading.enumerate())
    with pytest.raises(KeyboardInterrupt):
        run_together([partial(work, 0), partial(work, 1)], relay)
    assert set(threading.enumerate()) == before
    assert threads_of_blas() == 2


def test_ids_outside_the_vocabulary_leave_the_cache_alone() -> None:
    model = model_of(config_of())
    with pytest.raises(IndexError):
        model.prefill(np.array([*ids(COUNT), 40]))
    assert not model.keys.any()


def test_each_has_a_thread_and_blas_has_one() -> None:
    meeting, seen = threading.Barrier(2), []

    def work() -> None:
        meeting.wait()
        seen.append((threading.get_ident(), threads_of_blas()))
        meeting.wait()

    run_together([work, work], Relay(2))
    assert len({thread for thread, _ in seen}) == 2
    assert [number for _, number in seen] == [1, 1]
    assert threads_of_blas() == 2


def test_one_work_alone_runs_as_blas_is() -> None:
    seen: list[int] = []
    run_together([lambda: seen.append(threads_of_blas())], Relay(1))
    assert seen == [2]


# ------------------------------------------------------------------------------------------------ what is lent


def test_the_last_who_borrowed_gives_back() -> None:
    """Of two devices in one process that begin at once; neither thread is the one that threadpoolctl lets set them."""
    blas, order = Blas(), []
    first_has, second_has = threading.Event(), threading.Event()

    def first() -> None:
        with blas.borrow():
            first_has.set()
            second_has.wait()
        order.append(("first is over", threads_of_blas(), blas.threads(), blas.available()))

    def second() -> None:
        first_has.wait()
        with blas.borrow():
            second_has.set()
            one.join()
            order.append(("second goes on", threads_of_blas(), blas.threads(), blas.available()))

    one, other = threading.Thread(target=first), threading.Thread(target=second)
    one.start()
    other.start()
    other.join()
    assert order == [("first is over", 1, 1, 1), ("second goes on", 1, 1, 1)]
    assert threads_of_blas() == blas.available() == 2


def test_a_number_that_was_set_meanwhile_stays() -> None:
    blas = Blas()
    with blas.borrow():
        cores._setters()[0](3)
    assert threads_of_blas() == 3


@pytest.mark.parametrize("spin", ["decode", "batch", "prompt"])
def test_nothing_is_borrowed_while_the_threads_of_blas_spin(spin: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("examples.qwen3.cores.time.monotonic", lambda: now[0])
    assert cores.blas.available() == 2
    model = model_of(config_of(), 17)
    if spin == "prompt":
        model.prefill(ids(20))
    else:
        rows = 17 if spin == "batch" else 1
        step = make_decode_step(model.config, model.weights, model.keys, model.values, rows)
        now[0] += 1  # a long dispatch
        step(np.ones(rows, np.int64), np.zeros(rows, np.int64), np.empty((rows, 40), np.float32))
    assert cores.blas.available() == 1
    now[0] += 0.034  # 2 ** 26 cycles of 2 GHz
    assert cores.blas.available() == 1
    now[0] += cores.SPIN
    assert cores.blas.available() == 2


def test_one_thread_does_not_spin() -> None:
    model = model_of(config_of())
    with threadpoolctl.threadpool_limits(1):
        model.prefill(ids(COUNT))
        model.decode_step(np.array([1]), np.array([COUNT]))
    assert cores.blas.available() == 2


def test_a_pass_shared_out_to_threads_does_not_spin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefill, "LEAST_SHARE", COUNT // 2)
    model_of(config_of()).prefill(ids(COUNT))
    assert cores.blas.available() == 2


def test_a_blas_that_keeps_its_threads_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "_setters", tuple)
    assert cores.blas.available() == 1
    assert cores.blas.threads() == 2


@pytest.mark.parametrize("layer", ["pthreads", "openmp"])
def test_so_is_one_beside_a_blas_that_keeps_its_threads(layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose threads nothing here can set, and one whose number belongs to each thread."""
    known = cores._libraries()
    dynlib = object() if layer == "pthreads" else known[0].dynlib
    keeping = SimpleNamespace(dynlib=dynlib, num_threads=4, threading_layer=layer)
    monkeypatch.setattr(cores, "_libraries", lambda: (*known, keeping))
    monkeypatch.setattr(cores, "_setters", cores._setters.__wrapped__)
    assert cores.blas.available() == 1


def test_without_the_package_there_is_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "threadpoolctl", None)
    monkeypatch.setattr(cores, "_libraries", cores._libraries.__wrapped__)
    monkeypatch.setattr(cores, "_setters", cores._setters.__wrapped__)
    assert (cores.blas.threads(), cores.blas.available()) == (1, 1)


# ------------------------------------------------------------------------------------------------ decode


def test_several_threads_share_out_whole_matrices() -> None:
    assert forward.product_of(16) is np.matmul
    with threadpoolctl.threadpool_limits(1):
        assert forward.product_of(16) is forward.multiply_by_tiles
        assert forward.product_of(17) is forward.product_of(1) is np.matmul


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_stretched_matrix_has_its_own_rows_and_those_of_a_neighbour(layer: int, monkeypatch: pytest.MonkeyPatch) -> None:
    matrices = np.random.default_rng(0).standard_normal((3, 12, 5 + GAP), np.float32)
    monkeypatch.setattr(decode, "LEAST_SHARED", 71)
    matrix, own = stretched(matrices, layer)
    assert matrix.shape == (15, 5 + GAP)
    assert without_gap(matrix).size >= decode.LEAST_SHARED
    assert np.shares_memory(matrix, matrices)
    np.testing.assert_array_equal(matrix[own : own + 12], matrices[layer])


@pytest.mark.parametrize(("least", "layers"), [(60, 3), (81, 3), (71, 1)])
def test_a_matrix_that_is_large_enough_or_too_small_or_alone_stays_as_it_is(
    least: int, layers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrices = np.ones((layers, 12, 5 + GAP), np.float32)
    monkeypatch.setattr(decode, "LEAST_SHARED", least)
    matrix, own = stretched(matrices, 0)
    assert (matrix.shape, own) == ((12, 5 + GAP), 0)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 3])
def test_a_step_is_the_same_with_several_threads(rows: int, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(bias=bias)
    size = config.hidden_size * (config.q_size + 2 * config.kv_size)
    monkeypatch.setattr(decode, "LEAST_SHARED", size * 5 // 4)
    weights = trained(config)
    assert without_gap(stretched(weights.w_qkv, 0)[0]).size > size
    logits = np.empty((2, rows, config.vocab_size), np.float32)
    for number, threads in enumerate((1, 2)):
        model = DirectModel(config, weights, rows)
        with threadpoolctl.threadpool_limits(threads):
            step = make_decode_step(config, weights, model.keys, model.values, rows)
            for position in range(4):
                step(np.arange(rows) + position, np.full(rows, position), logits[number])
    np.testing.assert_allclose(logits[1], logits[0], atol=1e-5)
