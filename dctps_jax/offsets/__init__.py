"""The offsets that a layer can add to its trained kernel, by name.

To add an offset, write a file with an :class:`Offset` beside ``hadamard.py`` and add the object to :data:`OFFSETS`.
"""

from dctps_jax.arguments import words
from dctps_jax.errors import UserError, did_you_mean
from dctps_jax.offsets.dct import DCT
from dctps_jax.offsets.hadamard import HADAMARD
from dctps_jax.offsets.offset import Factors, Offset, Transform

__all__ = ["OFFSETS", "Factors", "Offset", "Transform", "find_offset"]

OFFSETS: dict[str, Offset] = {offset.name: offset for offset in (DCT, HADAMARD)}


def find_offset(offset: str | Offset | None) -> Offset | None:
    """Return the offset with this name; an :class:`Offset` and None (no offset) are returned unchanged.

    Raises :class:`~dctps_jax.errors.UserError` for a name that is not in :data:`OFFSETS`.
    """
    if offset is None or isinstance(offset, Offset):
        return offset
    if not isinstance(offset, str) or offset not in OFFSETS:
        hint = did_you_mean(offset, OFFSETS) if isinstance(offset, str) else ""
        raise UserError(f"offset is {words(offset)}{hint}; it must be None or one of: {', '.join(OFFSETS)}")
    return OFFSETS[offset]
