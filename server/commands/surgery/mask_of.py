"""`coe mask-of`: mask recovery, a published specialist as a mask of its parent, by its router's rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .._errors import clear_errors
from ._shared import progress_bars, say

if TYPE_CHECKING:
    from coe.surgery.parent import Parent
    from coe.surgery.recover.recover import Recovered
_KEPT = "What was fetched of the specialist is kept, and the same command goes on with it."


def mask_of(
    specialist: Annotated[
        str,
        typer.Argument(
            help="The specialist's GGUF; of a split one, its first part. Or one on the hub: hf:OWNER/REPO, "
            "hf:OWNER/REPO/FILE.gguf, hf:OWNER/REPO/PATTERN."
        ),
    ],
    parent: Annotated[Path, typer.Option(help="The parent's GGUF; of a split one, its first part.")],
    out: Annotated[Path, typer.Option("--output", "-o", help="Where the mask is written.")] = Path("mask.json"),
    nearest: Annotated[
        float | None,
        typer.Option(
            help="Take rows for the parent's whose cosine is at least this, such as 0.99, where they are not the same: "
            "for a specialist of another checkpoint."
        ),
    ] = None,
    token: Annotated[str | None, typer.Option(envvar="HF_TOKEN", help="Access token of the model hub.")] = None,
) -> None:
    """Find out which experts of its parent a published specialist keeps, and write that as a mask.

    Of a model on the hub only the header and the router are fetched, some MiB of many GiB.
    """
    with clear_errors(f"The old mask, if there was one, is as it was. {_KEPT}"):
        from coe.surgery.files import require_output
        from coe.surgery.parent import Parent
        from coe.surgery.recover.recover import recover

        from ..pull.files import HUB

        whole = Parent.open(parent)
        if specialist.startswith(HUB):
            require_output(out, whole.paths)
            _of_the_hub(specialist, whole, out, nearest, token)
        else:
            require_output(out, [Path(specialist), *whole.paths])
            with progress_bars() as bars:
                found = recover(whole, Path(specialist), nearest=nearest, progress=bars.staged)
            found.mask.save(out)
            _tell(found, out, parent)


def _of_the_hub(address: str, parent: Parent, out: Path, nearest: float | None, token: str | None) -> None:
    from coe.engine.units import size_text

    from ..pull.download import hub_endpoint
    from ..pull.files import COMMAND_LINE, hub_address
    from ..pull.published import Hub, fetch_mask, find_published

    hub = Hub(hub_endpoint(), token, COMMAND_LINE)
    model = find_published(hub, hub_address(address))
    with progress_bars() as bars:
        fetched = fetch_mask(
            hub,
            model,
            parent,
            lambda found: found.mask.save(out),
            nearest=nearest,
            on_bytes=lambda done, total: bars.tell("fetch", done, total),
            on_stage=bars.staged,
        )
    say(f"{size_text(fetched.n_bytes)} of {size_text(model.size_bytes)} were fetched of {model.repo}.")
    _tell(fetched.recovered, out, parent.path)


def _tell(found: Recovered, out: Path, parent: Path) -> None:
    from coe.surgery.recover.recover import Quantisation

    mask = found.mask
    how = "to the byte" if found.lowest_cosine is None else f"by nearness, the lowest cosine {found.lowest_cosine:.6f}"
    say(
        f"{out}: {mask.n_keep} of {mask.parent.n_expert} experts in {len(mask.parent.layers)} layers of "
        f"{mask.parent.name}; the router's rows were found {how}."
    )
    match found.quantisation:
        case Quantisation.SAME:
            whole = not found.differences and all(scale.cancelled for scale in found.scales)
            say(f"One expert was compared: the same bytes.{' The mask makes that specialist again.' if whole else ''}")
        case Quantisation.OTHER:
            say("One expert was compared: the same experts; with the mask they are in your parent's quantisation.")
        case Quantisation.UNKNOWN:
            say("No expert could be compared: the two files hold none in types that can be read here.")
    if found.differences:
        say(f"{len(found.differences)} other weights are not the parent's, and are the parent's with the mask.")
    for note in found.notes:
        say(note)
    say(f"Next: `mask: {out}` in a roster, or coe cut {parent} {out} -o SPECIALIST.gguf")
