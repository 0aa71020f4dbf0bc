"""What nobody outside Jelou knows, as switches."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Shape = Literal["flat", "envelope"]
ErrorBody = Literal["model", "bare", "message_array", "html", "empty", "echo"]


class Switches(BaseModel):
    """
    One switch for each unknown of the API.

    A simulator default is a choice of this project, not knowledge about Jelou.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_path: Literal["jelouapi/v1", "platform/v1", "both"] = Field(
        default="both", description="[U] base path: the version prefix that answers; the other one is a 404"
    )
    auth: Literal["api_key", "basic", "either"] = Field(
        default="either", description="[U] auth accepted: x-api-key, Basic clientId:clientSecret, or one of them"
    )
    shape: Literal["flat", "envelope", "mixed"] = Field(
        default="flat", description="[U] response shape: mixed alternates from one answer to the next"
    )
    validation_status: Literal[400, 422] = Field(
        default=400, description="[U] validation code: the status of a refused value"
    )
    error_body: ErrorBody = Field(
        default="model",
        description="[U] error body: the generic model, bare {code, description}, message as an array, HTML, nothing,"
        " or the worst case: the request's own headers and body",
    )
    second_create: Literal["overwrite", "409", "422"] = Field(
        default="409", description="[U] second create: overwritten with a new secret and 200, or refused"
    )
    no_auth_keeps_credential: bool = Field(
        default=False, description="[U] no_auth keeps or wipes the stored credential"
    )
    authorization_in_get: Literal["absent", "masked", "null", "echoed"] = Field(
        default="absent", description="[U] authorization in GET"
    )
    basic_encoded_by: Literal["jelou", "caller"] = Field(
        default="jelou",
        description="[U] basic credential: Jelou encodes user:password, or delivers what was stored as it is",
    )
    updated_at_moves_on_noop: bool = Field(
        default=True, description="[U] whether a PATCH that changes nothing moves updatedAt"
    )
    visible_after: int = Field(
        default=0, ge=0, description="[U] delay of a PATCH: how many GETs still show the former state"
    )
