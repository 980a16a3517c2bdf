"""What the numbers of a label map mean."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

# Okabe and Ito's colours, told apart by people of every colour vision, then lighter and darker ones between them.
PALETTE = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167),
    (153, 221, 255), (170, 68, 153), (136, 204, 136), (238, 153, 170), (119, 119, 221), (187, 187, 68), (102, 153, 153),
)  # fmt: skip

Byte = Annotated[int, Field(ge=0, le=255)]


class Code(BaseModel):
    """A coded concept, such as (5366008, SCT, "Hippocampus")."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: str
    scheme: str = "SCT"
    meaning: str


class Structure(BaseModel):
    """One structure of a label map.

    Attributes:
        value: Its number in the map; 0 is the background and no structure.
        name: What people call it.
        colour: sRGB; None takes one of the palette.
        category: Coded category, by default an anatomical structure.
        code: Coded type, where one is known.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: int = Field(gt=0)
    name: str = Field(min_length=1)
    colour: tuple[Byte, Byte, Byte] | None = None
    category: Code = Code(value="123037004", meaning="Anatomical structure")
    code: Code | None = None

    @property
    def rgb(self) -> tuple[int, int, int]:
        """The colour to draw it in."""
        return self.colour or PALETTE[(self.value - 1) % len(PALETTE)]


def unnamed(values: list[int]) -> tuple[Structure, ...]:
    """Structures for a label map that says nothing of its numbers: ``label 1`` and so on."""
    return tuple(Structure(value=value, name=f"label {value}") for value in sorted(values) if value > 0)
