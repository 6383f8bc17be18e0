"""Models that predict channels of chemical mapping: in which order a layout has them, and rows brought into it.

The authors' layout writes no names down: the place of a row says what it predicts (spec ribonanzanet 8.3). States that
a layout gives are therefore in the published order, whatever order the model was trained with.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from models.errors import ModelError

RIBONANZA = ("2A3", "DMS")  # decoder rows 0 and 1; MultiMolecule's heads a3c and dms
OPENVACCINE = ("reactivity", "deg_Mg_pH10", "deg_pH10", "deg_Mg_50C", "deg_50C")  # of fine-tuned models, five rows
PUBLISHED = (RIBONANZA, OPENVACCINE)
HEAD = ("head.weight", "head.bias")  # [channels, width] and [channels], under our names


def published_order(channels: Sequence[str]) -> tuple[str, ...] | None:
    """The order in which files of the authors have these channels; None where there are no such files."""
    return next((order for order in PUBLISHED if sorted(order) == sorted(channels)), None)


def of_outputs(count: int) -> tuple[str, ...] | None:
    """What ``count`` rows without names predict, by convention; None where there is none."""
    return next((order for order in PUBLISHED if len(order) == count), None)


def reordered(state: dict[str, Tensor], channels: Sequence[str], wanted: Sequence[str]) -> dict[str, Tensor]:
    """The state with the rows ``wanted``, in that order, of a head whose rows are ``channels``.

    Raises ModelError if a wanted channel is not among them.
    """
    missing = [name for name in wanted if name not in channels]
    if missing:
        raise ModelError(f"the model predicts {', '.join(channels)}, not {', '.join(missing)}")
    rows = [list(channels).index(name) for name in wanted]
    return {**state, **{key: state[key][rows] for key in HEAD}}


def as_published(
    state: dict[str, Tensor], channels: Sequence[str], orders: Sequence[tuple[str, ...]] = PUBLISHED
) -> dict[str, Tensor]:
    """The state in the published order, by name. Without ``channels`` it is taken to be in that order.

    Raises ModelError for channels that are none of ``orders``.
    """
    if not channels:
        return state
    order = published_order(channels)
    if order is None or order not in orders:
        told = " or ".join(", ".join(one) for one in orders)
        raise ModelError(
            f"this layout is for models that predict {told}, but this one predicts {', '.join(channels)}; release it "
            "in our own layout (rnafoundry)"
        )
    return reordered(state, channels, order)
