"""The failures of what was accepted, each with a text that says what happened and, where there is one, the mend. Pure."""

from __future__ import annotations

from pypto_actors.errors import (
    DeadlineExceededError,
    DependencyFailedError,
    KernelError,
    PyptoActorsError,
    RunCancelledError,
    shown,
    text_of,
)
from pypto_actors.lifecycle import Failure, Record
from pypto_actors.messages import Failed
from pypto_actors.plan import Sync
from pypto_actors.policy import Policy


def describe(record: Record) -> str:
    if record.plan is None:
        return f"{type(record.message).__name__.lower()} {record.id}"
    return f"dispatch {record.id} of program {record.plan.program!r}"


def cancelled(record: Record, why: str, kind: type[PyptoActorsError] = RunCancelledError) -> Failure:
    return Failure(kind, f"{describe(record)} did not start: {why}")


def expired(record: Record, now: float) -> Failure:
    deadline = record.message.deadline
    return Failure(
        DeadlineExceededError,
        f"{describe(record)} did not start before its deadline: {deadline:.6f} is {now - deadline:.6f} s ago",
    )


def depends(record: Record) -> Failure:
    broken = record.broken
    assert broken is not None
    assert broken.failure is not None
    return Failure(
        DependencyFailedError,
        f"{describe(record)} did not start: {describe(broken)}, which it comes after, {broken.state.value}",
        cause=broken.failure.make(),
    )


def policy_failed(record: Record, policy: Policy, call: str, error: BaseException) -> Failure:
    return Failure(PyptoActorsError, f"{describe(record)} did not start: {shown(policy)}.{call} raised {shown(error)}", cause=error)


def raised(message: Failed, record: Record) -> Failure:
    """A kernel, a callback or a copy raised."""
    error = message.error
    plan = record.plan
    ours = plan is None or message.step < 0  # no function of the user's was at work
    if ours and isinstance(error, PyptoActorsError) and not isinstance(error, KernelError):
        fields = {name: value for name, value in vars(error).items() if not name.startswith("__")}
        return Failure(type(error), str(error), fields, error)
    what = text_of(error)
    if plan is None:
        return Failure(KernelError, f"{describe(record)} failed on device {message.device}: {what}", {}, error)
    part = plan.parts[message.part]
    if part.device < 0:
        callback = part.callback
        name = callback if isinstance(callback, str) else getattr(callback, "__name__", None) or shown(callback)
        return Failure(KernelError, f"callback {name!r} of program {plan.program!r} raised {what}", {"program": plan.program}, error)
    if message.step >= 0:
        kernel, happened = part.steps[message.step].name, "raised"
    else:
        kernel, happened = next(step.name for step in part.steps if not isinstance(step.function, Sync)), "could not be called"
    return Failure(
        KernelError,
        f"kernel {kernel!r} of program {plan.program!r} {happened} on device {message.device}: {what}",
        {"program": plan.program, "kernel": kernel, "device": message.device},
        error,
    )


def raised_by_several(record: Record) -> Failure | None:
    """The failure of a gang of which several members raised: their originals in one group. `None` where there was only one."""
    messages = [message for message in record.raised or () if message.step >= 0 and not message.deserted]
    plan = record.plan
    if plan is None or not messages:
        return None
    messages.sort(key=lambda message: message.device)
    if len(messages) == 1:
        return raised(messages[0], record)
    errors = [message.error for message in messages]
    devices = [message.device for message in messages]
    text = f"{len(messages)} members of program {plan.program!r} raised, on devices {devices}: {shown(errors[0])}, …"
    group = BaseExceptionGroup(text, errors)
    kernel = plan.parts[messages[0].part].steps[messages[0].step].name
    return Failure(KernelError, text, {"program": plan.program, "kernel": kernel, "device": messages[0].device}, group)
