"""Configuration files checked against a dataclass schema, with one sentence for every mistake.

The schema is a dataclass (through OmegaConf); a YAML file and then `key=value` arguments override its defaults.
A mistake names the file or the argument, the full key, and the nearest valid key or the expected type.
A field that is a list of dataclasses is given as a list in a file, and `field.0.key=value` sets one key of one entry.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

from data.errors import DataError

COMMAND_LINE = "the command line"
CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def find(name: str) -> Path:
    """The configuration file called ``name``: a path, or a name looked up in ``configs/`` (`.yaml` may be left out)."""
    for candidate in (Path(name), CONFIGS / name, Path(f"{name}.yaml"), CONFIGS / f"{name}.yaml"):
        if candidate.is_file():
            return candidate
    available = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml"))
    near = difflib.get_close_matches(name, available, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"configs/ holds {', '.join(available)}"
    raise DataError(f"there is no configuration {name}, neither as a path nor in configs/; {hint}")


def read_yaml(path: Path) -> DictConfig:
    """A YAML file as a mapping; DataError names the line that is not YAML."""
    try:
        content = OmegaConf.load(path)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not a readable YAML file: {' '.join(str(error).split())}") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check the path of the configuration") from error
    if content is None or (OmegaConf.is_list(content) and len(content) == 0):
        return OmegaConf.create({})
    if not OmegaConf.is_dict(content):
        raise DataError(f"{path} must hold `key: value` pairs at its top, not a list or a single value")
    assert isinstance(content, DictConfig)
    return content


def read_overrides(arguments: Sequence[str]) -> DictConfig:
    """`section.key=value` arguments as a mapping. A value is read as YAML, so lists and null work.

    `list[0].key=value` is the same as `list.0.key=value`: a mapping of numbers to entries, which `merge` understands.
    """
    plain = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or not re.match(r"^[A-Za-z_][\w.\-]*(\[\d+\][\w.\-]*)*$", key):
            raise DataError(f"the argument {argument!r} is not understood; settings are given as section.key=value")
        plain.append(re.sub(r"\[(\d+)\]", r".\1", key) + "=" + value)
    try:
        return OmegaConf.from_dotlist(plain)
    except (OmegaConfBaseException, YAMLError) as error:
        raise DataError(
            f"the arguments {' '.join(arguments)} cannot be read: {' '.join(str(error).split())}"
        ) from error


def load(schema: Any, file: str | Path | None, overrides: Sequence[str], given: Mapping[str, Any]) -> Any:
    """Schema defaults < YAML file < ``given`` < ``key=value`` overrides. Raises DataError."""
    layers: list[tuple[str, Any]] = [] if file is None else [(str(file), read_yaml(Path(file)))]
    layers += [(COMMAND_LINE, OmegaConf.create(dict(given)))] if given else []
    return merge(schema, [*layers, (COMMAND_LINE, read_overrides(overrides))])


def named(file: str | Path | None) -> str:
    """How an error calls what a configuration came from."""
    return COMMAND_LINE if file is None else str(file)


def merge(schema: Any, layers: Sequence[tuple[str, Any]], prefix: str = "", also: Sequence[str] = ()) -> Any:
    """The dataclass instance ``schema`` with each (origin, mapping) of ``layers`` laid over it, as a new instance.

    origin names the layer in messages (a file, or "the command line"); prefix is the section the schema stands in, and
    ``also`` names keys of that section that the caller reads itself, so that messages can suggest them.
    Raises DataError for an unknown key, a value of the wrong type, or a mandatory value that no layer gives.
    """
    config = OmegaConf.structured(schema)
    valid = [prefix + name for name in (*all_keys(schema), *also)]
    open_keys: set[str] = set()  # those that a layer says must be given (???) and that none after it has given
    for origin, layer in layers:
        _require_sections(schema, layer, origin, prefix)
        open_keys = {key for key in open_keys if not _gives(layer, key)} | _left_open(layer)
        layer = _with_whole_lists(schema, config, layer, origin, prefix)
        try:
            config = OmegaConf.merge(config, layer)
        except OmegaConfBaseException as error:
            raise DataError(_sentence(error, origin, valid, prefix) + _other_command(layer, valid)) from error
    where = " and ".join(origin for origin, _ in layers) or "the defaults"
    try:
        missing = sorted(OmegaConf.missing_keys(config) | open_keys)
        if missing:
            keys = ", ".join(prefix + key for key in missing)
            raise DataError(f"{where}: {keys} must be given (for example as {prefix}{missing[0]}=VALUE)")
        return OmegaConf.to_object(config)
    except OmegaConfBaseException as error:  # an interpolation to a key that does not exist or has no value
        raise DataError(_sentence(error, where, valid, prefix)) from error


def _other_command(layer: Any, valid: Sequence[str]) -> str:
    """What to add where a whole file was given to the wrong command: a recipe and a corpus's config look alike."""
    for keys, what in ((("model", "objective"), "launch/pretrain.py"), (("sources",), "launch/prepare.py")):
        if all(key in layer and key not in valid for key in keys):
            return f" (the file is for {what})"
    return ""


