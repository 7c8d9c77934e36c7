"""What Perfetto shows of a run: lanes, spans, copies, gangs, callbacks, waits, and arrows that lead from submit to completion."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import pytest

import pypto_actors as pa
from pypto_actors import tracing
from tests.tracing.support import Gate, Vec, add, adder, gang, shown, virtually, worker, zeros


def recorded(*programs: pa.Program, body: Any, seed: int | None = None, **options: Any) -> tracing.Timeline:
    """What `body(worker)` did, on `inline` in virtual time."""
    trace = tracing.Recorder()

    async def main() -> None:
        async with worker(*programs, backend="inline", trace=trace, **options) as w:
            await body(w)

    virtually(main, seed)
    return trace.timeline()


def test_a_lane_for_the_coordinator_and_for_each_device_in_order() -> None:
    async def body(w: pa.DistributedWorker) -> None:
        tensor = await w.alloc_tensor((4,), "int64", device=1, init=zeros())
        await w.read(tensor)

    seen = shown(recorded(adder(), body=body, devices=3))
    assert seen.lanes == ["coordinator", "device 0", "device 1", "device 1 copies", "device 2"]


def test_a_dispatch_is_a_span_of_its_device_and_arrows_lead_through_it() -> None:
    async def body(w: pa.DistributedWorker) -> None:
        await w.run(program, zeros())

    program = adder(1, "decode", stage="decode")
    timeline = recorded(program, body=body, devices=2)
    (span,) = timeline.kernels
    assert (span.device, span.program, span.stage, span.steps, span.outcome, span.gang) == (1, "decode", "decode", ("add",), "done", ())
    seen = shown(timeline)
    (run,) = seen.on("device 1")
    assert (run.name, run.cat) == ("decode", "kernel")
    assert run.args["steps"] == ["add"]
    assert seen.way(run)[-1].start >= run.finish
    assert [(each.lane, each.name) for each in seen.way(run)] == [
        ("coordinator", "Submit decode"),
        ("coordinator", "Dispatch decode"),
        ("device 1", "decode"),
        ("coordinator", "Completed decode"),
    ]


def test_each_part_of_a_dispatch_has_arrows_of_its_own() -> None:
    @pa.program(name="relay")
    def relay(orch: pa.Orchestrator, x: Vec) -> None:
        there = orch.empty((4,), "int64", device=1)
        orch.submit(add, x, 1, device=0)
        orch.copy(there, x)
        orch.submit_sub(lambda x: 7, x)
        orch.submit(add, x, 1, device=0)

    async def body(w: pa.DistributedWorker) -> None:
        assert (await w.run(relay, zeros())).returned == (7,)

    seen = shown(recorded(relay, body=body, devices=2))
    assert seen.lanes == ["coordinator", "host", "device 0", "device 1"]
    parts = [slice_ for slice_ in seen.slices if slice_.cat in ("kernel", "callback")]
    assert {slice_.lane for slice_ in parts} == {"host", "device 0", "device 1"}
    assert len({slice_.args["part"] for slice_ in parts}) == len(parts) == 4
    for part in parts:
        first, sent, done, last = seen.way(part)
        assert (first.name, done) == ("Submit relay", part)
        assert sent.name == f"{'Call' if part.lane == 'host' else 'Dispatch'} {part.name}"
        assert last.name == f"Completed {part.name}"


def test_a_gang_is_marked_and_its_members_are_joined() -> None:
    async def body(w: pa.DistributedWorker) -> None:
        x = await w.alloc_stacked_tensor(zeros(12).reshape(3, 4))
        await w.run(program, x)
        await w.run(alone, zeros())

    program, alone = gang(3), adder()
    timeline = recorded(program, alone, body=body, devices=3)
    members = [span for span in timeline.kernels if span.gang]
    assert [span.gang for span in members] == [(0, 1, 2)] * 3
    assert all("meeting" not in span.steps for span in timeline.kernels)
    seen = shown(timeline)
    slices = [slice_ for slice_ in seen.slices if slice_.cat == "kernel,gang"]
    assert {slice_.lane for slice_ in slices} == {"device 0", "device 1", "device 2"}
    assert all(slice_.args["gang"] == [0, 1, 2] for slice_ in slices)
    joined = [(one, other) for one, other, name in seen.arrows if name == "gang"]
    assert len(joined) == 2
    assert {slice_.lane for pair in joined for slice_ in pair} == {"device 0", "device 1", "device 2"}
    (single,) = (slice_ for slice_ in seen.slices if slice_.cat == "kernel")
    assert single.name == "add"
    assert len({tuple(seen.way(slice_)[0].args.items()) for slice_ in slices}) == 1  # one submit


def test_each_gang_of_a_dispatch_has_its_own_members() -> None:
    @pa.program(name="twice")
    def twice(orch: pa.Orchestrator, x: Annotated[pa.TensorRef, pa.InOut((3, 4), "int64")]) -> None:
        orch.submit_group(add, [(x[0], 1), (x[1], 1)], devices=[0, 1])
        orch.submit_sub(lambda x: None, x)
        orch.submit_group(add, [(x[1], 1), (x[2], 1)], devices=[1, 2])

    async def body(w: pa.DistributedWorker) -> None:
        await w.run(twice, zeros(12).reshape(3, 4))

    timeline = recorded(twice, body=body, devices=3)
    assert sorted((span.device, span.gang) for span in timeline.kernels) == [(0, (0, 1)), (1, (0, 1)), (1, (1, 2)), (2, (1, 2))]
    joined = [{one.lane, other.lane} for one, other, name in shown(timeline).arrows if name == "gang"]
    assert joined == [{"device 0", "device 1"}, {"device 1", "device 2"}]


def test_what_takes_no_time_stands_beside_what_ends_then() -> None:
    """With a virtual clock a kernel may take no time at all; it still needs no lane of its own."""
    times = (0.0, 1.0), (1.0, 1.0), (1.0, 1.0), (1.0, 2.0)
    spans = tuple(tracing.Span("kernel", 0, run, 0, "k", start, finish, 0.0) for run, (start, finish) in enumerate(times))
    seen = shown(tracing.Timeline("made", 0.0, 2.0, 1, spans, (), (), (), (), ()))
    assert seen.lanes == ["coordinator", "device 0"]
    assert [slice_.args["run"] for slice_ in seen.on("device 0")] == [0, 1, 2, 3]


def test_copies_have_the_lane_of_the_copy_engine() -> None:
    async def body(w: pa.DistributedWorker) -> None:
        here = await w.alloc_tensor((4,), "int64", device=0, init=zeros())
        there = await w.alloc_tensor((4,), "int64", device=1)
        await w.transfer(there, here)
        await w.read(there)

    timeline = recorded(adder(), body=body, devices=2)
    copies = [(span.device, span.name, span.nbytes) for span in timeline.spans if span.kind == "copy"]
    assert copies == [(0, "copy host → 0", 32), (1, "copy 0 → 1", 32), (1, "copy 1 → host", 32)]
    seen = shown(timeline)
    assert [slice_.name for slice_ in seen.on("device 1 copies")] == ["copy 0 → 1", "copy 1 → host"]
    assert [each.name for each in seen.way(seen.on("device 1 copies")[0])] == [
        "Copy 32 B",
        "Dispatch copy 0 → 1",
        "copy 0 → 1",
        "Completed copy 0 → 1",
    ]


@pytest.mark.parametrize("backend", ["inline", "thread", "process"])
async def test_every_backend_measures_by_the_clock_of_the_loop(backend: str) -> None:
    """Also where the device is another process: handed over, begun, ended and heard of, in this order."""
    program, trace = adder(1), tracing.Recorder()
    async with worker(program, devices=2, backend=backend, trace=trace) as w:
        tensor = await w.alloc_tensor((1 << 18,), "int64", device=1)
        for _ in range(3):
            await w.run(program, tensor)
        await w.read(tensor)
    timeline = trace.timeline()
    answers = {passage.span: passage.at for passage in timeline.passages if passage.step == "answer"}
    assert len(answers) == len(timeline.spans) == 4
    for number, span in enumerate(timeline.spans):
        assert timeline.start <= span.dispatched <= span.start <= span.finish <= answers[number] <= timeline.finish
    seen = shown(timeline)
    assert all(len(seen.way(slice_)) == 4 for lane in ("device 1", "device 1 copies") for slice_ in seen.on(lane))


async def test_copies_run_beside_a_kernel_and_each_other() -> None:
    """On threads: small copies are done in the loop, large ones by the copy engine, while a kernel occupies the device."""
    gate, trace = Gate(), tracing.Recorder()
    async with worker(gate.program, trace=trace) as w:
        held = w.submit_nowait(gate.program, zeros())
        await gate.at.wait()
        large = await w.alloc_tensor((1 << 18,), "int64")
        small = await w.alloc_tensor((4,), "int64")
        await asyncio.gather(w.read(large), w.read(small), w.read(large))
        gate.open()
        await held
    timeline = trace.timeline()
    shown(timeline)
    copies = [span for span in timeline.spans if span.kind == "copy"]
    (kernel,) = timeline.kernels
    assert len(copies) == 3
    assert all(kernel.start < copy.start and copy.finish < kernel.finish for copy in copies)


async def test_a_dispatch_is_queued_until_it_is_handed_over_and_a_copy_waits_for_what_it_conflicts_with() -> None:
    gate, add_one, trace = Gate(), adder(), tracing.Recorder()
    async with worker(gate.program, add_one, in_flight=1, trace=trace) as w:
        x = await w.alloc_tensor((4,), "int64")
        held = w.submit_nowait(gate.program, x)
        await gate.at.wait()
        behind = [w.submit_nowait(add_one, zeros(), priority=number) for number in range(2)]
        reading = asyncio.create_task(w.read(x))
        await asyncio.sleep(0)
        gate.open()
        await asyncio.gather(held, *behind, reading)
    timeline = trace.timeline()
    waits = {(wait.name, wait.run): wait for wait in timeline.waits}
    for handle, priority in zip(behind, range(2), strict=True):
        wait = waits["add", handle.run_id]
        (span,) = timeline.of(handle.run_id)
        assert wait.start <= wait.finish <= span.dispatched <= span.start
        assert (wait.outcome, wait.priority) == ("running", priority)
    (copying,) = (wait for wait in timeline.waits if wait.operation and wait.name == "copy")
    assert copying.finish >= timeline.kernels[0].finish > copying.start
    names = [name for name, *_ in shown(timeline).waits]
    assert sorted(set(names)) == ["queued: add", "queued: gate", "waiting: copy"]


def test_what_happens_at_one_virtual_time_keeps_its_order() -> None:
    """All of a turn happens at one time; on the lanes it stands nanoseconds apart, so that arrows can bind."""

    async def body(w: pa.DistributedWorker) -> None:
        await asyncio.gather(*(w.run(program, zeros()) for _ in range(200)))

    program = adder()
    seen = shown(recorded(program, body=body))
    runs = [slice_.args["run"] for slice_ in seen.on("device 0")]
    assert runs == sorted(runs)
    assert len(runs) == 200
    for run in seen.on("device 0"):
        submit, dispatch, _, completed = seen.way(run)
        assert submit.start < dispatch.start < run.start < run.finish <= completed.start
    assert seen.on("device 0")[-1].finish < 2000  # ns


def test_the_name_of_a_part_says_what_it_does() -> None:
    @pa.program(name="model")
    def model(orch: pa.Orchestrator, x: Vec) -> None:
        for _ in range(28):
            orch.submit(add, x, 1, device=0)
        orch.submit_sub(lambda x: None, x)
        for number in range(15):
            orch.submit(first if number % 2 else add, x, 1, device=0)

    @pa.kernel
    def first(x: pa.InOutArray, value: int) -> None:
        pass

    async def body(w: pa.DistributedWorker) -> None:
        await w.run(model, zeros())

    before, called, after = recorded(model, body=body).spans
    assert (before.name, before.steps) == ("model: add ×28", ("add ×28",))
    assert called.name.startswith("model: ")
    assert after.name == "model: add …"
    assert after.steps[-1] == "… 3 more"
