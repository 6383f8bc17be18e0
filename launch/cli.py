"""What all entry points share: turning a user's mistake into one line.

It imports neither torch nor any of our packages, so `--help` is immediate.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec

if TYPE_CHECKING:
    from pretrain.config import Recipe

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
_USER_ERRORS = (("data.errors", "DataError"), ("models.errors", "ModelError"), ("pretrain.errors", "PretrainError"))

P = ParamSpec("P")


def find_config(name: str) -> Path:
    """`data.structured.find`, whose imports wait until a config is asked for."""
    from data import structured

    return structured.find(name)


def load_recipe(name: str, overrides: Sequence[str]) -> Recipe:
    """`pretrain.recipe.load` where several ranks read the same recipe: of a mistake in it, rank 0 tells."""
    from pretrain import distributed, recipe

    try:
        return recipe.load(name, overrides)
    except distributed.USER_ERRORS as error:
        if distributed.rank_of_environment() > 0:
            raise distributed.OtherRankFailed(str(error)) from error
        raise


def main_guard(main: Callable[P, int | None]) -> Callable[P, int]:
    """Makes ``main`` return an exit code: 2 (or the error's own) and `error: sentence` for our errors, 130 for Ctrl-C.

    Any other exception passes, with its traceback: it is a fault of ours, not of the user.
    """

    @functools.wraps(main)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            return main(*args, **kwargs) or 0
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return EXIT_INTERRUPTED
        except BrokenPipeError:
            # The reader of a pipe, e.g. `head`, has seen enough; Python must not fail again when it flushes at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except Exception as error:
            if not isinstance(error, _user_errors()):
                raise
            if not getattr(error, "told_elsewhere", False):  # on several ranks, one of them tells
                from data.secrets import masked

                print(f"error: {masked(str(error))}", file=sys.stderr)
            return getattr(error, "exit_code", EXIT_USER_ERROR)

    return guarded


def _user_errors() -> tuple[type[Exception], ...]:
    """Our error classes as far as their modules are loaded: one that is not loaded cannot have been raised."""
    loaded = ((sys.modules.get(module), name) for module, name in _USER_ERRORS)
    return tuple(getattr(module, name) for module, name in loaded if module is not None)