def _left_open(layer: Any, prefix: str = "") -> set[str]:
    """The keys that a layer spells `???`, also where the schema has a default."""
    found = set()
    for name in layer if OmegaConf.is_dict(layer) else ():
        if OmegaConf.is_missing(layer, name):
            found.add(prefix + str(name))
        elif not OmegaConf.is_interpolation(layer, name):
            found |= _left_open(layer[name], f"{prefix}{name}.")
    return found


def _gives(layer: Any, key: str) -> bool:
    """Whether a layer has the key with a value, null included."""
    name, _, rest = key.partition(".")
    if not OmegaConf.is_dict(layer) or name not in layer.keys() or OmegaConf.is_missing(layer, name):  # noqa: SIM118
        return False
    return not rest or (not OmegaConf.is_interpolation(layer, name) and _gives(layer[name], rest))


def _require_sections(schema: Any, layer: Any, origin: str, prefix: str) -> None:
    """OmegaConf's own message for `batch: 5` does not name the key."""
    for field in dataclasses.fields(schema):
        section = getattr(schema, field.name, None)
        is_schema = dataclasses.is_dataclass(section)
        if not (is_schema or isinstance(section, dict)) or field.name not in layer:
            continue
        if OmegaConf.is_interpolation(layer, field.name):
            continue
        key, part = prefix + field.name, layer[field.name]
        if not OmegaConf.is_dict(part):
            raise DataError(f"{origin}: {key} must be a section of keys, such as {key}.KEY, not {part!r}")
        if is_schema:
            _require_sections(section, part, origin, f"{key}.")


def _with_whole_lists(schema: Any, config: Any, layer: Any, origin: str, prefix: str) -> Any:
    """The layer with `{0: {key: value}}` laid over the list that ``config`` holds so far; entries are checked."""
    for name, entry in _dataclass_lists(schema).items():
        if name not in layer or OmegaConf.is_interpolation(layer, name):
            continue
        key, part = prefix + name, layer[name]
        names = [field.name for field in dataclasses.fields(entry)]
        if OmegaConf.is_dict(part) and part and all(str(number).isdigit() for number in part):
            entries = {int(number): part[number] for number in part}
            known = len(config[name])
            if max(entries) >= known:
                raise DataError(f"{origin}: {key}.{max(entries)}: {key} has {known} entries, numbered from 0")
        elif OmegaConf.is_list(part):
            entries = dict(enumerate(part))
        else:
            raise DataError(f"{origin}: {key} must be a list of entries with {', '.join(names)}, not {part!r}")
        for number, given in entries.items():
            if not OmegaConf.is_dict(given):
                raise DataError(f"{origin}: {key}[{number}] must be an entry with {', '.join(names)}, not {given!r}")
            for found in given:
                if found not in names:
                    near = difflib.get_close_matches(str(found), names, n=1, cutoff=0.0)[0]
                    raise DataError(
                        f"{origin}: there is no key {key}[{number}].{found}; the nearest valid key is "
                        f"{key}[{number}].{near}"
                    )
        if OmegaConf.is_dict(part):
            whole = [cast(dict[str, Any], OmegaConf.to_container(old, resolve=False)) for old in config[name]]
            for number, given in entries.items():
                whole[number].update(given)
            layer = OmegaConf.merge(OmegaConf.masked_copy(layer, [k for k in layer if k != name]), {name: whole})
    return layer


def _dataclass_lists(schema: Any) -> dict[str, type]:
    """The fields of a schema that are lists of a dataclass, with that dataclass."""
    found = {}
    hints = typing.get_type_hints(schema if isinstance(schema, type) else type(schema))
    for name, hint in hints.items():
        entry = next(iter(typing.get_args(hint)), None)
        if typing.get_origin(hint) is list and isinstance(entry, type) and dataclasses.is_dataclass(entry):
            found[name] = entry
    return found


def _sentence(error: OmegaConfBaseException, origin: str, valid: Sequence[str], prefix: str) -> str:
    key = prefix + str(error.full_key or error.key or "")
    if isinstance(error, ConfigKeyError):
        near = difflib.get_close_matches(key, valid, n=1, cutoff=0.5)
        section = key.rpartition(".")[0]
        beside = [name for name in valid if name.rpartition(".")[0] == section]
        if near or not beside:
            near = near or difflib.get_close_matches(key, valid, n=1, cutoff=0.0)
            return f"{origin}: there is no key {key}; the nearest valid key is {near[0]}"
        return f"{origin}: there is no key {key}; valid are {', '.join(beside)}"
    reason = str(error).split("\n")[0].rstrip(".")
    return f"{origin}: {key}: {reason}"


def all_keys(schema: Any, prefix: str = "") -> list[str]:
    """Dotted names of every key of a dataclass schema, sections included."""
    names = []
    for field in dataclasses.fields(schema):
        names.append(prefix + field.name)
        value = getattr(schema, field.name, None)
        if dataclasses.is_dataclass(value):
            names.extend(all_keys(value, f"{prefix}{field.name}."))
    return names
