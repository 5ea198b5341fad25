"""What the OpenAPI document says of requests' bodies: they are read raw, by `wire`, so FastAPI cannot know it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from ..operations import JSON, PROTOBUF

_LINE = {"type": "object", "properties": {"detail": {"type": "string"}}, "required": ["detail"]}
#: Answers that any route may give.
REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {JSON: {"schema": _LINE}}}
    for status, text in {
        400: "not taken: the line says what is wrong",
        401: "a key is needed",
        404: "nothing of that name is there",
        413: "the request is too large",
        415: "another content type is needed",
        422: "a field is missing or of another type",
        429: "too much at one time: ask again later",
        503: "the server starts or stops: ask again later",
    }.items()
}


def json_body(model: type[BaseModel]) -> dict[str, Any]:
    """`openapi_extra` of a route that takes JSON."""
    schema = model.model_json_schema()
    return {"requestBody": {"required": True, "content": {JSON: {"schema": _inlined(schema, schema.pop("$defs", {}))}}}}


def protobuf_body(message: str) -> dict[str, Any]:
    """`openapi_extra` of a route that takes protobuf."""
    schema = {"type": "string", "format": "binary", "description": f"protobuf message {message}"}
    return {"requestBody": {"required": True, "content": {PROTOBUF: {"schema": schema}}}}


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    """A schema whose references are replaced by what they mean: the document has its definitions elsewhere."""
    if isinstance(schema, dict):
        name = str(schema.get("$ref", "")).removeprefix("#/$defs/")
        if name in definitions:
            return _inlined(definitions[name], definitions)
        return {key: _inlined(value, definitions) for key, value in schema.items()}
    return [_inlined(value, definitions) for value in schema] if isinstance(schema, list) else schema
