"""The domains of a recipe and their shares: as given, in any unit, or by the size of the text."""

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator

from drpruning.common.errors import shown
from drpruning.recipe.paths import PathText
from drpruning.recipe.section import SHARES_TOLERANCE, NonNegativeFloat, Section


class Domain(Section):
    """One data domain: where its text is and what share of the blocks it gets at first."""

    source: PathText
    """Files of text (a path, glob, folder or address), or the name of a dataset on the Hub."""
    share: NonNegativeFloat | None = None
    """Initial share of the blocks, which all have the same length; shares sum to 1. 0: the domain
    is only evaluated; absent: by `data.smoothing`."""
    text_field: str = "text"
    """The field or column that holds a document's text."""
    where: dict[str, Any] = Field(default_factory=dict)
    """Keep documents whose (dotted) field has this value, or one of these values."""
    validation: PathText | None = None
    """Source of validation text; absent: held out by document from `source`."""
    split: str = "train"
    """The split of a Hub dataset."""
    config: str | None = None
    """The configuration of a Hub dataset."""
    on_exhausted: Literal["repeat", "redistribute", "stop"] = "repeat"
    """Once exhausted: it starts again, the others get its share, or the phase ends."""

    @field_validator("where")
    @classmethod
    def _plain_values(cls, where: dict[str, Any]) -> dict[str, Any]:
        for field, value in where.items():
            values = value if isinstance(value, list) else [value]
            plain = all(isinstance(v, str | int | float) and v == v for v in values)  # noqa: PLR0124
            if not values or not plain:
                raise ValueError(
                    f"where.{field}: write a text, number or boolean, or a list of these, "
                    f"not {shown(value)}"
                )
        return where

    @property
    def trained(self) -> bool:
        """Whether the domain is trained on, not only evaluated."""
        return self.share != 0


def checked_shares(
    domains: dict[str, Domain], *, normalise: bool, smoothing: float | None
) -> dict[str, Domain]:
    """The domains with shares that sum to 1, or that leave something for those without a share.

    Raises:
        ValueError: Shares are missing without `smoothing`, or sum to something else than they must.
    """
    open_names = [name for name, domain in domains.items() if domain.share is None]
    if not open_names:
        if smoothing is not None:
            raise ValueError(
                "every domain has a share, and data.smoothing gives one to those without; leave "
                "data.smoothing out, or the shares that are to follow from the size of the text"
            )
        return _with_shares_of_one(domains, normalise=normalise)
    if smoothing is None:
        raise ValueError(
            f"{open_names[0]} has no share; write one, or data.smoothing, by which domains without "
            "a share get theirs by the size of their text"
        )
    if normalise:
        raise ValueError(
            f"{open_names[0]} has no share, and with data.normalise_shares the others do not say "
            "how much they leave; write shares that sum to less than 1, without normalise_shares"
        )
    given = math.fsum(domain.share or 0.0 for domain in domains.values())
    if given >= 1:
        raise ValueError(
            f"the shares sum to {given:.6g}, which leaves nothing for {', '.join(open_names)}; "
            "write smaller ones"
        )
    return domains


def _with_shares_of_one(domains: dict[str, Domain], *, normalise: bool) -> dict[str, Domain]:
    """The domains with shares that sum to 1.

    Shares that do so within the tolerance stay to the bit, so that a resolved recipe, read again,
    is the same recipe.

    Raises:
        ValueError: Every share is 0, or they sum to something else and are not to be normalised.
    """
    shares = {name: domain.share or 0.0 for name, domain in domains.items()}
    largest = max(shares.values())
    if not largest:
        raise ValueError("every share is 0; give at least one domain a share above 0")
    # Divided by the largest one first: the sum of very large shares would be infinite.
    parts = {name: share / largest for name, share in shares.items()}
    total = math.fsum(parts.values())
    if abs(largest * total - 1) <= SHARES_TOLERANCE:
        return domains
    scaled = {name: part / total for name, part in parts.items()}
    if not normalise:
        text = ", ".join(f"{name}: {share:.6g}" for name, share in scaled.items())
        raise ValueError(
            f"the shares sum to {largest * total:.6g}, not 1; in proportion: {text}; or write "
            "data.normalise_shares: true, which does that"
        )
    if lost := [name for name, share in scaled.items() if shares[name] > 0 == share]:
        raise ValueError(
            f"the share of {lost[0]} is too small beside the others to be told from 0, which "
            "means that it is never trained on; write 0 or a larger share"
        )
    return {
        name: domain.model_copy(update={"share": scaled[name]}) for name, domain in domains.items()
    }


def shares_by_size(
    domains: Mapping[str, Domain], smoothing: float, sizes: Mapping[str, float]
) -> dict[str, Domain]:
    """Give every domain without a share its part of what the others leave.

    The part is proportional to `size ** smoothing`: 1 takes the text as it is, 0 gives equal parts.
    Source: Conneau and Lample, NeurIPS 2019 (arXiv 1901.07291), section 3.1.

    Args:
        domains: The domains of a recipe.
        smoothing: The exponent.
        sizes: Domain -> size of its training text in any unit, positive, of those without a share.
    """
    left = 1 - math.fsum(domain.share or 0.0 for domain in domains.values())
    # Divided by the largest size first: sizes may be large, and only their ratios count.
    names = [name for name, domain in domains.items() if domain.share is None]
    largest = max(sizes[name] for name in names)
    weights = {name: (sizes[name] / largest) ** smoothing for name in names}
    total = math.fsum(weights.values())
    shares = {name: left * weight / total for name, weight in weights.items()}
    return {
        name: domain.model_copy(update={"share": shares[name]}) if name in shares else domain
        for name, domain in domains.items()
    }
