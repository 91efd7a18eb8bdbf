"""Names, addresses, quantities: what several parts are written with."""

from __future__ import annotations

import enum
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from transfer_api.base import Contract
from transfer_api.language import LANGUAGE_PATTERN, check_language

NAME_PATTERN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
Name = Annotated[str, Field(pattern=NAME_PATTERN, max_length=63)]
Language = Annotated[
    str,
    AfterValidator(check_language),
    WithJsonSchema({"type": "string", "pattern": LANGUAGE_PATTERN, "maxLength": 35}),
]
Path = Annotated[str, Field(min_length=1, max_length=1024)]
Revision = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$", max_length=40)]
HubName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][-A-Za-z0-9_.]*(/[A-Za-z0-9][-A-Za-z0-9_.]*)?$", max_length=255)]
Label = Annotated[str, Field(min_length=1, max_length=255)]
# Names of the harness's tasks: ceval-valid_law, mmlu, arc_easy.
Suite = Annotated[str, Field(pattern=r"^[A-Za-z0-9][-A-Za-z0-9_.]*$", max_length=128)]
# No name, no password and no query: an address stands in logs and in the status.
ServerAddress = Annotated[str, Field(pattern=r"^https?://[^\s/?#@]+(/[^\s?#@]*)?$", max_length=1024)]
# Names of cluster objects that may have dots, and values of labels.
ObjectName = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253)]
LabelValue = Annotated[str, Field(pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$", max_length=63)]
LabelKey = Annotated[str, Field(pattern=r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$", max_length=316)]
InterfaceName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][-A-Za-z0-9_.]*$", max_length=15)]
QUANTITY_PATTERN = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$"


def _check_quantity(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError("is not a quantity")
    if (isinstance(value, int) and value < 0) or len(str(value)) > 32 or re.fullmatch(QUANTITY_PATTERN, str(value), re.ASCII) is None:
        raise ValueError("is not a quantity")
    return value


Quantity = Annotated[
    int | str,
    BeforeValidator(_check_quantity),
    WithJsonSchema({"x-kubernetes-int-or-string": True, "pattern": QUANTITY_PATTERN, "maxLength": 32, "minimum": 0}),
]


class Precision(enum.StrEnum):
    """Number format of the forward and backward pass; weights and optimizer are always float32."""

    FLOAT32 = "Float32"
    BFLOAT16 = "BFloat16"


class SecretKey(Contract):
    """A key of a Secret in the experiment's namespace."""

    name: Name = Field(description="Name of the Secret.")
    key: str = Field(default="token", min_length=1, max_length=253, description="Key inside the Secret.")
