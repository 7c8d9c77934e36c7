"""Compiled programs as directories that stand on their own: a manifest and the program's source file."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from pypto_actors.config import DistributedConfig
from pypto_actors.digest import digest_of, files_of, is_installed
from pypto_actors.errors import ProgramError, ProgramLoadError
from pypto_actors.loading import load_program
from pypto_actors.program import Program

FORMAT = "pypto_actors.program"
VERSION = 1
MANIFEST = "manifest.json"
SOURCE = "program.py"


class Manifest(msgspec.Struct, frozen=True):
    """What a directory says of itself. `files` maps each file to the SHA-256 of its bytes."""

    format: str
    version: int
    name: str
    digest: str
    config: dict[str, Any]
    files: dict[str, str]


def save(program: Program, config: DistributedConfig, directory: str | os.PathLike[str]) -> None:
    """Write a directory that stands on its own; it appears whole, or not at all, and replaces an earlier one of ours.

    Raises:
        ProgramError: the program is not one of an importable file, it needs other files of its project, or the directory holds
            something else.
    """
    digest = digest_of(program, config)
    files = sorted(files_of(program))
    source = _only_file(program, files)
    target = Path(directory)
    if target.exists() and not (target.is_dir() and ((target / MANIFEST).is_file() or not any(target.iterdir()))):
        raise ProgramError(f"{target} exists and holds no saved program; name a new or an empty directory")
    settings = {
        "device_ids": [int(one) for one in config.device_ids],
        "num_sub_workers": config.num_sub_workers,
        "platform": config.platform,
        "runtime": config.runtime,
        "memory_bytes": config.memory_bytes,
    }
    content = source.read_bytes()
    manifest = Manifest(FORMAT, VERSION, program.name, digest, settings, {SOURCE: hashlib.sha256(content).hexdigest()})
    target.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        (made / SOURCE).write_bytes(content)
        (made / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest)))
        made.chmod(0o755)
        if target.exists():
            shutil.rmtree(target)
        made.rename(target)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


def read(directory: str | os.PathLike[str]) -> tuple[Program, DistributedConfig]:
    """Read what `save` wrote. Runs its code: trust the source.

    Raises:
        ProgramLoadError: the directory is damaged, changed or foreign; the text names the file, the fault and the remedy.
    """
    target = Path(directory)
    manifest = _manifest(target)
    for name, wanted in manifest.files.items():
        file = target / name
        if Path(name).name != name:
            raise ProgramLoadError(f"{target / MANIFEST} names the file {name!r} outside its directory; save the program again")
        try:
            got = hashlib.sha256(file.read_bytes()).hexdigest()
        except OSError as error:
            raise ProgramLoadError(f"{file} cannot be read: {error.strerror or error}; save the program again") from error
        if got != wanted:
            raise ProgramLoadError(
                f"{file} was changed after it was saved (SHA-256 {got[:12]}…, not {wanted[:12]}…); save the program again"
            )
    if SOURCE not in manifest.files:
        raise ProgramLoadError(f"{target / MANIFEST} lists no {SOURCE}; save the program again")
    try:
        config = DistributedConfig(**manifest.config)
    except (TypeError, ValueError) as error:
        raise ProgramLoadError(f"{target / MANIFEST} has a configuration that cannot be used: {error}; save the program again") from error
    program = load_program(target / SOURCE, manifest.name)
    if digest_of(program, config) != manifest.digest:
        raise ProgramLoadError(f"{target / MANIFEST} has another digest than the program beside it; save the program again")
    return program, config


def _manifest(target: Path) -> Manifest:
    file = target / MANIFEST
    if not target.is_dir():
        raise ProgramLoadError(f"{target}: no such directory; pass one that `save` wrote")
    try:
        manifest = msgspec.json.decode(file.read_bytes(), type=Manifest)
    except FileNotFoundError:
        raise ProgramLoadError(f"{file} is missing, so {target} is no saved program; pass a directory that `save` wrote") from None
    except OSError as error:
        raise ProgramLoadError(f"{file} cannot be read: {error.strerror or error}; save the program again") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProgramLoadError(f"{file} is damaged: {error}; save the program again") from error
    if manifest.format != FORMAT or manifest.version != VERSION:
        raise ProgramLoadError(
            f"{file} has the format {manifest.format!r} {manifest.version}, this package reads {FORMAT!r} {VERSION}; "
            "save the program with this version"
        )
    return manifest


def _only_file(program: Program, files: list[Path]) -> Path:
    """The file of the program; a `ProgramError` if it needs others that are not installed."""
    source = Path(program.function.__code__.co_filename).resolve()
    for file in files:
        if file != source:
            raise ProgramError(
                f"program {program.name!r} cannot be saved: it needs {file.name}, another file of its project; "
                "put its kernels into the program's file, or install the other module as a package"
            )
    for module in _imports(source):
        try:
            spec = importlib.util.find_spec(module)
        except (ImportError, ValueError):
            spec = None
        if spec is not None and not is_installed(module):
            raise ProgramError(
                f"program {program.name!r} cannot be saved: {source.name} imports {module!r}, which is not installed; "
                "remove the import, or install the module as a package"
            )
    return source


def _imports(file: Path) -> list[str]:
    tree = ast.parse(file.read_bytes())
    modules = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    modules += [("." * node.level) + (node.module or "") for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return sorted({module.partition(".")[0] or module for module in modules})
