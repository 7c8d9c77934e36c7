"""The command line, and what is wrong with it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from examples.qwen3.errors import OptionError, PromptError
from examples.qwen3.options import BUNDLED, parse
from tests.qwen3.support import ROOT


def test_defaults_are_greedy_on_the_bundled_model() -> None:
    options = parse(["--prompt", "x"])
    assert (options.model, options.temperature, options.backend) == (BUNDLED, 0, "thread")
    assert parse(["--prompt-ids", "1, 2,3"]).prompt_ids == [1, 2, 3]


def test_asking_for_top_k_or_top_p_asks_for_draws() -> None:
    assert parse(["--prompt", "x", "--top-k", "5"]).temperature == 1
    assert parse(["--prompt", "x", "--top-p", "0.5"]).temperature == 1
    assert parse(["--prompt", "x", "--top-k", "5", "--temperature", "0"]).temperature == 0


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--temperature", "-1"], "--temperature -1"),
        (["--temperature", "hot"], "--temperature 'hot'"),
        (["--temperature", "nan"], "--temperature nan"),
        (["--temperature", "inf"], "--temperature inf"),
        (["--top-k", "-1"], "--top-k -1"),
        (["--top-k", "2.5"], "--top-k '2.5'"),
        (["--top-p", "0"], "--top-p 0"),
        (["--top-p", "1.5"], "--top-p 1.5"),
        (["--devices", "257"], "--devices 257 is too many, since each is a thread or a process here; give at most 256"),
        (["--devices", str(10**20)], f"--devices {10**20} is too many"),
        (["--blas-threads", "0"], "--blas-threads 0"),
        (["--blas-threads", "65"], "--blas-threads 65 is too many; give as many as there are idle cores, and at most 64"),
        (["--blas-threads", str(10**20)], f"--blas-threads {10**20} is too many"),
        (["--seed", "-4"], "--seed -4"),
        (["--seed", "x"], "--seed 'x'"),
        (["--max-tokens", "0"], "--max-tokens 0"),
        (["--max-tokens", "9" * 5000], "--max-tokens"),
        (["--backend", "gpu"], "--backend 'gpu'"),
        (["--max-tok", "3"], "--max-tok"),
        (["--model"], "--model"),
        (["--prompt-ids", "1"], "not allowed with argument"),
        (["extra"], "extra"),
    ],
)
def test_a_bad_value_is_named_in_one_line(more: list[str], named: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse(["--prompt", "x", *more])
    assert named in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_prompt_is_needed() -> None:
    with pytest.raises(OptionError, match="--prompt"):
        parse([])


@pytest.mark.parametrize("text", ["a", "1,,2", "1,x", "1.5"])
def test_ids_that_are_none_are_named(text: str) -> None:
    with pytest.raises(PromptError, match="is no token id"):
        parse(["--prompt-ids", text])


def test_a_target_that_cannot_be_written_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    for target in (tmp_path, tmp_path / "nowhere" / "x.npz", tmp_path / ("x" * 300)):
        with pytest.raises(OptionError, match="--save-logits"):
            parse(["--prompt", "x", "--save-logits", str(target)])
    parse(["--prompt", "x", "--save-logits", str(tmp_path / "x.npz")])
    assert list(tmp_path.iterdir()) == []


def test_the_check_of_a_target_only_looks(tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to("later.npz")
    (tmp_path / "old.npz").write_text("old")
    os.mkfifo(tmp_path / "pipe")  # to open it would wait for a reader
    before = sorted(tmp_path.iterdir())
    for name in ("dangling", "old.npz", "pipe"):
        parse(["--prompt", "x", "--save-logits", str(tmp_path / name)])
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "dangling").is_symlink()
    assert (tmp_path / "old.npz").read_text() == "old"


def test_a_target_is_named_with_the_reason_why_it_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "loop").symlink_to("pool")
    (tmp_path / "pool").symlink_to("loop")
    (tmp_path / "astray").symlink_to("nowhere/x.npz")
    (tmp_path / "old.npz").touch()

    def reason(name: str) -> str:
        with pytest.raises(OptionError) as caught:
            parse(["--prompt", "x", "--save-logits", str(tmp_path / name)])
        assert len(str(caught.value).splitlines()) == 1
        return str(caught.value)

    assert "it is a directory" in reason("")
    assert "there is no directory" in reason("nowhere/x.npz")
    assert "there is no directory" in reason("astray")
    assert "embedded null" in reason("a\0b")
    assert "symbolic links" in reason("loop")
    refused = {tmp_path / "old.npz"}
    monkeypatch.setattr(os, "access", lambda path, mode: path not in refused)  # root may write everywhere
    assert "it may not be written" in reason("old.npz")
    parse(["--prompt", "x", "--save-logits", str(tmp_path / "new.npz")])
    refused.add(tmp_path)
    assert "it may not be written" in reason("new.npz")


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="needs /dev/fd")
def test_an_open_pipe_is_a_target(monkeypatch: pytest.MonkeyPatch) -> None:
    there, gone = os.pipe()
    monkeypatch.setattr(os, "access", lambda path, mode: path == Path(f"/dev/fd/{gone}"))  # others may not write beside it
    parse(["--prompt", "x", "--save-logits", f"/dev/fd/{gone}"])
    os.close(there)
    os.close(gone)


@pytest.mark.parametrize(("first", "second"), [("--save-logits", "--trace"), ("--save-logits", "--plot"), ("--trace", "--plot")])
def test_one_file_for_two_is_refused(first: str, second: str, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "./file", "../" + tmp_path.name + "/file", "link"):
        with pytest.raises(OptionError, match=f"{second} .*: {first} writes that file already; name another one"):
            parse(["--prompt", "x", first, str(tmp_path / "file"), second, f"{tmp_path}/{name}"])
    parse(["--prompt", "x", first, str(tmp_path / "file"), second, str(tmp_path / "other")])


def test_help_is_printed_also_where_nobody_reads_it_or_a_character_is_missing() -> None:
    command = [sys.executable, "-m", "examples.qwen3.generate", "--help"]
    there, gone = os.pipe()
    os.close(there)
    with open(gone, "wb") as closed:
        done = subprocess.run(command, cwd=ROOT, stdout=closed, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, cwd=ROOT, env=ascii_only, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"--save-logits" in done.stdout
