"""What can be asked for: the presets, and the schema of a submission."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from api import schemas, serializers
from trainer.spec.presets import PRESETS

router = APIRouter(tags=["presets"])


@router.get("/presets")
def list_presets() -> schemas.Presets:
    return schemas.Presets(data=[serializers.preset(preset) for preset in PRESETS.values()])


@router.get("/schema")
def get_schema() -> dict[str, Any]:
    """The JSON schema of the body of `POST /jobs`."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schemas.JobSpec.model_json_schema()}
