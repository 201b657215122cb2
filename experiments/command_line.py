"""The front door of every command: flags, config overrides, and errors a person can act on.

A command declares its flags at the top, imports what is slow inside its main, and ends with run_main:

    CONFIG = command_line.define_config()
    WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run", required=True)

    def main(arguments: list[str]) -> None:
        from transformer_jax.training import loop
        ...

    if __name__ == "__main__":
        command_line.run_main(main)

It is then started with `--config=FILE.py:ARGUMENT --config.SECTION.KEY=VALUE --workdir=FOLDER`. Every mistake
in these ends with one line on stderr and exit status 2, before main is called.
"""

import contextlib
import difflib
import errno
import inspect
import os
import re
import runpy
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from transformer_jax.config import suggest
from transformer_jax.errors import RESUME, UserError

INTERRUPTED = RESUME
FULL = os.strerror(errno.ENOSPC)
DEFAULTS = {
    "translation": "parallel_text.py",
    "language_model": "language_model.py:files",
    "masked_lm": "masked_lm.py:files",
    "classification": "classification.py:sentences",
}
OVERRIDE = re.compile(r"--?(?P<no>no)?config\.(?P<path>[^=]+)(=(?P<value>.*))?$", re.DOTALL)


def define_config(flag_values: flags.FlagValues = flags.FLAGS) -> flags.FlagHolder[ConfigDict]:
    """Declares --config and its overrides --config.SECTION.KEY=VALUE; .value is a locked ConfigDict."""
    holder = config_flags.DEFINE_config_file(
        "config", None, "what to run: FILE.py or FILE.py:ARGUMENT", flag_values, sys_argv=_argv
    )
    flags.mark_flag_as_required("config", flag_values)
    return holder


def define_distributed() -> flags.FlagHolder[bool | None]:
    """Declares --distributed, for `transformer_jax.distributed.start`."""
    return flags.DEFINE_bool(
        "distributed", None, "be one of several processes: if not given, where the environment shows a job of several"
    )


def define_target() -> flags.FlagHolder[str | None]:
    """Declares --target, for `transformer_jax.host.prepare_target` and `transformer_jax.analysis.targets`."""
    return flags.DEFINE_string(
        "target", None, "compile for GPUs that are not here: a100, h100 or h200, or so many in one machine, as h100:8"
    )


