"""Log formats: one module each, every one of them a function from a record to calls. Facts are from each one's documentation.

values.py  hostile values to what a Call holds     bodies.py  requests and answers in the providers' dialects
sites.py   the name that calls are grouped by      the rest   one log format each
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from ..calls import Format
from .bedrock import Bedrock
from .helicone import Helicone
from .langfuse import Langfuse
from .litellm import LiteLLM
from .openai import Requests
from .otel import OpenTelemetry
from .plain import Plain, Recorded
from .usage import AnthropicUsage, OpenAIUsage
from .values import Faults
from .vertex import Vertex

__all__ = ["FORMATS", "Faults"]

_ALL: tuple[Format, ...] = (
    OpenTelemetry(),
    LiteLLM(),
    Langfuse(),
    Helicone(),
    Bedrock(),
    Vertex(),
    OpenAIUsage(),
    AnthropicUsage(),
    Requests(),
    Recorded(),
    Plain(),
)

FORMATS: Mapping[str, Format] = MappingProxyType({f.name: f for f in _ALL})  # the first that claims a record has it
