"""Compiled programs as directories that stand on their own: a manifest and the program's source file."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import FunctionType
from typing import Any

import msgspec

from pypto_actors.config import DistributedConfig
from pypto_actors.digest import digest_of, files_of
from pypto_actors.errors import ProgramError, ProgramLoadError
from pypto_actors.loading import entry_of, load_content
from pypto_actors.program import Program
from pypto_actors.sources import SourceFile, is_installed, source_path

FORMAT = "pypto_actors.program"
VERSION = 1
MANIFEST = "manifest.json"
SOURCE = "program.py"
AGAIN = "save the program again"


class Header(msgspec.Struct, frozen=True):
    """What every version of the format says."""

    format: str
    version: int


class Manifest(msgspec.Struct, frozen=True):
    """What a directory says of itself. `files` maps each file to the SHA-256 of its bytes."""

    format: str
    version: int
    name: str  # of the program, or of its variable where two programs have one name
    digest: str
    config: dict[str, Any]
    files: dict[str, str]


def save(program: Program, config: DistributedConfig, directory: str | os.PathLike[str]) -> None:
    """Write a directory that stands on its own; it appears whole, or not at all, and replaces an earlier one of ours.

    Raises:
        ProgramError: the program is not one of an importable file, it needs other files of its project, or the directory holds
            something else.
        OSError: the directory cannot be written.
    """
    digest = digest_of(program, config)
    source = _only_file(program, files_of(program))
    name = _name_in_file(program)
    target = Path(os.path.realpath(directory))
    if target.exists() and not _may_replace(target):
        raise ProgramError(f"{target} exists and is no directory of a saved program alone; name a new or an empty directory")
    settings = {
        "device_ids": [int(one) for one in config.device_ids],
        "num_sub_workers": config.num_sub_workers,
        "platform": config.platform,
        "runtime": config.runtime,
        "memory_bytes": config.memory_bytes,
    }
    manifest = Manifest(FORMAT, VERSION, name, digest, settings, {SOURCE: hashlib.sha256(source.content).hexdigest()})
    target.parent.mkdir(parents=True, exist_ok=True)
    mark = uuid.uuid4().hex[:12]
    made, old = (target.with_name(f".{target.name}.{mark}.{kind}") for kind in ("new", "old"))
    try:
        made.mkdir()
        (made / SOURCE).write_bytes(source.content)
        (made / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest)))
        if target.exists():
            target.rename(old)
        try:
            made.rename(target)
        except BaseException:
            if old.exists():
                old.rename(target)
            raise
    finally:
        shutil.rmtree(made, ignore_errors=True)
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)


def read(directory: str | os.PathLike[str]) -> tuple[Program, DistributedConfig]:
    """Read what `save` wrote. Runs its code: trust the source.

    Raises:
        ProgramLoadError: the directory is damaged, changed or foreign; the text names the file, the fault and the remedy.
    """
    target = Path(directory)
    manifest = _manifest(target)
    file = target / MANIFEST
    if set(manifest.files) != {SOURCE}:
        raise ProgramLoadError(f"{file} lists the files {sorted(manifest.files)}, not {SOURCE!r} alone; {AGAIN}")
    try:
        content = (target / SOURCE).read_bytes()
    except OSError as error:
        raise ProgramLoadError(f"{target / SOURCE} cannot be read: {error.strerror or error}; {AGAIN}") from error
    got, wanted = hashlib.sha256(content).hexdigest(), manifest.files[SOURCE]
    if got != wanted:
        raise ProgramLoadError(f"{target / SOURCE} was changed after it was saved (SHA-256 {got[:12]}…, not {wanted[:12]}…); {AGAIN}")
    try:
        config = DistributedConfig(**manifest.config)
    except (TypeError, ValueError) as error:
        raise ProgramLoadError(f"{file} has a configuration that cannot be used: {error}; {AGAIN}") from error
    program = load_content(target / SOURCE, content, manifest.name)
    try:
        digest = digest_of(program, config)
    except ProgramError as error:
        raise ProgramLoadError(f"{target / SOURCE} has no digest here: {error}; {AGAIN}") from error
    if digest != manifest.digest:
        raise ProgramLoadError(
            f"{file} has another digest than the program beside it: the manifest was changed, or a constant of the program has another "
            f"value here than where it was saved; {AGAIN}"
        )
    return program, config


def _manifest(target: Path) -> Manifest:
    file = target / MANIFEST
    if not target.is_dir():
        raise ProgramLoadError(f"{target} is no such directory; pass one that `save` wrote")
    try:
        content = file.read_bytes()
        header = msgspec.json.decode(content, type=Header)
        if header.format != FORMAT or header.version != VERSION:
            raise ProgramLoadError(
                f"{file} has the format {header.format!r} {header.version}, this package reads {FORMAT!r} {VERSION}; "
                "save the program with this version"
            )
        return msgspec.json.decode(content, type=Manifest)
    except FileNotFoundError:
        raise ProgramLoadError(f"{file} is missing, so {target} is no saved program; pass a directory that `save` wrote") from None
    except OSError as error:
        raise ProgramLoadError(f"{file} cannot be read: {error.strerror or error}; {AGAIN}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProgramLoadError(f"{file} is damaged: {error}; {AGAIN}") from error


def _may_replace(target: Path) -> bool:
    """Is it empty, or a saved program with nothing beside it? Many a directory has a file of the manifest's name."""
    if not target.is_dir():
        return False
    names = {path.name for path in target.iterdir()}
    if not names:
        return True
    try:
        header = msgspec.json.decode((target / MANIFEST).read_bytes(), type=Header)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return False
    return header.format == FORMAT and names <= {MANIFEST, SOURCE, "__pycache__"}


def _name_in_file(program: Program) -> str:
    """By what name the file gives the program when it is loaded again."""
    module = sys.modules[program.function.__module__]
    variables = [variable for variable, value in vars(module).items() if value is program]
    for name in (program.name, *variables):
        try:
            if entry_of(module, "", name) is program:
                return name
        except ProgramLoadError:
            continue
    raise ProgramError(
        f"program {program.name!r} cannot be saved: no variable of its file holds it, so the file would not give it back; "
        "make it a variable of the module, with a name of its own"
    )


def _only_file(program: Program, files: Mapping[Path, SourceFile]) -> SourceFile:
    """The file of the program; a `ProgramError` if it needs others that are not installed."""
    assert isinstance(program.function, FunctionType)  # it has a digest
    source = files[source_path(program.function)]
    others = sorted(path.name for path in files if path != source.path)
    imported = [module for module in source.imports() if not is_installed(module) and _is_there(module)]
    if not others and not imported:
        return source
    named = ", ".join(map(repr, imported or others))
    raise ProgramError(
        f"program {program.name!r} cannot be saved: {source.path.name} imports {named}, which is not installed; "
        "put what it needs into the program's file, or install the other modules as a package"
    )


def _is_there(module: str) -> bool:
    """Was it imported, or can it be? What cannot, as an optional package that is absent, is not needed."""
    if module.startswith("."):
        return True
    try:
        return importlib.util.find_spec(module.partition(".")[0]) is not None
    except (ImportError, ValueError):
        return False