def load_config(spec: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """The config of FILE.py or FILE.py:ARGUMENT with dotted overrides such as "model.num_heads=8" applied.

    Raises:
      UserError: as a command would print it.
    """
    flag_values = flags.FlagValues()
    holder = define_config(flag_values)
    parse([f"--config={spec}", *(f"--config.{override}" for override in overrides)], (), flag_values)
    return holder.value


def default_config(family: str) -> ConfigDict:
    """What the config of a run made of another toolkit's checkpoint says where the checkpoint is silent."""
    return load_config(str(Path(__file__).resolve().parents[1] / "configs" / DEFAULTS[family]))


def parse(
    argv: Sequence[str], positional: Sequence[str] = (), flag_values: flags.FlagValues = flags.FLAGS
) -> list[str]:
    """Parses the words after the command's name into flag_values; returns the positional ones.

    Args:
      positional: names of the positional arguments; a last name ending in "..." takes one or more.

    Raises:
      UserError: anything in argv that is not as declared.
    """
    config = None
    if "config" in flag_values:
        spec = _value_of("config", argv)
        if not spec:
            raise UserError("--config is required: --config=FILE.py or --config=FILE.py:ARGUMENT.")
        config = read_config_file(spec)
        _check_overrides(argv, config)
    _argv[:] = ["", *argv]
    try:
        found = flag_values(_argv)[1:]
    except flags.Error as error:
        raise UserError(_explain(str(error), config)) from error
    many = bool(positional) and positional[-1].endswith("...")
    if len(found) < len(positional) or (len(found) > len(positional) and not many):
        wanted = " ".join(positional) or "flags only"
        raise UserError(f"The arguments given are {' '.join(found) or 'none'}; wanted: {wanted}. See --help.")
    return found


def read_config_file(spec: str) -> ConfigDict:
    """Runs get_config of a config file FILE.py, or get_config(ARGUMENT) for FILE.py:ARGUMENT."""
    name, colon, argument = spec.partition(":")
    path = Path(name)
    if not path.is_file():
        others = [str(file) for file in path.parent.glob("*.py")] if path.parent.is_dir() else []
        near = difflib.get_close_matches(name, others, n=1)
        advice = f"Did you mean {near[0]}?" if near else f"Config files there: {', '.join(sorted(others)) or 'none'}."
        raise UserError(f"--config={spec}: there is no file {name!r}. {advice}")
    try:
        get_config = runpy.run_path(name).get("get_config")
        if get_config is None:
            raise UserError(f"--config={spec}: {name} defines no function get_config.")
        try:
            inspect.signature(get_config).bind(*[argument] * bool(colon))
        except TypeError:
            form = f"takes no argument: use --config={name}" if colon else f"needs one: use --config={name}:ARGUMENT"
            raise UserError(f"--config={spec}: get_config of this file {form}.") from None
        config = get_config(argument) if colon else get_config()
    except (UserError, KeyboardInterrupt):
        raise
    except Exception as error:  # a config file is the user's own program: whatever it raises is told as its error
        raise UserError(f"--config={spec}: {where(error, name)}: {type(error).__name__}: {error}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"--config={spec}: get_config returns {type(config).__name__}, ConfigDict is wanted.")
    return config.lock()


def run_main(
    main: Callable[[list[str]], int | None], positional: Sequence[str] = (), argv: Sequence[str] | None = None
) -> None:
    """Parses the command line, calls main with the positional arguments, and exits with its status.

    Exit status: main's own (None is 0), that of a UserError (2, or 3 for a run that cannot go on), 2 where a disk is
    full, 130 after Ctrl-C.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if {"--help", "-h", "-help"} & set(words):
        print(_help(main, positional))
        sys.exit(0)
    try:
        sys.exit(main(parse(words, positional)))
    except UserError as error:
        print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
        sys.exit(error.status)
    except KeyboardInterrupt:
        print(f"{Path(sys.argv[0]).name}: interrupted", file=sys.stderr, flush=True)
        with contextlib.suppress(OSError):  # who read it has gone
            sys.stdout.flush()
        os._exit(130)  # an end in good order would take XLA's memory from under the computation that it still is in
    except (OSError, RuntimeError) as error:  # from any library that writes datasets, caches or results
        if FULL not in str(error):
            raise
        told = " ".join(str(error).split())
        print(
            f"{Path(sys.argv[0]).name}: error: the disk is full: {told}. Make room and run the same command again.",
            file=sys.stderr,
        )
        sys.exit(UserError.status)


# What config_flags takes for the command line: it looks there for overrides while --config is parsed.
_argv: list[str] = []


def _value_of(name: str, argv: Sequence[str]) -> str | None:
    """The value of a flag's last occurrence, written --name=value or --name value."""
    value = None
    for i, word in enumerate(argv):
        if word == "--":
            break
        if match := re.match(rf"--?{name}=(.*)$", word, re.DOTALL):
            value = match[1]
        elif re.fullmatch(rf"--?{name}", word) and i + 1 < len(argv):
            value = argv[i + 1]
    return value


def _check_overrides(argv: Sequence[str], config: ConfigDict) -> None:
    """Finds what config_flags would accept in silence or answer with a traceback."""
    for word in argv:
        if word == "--":
            break
        match = OVERRIDE.match(word)
        if not match:
            continue
        *sections, key = match["path"].split(".")
        node: Any = config
        for depth, part in enumerate([*sections, key]):
            where = ".".join(["config", *sections[:depth]])
            if not isinstance(node, ConfigDict):
                raise UserError(f"{word}: {where} is {node!r}, it has no key {part}.")
            if part not in node:
                raise UserError(f"{word}: there is no key {part} in {where}. {suggest(part, node.keys())}")
            section, node = node, node[part]
        if isinstance(node, ConfigDict):
            raise UserError(f"{word}: {key} is a section; set one of its keys: {', '.join(node.keys())}.")
        kind = section.get_type(key)
        if kind is type(None):
            raise UserError(f"{word}: this None has no type; the config file must make it a placeholder(type).")
        if kind is str and match["value"] == "None":
            raise UserError(f"{word}: this would be the text 'None'; for no text leave the value empty.")


def _explain(message: str, config: ConfigDict | None) -> str:
    """Names the type an override must have; other messages of the flags library are clear enough."""
    match = re.match(r"flag --(?P<name>[\w.]+)=(?P<value>.*?): ", message, re.DOTALL)
    if match and match["name"].startswith("config.") and config is not None:
        *sections, key = match["name"].split(".")[1:]
        section = config
        for name in sections:
            section = section[name]
        wanted = f"{section.get_type(key).__name__} is wanted (the config has {section[key]!r})"
        return f"--{match['name']}={match['value']}: {wanted}."
    if match and message.endswith("must have a value other than None."):
        return f"--{match['name']} is required."
    return " ".join(message.split())


def where(error: Exception, name: str) -> str:
    """FILE:LINE of the innermost line of the config file in the error's traceback."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == name]
    return f"{name}:{lines[-1]}" if lines else name


def _help(main: Callable[..., Any], positional: Sequence[str]) -> str:
    modules = [main.__module__, *(name for name in sys.modules if name.startswith("experiments."))]
    own = [flags.FLAGS.get_key_flags_for_module(module) for module in modules]
    lines = [
        inspect.getdoc(sys.modules[main.__module__]) or "",
        "",
        f"Arguments: {' '.join(positional) or 'none'}",
    ]
    for flag in sorted({flag.name: flag for group in own for flag in group}.values(), key=lambda flag: flag.name):
        lines.append(f"  --{flag.name}: {flag.help} (default: {flag.default})")
    return "\n".join(lines)
